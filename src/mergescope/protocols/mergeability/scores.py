"""Correlations and errors, with intervals that respect that cases share models and tasks.

Cases of one family and regime (a *unit*) are of the same few models, so they are no independent draws. All intervals
are percentile bootstraps over units: whole units are drawn, with all of their cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mergescope.protocols.mergeability.rules import NOISE, Table

RESAMPLES = 200
LEAST_PLACES = 3
"""Fewer numbers have no correlation."""

LEAST_PAIRS = 5
"""A unit with fewer cases has no correlation of its own."""


@dataclass(frozen=True)
class Number:
    """A figure with its interval.

    Attributes:
        value: on all cases; NaN where it can't be told.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "unknown"
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{self.value:.2f}" + (f" [{self.low:.2f}, {self.high:.2f}]" if known else "")


NOTHING = Number(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Score:
    """How good held-out predictions are.

    Attributes:
        mae: mean absolute error; units count alike.
        r2: ``1 - sum (y - p)^2 / sum (y - mean)^2``: below 0 it is worse than the mean that nobody knew beforehand.
        rank: Spearman's correlation with the truth; the bootstrap of a rank would cost more than all else.
        cases: how many were predicted.
    """

    mae: Number
    r2: Number
    rank: float
    cases: int


def score(table: Table, predicted: np.ndarray, *, seed: int = 0) -> Score:
    """Judge predictions.

    Args:
        table: the cases.
        predicted: ``(n,)``; NaN where there is none.
        seed: of the bootstrap.

    Returns:
        Error, R^2 and rank correlation.
    """
    told = np.isfinite(predicted)
    if not told.any():
        return Score(NOTHING, NOTHING, float("nan"), 0)
    y, p, weights = table.y[told], predicted[told], table.weights[told]
    middle = float(np.average(y, weights=weights))  # sums of squares without cancellation
    sums = weights[:, None] * np.column_stack([
        np.ones(len(y)),
        np.abs(y - p),
        y - middle,
        (y - middle) ** 2,
        (y - p) ** 2,
    ])

    def explained(of: np.ndarray) -> np.ndarray:
        whole = of[:, 3] - of[:, 2] ** 2 / of[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(whole > NOISE, 1 - of[:, 4] / whole, np.nan)

    units = table.units[told]
    return Score(
        _of_sums(sums, lambda of: of[:, 1] / of[:, 0], units, seed), _of_sums(sums, explained, units, seed),
        spearman(p, y), int(told.sum()),
    )  # fmt: skip


def less_error(table: Table, predicted: np.ndarray, control: np.ndarray, *, seed: int = 0) -> Number:
    """How much smaller the mean error is than a control's, on the same cases.

    Args:
        table: the cases.
        predicted: ``(n,)``.
        control: ``(n,)``.
        seed: of the bootstrap.

    Returns:
        The control's error less the predictions' own: above 0, they are better.
    """
    told = np.isfinite(predicted) & np.isfinite(control)
    if not told.any():
        return NOTHING
    gained = (np.abs(control - table.y) - np.abs(predicted - table.y))[told]
    sums = table.weights[told][:, None] * np.column_stack([np.ones(len(gained)), gained])
    return _of_sums(sums, lambda of: of[:, 1] / of[:, 0], table.units[told], seed)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of the ranks; equal values share their mean rank.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.

    Returns:
        In [-1, 1]; NaN if either does not vary.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 9.0]), np.array([1.0, 5.0, 6.0])), 6)
        1.0
    """
    return pearson(_ranks(x), _ranks(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.

    Returns:
        In [-1, 1]; NaN if either does not vary.
    """
    if len(x) < LEAST_PLACES or not np.ptp(x) or not np.ptp(y):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def correlation(
    x: np.ndarray, y: np.ndarray, units: np.ndarray, *, ranks: bool = True, seed: int = 0
) -> Number:
    """Spearman's or Pearson's correlation, with an interval over units.

    For Spearman's interval the ranks are those among all cases, not anew in every resample.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.
        units: ``(n,)``, number of each case's unit.
        ranks: Spearman's, else Pearson's.
        seed: of the bootstrap.

    Returns:
        The correlation.

    Example:
        >>> found = correlation(np.array([1.0, 2.0, 9.0]), np.array([1.0, 5.0, 6.0]), np.zeros(3, dtype=np.int64))
        >>> round(found.value, 6)
        1.0
    """
    if len(x) < LEAST_PLACES or not np.ptp(x) or not np.ptp(y):
        return NOTHING
    one, other = (_ranks(x), _ranks(y)) if ranks else (x, y)
    one, other = (one - one.mean()) / one.std(), (other - other.mean()) / other.std()
    sums = np.column_stack([np.ones(len(one)), one, other, one**2, other**2, one * other])

    def figure(of: np.ndarray) -> np.ndarray:
        count, a, b, aa, bb, ab = of.T
        spread = (aa - a**2 / count) * (bb - b**2 / count)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > NOISE, np.clip((ab - a * b / count) / np.sqrt(spread), -1, 1), np.nan)

    return _of_sums(sums, figure, units, seed)


def within_units(x: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int = 0) -> Number:
    """Mean of the rank correlations inside units.

    What is between units (other learning rates, other networks) takes no part: can a rule tell good pairs from bad
    ones of the same regime?

    Args:
        x: ``(n,)``.
        y: ``(n,)``.
        units: ``(n,)``.
        seed: of the bootstrap, over units.

    Returns:
        The mean.
    """
    found = []
    for unit in np.unique(units):
        at = units == unit
        if at.sum() >= LEAST_PAIRS and np.isfinite(value := spearman(x[at], y[at])):
            found.append(value)
    if not found:
        return NOTHING
    values = np.array(found)
    sums = np.column_stack([np.ones(len(values)), values])
    return _of_sums(sums, lambda of: of[:, 1] / of[:, 0], np.arange(len(values)), seed)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[places]


def _of_sums(
    sums: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], units: np.ndarray, seed: int
) -> Number:
    # All figures here follow from sums over cases: a resample is a sum over the units drawn.
    every, places = np.unique(units, return_inverse=True)
    of_units = np.zeros((len(every), sums.shape[1]))
    np.add.at(of_units, places, sums)
    value = float(figure(of_units.sum(0)[None])[0])
    if len(every) < 2:
        return Number(value, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(len(every), size=(RESAMPLES, len(every)))
    return _interval(value, figure(of_units[drawn].sum(1)))


def _interval(value: float, every: np.ndarray) -> Number:
    every = every[np.isfinite(every)]
    low, high = np.quantile(every, [0.025, 0.975]) if len(every) else (np.nan, np.nan)
    return Number(value, float(low), float(high))
