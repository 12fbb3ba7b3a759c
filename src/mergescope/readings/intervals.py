"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Summary:
    """A mean over samples.

    Attributes:
        mean: average of the samples that have a value.
        std: their standard deviation (population).
        low: lower end of the interval.
        high: upper end.
        n: how many samples have a value.
        dead: how many have none (zero-norm features).
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    dead: int


def bootstrap(
    values: np.ndarray,
    units: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Summary]:
    """Percentile bootstrap of means over samples (Efron 1979), several measures at once.

    Units are resampled, not samples: if the same digit appears under two rotations, its two
    samples stand or fall together, and the interval does not pretend that they are independent.

    Args:
        values: ``(samples, measures)``; NaN marks a sample without a value.
        units: ``(samples,)`` what each sample is a view of; by default every sample is its own.
        confidence: probability mass of the interval.
        resamples: how many resamples.
        seed: seed of the resampling.

    Returns:
        One summary a measure. With no valid sample, mean and ends are NaN.

    Example:
        >>> values = np.array([[1.0, np.nan], [3.0, 2.0]])
        >>> [(s.mean, s.n, s.dead) for s in bootstrap(values)]
        [(2.0, 2, 0), (2.0, 1, 1)]
    """
    values = np.asarray(values, dtype=float)
    samples, measures = values.shape
    valid = ~np.isnan(values)
    filled = np.where(valid, values, 0.0)
    if units is None:
        sums, counts = filled, valid.astype(float)
    else:
        _, inverse = np.unique(units, return_inverse=True)
        size = int(inverse.max()) + 1 if samples else 0
        sums, counts = np.zeros((size, measures)), np.zeros((size, measures))
        np.add.at(sums, inverse, filled)
        np.add.at(counts, inverse, valid)
    count = valid.sum(0)
    total = filled.sum(0)
    if len(sums):
        weights = _resampling(len(sums), resamples, seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ sums) / (weights @ counts)
        tail = (1 - confidence) / 2
    out = []
    for i in range(measures):
        if count[i] == 0:
            out.append(Summary(np.nan, np.nan, np.nan, np.nan, 0, samples))
            continue
        mean = total[i] / count[i]
        std = float(np.sqrt(((values[valid[:, i], i] - mean) ** 2).mean()))
        low, high = np.nanquantile(means[:, i], [tail, 1 - tail])
        out.append(Summary(float(mean), std, float(low), float(high), int(count[i]), int(samples - count[i])))
    return out


@lru_cache(maxsize=4)
def _resampling(units: int, resamples: int, seed: int) -> np.ndarray:
    """How often each unit is drawn in each resample.

    Returns:
        ``(resamples, units)``, counts.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float32)
