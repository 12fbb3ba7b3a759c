import numpy as np
import pytest
import slow_reference
import torch
from support import NETS, family, labelled_batches, make_net, scalars

import mergescope as ms
from mergescope.errors import PointError
from mergescope.protocols import line
from mergescope.readings import bootstrap


def test_a_line_runs_from_b_to_a_and_includes_its_ends():
    a, b = scalars(a=1, b=2)
    points = line(a, b, [0.75, 0.25])
    assert list(points) == [0.0, 0.25, 0.75, 1.0]
    assert points[0.0] == ms.Point.of(b) and points[1.0] == ms.Point.of(a)
    assert points[0.25] == 0.25 * a + 0.75 * b


@pytest.mark.parametrize("kind", NETS)
def test_loss_error_and_barriers_are_the_slow_ones(kind):
    net = make_net(kind)
    _, a, b, _ = family(net, scale=0.4)
    alphas = [0.1, 0.5, 0.8]
    sets = [labelled_batches(10, 4, seed=7), labelled_batches(5, 4, seed=8)]
    points = line(a, b, alphas)
    curve = ms.barrier([ms.trace(points.values(), data, net) for data in sets], a, b, alphas)

    labels = torch.cat([y for data in sets for _, y in data]).tolist()
    losses, errors = {}, {}
    for alpha, point in points.items():
        logits = slow_reference.feature_maps(net, point.state_dict(), sets[0] + sets[1], [])[1]
        rows = [slow_reference.loss_and_hit(z, y) for z, y in zip(logits, labels, strict=True)]
        losses[alpha] = np.mean([loss for loss, _ in rows])
        errors[alpha] = 1 - np.mean([hit for _, hit in rows])
    np.testing.assert_allclose(curve.alphas, [0, 0.1, 0.5, 0.8, 1])
    np.testing.assert_allclose(curve.loss, list(losses.values()), rtol=1e-5)
    np.testing.assert_allclose(curve.error, list(errors.values()), atol=1e-9)
    for values, got in ((losses, curve.loss_barrier), (errors, curve.error_barrier)):
        expected = max(values[t] - t * values[1.0] - (1 - t) * values[0.0] for t in alphas)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_accuracies_of_models_and_of_their_ensemble_are_the_slow_ones():
    net, batches = make_net("vit"), labelled_batches(12, 5)
    _, a, b, c = family(net, scale=0.4)
    merged = ms.mean([a, b, c])
    members = [ms.Point.of(m) for m in (a, b, c)]
    reading = ms.Outputs(ensembles={"ensemble": members})
    ms.trace([merged, *members], batches, net, readings=[reading])
    labels = torch.cat([y for _, y in batches]).tolist()
    logits = [slow_reference.feature_maps(net, p.state_dict(), batches, [])[1] for p in [merged, *members]]
    for name, rows in ((merged, logits[0]), (members[1], logits[2]), ("ensemble", sum(logits[1:]) / 3)):
        expected = [slow_reference.loss_and_hit(z, y) for z, y in zip(rows, labels, strict=True)]
        np.testing.assert_allclose(reading.losses(name), [loss for loss, _ in expected], rtol=1e-5)
        np.testing.assert_array_equal(reading.correct(name), [hit for _, hit in expected])


@pytest.mark.parametrize("alphas", [[], [0, 1], [-0.5, 1.5]])
def test_a_grid_without_an_interior_is_refused(alphas):
    net = make_net("mlp")
    _, a, b, _ = family(net)
    traced = ms.trace(line(a, b, alphas).values(), labelled_batches(), net)
    with pytest.raises(PointError, match="strictly between 0 and 1"):
        ms.barrier(traced, a, b, alphas)


def test_a_trace_without_the_line_is_refused_naming_the_points():
    net = make_net("mlp")
    _, a, b, _ = family(net)
    traced = ms.trace([a, b], labelled_batches(), net)
    with pytest.raises(PointError, match=r"lacks points of the line: 0\.5\*a \+ 0\.5\*b"):
        ms.barrier(traced, a, b, [0.5])


def test_two_equal_models_have_no_barrier():
    net = make_net("mlp")
    _, a, _, _ = family(net)
    traced = ms.trace([a], labelled_batches(), net)
    curve = ms.barrier(traced, a, a, [0.5])
    assert curve.loss_barrier == pytest.approx(0, abs=1e-12) and curve.error_barrier == pytest.approx(
        0, abs=1e-12
    )


def test_the_barrier_s_interval_is_that_of_the_samples_at_its_largest():
    net = make_net("vit")
    _, a, b, _ = family(net, scale=0.4)
    alphas = [-0.5, 0.25, 0.5]
    points = line(a, b, alphas)
    traced = ms.trace(points.values(), labelled_batches(40, 8), net)
    curve = ms.barrier(traced, a, b, alphas)
    said = traced.reading(ms.Outputs)
    ends = []
    for alpha in (0.25, 0.5):
        chord = alpha * said.losses(points[1.0]) + (1 - alpha) * said.losses(points[0.0])
        (found,) = bootstrap((said.losses(points[alpha]) - chord)[:, None])
        ends.append((found.low, found.high))
    assert curve.loss_interval == pytest.approx(np.max(ends, 0))
    assert curve.loss_interval[0] < curve.loss_barrier < curve.loss_interval[1]
    rows = {row["measure"]: row for row in curve.rows() if row["kind"] == "barrier"}
    assert (rows["error"]["low"], rows["error"]["high"]) == curve.error_interval
    twice = ms.trace(points.values(), labelled_batches(40, 8), net)
    units = np.tile(np.arange(40), 2)
    both = ms.barrier([traced, twice], a, b, alphas)
    once = ms.barrier([traced, twice], a, b, alphas, units=units)
    assert np.ptp(both.loss_interval) < np.ptp(once.loss_interval)
    assert once.loss_interval == pytest.approx(curve.loss_interval)
