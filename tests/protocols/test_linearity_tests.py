"""Linearity tests end to end, against whole feature maps kept in float64."""

from fractions import Fraction

import numpy as np
import pytest
import slow_reference
from support import NETS, family, labelled_batches, make_net, scalars

import mergescope as ms
from mergescope.errors import LayerError, PointError
from mergescope.readings import MEASURES, RELATIVE


def the_tests(base, a, b, c):
    return {
        "ctl": ms.ctl(a, b, 0.3, reference=base),
        "averaging": ms.averaging([a, b, c], reference=base),
        "addition": ms.addition(base, a, b),
        "negation": ms.negation(base, a),
    }


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", ["ctl", "averaging", "addition", "negation"])
def test_every_measure_at_every_layer_is_the_slow_one(kind, name):
    net, batches = make_net(kind), labelled_batches(10, 4)
    test = the_tests(*family(net))[name]
    result = ms.linearity(ms.trace(test.points, batches, net), test)
    layers = ["blocks.0", "blocks.1", "output"]
    assert [entry.layer for entry in result.layers] == layers and result.samples == 10
    maps = [slow_reference.feature_maps(net, point.state_dict(), batches, layers)[0] for point in test.points]
    coefficients = [float(value) for _, value in test.right]
    for layer in layers:
        features = [m[layer] for m in maps]
        k = 1 + len(coefficients)
        slow = [
            slow_reference.measures(
                features[0][n],
                [f[n] for f in features[1:k]],
                coefficients,
                features[k][n] if test.reference else None,
            )
            for n in range(10)
        ]
        assert set(slow[0]) == set(MEASURES) | (set(RELATIVE) if test.reference else set())
        for measure in slow[0]:
            expected = np.array([s[measure] for s in slow])
            np.testing.assert_allclose(
                result[layer].values[measure], expected, rtol=1e-5, atol=1e-7, err_msg=measure
            )
            summary = result[layer].measures[measure]
            assert summary.mean == pytest.approx(expected.mean(), rel=1e-5)
            assert summary.std == pytest.approx(expected.std(), rel=1e-3, abs=1e-7)
            assert (summary.n, summary.dead) == (10, 0)


@pytest.mark.parametrize("scale", [1e-3, 5e-4])
def test_a_gap_around_a_ten_thousandth_is_right_to_a_thousandth(scale):
    net, batches = make_net("vit"), labelled_batches(10, 4)
    base, a, b, _ = family(net, scale=scale)
    test = ms.ctl(a, b, reference=base)
    result = ms.linearity(ms.trace(test.points, batches, net), test)
    maps = [
        slow_reference.feature_maps(net, p.state_dict(), batches, ["blocks.1"])[0]["blocks.1"]
        for p in test.points
    ]
    gaps = result["blocks.1"].values["gap"]
    assert 1e-6 < gaps.mean() < 1e-3
    for n in range(10):
        m, f, g, zero = (feature[n] for feature in maps)
        slow = slow_reference.measures(m, [f, g], [0.5, 0.5], zero)
        for measure in ("gap", "gap_rel", "gap_between"):
            assert result["blocks.1"].values[measure][n] == pytest.approx(slow[measure], rel=1e-3)


def test_equation_1():
    a, b, c = scalars(a=1, b=2, c=4)
    test = ms.averaging([a, b, c])
    assert test.left == (a + b + c) / 3
    assert test.right == tuple((ms.Point.of(m), Fraction(1, 3)) for m in (a, b, c))


def test_equation_2_extrapolates_twice_as_far_as_it_adds():
    base, a, b = scalars(base=1, a=2, b=4)
    test = ms.addition(base, a, b, lam=0.4)
    assert test.left == base + 0.4 * (a - base) + 0.4 * (b - base)
    assert test.right == ((0.2 * base + 0.8 * a, Fraction(1, 2)), (0.2 * base + 0.8 * b, Fraction(1, 2)))
    assert test.reference == ms.Point.of(base)


def test_equation_3():
    base, a = scalars(base=1, a=2)
    test = ms.negation(base, a, lam=0.4)
    assert test.left == ms.Point.of(base) and test.reference is None
    assert test.right == ((0.6 * base + 0.4 * a, Fraction(1, 2)), (1.4 * base - 0.4 * a, Fraction(1, 2)))


def test_ctls_alpha_is_the_weight_of_the_first():
    a, b = scalars(a=1, b=2)
    assert ms.ctl(a, b, 0.25).left == 0.25 * a + 0.75 * b
    assert ms.ctl(a, b, 0.25).right[0] == (ms.Point.of(a), Fraction(1, 4))


def test_a_left_point_that_is_not_the_combination_is_refused():
    a, b = (ms.Point.of(m) for m in scalars(a=1, b=2))
    half = Fraction(1, 2)
    with pytest.raises(
        PointError, match=r"mine: the left point is 0\.6\*a \+ 0\.4\*b.*combines to 0\.5\*a \+ 0\.5\*b"
    ):
        ms.LinearityTest("mine", ms.lerp(b, a, 0.6), ((a, half), (b, half)))
    with pytest.raises(PointError, match=r"mine: the coefficients of the right side sum to 0\.75, not 1"):
        ms.LinearityTest("mine", ms.lerp(a, b, 0.5), ((a, half), (b, half / 2)))
    assert ms.LinearityTest("mine", ms.lerp(a, b, 0.5), ((a, half), (b, half))).points == (
        ms.mean([a, b]),
        a,
        b,
    )


def test_a_trace_without_the_tests_points_is_refused_naming_them():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    traced = ms.trace([a, b], labelled_batches(), net)
    with pytest.raises(PointError, match=r"lacks points of CTL: 0\.5\*a \+ 0\.5\*b\. Trace test\.points"):
        ms.linearity(traced, ms.ctl(a, b))


def test_two_data_sets_are_pooled_sample_by_sample():
    net = make_net("mlp")
    _, a, b, _ = family(net)
    test = ms.ctl(a, b)
    one, two = labelled_batches(6, 3, seed=5), labelled_batches(9, 3, seed=6)
    pooled = ms.linearity([ms.trace(test.points, data, net) for data in (one, two)], test)
    whole = ms.linearity(ms.trace(test.points, one + two, net), test)
    assert pooled.samples == 15
    for layer in ("blocks.0", "output"):
        np.testing.assert_allclose(pooled[layer].values["cos"], whole[layer].values["cos"], rtol=1e-6)
        assert pooled[layer].measures["cos"].mean == pytest.approx(whole[layer].measures["cos"].mean)


def test_the_verdict_can_say_yes_and_no():
    net, batches = make_net("mlp"), labelled_batches(30, 10)
    for scale, holds in ((0.01, True), (3.0, False)):
        _, a, b, _ = family(net, scale=scale)
        test = ms.ctl(a, b)
        result = ms.linearity(ms.trace(test.points, batches, net), test)
        assert (result.verdict.llfc, result.verdict.ctl) == (holds, holds)
        says = "CTL holds, LLFC holds" if holds else "CTL does not hold, LLFC does not hold"
        assert says in str(result) and "30 samples" in str(result)


def test_trivial_layers_are_marked_and_are_no_evidence():
    net, batches = make_net("mlp"), labelled_batches(10, 10)
    _, a, b, _ = family(net, scale=3.0)
    test = ms.ctl(a, b)
    result = ms.linearity(ms.trace(test.points, batches, net, layers="blocks.0.0"), test)
    entry = result["blocks.0.0"]
    assert entry.trivial and entry.measures["cos"].mean == pytest.approx(1)
    assert not result.verdict.ctl and "no layer with live, non-trivial" in result.verdict.reason
    assert "trivial" in str(result)


def test_the_interval_uses_the_units():
    net = make_net("mlp")
    _, a, b, _ = family(net)
    batches = labelled_batches(20, 20)
    test = ms.ctl(a, b)
    traced = ms.trace(test.points, batches * 3, net)
    naive = ms.linearity(traced, test)["output"].measures["cos"]
    honest = ms.linearity(traced, test, units=np.tile(np.arange(20), 3))["output"].measures["cos"]
    assert honest.mean == naive.mean
    assert honest.high - honest.low > 1.4 * (naive.high - naive.low)


def test_a_layer_that_was_not_measured_is_named_with_near_ones():
    net = make_net("mlp")
    _, a, b, _ = family(net)
    test = ms.ctl(a, b)
    found = ms.linearity(ms.trace(test.points, labelled_batches(), net), test)
    said = r"no layer 'block\.0'\. Did you mean: blocks\.0.*\? Layers: blocks\.0, blocks\.1, output\."
    with pytest.raises(LayerError, match=said):
        found["block.0"]
