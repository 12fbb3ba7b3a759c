"""What must hold of every curvature, and of every check of Theorem 5.1, whatever the network."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.protocols.curvature import CurvatureSettings, curvature, eigenvalues, lanczos
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem import TheoremSettings, check_theorem
from mergescope.readings.regression import least_squares

QUIET = CurvatureSettings(progress=False)


def held(batches, net, name="data"):
    return HeldOut(name, batches, net)


@pytest.mark.parametrize("end", ["largest", "smallest", "magnitude"])
def test_the_eigenvalues_of_a_quadratic_are_exact(end):
    spectrum = np.array([7.0, 3.0, 0.5, 0.0, -2.0, -9.0])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    a = rotation * spectrum @ rotation.T
    found = lanczos(a.dot, 6, end=end, tolerance=1e-12)
    assert found.values[0] == pytest.approx({"largest": 7, "smallest": -9, "magnitude": -9}[end], rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_a_number_in_the_bulk_of_a_spectrum_is_not_taken_for_its_end(seed):
    # The residual of anything near zero is small next to a far end at the other side.
    spectrum = np.concatenate([[20.0, -500.0], np.random.default_rng(seed).normal(0, 0.01, 3000)])
    found = lanczos(lambda v: spectrum * v, len(spectrum), tolerance=0.01, seed=seed)
    assert found.converged and found.values[0] == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("factor", [1e-6, 3.0, -2.0])
def test_scaling_a_matrix_scales_its_eigenvalues(factor):
    a = np.random.default_rng(1).standard_normal((40, 40))
    a = a + a.T
    one, other = (lanczos((c * a).dot, 40, end="magnitude", count=2) for c in (1, factor))
    np.testing.assert_allclose(other.values, factor * np.array(one.values), rtol=1e-9)
    assert other.steps == one.steps


@pytest.mark.parametrize("value", [0.0, 4.0, -1.0])
def test_a_multiple_of_the_identity_takes_one_step(value):
    found = lanczos(lambda v: value * v, 50, count=3)
    np.testing.assert_allclose(found.values, [value], rtol=1e-12)
    assert (found.steps, found.converged) == (1, True)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_linear_classifier_at_zero_has_the_known_hessian(classes):
    # H = (diag(p) - p p^T) x 1/N sum x x^T, and p is uniform.
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Linear(5, classes, bias=False).double()
    base = ms.Checkpoint({"weight": torch.zeros(classes, 5, dtype=torch.float64)}, name="base")
    labels = torch.arange(12) % classes
    found = eigenvalues(base, held([(x, labels)], net), CurvatureSettings(tolerance=1e-9, progress=False))
    wanted = np.linalg.eigvalsh((x.T @ x / 12).numpy())[-1] / classes
    assert found.value == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", NETS)
def test_the_batch_split_changes_nothing_but_rounding(kind):
    net = make_net(kind)
    base, a, b, _ = family(net)
    split = [labelled_batches(12, size) for size in (12, 5, 1)]
    taus = {"a": a - base, "b": b - base}
    along = [curvature(base, held(batches, net), taus, QUIET).matrix for batches in split]
    tops = [eigenvalues(base, held(batches, net), QUIET).value for batches in split]
    for other, top in zip(along[1:], tops[1:], strict=True):
        np.testing.assert_allclose(other, along[0], rtol=1e-3, atol=1e-4 * np.abs(along[0]).max())
        assert top == pytest.approx(tops[0], rel=1e-3)
    assert np.abs(along[0]).min() > 0


@pytest.mark.parametrize("kind", NETS)
def test_the_curvature_of_a_union_is_the_weighted_mean(kind):
    net = make_net(kind)
    base, a, *_ = family(net)
    parts = [labelled_batches(9, 3, seed=1), labelled_batches(3, 3, seed=2)]
    one, two, both = (
        curvature(base, held(batches, net), {"a": a - base}, QUIET)["a"]
        for batches in (*parts, parts[0] + parts[1])
    )
    assert both == pytest.approx((9 * one + 3 * two) / 12, rel=1e-4, abs=1e-5 * max(abs(one), abs(two)))
    assert one != pytest.approx(two, rel=0.01)


@pytest.mark.parametrize("kind", NETS)
def test_curvature_is_a_quadratic_form(kind):
    net = make_net(kind)
    base, a, b, _ = family(net)
    taus = {"a": a - base, "b": b - base, "a - b": a - b, "3 a": 3 * (a - base), "0": b - b}
    found = curvature(base, held(labelled_batches(), net), taus, QUIET)
    small = 1e-4 * np.abs(found.matrix).max()
    assert found.along({"a": 1, "b": -1})[0] == pytest.approx(found["a - b"], rel=1e-3, abs=small)
    assert found.along({"a": 1, "b": -1})[1] == pytest.approx(found.along({"a - b": 1})[1], rel=1e-4)
    assert found["3 a"] == pytest.approx(9 * found["a"], rel=1e-3, abs=small)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    assert found.along({"0": 1}) == (0, 0)
    reversed_order = curvature(base, held(labelled_batches(), net), dict(reversed(taus.items())), QUIET)
    np.testing.assert_allclose(reversed_order.matrix[::-1, ::-1], found.matrix, atol=small / 10)


@pytest.mark.parametrize("kind", NETS)
def test_no_direction_is_more_curved_than_the_ends_of_the_spectrum(kind):
    net = make_net(kind)
    base, *others = family(net)
    data = held(labelled_batches(), net)
    top, bottom = (
        eigenvalues(base, data, CurvatureSettings(end=end, tolerance=1e-5, max_steps=200, progress=False))
        for end in ("largest", "smallest")
    )
    found = curvature(base, data, {model.name: model - base for model in others}, QUIET)
    for name in found.names:
        value, length = found.along({name: 1})
        slack = 1e-4 * abs(top.value)
        assert bottom.value - slack <= value / length <= top.value + slack
    assert top.value > 0


def pairs(base, models):
    return {
        f"{a.name} {b.name}": (base, a, b)
        for i, a in enumerate(models)
        for b in models[i + 1 :]
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["mlp", "vit"])
def test_the_bound_holds_where_the_eigenvalue_is_the_largest_on_the_line(kind):
    # Taylor's theorem with the operator norm on the segment has no third-order term.
    net = make_net(kind)
    base, *models = family(net, scale=0.3)
    line = (0.0, 0.25, 0.5, 0.75, 1.0)
    s = TheoremSettings(at="line", line=line, end="magnitude", progress=False)
    found = check_theorem(pairs(base, models), held(labelled_batches(), net), s)
    assert found.held == len(found.pairs) == 3
    assert all(abs(pair.gap.mean) > 1e-3 for pair in found.pairs)


def test_a_convex_loss_has_no_gap_above_the_chord():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    base, *models = family(net, scale=0.5)
    found = check_theorem(pairs(base, models), held(labelled_batches(), net), TheoremSettings(progress=False))
    assert all(pair.gap.mean < 0 and pair.term < 0 for pair in found.pairs)


@pytest.mark.parametrize("term", ["base", "midpoint"])
def test_the_exact_term_takes_over_as_models_come_closer(term):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    base, a, b, _ = family(net, scale=1.0)
    batches = [(x.double(), y) for x, y in labelled_batches()]
    steps = {f"{t:g}": (base, base + t * (a - base), base + t * (b - base)) for t in (0.05, 0.01)}
    found = check_theorem(steps, held(batches, net), TheoremSettings(term=term, progress=False))
    far, near = (abs(pair.gap.mean / pair.term - 1) for pair in found.pairs)
    assert near < 0.05 and near < 0.2 * far


@pytest.mark.parametrize("bend", [nn.Tanh, nn.ReLU])
def test_kinks_between_models_add_to_gaps_at_second_order(bend):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), bend(), nn.Linear(30, 3)).double().eval()
    base, a, b, _ = family(net, scale=1.0)
    batches = [(x.double(), y) for x, y in labelled_batches(4000, 500)]
    steps = {f"{t:g}": (base, base + t * (a - base), base + t * (b - base)) for t in (0.01, 0.003)}
    found = check_theorem(steps, held(batches, net), TheoremSettings(term="midpoint", progress=False))
    for pair in found.pairs:
        error = abs(pair.gap.mean / pair.term - 1)
        assert error < 0.01 if bend is nn.Tanh else error > 0.1


def test_neither_the_order_of_pairs_nor_that_of_models_changes_anything():
    net = make_net("mlp")
    base, *models = family(net, scale=0.3)
    data, s = held(labelled_batches(), net), TheoremSettings(progress=False)
    one = pairs(base, models)
    found = check_theorem(one, data, s)
    turned = check_theorem({name: (base, b, a) for name, (_, a, b) in reversed(one.items())}, data, s)
    for name in one:
        for field in ("eigenvalue", "distance", "term", "bound"):
            assert getattr(found[name], field) == pytest.approx(getattr(turned[name], field), rel=1e-4)
        assert found[name].gap.mean == pytest.approx(turned[name].gap.mean)
    for key, line in found.regressions.items():
        assert line.r2 == pytest.approx(turned.regressions[key].r2, rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_a_planted_line_is_recovered(noise):
    rng = np.random.default_rng(0)
    x, error = rng.standard_normal(4000), rng.standard_normal(4000)
    found = least_squares(x, 3 * x - 1 + noise * error, resamples=200)
    assert found.slope == pytest.approx(3, abs=0.1) and found.intercept == pytest.approx(-1, abs=0.1)
    assert found.r2 == pytest.approx(9 / (9 + noise**2), abs=0.02)
    assert found.r2_interval[0] <= found.r2 <= found.r2_interval[1]
    assert found.slope_interval[0] <= found.slope <= found.slope_interval[1]


def test_units_change_slopes_and_no_r2():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal(30), rng.standard_normal(30)
    one, other = least_squares(x, y), least_squares(1e6 * x + 5, -y)
    assert other.r2 == pytest.approx(one.r2) and other.slope == pytest.approx(-one.slope * 1e-6)
    np.testing.assert_allclose(other.r2_interval, one.r2_interval)
