"""Correlations with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST = 3
"""So many pairs of numbers have a correlation that says something."""


@dataclass(frozen=True)
class Correlation:
    """A correlation over pairs of numbers.

    Attributes:
        value: in [-1, 1]; NaN if either side does not vary, or there are fewer than [`LEAST`][] pairs.
        low: lower end of the interval.
        high: upper end.
        n: how many pairs.

    Example:
        >>> print(Correlation(0.5, 0.25, 0.75, 9))
        0.500 [0.250, 0.750]
        >>> print(Correlation(np.nan, np.nan, np.nan, 1))
        unknown: it takes 3 pairs of numbers, and there is 1
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if np.isfinite(self.value):
            return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if self.n < LEAST:
            there = "is 1" if self.n == 1 else f"are {self.n}"
            return f"unknown: it takes {LEAST} pairs of numbers, and there {there}"
        return f"unknown: of {self.n} pairs of numbers, one side is the same in all"


def correlations(
    x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Correlation]:
    """Pearson's correlation, and Spearman's: that of the ranks, where equal values share their mean rank.

    The percentile bootstrap (Efron 1979) resamples pairs; resamples in which a side does not vary are left out.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.
        confidence: probability mass of the intervals.
        resamples: how many.
        seed: of the resampling.

    Returns:
        ``"pearson"`` and ``"spearman"``.

    Example:
        >>> found = correlations(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0]))
        >>> round(found["pearson"].value, 3), found["spearman"].value
        (0.984, 1.0)
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    count = len(x)
    if count < LEAST:
        nothing = Correlation(np.nan, np.nan, np.nan, count)
        return {"pearson": nothing, "spearman": nothing}
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))
    tail = (1 - confidence) / 2
    out = {}
    for name in ("pearson", "spearman"):
        of = _ranks if name == "spearman" else np.asarray
        every = _pearson(of(x[picks]), of(y[picks]))
        every = every[np.isfinite(every)]
        low, high = np.quantile(every, [tail, 1 - tail]) if len(every) else (np.nan, np.nan)
        out[name] = Correlation(float(_pearson(of(x[None]), of(y[None]))[0]), float(low), float(high), count)
    return out


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    constant = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.where(constant, np.nan, np.clip(found, -1, 1))


def _ranks(rows: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(rows, axis=1)
