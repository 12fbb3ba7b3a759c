"""What a check of Theorem 5.1 found: figures of pairs, and regressions over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, figure, pivot
from mergescope.errors import PointError, did_you_mean
from mergescope.protocols.scores import as_fields
from mergescope.readings import Summary
from mergescope.readings.regression import Regression, least_squares

REGRESSORS = {
    "product": "lambda |d|^2",
    "lambda": "lambda",
    "distance": "|d|^2",
    "exact term": "-a(1-a)/2 d^T H d",
}
"""What gaps are regressed on; of the exact term, the absolute value where the gap is."""

RESPONSES = ("|gap|", "gap")
"""What is regressed: the theorem is about the first; the second keeps its sign."""

HEADS = ("gap", "exact term", "lambda", "|d|^2", "bound")
"""What tables tell of a pair."""


@dataclass(frozen=True)
class TheoremPair:
    """Two models, and both sides of the theorem.

    Attributes:
        name: of the pair.
        gap: of the loss, signed, as a mean over samples: positive where the merged model is above the chord.
        losses: of both models.
        eigenvalue: lambda.
        residual: an eigenvalue is no farther from it than that.
        converged: whether that is small.
        distance: ``|th_i - th_j|^2``.
        term: the exact second-order term, signed like the gap.
        bound: ``a(1-a)/2 lambda |th_i - th_j|^2``.
    """

    name: str
    gap: Summary
    losses: tuple[float, float]
    eigenvalue: float
    residual: float
    converged: bool
    distance: float
    term: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the absolute gap is within the bound, without the third-order term."""
        return abs(self.gap.mean) <= self.bound

    def rows(self, data: str) -> list[dict[str, Any]]:
        """The figures as lines of a results table.

        Args:
            data: name of the data.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "theorem 5.1", "points": self.name, "data": data}
        figures = {
            "|gap|": abs(self.gap.mean), "|d|^2": self.distance, "exact term": self.term, "bound": self.bound,
            "bound holds": float(self.holds),
        }  # fmt: skip
        ends = {"low": self.eigenvalue - self.residual, "high": self.eigenvalue + self.residual}
        return [
            {**common, "measure": "gap", **as_fields(self.gap)},
            {**common, "measure": "lambda", "mean": self.eigenvalue, **ends},
            *({**common, "measure": name, "mean": value} for name, value in figures.items()),
        ]


@dataclass(frozen=True)
class TheoremCheck:
    """The result of [`check_theorem`][mergescope.protocols.theorem.check_theorem]; prints as tables.

    Attributes:
        pairs: every pair.
        regressions: (response, regressor) to line, over pairs: of [`RESPONSES`][] and [`REGRESSORS`][].
        data: name of the data.
        samples: that the loss is the mean over.
        conventions: what was chosen, in words.
        notes: what the user should know.
    """

    pairs: tuple[TheoremPair, ...]
    regressions: Mapping[tuple[str, str], Regression]
    data: str
    samples: int
    conventions: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> TheoremPair:
        found = {pair.name: pair for pair in self.pairs}
        if name not in found:
            raise PointError(
                f"There is no pair {name!r}.{did_you_mean(name, found)} Pairs: {', '.join(found)}."
            )
        return found[name]

    @property
    def held(self) -> int:
        """Pairs for which the bound holds."""
        return sum(pair.holds for pair in self.pairs)

    @property
    def says(self) -> str:
        """For how many pairs the bound holds, in words."""
        return (
            f"Theorem 5.1 on {self.data} ({self.samples} samples): the bound holds for {self.held} of "
            f"{len(self.pairs)} pairs"
        )

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        rows = [row for pair in self.pairs for row in pair.rows(self.data)]
        shown = pivot(rows, "Both sides of the theorem", "points", "measure", only=HEADS)
        return View(self.says, (shown, regression_table(self.regressions)), (*self.conventions, *self.notes))

    def __str__(self) -> str:
        wide = max([5, *(len(pair.name) for pair in self.pairs)])
        lines = [
            self.says,
            f"{'pair':<{wide}}" + "".join(f"{head:>13}" for head in HEADS) + "  holds",
        ]
        for pair in self.pairs:
            figures = (pair.gap.mean, pair.term, pair.eigenvalue, pair.distance, pair.bound)
            cells = "".join(f"{value:>13.4g}" for value in figures)
            lines.append(f"{pair.name:<{wide}}{cells}  {'yes' if pair.holds else 'no'}")
        lines.append(f"{'regression':<20}{'R^2':>7}  {'95% interval':<16}{'slope':>11}  95% interval")
        for (response, regressor), line in self.regressions.items():
            lines.append(
                f"{f'{response} on {regressor}':<20}{line.r2:>7.3f}  {_ends(line.r2_interval, '.3f'):<16}"
                f"{line.slope:>11.4g}  {_ends(line.slope_interval, '.4g')}"
            )
        lines += [f"Convention: {said}." for said in self.conventions]
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table; regressions that don't exist are left out.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        out = [row for pair in self.pairs for row in pair.rows(self.data)]
        for (response, regressor), line in self.regressions.items():
            common = {
                "kind": "theorem 5.1", "points": f"{len(self.pairs)} pairs", "data": self.data, "n": line.n,
            }  # fmt: skip
            for what, value, (low, high) in (
                ("R^2", line.r2, line.r2_interval),
                ("slope", line.slope, line.slope_interval),
            ):
                if math.isfinite(value):
                    measure = f"{what} of {response} on {regressor}"
                    out.append({**common, "measure": measure, "mean": value, "low": low, "high": high})
        return out


def regression_table(regressions: Mapping[tuple[str, str], Regression]) -> Table:
    """Regressions as a table of a notebook.

    Args:
        regressions: (response, regressor) to line.

    Returns:
        The table.
    """
    lines = tuple(
        (
            f"{response} on {regressor}",
            figure(line.r2, *line.r2_interval),
            figure(line.slope, *line.slope_interval),
        )
        for (response, regressor), line in regressions.items()
    )
    return Table("Regressions over pairs", ("regression", "R²", "slope"), lines)


def _ends(interval: tuple[float, float], form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def fitted(
    pairs: Sequence[TheoremPair], *, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Regression]:
    """Regress the gaps of pairs on what should explain them.

    Args:
        pairs: with their figures.
        resamples: of the bootstrap over pairs.
        seed: of the bootstrap.

    Returns:
        (response, regressor) to line.
    """
    gaps, terms = (np.array(values) for values in ([p.gap.mean for p in pairs], [p.term for p in pairs]))
    eigenvalue, distance = np.array([[pair.eigenvalue, pair.distance] for pair in pairs]).T
    found = {}
    for response in RESPONSES:
        shown = np.abs if response == "|gap|" else np.asarray
        regressors = (eigenvalue * distance, eigenvalue, distance, shown(terms))
        for name, values in zip(REGRESSORS, regressors, strict=True):
            found[response, name] = least_squares(values, shown(gaps), resamples=resamples, seed=seed)
    return found
