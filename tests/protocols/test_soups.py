"""Soups and subsets, against a slow computation."""

import copy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from given_models import make
from support import family, labelled_batches, make_net
from tuned_tasks import TASKS, held_out, tuned

import mergescope as ms
from mergescope.errors import DataError, MergescopeError
from mergescope.protocols.soups import SoupSettings, soups, subsets

QUIET = SoupSettings(progress=False)


class Printed(list):
    """Batches that say which samples they hold."""

    fingerprint = "these"


def inputs(kind="mlp", samples=40):
    net = make_net(kind)
    base, *models = family(net, names=("base", *"abcd"), scale=0.3)
    data = {"noise": ms.HeldOut("noise", labelled_batches(samples, 16), net)}
    return net, base, {model.name: model for model in models}, data


def slow_logits(net, states, held):
    net, out = copy.deepcopy(net), []
    for state in states:
        net.load_state_dict(state)
        with torch.no_grad():
            out.append(torch.cat([net(x) for x, _ in held.batches]))
    return torch.stack(out), torch.cat([y for _, y in held.batches])


def slow_mean(states):
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def accuracy(logits, labels):
    return float((logits.argmax(-1) == labels).double().mean())


# -- subsets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_every_subset_is_averaged_by_weights_and_by_logits(size):
    net, base, models, data = inputs()
    found = subsets(models, data, size, base=base, settings=QUIET)
    assert [line.members for line in found.subsets] == list(combinations("abcd", size))
    assert found.total == len(found.subsets) and not found.trivial & {"output"}
    pairs = []
    for line in found.subsets:
        states = [models[name].state_dict() for name in line.members]
        logits, labels = slow_logits(net, states, data["noise"])
        merged, _ = slow_logits(net, [slow_mean(states)], data["noise"])
        assert line.soup.mean == pytest.approx(accuracy(merged[0], labels))
        assert line.ensemble.mean == pytest.approx(accuracy(logits.mean(0), labels))
        assert line.single == pytest.approx(np.mean([accuracy(one, labels) for one in logits]))
        pairs.append((line.soup.mean, line.ensemble.mean))
    wanted = np.corrcoef(np.array(pairs).T)[0, 1]
    assert found.correlation["pearson"].value == pytest.approx(wanted)
    assert found.difference.mean == pytest.approx(np.mean([soup - ensemble for soup, ensemble in pairs]))


def test_layers_are_those_of_the_averaging_test_one_subset_at_a_time():
    net, base, models, data = inputs("vit")
    found = subsets(models, data, 3, base=base, settings=QUIET)
    every = []
    for names in combinations("abcd", 3):
        test = ms.averaging([models[name] for name in names], base)
        every.append(ms.linearity(ms.trace(test.points, data["noise"].batches, net, progress=False), test))
    assert list(found.layers) == ["blocks.0", "blocks.1", "output"]
    for layer, measures in found.layers.items():
        for name, summary in measures.items():
            wanted = np.mean([result[layer].measures[name].mean for result in every])
            assert summary.mean == pytest.approx(wanted, abs=1e-6) and summary.n == 4


def test_models_are_run_once_and_so_is_every_average():
    _, base, models, data = inputs()
    batches = len(data["noise"].batches)
    assert subsets(models, data, 2, settings=QUIET).forward_passes == (4 + 6) * batches
    assert subsets(models, data, 2, base=base, settings=QUIET).forward_passes == (4 + 6 + 1) * batches


def test_too_many_subsets_are_drawn_by_chance_and_that_is_said():
    _, _, models, data = inputs()
    found = subsets(models, data, 2, settings=replace(QUIET, limit=3))
    assert len({
        line.members for line in found.subsets
    }) == 3 and "3 subsets of 2 of 6, drawn by chance" in str(found)
    again, other = (subsets(models, data, 2, settings=replace(QUIET, limit=3, seed=seed)) for seed in (0, 3))
    assert [line.members for line in again.subsets] == [line.members for line in found.subsets]
    assert [line.members for line in other.subsets] != [line.members for line in found.subsets]


def test_several_tasks_count_alike_whatever_their_sizes():
    net, _, models = tuned()
    data = {**held_out(samples=60), "one": held_out(seed=90, samples=20)["one"]}
    (line,) = subsets(models, data, 3, settings=QUIET).subsets
    merged = slow_mean([model.state_dict() for model in models.values()])
    of_tasks = []
    for held in data.values():
        logits, labels = slow_logits(net, [merged], held)
        of_tasks.append(accuracy(logits[0], labels))
    assert line.soup.mean == pytest.approx(np.mean(of_tasks))


# -- soups -------------------------------------------------------------------------------------------


def one_task(count=4, spoiled=()):
    """Models of one task, more or less trained; some of them ruined."""
    net, base, models = tuned()
    good = models["one"]
    out = {f"m{n}": ms.lerp(base, good, 0.7 + 0.1 * n) for n in range(count)}
    out |= {f"m{n}": good + 10 * (ms.random_neighbour(good, base, seed=n) - good) for n in spoiled}
    return (
        net,
        out,
        {"one": held_out(seed=20, samples=300)["one"]},
        {"one": held_out(seed=70, samples=300)["one"]},
    )


def slow_greedy(net, models, held):
    """Wortsman et al. 2022, recipe 1, model by model."""

    def score(names):
        logits, labels = slow_logits(net, [slow_mean([models[name].state_dict() for name in names])], held)
        return accuracy(logits[0], labels)

    order = sorted(models, key=lambda name: -score([name]))
    members = [order[0]]
    for name in order[1:]:
        if score([*members, name]) >= score(members):
            members.append(name)
    return tuple(members), score(members)


def test_greedy_soups_are_those_of_the_recipe_and_leave_ruined_models_out():
    net, models, validation, test = one_task(5, spoiled=(1, 3))
    found = soups(models, validation, test, settings=QUIET)
    members, score = slow_greedy(net, models, validation["one"])
    assert found["greedy"].members == members and not {"m1", "m3"} & set(members)
    assert found["greedy"].validation.mean == pytest.approx(score)
    assert found["greedy"].validation.mean >= found["best"].validation.mean > found["uniform"].validation.mean
    assert found["greedy"].test.mean > found["uniform"].test.mean
    assert [step.taken for step in found.steps if step.model in ("m1", "m3")] == [False, False]
    assert found["greedy"].point == ms.mean(models[name] for name in members)
    # Models and the uniform soup, then one pass for every average that was not passed yet.
    assert found.forward_passes <= (5 + 1 + 4) * len(validation["one"].batches)


def test_the_uniform_soup_and_the_ensemble_are_of_all_models():
    net, models, validation, test = one_task(3)
    found = soups(models, validation, test, settings=QUIET)
    states = [model.state_dict() for model in models.values()]
    for data, kind in ((validation, "validation"), (test, "test")):
        logits, labels = slow_logits(net, states, data["one"])
        merged, _ = slow_logits(net, [slow_mean(states)], data["one"])
        assert getattr(found["ensemble"], kind).mean == pytest.approx(accuracy(logits.mean(0), labels))
        assert getattr(found["uniform"], kind).mean == pytest.approx(accuracy(merged[0], labels))


def test_the_soup_is_never_chosen_by_test_data():
    _, models, validation, test = one_task(4, spoiled=(2,))
    ruined = {"one": replace(test["one"], batches=[(x, torch.zeros_like(y)) for x, y in test["one"].batches])}
    results = [soups(models, validation, other, settings=QUIET) for other in (None, test, ruined)]
    assert len({(result["greedy"].members, result["best"].members, result.steps) for result in results}) == 1
    assert (
        results[1]["greedy"].test.mean != results[2]["greedy"].test.mean and results[0]["greedy"].test is None
    )


def test_texts_are_compared_by_their_losses():
    network = make("GPT2LMHeadModel")
    base = ms.Checkpoint({key: value.clone() for key, value in network.state_dict().items()}, name="base")
    models = {name: ms.random_neighbour(base, base * 1.3, seed=n) for n, name in enumerate("abc")}
    tokens = torch.randint(3, 30, (6, 6), generator=torch.Generator().manual_seed(0))
    data = {"text": ms.HeldOut("text", [{"input_ids": tokens, "labels": tokens}], network)}
    again = {"text": replace(data["text"], batches=list(data["text"].batches))}
    found = soups(models, data, again, settings=QUIET)
    assert found.measure == "loss" and [soup.name for soup in found.soups] == ["best", "uniform", "greedy"]
    traced = ms.trace(models.values(), data["text"].batches, network, layers="output", progress=False)
    losses = {name: traced.reading(ms.NextTokenLoss).losses(model).mean() for name, model in models.items()}
    assert found["best"].members == (min(losses, key=losses.get),)
    assert found["best"].validation.mean == pytest.approx(min(losses.values()))
    assert found["greedy"].validation.mean <= found["best"].validation.mean
    with pytest.raises(MergescopeError, match="Ensembles of logits"):
        subsets(models, data, 2, settings=QUIET)


def test_the_soup_is_not_judged_by_the_samples_that_chose_it():
    _, _, models, data = inputs()
    told = "validation data of noise are the test data as well: the soup would be chosen"
    for test in (data, {"other": data["noise"]}):
        with pytest.raises(MergescopeError, match=told):
            soups(models, data, test, settings=QUIET)
    one, other = ({"noise": replace(data["noise"], batches=Printed(data["noise"].batches))} for _ in range(2))
    with pytest.raises(MergescopeError, match=told):
        soups(models, one, other, settings=QUIET)


def test_data_sets_of_the_same_samples_are_no_more_evidence_than_one():
    _, _, models, data = inputs()
    two = {name: replace(data["noise"], name=name, batches=Printed(data["noise"].batches)) for name in "xy"}
    one = {"x": two["x"]}
    both = [soups(models, held, settings=QUIET) for held in (one, two)]
    assert [line.validation for line in both[0].soups] == [line.validation for line in both[1].soups]
    subset = [subsets(models, held, 2, settings=QUIET) for held in (one, two)]
    assert subset[0].difference == subset[1].difference


def test_what_does_not_fit_is_said():
    net, _, models, data = inputs()
    with pytest.raises(MergescopeError, match="at least two models, got a"):
        soups({"a": models["a"]}, data, settings=QUIET)
    with pytest.raises(MergescopeError, match="no data"):
        subsets(models, {}, 2, settings=QUIET)
    with pytest.raises(MergescopeError, match="Choose a size from 2 to 4"):
        subsets(models, data, 5, settings=QUIET)
    plain = {"noise": replace(data["noise"], batches=[x for x, _ in data["noise"].batches])}
    with pytest.raises(DataError, match="no labels"):
        soups(models, plain, settings=QUIET)
    with pytest.raises(MergescopeError, match="Give models with a head"):
        soups(models, {"noise": replace(data["noise"], logits=False)}, settings=QUIET)


def test_results_print_and_give_rows():
    _, _, models, data = inputs()
    found = subsets(models, data, 3, settings=QUIET)
    assert "Spearman correlation" in str(found) and "a + b + c" in str(found)
    rows = found.rows()
    assert {row["measure"] for row in rows} >= {
        "pearson",
        "accuracy of averaged logits",
        "cos",
        "weights less logits",
    }
    single = {row["points"]: row["mean"] for row in rows if row["measure"] == "accuracy of a single model"}
    assert single == dict(found.singles)
    own = [row["mean"] for row in rows if row["measure"] == "mean accuracy of the single models"]
    assert own == [line.single for line in found.subsets]
    made = soups(models, data, inputs(samples=30)[3], settings=QUIET)
    assert "Greedy: +" in str(made) and len(made.rows()) == 2 * 4 + 2 * 4


# -- laws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "vit", "convnet"])
def test_copies_of_one_model_are_averaged_to_it_and_linear(kind):
    _, _, models, data = inputs(kind)
    twins = {name: ms.Checkpoint(models["a"].state_dict(), name=name) for name in "xyz"}
    found = subsets(twins, data, 2, settings=QUIET)
    assert all(line.soup.mean == line.ensemble.mean == line.single for line in found.subsets)
    assert found.difference.mean == found.difference.low == found.difference.high == 0
    assert all(measures["cos"].mean == pytest.approx(1) for measures in found.layers.values())
    made = soups(twins, data, settings=QUIET)
    assert len({soup.validation.mean for soup in made.soups}) == 1 and all(step.taken for step in made.steps)


def test_the_order_of_models_changes_no_average():
    _, _, models, data = inputs()
    turned = dict(reversed(models.items()))
    one, other = (subsets(some, data, 3, settings=QUIET) for some in (models, turned))
    by_members = {frozenset(line.members): (line.soup.mean, line.ensemble.mean) for line in other.subsets}
    assert all(
        by_members[frozenset(line.members)] == (line.soup.mean, line.ensemble.mean) for line in one.subsets
    )


def test_averages_and_ensembles_are_the_same_in_linearised_networks():
    _, base, models = tuned()
    found = subsets(models, held_out(), 2, base=base, settings=replace(QUIET, linearized=True))
    assert all(line.soup.mean == pytest.approx(line.ensemble.mean, abs=0.01) for line in found.subsets)
    assert all(measures["gap"].mean < 1e-4 for measures in found.layers.values())
    assert found.forward_passes == (len(TASKS) + 1) * len(TASKS)
