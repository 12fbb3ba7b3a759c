"""What must hold of addition and negation, whatever the network and the data."""

import pytest
from support import NETS, family, labelled_batches, make_net

import mergescope as ms
from mergescope.protocols import HeldOut
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.compare import Way, compare_methods
from mergescope.protocols.evaluation import evaluate
from mergescope.protocols.forgetting import task_negation
from mergescope.protocols.tuning import ArithmeticSettings

GRID = ArithmeticSettings((0, 0.25, 0.5, 1), extend=False, progress=False)


def tasks(net, names, shift=0, samples=20):
    return {
        name: HeldOut(name, labelled_batches(samples, 8, seed=n + shift), net) for n, name in enumerate(names)
    }


def models_of(net, names="ab"):
    base, *tuned = family(net, scale=0.2)
    return base, dict(zip(names, tuned, strict=False))


@pytest.mark.parametrize("kind", NETS)
def test_coefficient_zero_is_the_base(kind):
    net = make_net(kind)
    base, models = models_of(net)
    held, test = tasks(net, "ab"), tasks(net, "ab", 9)
    found = task_addition(base, models, held, test, GRID)
    want = evaluate([base], held, progress=False).accuracies(base)
    assert found.search.accuracies[0.0] == want
    lost = task_negation(base, models, held, test, GRID)
    assert {task: lost.search.targets[task][0.0] for task in models} == want
    assert {task: said.mean for task, said in lost.test[0].target.items()} == {
        task: said.mean for task, said in found.test[0].accuracy.items()
    }


@pytest.mark.parametrize("kind", NETS)
def test_a_task_vector_of_zero_changes_nothing(kind):
    net = make_net(kind)
    base, models = models_of(net)
    held = tasks(net, "ab")
    still = {"a": ms.Point.of(base), "b": base + 0 * (models["a"] - base)}
    found = task_addition(base, still, held, None, GRID)
    assert found.lam == 0 and set(found.search.choice.scores.values()) == {1.0}
    assert found.forward_passes == 2 * 3  # all of the line is the base
    for choice in task_negation(base, still, held, None, GRID).search.choices.values():
        assert (choice.lam, choice.binds) == (0, "no gain")
    one = {"a": models["a"], "b": ms.Point.of(base)}
    line = task_addition(base, one, held, None, GRID).search.accuracies
    alone = evaluate([models["a"]], held, progress=False).accuracies(models["a"])
    assert line[1.0] == alone


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_the_order_of_tasks_changes_nothing(kind):
    net = make_net(kind)
    base, models = models_of(net, "abc")
    held, test = tasks(net, "abc"), tasks(net, "abc", 9)

    def turned(mapping):
        return dict(reversed(mapping.items()))

    one = task_addition(base, models, held, test, GRID)
    two = task_addition(base, turned(models), turned(held), turned(test), GRID)
    assert one.lam == two.lam and one.tuned.accuracy == two.tuned.accuracy
    assert one.search.choice.scores == pytest.approx(two.search.choice.scores)
    one, two = (
        task_negation(base, told(models), told(held), None, GRID).search.choices for told in (dict, turned)
    )
    for task in models:
        assert one[task].lam == two[task].lam and one[task].target == two[task].target


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_one_model_merged_with_itself_is_the_model(kind):
    net = make_net(kind)
    base, models = models_of(net, "a")
    held, test = tasks(net, "a"), tasks(net, "a", 9)
    found = task_addition(base, models, held, test, GRID)
    assert found.search.accuracies[1.0] == found.search.single
    assert found.test[3].normalised.mean == found.test[2].normalised.mean == 1
    ways = [Way("linear"), Way("task_arithmetic"), Way("ties", {"density": 1.0}), Way("iso_c"), Way("tsv")]
    lines = {
        line.scores.name: line.scores
        for line in compare_methods(base, models, held, test, ways, GRID).methods
    }
    for name in ("linear", "task_arithmetic, lambda 1", "ties (density 1), lambda 1", "tsv, lambda 1"):
        assert lines[name].normalised.mean == pytest.approx(1), name


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_the_size_of_batches_changes_nothing(kind):
    net = make_net(kind)
    base, models = models_of(net)
    whole, split = (
        {name: HeldOut(name, labelled_batches(20, size, seed=n), net) for n, name in enumerate(models)}
        for size in (20, 3)
    )
    one, two = (task_addition(base, models, held, None, GRID).search.choice for held in (whole, split))
    assert one == two
