"""Correlations and their intervals."""

import tracemalloc

import numpy as np
import pytest

from mergescope.readings.correlation import correlations


def test_pearson_is_numpys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = 0.5 * x + rng.normal(size=30)
    found = correlations(x, y)["pearson"]
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and found.n == 30
    assert found.low < found.value < found.high


def test_spearman_sees_order_only_and_ties_share_their_mean_rank():
    x = np.array([1.0, 2.0, 2.0, 5.0])
    found = correlations(x, np.array([1.0, 3.0, 9.0, 100.0]))["spearman"].value
    assert found == pytest.approx(np.corrcoef([0, 1.5, 1.5, 3], [0, 1, 2, 3])[0, 1])
    assert correlations(x, -np.exp(x))["spearman"].value == pytest.approx(-1)


def test_intervals_cover_the_truth_and_depend_on_the_seed_alone():
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=60)
        found = correlations(x, 0.6 * x + 0.8 * rng.normal(size=60), seed=seed)["pearson"]
        covered += found.low <= 0.6 <= found.high
    assert covered >= 34
    assert correlations(x, x**3, seed=1) == correlations(x, x**3, seed=1)


def test_nothing_varies_or_too_few():
    for x, y in ((np.ones(5), np.arange(5.0)), (np.arange(2.0), np.arange(2.0))):
        for found in correlations(x, y).values():
            assert np.isnan(found.value) and np.isnan(found.low) and found.n == len(x)


def test_thousands_of_numbers_need_little_memory():
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    tracemalloc.start()
    correlations(x, x + rng.normal(size=4000), resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # a comparison of all with all, of every resample, takes 1.6 GB
