"""Least-squares lines with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Regression:
    """A line ``y ~ intercept + slope x`` over pairs of numbers.

    Attributes:
        slope: of the line; NaN if x does not vary, or there are fewer than 3 pairs.
        intercept: of the line.
        r2: share of the variance of y that the line explains, in [0, 1]; NaN also if y does not vary.
        slope_interval: of the bootstrap.
        r2_interval: of the bootstrap.
        n: how many pairs.
    """

    slope: float
    intercept: float
    r2: float
    slope_interval: tuple[float, float]
    r2_interval: tuple[float, float]
    n: int


def least_squares(
    x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Regression:
    """Fit a line by least squares: ``R^2 = 1 - sum (y - line)^2 / sum (y - mean)^2``.

    The percentile bootstrap (Efron 1979) resamples pairs; resamples in which x or y does not vary are left out.
    ``R^2`` is that of the fit to the same pairs: never negative, and high by chance where pairs are few.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.
        confidence: probability mass of the intervals.
        resamples: how many.
        seed: of the resampling.

    Returns:
        The line.

    Example:
        >>> found = least_squares(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0, 7.0]))
        >>> found.slope, found.intercept, round(found.r2, 6)
        (2.0, 1.0, 1.0)
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    count, nothing = len(x), (np.nan, np.nan)
    if count < 3:
        return Regression(np.nan, np.nan, np.nan, nothing, nothing, count)
    slope, r2 = (float(value[0]) for value in _lines(x[None], y[None]))
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))
    tail = (1 - confidence) / 2
    ends = []
    for every in _lines(x[picks], y[picks]):
        every = every[np.isfinite(every)]
        low, high = np.quantile(every, [tail, 1 - tail]) if len(every) else nothing
        ends.append((float(low), float(high)))
    return Regression(slope, float(y.mean() - slope * x.mean()), r2, ends[0], ends[1], count)


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Rounding of equal numbers is no variation.
    flat, still = (np.ptp(side, axis=1) <= 1e-12 * np.abs(side).max(1) for side in (x, y))
    x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (x * y).sum(1) / (x**2).sum(1)
        r2 = (x * y).sum(1) ** 2 / ((x**2).sum(1) * (y**2).sum(1))
    return np.where(flat, np.nan, slopes), np.where(flat | still, np.nan, np.clip(r2, 0, 1))
