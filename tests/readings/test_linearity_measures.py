import numpy as np
import pytest
import slow_reference

from mergescope.readings import MEASURES, RELATIVE, linearity_measures


def gram(*features):
    """Gram matrices of features (samples, dim) each."""
    stacked = np.stack(features, axis=1)
    return stacked @ stacked.swapaxes(1, 2)


@pytest.mark.parametrize("coefficients", [(0.5, 0.5), (0.3, 0.7), (1.5, -0.5), (1 / 3, 1 / 3, 1 / 3), (1.0,)])
@pytest.mark.parametrize("reference", [False, True])
def test_every_measure_is_its_definition(coefficients, reference):
    rng = np.random.default_rng(0)
    m, *rights, zero = rng.normal(size=(len(coefficients) + 2, 9, 20))
    points = [m, *rights, zero] if reference else [m, *rights]
    got = linearity_measures(gram(*points), coefficients, reference=reference)
    assert set(got) == set(MEASURES + (RELATIVE if reference else ()))
    for n in range(9):
        expected = slow_reference.measures(
            m[n], [f[n] for f in rights], coefficients, zero[n] if reference else None
        )
        for name, value in expected.items():
            assert got[name][n] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4, 1e-5])
def test_small_gaps_are_right_to_a_thousandth_of_themselves(gap):
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=(3, 6, 500)).astype(np.float32) + np.float32(3)
    m = ((a + b) / 2 + np.float32(gap) * (noise - 3)).astype(np.float32)
    wide = [f.astype(np.float64) for f in (m, a, b)]
    got = linearity_measures(gram(*wide), (0.5, 0.5))
    for n in range(6):
        expected = slow_reference.measures(wide[0][n], [wide[1][n], wide[2][n]], (0.5, 0.5))
        for name in ("gap", "gap_between"):
            assert got[name][n] == pytest.approx(expected[name], rel=1e-3)
        assert 1 - got["cos"][n] == pytest.approx(1 - expected["cos"], rel=1e-2, abs=1e-14)


def test_dead_features_are_nan_for_their_sample_only():
    live, dead = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    got = linearity_measures(gram(dead, live, live * 2), (0.5, 0.5))
    for name in ("cos", "coef", "gap", "gap_between"):
        assert np.isfinite(got[name][0]) and np.isnan(got[name][1]), name
    got = linearity_measures(gram(live, dead, dead), (0.5, 0.5))
    assert all(np.isnan(got[name][1]) for name in MEASURES)


def test_a_right_side_that_cancels_has_no_cosine():
    f = np.array([[1.0, 2.0]])
    got = linearity_measures(gram(f, f, -f), (0.5, 0.5))
    assert np.isnan(got["cos"][0]) and np.isnan(got["coef"][0]) and got["baseline"][0] == pytest.approx(-1)


def test_two_equal_models_have_no_distance_to_measure_by():
    f = np.random.default_rng(0).normal(size=(50, 7))
    m = f * 1.01
    got = linearity_measures(gram(m, f, f), (0.5, 0.5))
    assert np.isnan(got["gap_between"]).all()
    np.testing.assert_allclose(got["gap"], 0.01, rtol=1e-6)


def test_relative_measures_are_nan_where_nothing_changed():
    rng = np.random.default_rng(0)
    m, a, b, zero = rng.normal(size=(4, 3, 10))
    m[1] = zero[1]
    a[2] = b[2] = zero[2]
    got = linearity_measures(gram(m, a, b, zero), (0.5, 0.5), reference=True)
    for name in RELATIVE:
        assert np.isfinite(got[name][0]) and np.isnan(got[name][1]) and np.isnan(got[name][2]), name
