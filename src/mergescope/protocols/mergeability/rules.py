"""Rules of one figure, and what they say of cases that they were not fitted on.

How many models are merged is always known, and matters more than most else: every rule has a term for it. So a figure
is judged by what it adds to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mergescope.errors import StudyError
from mergescope.protocols.mergeability.case import Case
from mergescope.protocols.mergeability.predictors import PREDICTORS

LEAST_SHARE = 0.9
"""A predictor that fewer of the cases have takes no part."""

LEAST_CASES = 3
"""A rule is fitted to so many cases or more."""

TIE = 0.005
"""Mean errors this near to the smallest count as equal to it; then the simpler predictor is taken."""

NOISE = 1e-18
"""A smaller variance is rounding."""

Apart = Literal["task", "network"]


@dataclass(frozen=True, eq=False)
class Table:
    """Cases as arrays. Every unit (family and regime) counts alike, however many cases it has.

    Attributes:
        cases: those with the outcome and all predictors.
        names: of the predictors, the simpler ones first.
        x: ``(n, predictors)``, on the scale of each.
        y: ``(n,)``, the outcome.
        doublings: ``(n,)``, logarithm to base 2 of the number of models.
        units: ``(n,)``, number of each case's unit.
        weights: ``(n,)``, one over the size of the unit.
    """

    cases: tuple[Case, ...]
    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    doublings: np.ndarray
    units: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[Case], outcome: str) -> Table:
        """Cases of ordinary networks that have the outcome and every predictor that nearly all have.

        In a linearised network gaps are zero by construction, so a rule from gaps would say nothing there.

        Args:
            cases: collected.
            outcome: one of [`OUTCOMES`][mergescope.protocols.mergeability.case.OUTCOMES].

        Returns:
            The table.

        Raises:
            StudyError: fewer than three cases are left.
        """
        told = [
            case
            for case in cases
            if not case.linearized and np.isfinite(case.outcomes.get(outcome, float("nan")))
        ]
        whole = {
            name: predictor.scaled(np.array([case.predictors.get(name, np.nan) for case in told]))
            for name, predictor in PREDICTORS.items()
        }
        names = tuple(
            name
            for name, values in whole.items()
            if len(values) and np.isfinite(values).mean() >= LEAST_SHARE
        )
        x = np.stack([whole[name] for name in names], axis=1) if names else np.zeros((0, 0))
        kept = np.isfinite(x).all(1)
        if int(kept.sum()) < LEAST_CASES:
            raise StudyError(
                f"There are {int(kept.sum())} cases of ordinary networks with {outcome}, too few for a rule. Give more "
                "families or regimes (--family, --regime)."
            )
        left = tuple(told[place] for place in np.flatnonzero(kept))
        _, units, counts = np.unique([case.unit for case in left], return_inverse=True, return_counts=True)
        units = units.astype(np.int64)
        y = np.array([case.outcomes[outcome] for case in left])
        doublings = np.log2([len(case.models) for case in left])
        return cls(left, names, x[kept], y, doublings, units, 1 / counts[units])

    def column(self, name: str) -> np.ndarray:
        """One predictor.

        Args:
            name: its name.

        Returns:
            ``(n,)``, on its scale.
        """
        return self.x[:, self.names.index(name)]

    def left_out(self, by: Apart) -> dict[str, np.ndarray]:
        """What is held out at a time.

        Args:
            by: ``"task"``: all cases with a task; ``"network"``: all cases of a network.

        Returns:
            Name to ``(n,)``, True for the cases held out.
        """
        of = [set(case.models) if by == "task" else {case.network} for case in self.cases]
        return {name: np.array([name in each for each in of]) for name in sorted(set().union(*of))}


@dataclass(frozen=True)
class Rule:
    """``intercept + per_doubling log2(models) + slope * scaled figure``, kept within the outcomes that were seen.

    Attributes:
        predictor: name of the figure; None for the number of models alone.
        intercept: of the line.
        per_doubling: what twice as many models change.
        slope: of the figure, on its scale.
        low: smallest value of the figure that was seen.
        high: largest.
        most: largest number of models that was seen.
        floor: smallest outcome that was seen.
        ceiling: largest.
    """

    predictor: str | None
    intercept: float
    per_doubling: float
    slope: float
    low: float
    high: float
    most: int
    floor: float
    ceiling: float

    def __call__(self, models: int, value: float = 0.0) -> float:
        """What to expect.

        Args:
            models: how many are merged.
            value: of the figure.

        Returns:
            The outcome.

        Example:
            >>> Rule("cosine", 1.0, -0.2, 0.5, 0.0, 1.0, 8, 0.0, 1.0)(4, 0.2)
            0.7
        """
        scaled = 0.0
        if self.predictor is not None:
            scaled = float(PREDICTORS[self.predictor].scaled(np.array([value]))[0])
        found = self.intercept + self.per_doubling * np.log2(models) + self.slope * scaled
        return round(float(np.clip(found, self.floor, self.ceiling)), 12)


def lines(
    x: np.ndarray, y: np.ndarray, doublings: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least squares of ``y`` on the number of models and one figure, for one figure a column.

    Args:
        x: ``(n, columns)``.
        y: ``(n,)``.
        doublings: ``(n,)``.
        weights: ``(n,)``, positive.

    Returns:
        Intercepts, slopes of the number of models and slopes of the figures, ``(columns,)`` each; a slope is 0 where
        nothing varies that the number of models does not tell.

    Example:
        >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0])
        >>> [part.tolist() for part in lines(x, y, np.ones(3), np.ones(3))]
        [[1.0], [0.0], [2.0]]
    """
    share = weights / weights.sum()
    size = doublings - share @ doublings
    varied = float(share @ size**2)
    size_share = share * size / varied if varied > NOISE else np.zeros(len(size))
    both = np.column_stack([y, x])
    means, slopes = share @ both, size_share @ both
    # What the number of models does not tell of the outcome and of each figure (Frisch, Waugh and Lovell).
    rest = both - means - np.outer(size, slopes)
    spread = share @ rest[:, 1:] ** 2
    told = spread > NOISE
    own = np.where(told, (share * rest[:, 0]) @ rest[:, 1:] / np.where(told, spread, 1), 0.0)
    per_doubling = slopes[0] - own * slopes[1:]
    return means[0] - own * means[1:] - per_doubling * (share @ doublings), per_doubling, own


def fitted(table: Table, name: str | None) -> Rule:
    """The rule of one figure, fitted on all cases.

    Args:
        table: the cases.
        name: of the predictor; None for the number of models alone.

    Returns:
        The rule.
    """
    found = lines(_columns(table, [name]), table.y, table.doublings, table.weights)
    intercept, per_doubling, slope = (float(part[0]) for part in found)
    raw = [0.0] if name is None else [case.predictors[name] for case in table.cases]
    most = max(len(case.models) for case in table.cases)
    floor, ceiling = float(table.y.min()), float(table.y.max())
    return Rule(name, intercept, per_doubling, slope, min(raw), max(raw), most, floor, ceiling)


def held_out(
    table: Table, names: Sequence[str | None], by: Apart = "task", *, sized: bool = True
) -> np.ndarray:
    """Predictions of every case by rules that saw none with its task (or network).

    A case has several tasks: its prediction is the mean of those with each of them held out.

    Args:
        table: the cases.
        names: of predictors; None for the number of models alone.
        by: what is held out.
        sized: whether rules know the number of models; a constant does not.

    Returns:
        ``(n, names)``; NaN where too few cases are left to fit on.
    """
    known = table if sized else replace(table, doublings=np.zeros(len(table.y)))
    return _held_out(known, _columns(table, names), by, np.ones(len(table.y), dtype=bool))


def chosen_held_out(
    table: Table, names: Sequence[str | None], by: Apart = "task"
) -> tuple[np.ndarray, dict[str, str | None]]:
    """The same where the predictor itself is chosen without the cases that are held out.

    The best of many predictors looks better than it is on the cases that it was chosen by. Here it is chosen anew for
    everything held out, by leave-one-task-out errors among the rest.

    Args:
        table: the cases.
        names: of the predictors to choose from, the simpler ones first; None for the number of models alone.
        by: what is held out.

    Returns:
        ``(n,)`` predictions, and what was held out to the predictor chosen without it.
    """
    x = _columns(table, names)
    total, counts = np.zeros(len(table.y)), np.zeros(len(table.y))
    chosen: dict[str, str | None] = {}
    for label, out in table.left_out(by).items():
        rest = ~out
        if rest.sum() < LEAST_CASES:
            continue
        errors = _errors(table, _held_out(table, x, "task", rest), rest)
        if not np.isfinite(errors).any():
            continue
        best = simplest(errors)
        chosen[label] = names[best]
        total[out] += _applied(table, x[:, [best]], rest, out)[:, 0]
        counts[out] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(counts, counts, np.nan), chosen


def best_of(table: Table, names: Sequence[str | None]) -> str | None:
    """The predictor with the smallest leave-one-task-out error; of equals, the first.

    Args:
        table: the cases.
        names: of the predictors, the simpler ones first; None for the number of models alone.

    Returns:
        Its name, or None.

    Raises:
        StudyError: the cases have too few tasks to leave one out.
    """
    errors = _errors(table, held_out(table, names), np.ones(len(table.y), dtype=bool))
    if not np.isfinite(errors).any():
        raise StudyError(
            "All cases share a task, so none can be left out to judge a rule by. Give families with more tasks."
        )
    return names[simplest(errors)]


def simplest(errors: np.ndarray) -> int:
    """The first of those that are as good as the best.

    Args:
        errors: one a predictor, the simpler ones first.

    Returns:
        Its position.

    Example:
        >>> simplest(np.array([0.2, 0.101, 0.1]))
        1
    """
    return int(np.flatnonzero(errors <= np.nanmin(errors) + TIE)[0])


def _columns(table: Table, names: Sequence[str | None]) -> np.ndarray:
    return np.stack(
        [np.zeros(len(table.y)) if name is None else table.column(name) for name in names], axis=1
    )


def _held_out(table: Table, x: np.ndarray, by: Apart, among: np.ndarray) -> np.ndarray:
    total, counts = np.zeros(x.shape), np.zeros(len(x))
    for out in table.left_out(by).values():
        rest, asked = among & ~out, among & out
        if rest.sum() < LEAST_CASES or not asked.any():
            continue
        total[asked] += _applied(table, x, rest, asked)
        counts[asked] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(counts, counts, np.nan)[:, None]


def _applied(table: Table, x: np.ndarray, seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    intercepts, sizes, slopes = lines(x[seen], table.y[seen], table.doublings[seen], table.weights[seen])
    found = intercepts + np.outer(table.doublings[asked], sizes) + slopes * x[asked]
    return np.clip(found, table.y[seen].min(), table.y[seen].max())


def _errors(table: Table, predicted: np.ndarray, among: np.ndarray) -> np.ndarray:
    apart = np.abs(predicted - table.y[:, None])
    told = among & np.isfinite(apart).all(1)
    if not told.any():
        return np.full(apart.shape[1], np.nan)
    return np.average(apart[told], axis=0, weights=table.weights[told])
