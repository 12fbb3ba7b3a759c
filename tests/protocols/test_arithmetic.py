"""Addition and negation: what is chosen on validation, what is reported of test, and which limit binds."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import MergescopeError, PointError
from mergescope.protocols import HeldOut, normalised_accuracy
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.forgetting import task_negation
from mergescope.protocols.search import choose_negation, grid_parts
from mergescope.protocols.tuning import ArithmeticSettings

TENTHS = tuple(i / 10 for i in range(11))


def settings(grid=TENTHS, **more):
    return ArithmeticSettings(grid, **{"extend": False, "progress": False} | more)


class Printed(list):
    """Batches that say which samples they hold."""

    def __init__(self, batches, fingerprint):
        super().__init__(batches)
        self.fingerprint = fingerprint


def printed(held, fingerprint):
    return replace(held, batches=Printed(held.batches, fingerprint))


def peaks(a, b=None):
    return {"a": planted.peak("a", a), "b": planted.peak("b", a if b is None else b)}


# -- addition --------------------------------------------------------------------------------------


def test_the_coefficient_is_that_of_the_best_validation_accuracy():
    base, models = planted.family()
    found = task_addition(base, models, peaks(0.5), peaks(0.5), settings())
    assert found.lam == 0.5 and found.search.choice.score > 1
    assert [line.name for line in found.test] == [
        "base", "single-task models", "average", "lambda = 1", "lambda = 0.5 (tuned)",
    ]  # fmt: skip
    assert found.tuned.accuracy["a"].mean == 1 and found.tuned.mean.mean == 1
    at_one = found.test[3]
    assert at_one.accuracy["a"].mean == pytest.approx(5 / 9) and at_one.normalised.mean == 1
    assert found.binds == "the grid's end does not bind"
    own = {row["data"]: row["mean"] for row in found.rows()
           if row["points"] == "single-task models" and row["measure"] == "validation accuracy"}  # fmt: skip
    assert own == dict(found.search.single)
    assert "lambda = 0.5, chosen on validation" in str(found) and "single-task models" in str(found)


def test_test_data_take_no_part_in_the_choice():
    base, models = planted.family()
    honest = task_addition(base, models, peaks(0.3), None, settings())
    leaking = task_addition(base, models, peaks(0.8), None, settings())
    assert (honest.lam, leaking.lam) == (
        0.3,
        0.8,
    )  # the plant is one: these test data would change the choice
    found = task_addition(base, models, peaks(0.3), peaks(0.8), settings())
    assert found.search == replace(honest.search, seconds=found.search.seconds)
    assert found.tuned.accuracy["a"].mean == pytest.approx(5 / 9) and found.tuned.parameter == 0.3


def test_the_same_data_may_not_choose_and_judge():
    base, models = planted.family()
    same = peaks(0.5)
    for protocol in (task_addition, task_negation):
        with pytest.raises(MergescopeError, match="validation data of a, b are the test data as well"):
            protocol(base, models, same, same, settings())
    control = planted.peak("a", 0.5)
    with pytest.raises(MergescopeError, match="validation data of the control data are the test data"):
        task_negation(base, models, peaks(0.5), peaks(0.5), settings(), control=(control, control))


def test_equal_samples_may_not_choose_and_judge_either():
    base, models = planted.family()
    one, other = ({task: printed(held, task) for task, held in peaks(0.5).items()} for _ in range(2))
    with pytest.raises(MergescopeError, match="validation data of a, b are the test data as well"):
        task_addition(base, models, one, other, settings())


def test_among_equal_coefficients_the_smallest_is_chosen():
    base, models = planted.family()
    data = {task: planted.held(task, [0.25, 0.25], [0.95]) for task in "ab"}
    assert task_addition(base, models, data, None, settings()).lam == 0.3


def test_a_grid_goes_on_while_its_end_is_the_best():
    base, models = planted.family()
    ends = task_addition(base, models, peaks(1.4), None, settings())
    assert ends.lam == 0 and not ends.search.choice.at_end  # a flat grid: nothing is better than no edit
    rising = {task: planted.held(task, np.linspace(0, 1.6, 33)) for task in "ab"}
    ends = task_addition(base, models, rising, None, settings())
    assert ends.lam == 1 and ends.binds.startswith("the grid's end binds, 1:")
    more = task_addition(base, models, rising, None, settings(extend=True))
    assert more.lam == 1.7 and more.binds == "the grid's end does not bind"
    assert max(more.search.choice.scores) == 1.8  # two tenths at a time
    short = task_addition(base, models, rising, None, settings(extend=True, limit=1.2))
    assert short.lam == 1.2 and short.binds.startswith("it is at the limit of the search, 1.2:")
    batches = len(rising["a"].batches)
    assert ends.forward_passes == 2 * (11 + 1) * batches
    assert more.forward_passes == ends.forward_passes + 2 * 8 * batches


@pytest.mark.parametrize("extend", [False, True])
def test_a_linearised_family_takes_one_pass_a_checkpoint(extend):
    net = make_net("mlp")
    base, a, b, c = family(net, scale=0.3)
    models = {"a": a, "b": b, "c": c}
    data = {t: HeldOut(t, labelled_batches(24, 8, seed=n), net) for n, t in enumerate(models)}
    test = {t: HeldOut(t, labelled_batches(16, 8, seed=9 + n), net) for n, t in enumerate(models)}
    for protocol in (task_addition, task_negation):
        fast, slow = (
            protocol(base, models, data, test, settings(linearized=True, extend=extend, executor=executor))
            for executor in ("auto", "resident")
        )
        assert fast.linearized and fast.search.forward_passes == 4 * 3 * 3
        assert fast.forward_passes == 4 * 3 * (3 + 2)
        assert slow.forward_passes > 2 * fast.forward_passes
        choice = "choice" if protocol is task_addition else "choices"
        assert getattr(fast.search, choice) == getattr(slow.search, choice)
        assert [row["mean"] for row in fast.rows()] == pytest.approx(
            [row["mean"] for row in slow.rows()], abs=1e-5
        )


def test_addition_is_what_a_loop_over_coefficients_finds():
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.3)
    models = {"a": a, "b": b}
    data = {task: HeldOut(task, labelled_batches(40, 8, seed=n), net) for n, task in enumerate(models)}

    def accuracy(point, task):
        net.load_state_dict(point.state_dict())
        with torch.no_grad():
            hits = [(net(x).argmax(1) == y).float() for x, y in data[task].batches]
        return float(torch.cat(hits).mean())

    single = {task: accuracy(ms.Point.of(model), task) for task, model in models.items()}
    slow = {}
    for lam in TENTHS:
        point = base + lam * (a - base) + lam * (b - base)
        slow[lam] = normalised_accuracy({task: accuracy(point, task) for task in models}, single)
    found = task_addition(base, models, data, None, settings())
    assert found.search.choice.scores == pytest.approx(slow)
    assert found.lam == min(slow, key=lambda lam: (-slow[lam], lam))


def test_tasks_must_be_those_of_the_models():
    base, models = planted.family()
    with pytest.raises(
        MergescopeError, match="no validation data for b and no model for the validation data of x"
    ):
        task_addition(base, models, {"a": planted.peak("a", 0.5), "x": planted.peak("b", 0.5)})
    with pytest.raises(MergescopeError, match="no test data for b"):
        task_addition(base, models, peaks(0.5), {"a": planted.peak("a", 0.5)})
    with pytest.raises(MergescopeError, match="at least one fine-tuned model"):
        task_addition(base, {}, {})
    with pytest.raises(MergescopeError, match="no test figures"):
        task_addition(base, models, peaks(0.5), None, settings()).tuned  # noqa: B018


@pytest.mark.parametrize("grid", [(), (0.5, 0.5), (1.0, 0.5), (-0.5, 0.5)])
def test_a_grid_is_ascending_from_zero_on(grid):
    with pytest.raises(PointError, match="Give numbers from 0 on"):
        grid_parts(grid)


def test_parts_of_a_grid():
    first, *rest = grid_parts(ArithmeticSettings().grid, 3.0)
    assert len(first) == 21 and [len(part) for part in rest] == [5] * 8 and rest[-1][-1] == 3
    assert grid_parts((0.5,), 3.0) == [(0.5,)] and grid_parts((0, 1), 0.5) == [(0.0, 1.0)]


# -- negation --------------------------------------------------------------------------------------
# On the negated line the weights are (-lam, 0): samples of class 1 at t are right up to lam = -t.


def forget(task, until, controls=()):
    """Samples of a task that are forgotten above some coefficients, and some that never are."""
    return planted.held(task, [-t for t in until] + [-9.0] * len(controls))


def negated(until_a, control, **more):
    base, models = planted.family()
    data = {"a": forget("a", until_a), "b": forget("b", [9.0])}
    return task_negation(base, models, data, None, settings(**more), control=(control, None))


def test_the_lowest_target_accuracy_within_the_control_rule():
    steps = np.arange(0.05, 0.9, 0.1)
    free = negated(steps, forget("a", [9.0] * 20))
    assert free.search.choices["a"].binds == "neither" and free.search.choices["a"].lam == 0.9
    held = negated(steps, forget("a", [9.0] * 18 + [0.45, 0.25]))  # 18 / 20 is too little, 19 / 20 is enough
    choice = held.search.choices["a"]
    assert (choice.lam, choice.control, choice.binds) == (0.4, 0.95, "control rule")
    assert choice.feasible and choice.floor == pytest.approx(0.95)
    assert "control rule" in str(held)


def test_the_grids_end_binds_and_may_be_moved():
    steps = np.arange(0.05, 1.5, 0.1)
    short = negated(steps, forget("a", [9.0] * 20))
    assert (short.search.choices["a"].lam, short.search.choices["a"].binds) == (1, "grid's end")
    assert short.search.choices["b"].lam == 0 and short.search.choices["b"].binds == "no gain"
    long = negated(steps, forget("a", [9.0] * 20), extend=True)
    assert (long.search.choices["a"].lam, long.search.choices["a"].binds) == (1.5, "neither")
    assert max(long.search.targets["a"]) == 1.6 and max(long.search.targets["b"]) == 1


def test_nothing_feasible_is_said_and_gives_the_pretrained_model():
    found = negated([0.05, 0.15], forget("a", [9.0] * 9 + [0.05]))
    choice = found.search.choices["a"]
    assert (choice.lam, choice.feasible, choice.binds) == (0, False, "no feasible coefficient")
    assert choice.target == 1 and "a: no feasible coefficient" in str(found) and "b: no" not in str(found)
    (row,) = [r for r in found.rows() if r["data"] == "a" and r["measure"] == "feasible"]
    assert (row["mean"], row["parameter"]) == (0, 0)


def test_without_control_data_the_other_tasks_are_it():
    base, models = planted.family()
    data = {task: forget(task, np.arange(0.05, 0.9, 0.1)) for task in "ab"}
    test = {task: forget(task, [0.35, 9.0]) for task in "ab"}
    found = task_negation(base, models, data, test, settings())
    assert found.control == "the mean of the other tasks" and found.control in str(found)
    for task, choice in found.search.choices.items():  # to forget one does nothing to the other
        assert (choice.lam, choice.target, choice.control) == (0.9, 0, 1), task
    base_said, one, tuned = found.test
    assert (base_said.mean_target.mean, base_said.mean_control.mean) == (1, 1)
    assert (tuned.target["a"].mean, tuned.control["a"].mean, tuned.lam["a"]) == (0.5, 1, 0.9)
    assert one.lam == {"a": 1.0, "b": 1.0} and tuned.mean_target.n == 4
    means = {(row["points"], row["measure"]): row["mean"] for row in found.rows() if row["data"] == "a ∪ b"}
    assert means == {
        (said.name, f"mean {what} accuracy"): getattr(said, f"mean_{what}").mean
        for said in found.test
        for what in ("target", "control")
    }
    alone = {"a": models["a"]}
    with pytest.raises(MergescopeError, match="Negating the only task needs control data"):
        task_negation(base, alone, {"a": data["a"]})


def test_means_over_tasks_count_shared_samples_once():
    base, models = planted.family()
    data = {task: forget(task, np.arange(0.05, 0.9, 0.1)) for task in "ab"}
    test = {task: printed(forget(task, [0.35, 9.0]), "shared") for task in "ab"}
    tuned = task_negation(base, models, data, test, settings()).test[-1]
    assert (tuned.mean_target.n, tuned.mean_control.n) == (2, 2)


def test_control_data_need_a_part_to_report_of():
    base, models = planted.family()
    data, test = ({task: forget(task, [0.5]) for task in "ab"} for _ in range(2))
    with pytest.raises(MergescopeError, match=r"give control=\(validation, test\)"):
        task_negation(base, models, data, test, settings(), control=(forget("a", [9.0]), None))
    found = task_negation(
        base, models, data, test, settings(), control=(forget("a", [9.0]), forget("a", [9.0, 0.65]))
    )
    assert found.test[-1].control["a"].mean == 1 and found.test[1].control["a"].mean == 0.5


def test_negation_data_choose_nothing_either():
    base, models = planted.family()
    data = {task: forget(task, [0.25]) for task in "ab"}
    test = {task: forget(task, [0.75]) for task in "ab"}
    assert task_negation(base, models, test, None, settings()).search.choices["a"].lam == 0.8
    found = task_negation(base, models, data, test, settings())
    assert found.search.choices["a"].lam == 0.3 and found.test[-1].target["a"].mean == 1


def test_both_limits_may_bind_and_ties_are_small():
    found = choose_negation({0: 0.9, 0.5: 0.1, 1: 0.4}, {0: 1.0, 0.5: 0.5, 1: 1.0}, 0.95)
    assert (found.lam, found.binds) == (1, "grid's end and control rule")
    assert choose_negation({0: 0.9, 0.5: 0.4, 1: 0.4}, {0: 1, 0.5: 1, 1: 1}, 0.95).lam == 0.5
    with pytest.raises(PointError, match="coefficient 0 must be evaluated"):
        choose_negation({0.5: 0.1}, {0.5: 1.0}, 0.9)
