import numpy as np
import pytest

from mergescope.readings import bootstrap


def test_mean_std_and_counts_are_those_of_the_valid_samples():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3))
    values[rng.random((40, 3)) < 0.2] = np.nan
    for i, summary in enumerate(bootstrap(values)):
        kept = [v for v in values[:, i] if v == v]
        mean = sum(kept) / len(kept)
        assert summary.mean == pytest.approx(mean)
        assert summary.std == pytest.approx((sum((v - mean) ** 2 for v in kept) / len(kept)) ** 0.5)
        assert (summary.n, summary.dead) == (len(kept), 40 - len(kept))
        assert summary.low < summary.mean < summary.high


def test_the_interval_is_that_of_a_slow_bootstrap():
    values = np.random.default_rng(1).exponential(size=60)
    rng = np.random.default_rng(2)
    means = [np.mean(rng.choice(values, 60)) for _ in range(20_000)]
    (summary,) = bootstrap(values[:, None], resamples=4000)
    width = summary.high - summary.low
    low, high = np.quantile(means, [0.025, 0.975])
    assert summary.low == pytest.approx(low, abs=0.05 * width)
    assert summary.high == pytest.approx(high, abs=0.05 * width)
    (narrow,) = bootstrap(values[:, None], confidence=0.5, resamples=4000)
    assert narrow.high - narrow.low == pytest.approx(width * 0.6745 / 1.96, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [s.low <= 0 <= s.high for s in bootstrap(rng.normal(size=(100, 400)))]
    assert 0.90 <= np.mean(hits) <= 0.98


def test_units_are_resampled_together():
    rng = np.random.default_rng(0)
    once = rng.normal(size=(30, 1))
    copies, units = np.repeat(once, 4, axis=0), np.repeat(np.arange(30) * 7, 4)
    (alone,) = bootstrap(once)
    (naive,) = bootstrap(copies)
    (honest,) = bootstrap(copies, units)
    assert honest.high - honest.low == pytest.approx(alone.high - alone.low, rel=1e-6)
    assert naive.high - naive.low < 0.6 * (honest.high - honest.low)
    assert (honest.mean, honest.n) == (pytest.approx(alone.mean), 120)


def test_units_of_different_size_are_slowly_checked():
    values = np.random.default_rng(3).normal(size=20)
    units = np.array([0] * 11 + [1] * 5 + [2] * 3 + [3])
    rng = np.random.default_rng(4)
    means = []
    for _ in range(20_000):
        drawn = np.concatenate([values[units == u] for u in rng.integers(4, size=4)])
        means.append(drawn.mean())
    (summary,) = bootstrap(values[:, None], units, resamples=8000)
    width = summary.high - summary.low
    np.testing.assert_allclose(
        [summary.low, summary.high], np.quantile(means, [0.025, 0.975]), atol=0.05 * width
    )


def test_measures_without_a_valid_sample_are_nan_and_counted():
    for values in (np.full((5, 1), np.nan), np.empty((0, 1))):
        (summary,) = bootstrap(values)
        assert np.isnan([summary.mean, summary.std, summary.low, summary.high]).all()
        assert (summary.n, summary.dead) == (0, len(values))


def test_seeds_decide_and_the_order_of_measures_does_not():
    values = np.random.default_rng(0).normal(size=(30, 2))
    one, two = bootstrap(values, seed=1)
    assert [two, one] == bootstrap(values[:, ::-1], seed=1)
    assert bootstrap(values, seed=2) != [one, two]


def test_a_constant_has_an_interval_of_no_width():
    (summary,) = bootstrap(np.full((9, 1), 0.25))
    assert (summary.low, summary.mean, summary.high, summary.std) == (0.25, 0.25, 0.25, 0.0)


def test_a_unit_counts_only_its_valid_samples():
    values = np.array([1.0, np.nan, np.nan, 3.0, 3.0, 3.0])
    units = np.array([0, 0, 0, 1, 1, 1])
    (summary,) = bootstrap(values[:, None], units)
    assert (summary.mean, summary.n, summary.dead) == (2.5, 4, 2)
    assert (summary.low, summary.high) == (1.0, 3.0)  # one unit alone, drawn twice
