"""What models say on tasks: one pass a task, the same as running every model on its own."""

import numpy as np
import pytest
import torch
from slow_reference import feature_maps, loss_and_hit
from support import NETS, family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.protocols import HeldOut
from mergescope.protocols.evaluation import evaluate, joined, planned_passes
from mergescope.protocols.scores import over_tasks, score_table, scores_of
from mergescope.readings import bootstrap

QUIET = {"progress": False}


class Printed(list):
    """Batches that say which samples they hold."""

    fingerprint = "these"


def two_tasks(net):
    return {
        "first": HeldOut("first", labelled_batches(10, 4), net),
        "second": HeldOut("second", labelled_batches(7, 4, seed=5), net),
    }


@pytest.mark.parametrize("kind", NETS)
def test_every_sample_as_if_each_model_ran_alone(kind):
    net = make_net(kind)
    base, a, b, _ = family(net)
    points = [ms.Point.of(base), ms.Point.of(a), base + 0.3 * (a - base) + 0.3 * (b - base)]
    held = two_tasks(net)
    found = evaluate(points, held, **QUIET)
    for task, data in held.items():
        labels = torch.cat([y for _, y in data.batches]).tolist()
        for point in points:
            _, logits = feature_maps(net, point.state_dict(), data.batches, ["output"])
            slow = np.array([loss_and_hit(*both) for both in zip(logits, labels, strict=True)])
            np.testing.assert_allclose(found[task].losses_of(point), slow[:, 0], atol=1e-5)
            np.testing.assert_array_equal(found[task].correct_of(point), slow[:, 1])
            assert found[task].accuracy(point) == pytest.approx(slow[:, 1].mean())
            assert found[task].loss(point) == pytest.approx(slow[:, 0].mean(), abs=1e-5)
    assert found.accuracies(a) == {task: found[task].accuracy(a) for task in held}


def test_equal_points_run_once_and_each_task_runs_its_own():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    held = two_tasks(net)
    same = {"first": [base, a, a + (b - b)], "second": [b]}
    found = evaluate(same, held, **QUIET)
    assert found.forward_passes == 2 * 3 + 1 * 2 == planned_passes(same, {"first": 3, "second": 2})
    assert found.accuracies(b) == {"second": found["second"].accuracy(b)}
    assert (found["first"].samples, found["second"].samples) == (10, 7)
    with pytest.raises(PointError, match="b was not evaluated on first"):
        found["first"].accuracy(b)
    with pytest.raises(PointError, match=r"Nothing was evaluated on 'secnd'\. Did you mean: second"):
        found["secnd"]


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_a_linearised_network_runs_checkpoints_only(kind):
    net = make_net(kind)
    base, a, b, _ = family(net)
    line = [base + lam * ((a - base) + (b - base)) for lam in (0.1, 0.4, 0.9, 2.0)]
    held = {"digits": HeldOut("digits", labelled_batches(10, 4), net)}
    fast = evaluate([base, *line], held, around=base, **QUIET)
    slow = evaluate([base, *line], held, around=base, executor="resident", **QUIET)
    assert (
        fast.forward_passes == 3 * 3 == planned_passes({"digits": [base, *line]}, {"digits": 3}, affine=True)
    )
    assert slow.forward_passes == 5 * 3
    for point in line:
        np.testing.assert_allclose(
            fast["digits"].losses_of(point), slow["digits"].losses_of(point), atol=1e-4
        )
    ordinary = evaluate(line, held, **QUIET)
    assert abs(ordinary["digits"].loss(line[-1]) - fast["digits"].loss(line[-1])) > 1e-3


def test_what_has_no_accuracy_is_refused_by_name():
    net = make_net("mlp")
    base = family(net)[0]
    unlabelled = {"noise": HeldOut("noise", [torch.randn(3, 1, 8, 8)], net)}
    with pytest.raises(DataError, match="noise: the data have no labels"):
        evaluate([base], unlabelled, **QUIET)
    embeds = {"noise": HeldOut("noise", labelled_batches(), net, logits=False)}
    with pytest.raises(MergescopeError, match="noise: MLP predicts no classes"):
        evaluate([base], embeds, **QUIET)
    with pytest.raises(MergescopeError, match="no task to evaluate on"):
        evaluate([base], {}, **QUIET)
    with pytest.raises(MergescopeError, match=r"no data, for frist\. Did you mean: first"):
        evaluate({"frist": [base]}, two_tasks(net), **QUIET)


# -- scores ----------------------------------------------------------------------------------------


def test_scores_are_means_over_tasks_not_over_samples():
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.5)
    found = evaluate([base, a, b], two_tasks(net), **QUIET)
    single = {"first": a, "second": b}
    said = scores_of("base", found, base, single, parameter=0.0)
    hits = {task: found[task].correct_of(base) for task in single}
    assert said.mean.mean == pytest.approx(np.mean([hits[task].mean() for task in single]))
    ratios = [hits[task].mean() / found[task].accuracy(single[task]) for task in single]
    assert said.normalised.mean == pytest.approx(np.mean(ratios))
    own = scores_of("own", found, single, single)
    assert (own.normalised.mean, own.normalised.low, own.normalised.high) == (1, 1, 1)
    assert own.accuracy["first"].mean == found["first"].accuracy(a)
    assert scores_of("base", found, base).normalised is None
    heading, line = score_table([said])
    assert heading.split()[:3] == ["model", "first", "second"]
    assert f"{said.mean.mean:.4f}" in line and f"{said.normalised.low:.4f}" in line
    measures = [row["measure"] for row in said.rows("accuracy")]
    assert measures == ["accuracy"] * 2 + ["loss"] * 2 + ["mean accuracy", "normalised accuracy"]


def test_the_interval_of_one_task_is_the_bootstrap_of_its_samples():
    values = np.random.default_rng(0).random(200)
    mine, theirs = over_tasks([values], resamples=4000), bootstrap(values[:, None], resamples=4000)[0]
    assert mine.mean == pytest.approx(theirs.mean)
    assert (mine.low, mine.high) == (
        pytest.approx(theirs.low, abs=4e-3),
        pytest.approx(theirs.high, abs=4e-3),
    )


def test_tasks_count_alike_and_texts_without_a_value_do_not():
    found = over_tasks([np.array([1.0, np.nan]), np.array([0.0, 1.0, 0.0, 1.0])])
    assert (found.mean, found.n, found.dead) == (0.75, 5, 1)
    wide = over_tasks([np.array([0.0, 1.0] * 50)])
    narrow = over_tasks([np.array([0.0, 1.0] * 50)] * 4)
    assert narrow.high - narrow.low < 0.65 * (wide.high - wide.low)  # independent tasks: a half is expected


def test_tasks_with_the_same_samples_are_resampled_together():
    values = np.array([0.0, 1.0] * 50)
    alone = over_tasks([values])
    assert over_tasks([values] * 2, alike=[0, 0]) == alone
    halves = over_tasks([values] * 4, alike=[0, 1, 0, 1])
    assert halves.n == 200 and halves.high - halves.low < alone.high - alone.low


def test_scores_on_shared_samples_are_no_surer_than_those_of_one_task():
    net = make_net("mlp")
    base, a, *_ = family(net, scale=0.5)
    held = {task: HeldOut(task, Printed(labelled_batches(40, 8)), net) for task in ("first", "second")}
    both = evaluate([base, a], held, **QUIET)
    alone = evaluate([base, a], {"first": held["first"]}, **QUIET)
    two, one = (scores_of("base", found, base, dict.fromkeys(found.tasks, a)) for found in (both, alone))
    assert (two.mean, two.normalised) == (one.mean, one.normalised)
    assert joined(both, both).alike_of(held) == [0, 0]


def test_a_ratio_resamples_both_of_its_numbers_together():
    values = np.random.default_rng(1).integers(0, 2, 60).astype(float)
    same = over_tasks([values], [values])
    assert (same.low, same.mean, same.high) == (1, 1, 1)
    apart = over_tasks([values], [values[::-1].copy()])
    assert apart.high - apart.low > 0.1 and apart.mean == 1
    with pytest.raises(PointError, match="single-task accuracy of task 1 is zero"):
        over_tasks([values], [np.zeros(60)])
