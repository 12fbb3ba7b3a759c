"""Predicted against measured gaps: slope, R^2, and where the third order takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergescope.protocols.linearity import Linearity
from mergescope.protocols.prediction.gaps import GapErrors

TINY = 1e-5
"""Gaps below this share of a feature are rounding of float32."""

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How well the second order predicts gaps at one layer.

    Attributes:
        layer: its name.
        trivial: whether it is linear in the weights by construction: then there is no gap.
        slope: of the least-squares line of measured on predicted relative gaps, over samples and tests; 1 is
            perfect. NaN if nothing is predicted.
        r2: squared correlation of the two.
        error: ``|measured - predicted| / |measured|`` of the vectors, mean over samples and tests.
        takes_over: the coefficient of a task vector at which what follows the second order is as large as it. The
            ratio of the two grows linearly with the coefficient; this is where that line reaches 1. It is 0 where the
            ratio does not fall with the coefficient: kinks (ReLU) add to gaps at second order what no derivative sees.
        n: samples times tests.
    """

    layer: str
    trivial: bool
    slope: float
    r2: float
    error: float
    takes_over: float
    n: int


def agreement(
    predicted: Sequence[Linearity], measured: Sequence[Linearity], errors: Sequence[Sequence[GapErrors]],
    remainders: Mapping[float, Sequence[Mapping[str, np.ndarray]]],
) -> tuple[Agreement, ...]:  # fmt: skip
    """Compare tests that were both predicted and measured.

    Args:
        predicted: one a test.
        measured: one a test.
        errors: one entry a layer, of each test.
        remainders: coefficient to what follows the second order, relative to it, of every task vector: layer to
            ``(rows,)``.

    Returns:
        One entry a layer.

    Example:
        >>> agreement([], [], [], {})
        ()
    """
    if not predicted:
        return ()
    found = []
    for place, entry in enumerate(predicted[0].layers):
        sides = [
            np.concatenate([said.layers[place].values["gap"] for said in part])
            for part in (predicted, measured)
        ]
        both = np.isfinite(sides[0]) & np.isfinite(sides[1])
        x, y = (side[both] for side in sides)
        slope, r2 = _line(x, y)
        silent = not len(x) or float(x.max()) < TINY
        here = [of_test[place].error for of_test in errors]
        count = sum(it.n for it in here)
        error = sum(it.mean * it.n for it in here if it.n) / count if count else float("nan")
        parts = {lam: np.concatenate([it[entry.layer] for it in every]) for lam, every in remainders.items()}
        found.append(
            Agreement(
                entry.layer, entry.trivial, *((NAN,) * 4 if silent else (slope, r2, error, crossing(parts))), len(x)
            )
        )  # fmt: skip
    return tuple(found)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return float("nan"), float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x)), float((x @ y) ** 2 / ((x @ x) * (y @ y)))


def crossing(ratios: Mapping[float, np.ndarray]) -> float:
    """Where a line through zero, fitted to median ratios at several coefficients, reaches 1.

    Args:
        ratios: coefficient to ratios, ``(rows,)``. Those above a half are no longer on the line, and are used only if
            there are no others: then of the smallest coefficient.

    Returns:
        The coefficient; infinite if there is no remainder, NaN without ratios, 0 if they are large and don't fall with
        the coefficient.

    Example:
        >>> crossing({0.1: np.array([0.04]), 0.2: np.array([0.08]), 0.4: np.array([0.9])})
        2.5
    """
    medians = {lam: float(np.nanmedian(part)) for lam, part in ratios.items() if np.isfinite(part).any()}
    if not medians:
        return NAN
    first, last = min(medians), max(medians)
    if first < last and medians[first] > max(0.5, medians[last]):
        return 0.0
    used = {lam: value for lam, value in medians.items() if value <= 0.5} or {first: medians[first]}
    rise = sum(lam * value for lam, value in used.items())
    return round(sum(lam**2 for lam in used) / rise, 12) if rise else float("inf")
