"""What a curvature run's directory holds, as its page looks at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mergescope.protocols.family_curvature_result import POOLED
from mergescope.reports.protocol_view import Stored
from mergescope.studies.rundir import Row

REGRESSORS = {
    "product": "λ |d|²",
    "lambda": "λ alone",
    "distance": "|d|² alone",
    "exact term": "exact term",
}
"""What gaps are regressed on, and what figures call it."""

FIGURES = ("gap", "lambda", "|d|^2", "exact term", "bound", "bound holds")


@dataclass(frozen=True)
class Sides:
    """Both sides of Theorem 5.1, for a pair on a data set.

    Attributes:
        pair: its name.
        data: name of the data.
        gap: of the loss, with its interval.
        found: measure to value.
    """

    pair: str
    data: str
    gap: Row
    found: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """The bound over the absolute gap; NaN without a gap."""
        return self.found["bound"] / abs(self.gap.mean) if self.gap.mean else math.nan


@dataclass(frozen=True)
class Curved:
    """Eigenvalues, curvatures and both sides of Theorem 5.1.

    Attributes:
        data: names of the data.
        base: data to the eigenvalue at the base.
        tuned: data to model to the eigenvalue there.
        pairs: data to pair to the eigenvalue at the pair's point.
        unsure: kind, name and data of what has not converged.
        along: task and data to curvature, squared length and bound; of the task's own data.
        sides: of all pairs.
        lines: response and regressor to the row of R^2, over all pairs and data.
    """

    data: tuple[str, ...]
    base: Mapping[str, Row]
    tuned: Mapping[str, Mapping[str, Row]]
    pairs: Mapping[str, Mapping[str, Row]]
    unsure: tuple[tuple[str, str, str], ...]
    along: Mapping[tuple[str, str], Mapping[str, float]]
    sides: tuple[Sides, ...]
    lines: Mapping[tuple[str, str], Row]

    @property
    def eigenvalues(self) -> list[Row]:
        """All of them: at the base, at fine-tunes, and at pairs' points."""
        others = [*self.tuned.values(), *self.pairs.values()]
        return [*self.base.values(), *(row for rows in others for row in rows.values())]

    @property
    def held(self) -> int:
        """Cases in which the bound holds."""
        return sum(side.found["bound holds"] == 1 for side in self.sides)

    @property
    def loose(self) -> float:
        """Median of the bound over the absolute gap."""
        values = [side.ratio for side in self.sides if math.isfinite(side.ratio)]
        return float(np.median(values)) if values else math.nan

    @property
    def signs(self) -> int:
        """Cases in which the exact term has the sign of the gap."""
        return sum(side.found["exact term"] * side.gap.mean > 0 for side in self.sides)


def stored_curvature(stored: Stored) -> Curved:
    """Everything of a run.

    Args:
        stored: the run.

    Returns:
        What was measured.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    kinds = {
        kind: stored.of(kind=f"eigenvalue of {kind}", measure="eigenvalue")
        for kind in ("base", "fine-tune", "pair")
    }
    if not kinds["base"]:
        raise stored.lacks("kind 'eigenvalue of base', measure 'eigenvalue'")
    data = tuple(dict.fromkeys(row.data for row in kinds["base"]))

    def by_data(kind: str) -> dict[str, dict[str, Row]]:
        return {name: {row.points: row for row in kinds[kind] if row.data == name} for name in data}

    unsure = []
    for kind, rows in kinds.items():
        for row in rows:
            done = stored.one(
                kind=f"eigenvalue of {kind}", points=row.points, data=row.data, measure="converged"
            )
            unsure += [(kind, row.points, row.data)] if not done.mean else []
    along: dict[tuple[str, str], dict[str, float]] = {}
    for row in stored.of(kind="along own", measure="d^T H d"):
        common = {"kind": "along own", "points": row.points, "data": row.data}
        along[row.points, row.data] = {
            name: stored.one(**common, measure=name).mean for name in ("d^T H d", "|d|^2", "bound")
        }
    if not along:
        raise stored.lacks("kind 'along own', measure 'd^T H d'")
    sides = []
    for gap in stored.of(kind="theorem 5.1", measure="gap"):
        common = {"kind": "theorem 5.1", "points": gap.points, "data": gap.data}
        values = {name: stored.one(**common, measure=name).mean for name in FIGURES}
        sides.append(Sides(gap.points, gap.data, gap, values))
    if not sides:
        raise stored.lacks("kind 'theorem 5.1', measure 'gap'")
    lines = {
        (response, regressor): row
        for response in ("|gap|", "gap")
        for regressor in REGRESSORS
        for row in stored.of(points=POOLED, measure=f"R^2 of {response} on {regressor}")
    }
    return Curved(
        data, {row.data: row for row in kinds["base"]}, by_data("fine-tune"), by_data("pair"), tuple(unsure), along,
        tuple(sides), lines,
    )  # fmt: skip
