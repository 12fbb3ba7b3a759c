"""What was measured of a family's curvature; prints as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, figure
from mergescope.protocols.curvature import Eigenvalues
from mergescope.protocols.theorem_result import HEADS, TheoremCheck, TheoremPair, regression_table
from mergescope.readings.regression import Regression

if TYPE_CHECKING:
    from mergescope.protocols.family_curvature import FamilyCurvatureSettings

POOLED = "all pairs"
"""What rows of regressions over all pairs and data are called."""


@dataclass(frozen=True)
class Peak:
    """The largest eigenvalue of the Hessian at one point.

    Attributes:
        kind: ``base``, ``fine-tune`` or ``pair``.
        name: ``base``, or of the model or pair.
        data: name of the data, whose mean loss it is of.
        found: the eigenvalue.
    """

    kind: str
    name: str
    data: str
    found: Eigenvalues


@dataclass(frozen=True)
class Along:
    """Curvature of a loss along a task vector, at the base.

    Attributes:
        task: whose vector.
        data: name of the data.
        own: whether these are its task's data, or nobody's.
        curvature: ``tau^T H tau``.
        length: ``|tau|^2``.
        bound: ``lambda |tau|^2``, by which Theorem 5.1 replaces the curvature.
        samples: that the loss is the mean over.
    """

    task: str
    data: str
    own: bool
    curvature: float
    length: float
    bound: float
    samples: int

    @property
    def share(self) -> float:
        """The curvature as a share of what bounds it; NaN for a model that is the base."""
        return self.curvature / self.bound if self.bound else float("nan")


@dataclass(frozen=True)
class FamilyCurvature:
    """The result of [`family_curvature`][mergescope.protocols.family_curvature.family_curvature].

    Attributes:
        peaks: eigenvalues at the base, at fine-tunes and at pairs' points.
        along: of every task vector on every data set.
        checks: data name to Theorem 5.1 on these data.
        regressions: as of a [`TheoremCheck`][mergescope.protocols.theorem_result.TheoremCheck], over all pairs and
            data.
        settings: what was asked for.
        network: name of its class.
        products: Hessian-vector products of a batch.
        forward_passes: of a batch, for the losses of models.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        notes: what the user should know.
    """

    peaks: tuple[Peak, ...]
    along: tuple[Along, ...]
    checks: Mapping[str, TheoremCheck]
    regressions: Mapping[tuple[str, str], Regression]
    settings: FamilyCurvatureSettings
    network: str
    products: int
    forward_passes: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, TheoremPair]]:
        """Data name and pair, of every case of Theorem 5.1."""
        return [(data, pair) for data, check in self.checks.items() for pair in check.pairs]

    @property
    def held(self) -> int:
        """Cases for which the bound holds."""
        return sum(pair.holds for _, pair in self.pairs)

    @property
    def looseness(self) -> float:
        """Median of the bound over the absolute gap; NaN without gaps."""
        ratios = [pair.bound / abs(pair.gap.mean) for _, pair in self.pairs if pair.gap.mean]
        return float(np.median(ratios)) if ratios else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        found: list[dict[str, Any]] = []
        for peak in self.peaks:
            top = peak.found
            error = top.found.residuals[0]
            common = {
                "kind": f"eigenvalue of {peak.kind}",
                "points": peak.name,
                "data": peak.data,
                "n": top.samples,
            }
            ends = {"low": top.value - error, "high": top.value + error}
            found += [
                {**common, "measure": "eigenvalue", "mean": top.value, **ends},
                {**common, "measure": "converged", "mean": float(top.found.converged)},
                {**common, "measure": "products", "mean": float(top.found.steps)},
            ]
        for at in self.along:
            common = {
                "kind": "along own" if at.own else "along",
                "points": at.task,
                "data": at.data,
                "n": at.samples,
            }
            figures = {"d^T H d": at.curvature, "|d|^2": at.length, "bound": at.bound}
            found += [{**common, "measure": name, "mean": value} for name, value in figures.items()]
        found += [row for check in self.checks.values() for row in check.rows()]
        for (response, regressor), line in self.regressions.items():
            common = {"kind": "theorem 5.1", "points": POOLED, "data": " ∪ ".join(self.checks), "n": line.n}
            for what, value, (low, high) in (
                ("R^2", line.r2, line.r2_interval), ("slope", line.slope, line.slope_interval),
            ):  # fmt: skip
                if math.isfinite(value):
                    measure = f"{what} of {response} on {regressor}"
                    found.append({**common, "measure": measure, "mean": value, "low": low, "high": high})
        cost = {
            "seconds": round(self.seconds, 3), "forward_passes": self.forward_passes, "peak_bytes": self.peak_bytes,
        }  # fmt: skip
        return [{**row, **cost} for row in found]

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    @property
    def says(self) -> str:
        """What Theorem 5.1 comes to, in words."""
        return (
            f"Theorem 5.1: the bound holds for {self.held} of {len(self.pairs)} cases (a pair on a data set); it is "
            f"{self.looseness:.3g} times the gap (median)"
        )

    def _view(self) -> View:
        peaks = tuple(
            (f"{peak.name} on {peak.data}", figure(peak.found.value), figure(peak.found.found.residuals[0]))
            for peak in self.peaks
            if peak.kind != "pair"
        )
        along = tuple(
            (it.task, *map(figure, (it.curvature, it.length, it.bound, it.share)))
            for it in self.along
            if it.own
        )
        tables = [
            Table("Largest eigenvalue of the loss's Hessian", ("at", "lambda", "residual"), peaks),
            Table(
                "Curvature along task vectors",
                ("task vector", "t^T H t", "|t|^2", "lambda |t|^2", "share"),
                along,
            ),
        ]
        if not self.pairs:
            return View("Curvature at the base and at fine-tunes", tuple(tables), self.notes)
        sides = tuple(
            (
                f"{pair.name} on {at}",
                *map(figure, (pair.gap.mean, pair.term, pair.eigenvalue, pair.distance, pair.bound)),
                "yes" if pair.holds else "no",
            )
            for at, pair in self.pairs
        )
        told = {key: line for key, line in self.regressions.items() if math.isfinite(line.r2)}
        tables.append(Table("Both sides of Theorem 5.1", ("pair", *HEADS, "holds"), sides))
        tables += [regression_table(told)] if told else []
        return View(self.says, tuple(tables), self.notes)

    def __str__(self) -> str:
        parts = [_peak_lines(self), _along_lines(self), _pair_lines(self), _regression_lines(self)]
        conventions = dict.fromkeys(said for check in self.checks.values() for said in check.conventions)
        parts.append([f"Convention: {said}." for said in conventions])
        return "\n\n".join("\n".join(part) for part in parts if part)


def _peak_lines(found: FamilyCurvature) -> list[str]:
    here = [peak for peak in found.peaks if peak.kind != "pair"]
    where, data = (max([4, *(len(getattr(peak, name)) for peak in here)]) for name in ("name", "data"))
    lines = [
        "Largest eigenvalue of the loss's Hessian, at the base and at fine-tunes",
        f"{'at':<{where}}  {'data':<{data}}{'lambda':>12}{'residual':>12}{'products':>10}",
    ]
    for peak in here:
        top = peak.found
        more = "" if top.found.converged else "  not converged: raise --max-steps"
        lines.append(
            f"{peak.name:<{where}}  {peak.data:<{data}}{top.value:>12.5g}{top.found.residuals[0]:>12.2g}"
            f"{top.found.steps:>10}{more}"
        )
    return lines


def _along_lines(found: FamilyCurvature) -> list[str]:
    here = [entry for entry in found.along if entry.own]
    task, data = (max([11, *(len(getattr(entry, name)) for entry in here)]) for name in ("task", "data"))
    lines = [
        "Curvature along task vectors, at the base, and what bounds it",
        f"{'task vector':<{task}}  {'data':<{data}}{'t^T H t':>12}{'|t|^2':>12}{'lambda |t|^2':>14}{'share':>10}",
    ]
    return lines + [
        f"{it.task:<{task}}  {it.data:<{data}}{it.curvature:>12.4g}{it.length:>12.4g}{it.bound:>14.4g}"
        f"{it.share:>10.4f}"
        for it in here
    ]


def _pair_lines(found: FamilyCurvature) -> list[str]:
    if not found.pairs:
        return []
    name = max([4, *(len(pair.name) for _, pair in found.pairs)])
    data = max([4, *(len(at) for at, _ in found.pairs)])
    lines = [
        found.says,
        f"{'pair':<{name}}  {'data':<{data}}" + "".join(f"{head:>12}" for head in HEADS) + "  holds",
    ]
    for at, pair in found.pairs:
        figures = (pair.gap.mean, pair.term, pair.eigenvalue, pair.distance, pair.bound)
        cells = "".join(f"{value:>12.4g}" for value in figures)
        more = "" if pair.converged else "  (lambda not converged)"
        lines.append(f"{pair.name:<{name}}  {at:<{data}}{cells}  {'yes' if pair.holds else 'no'}{more}")
    return lines


def _regression_lines(found: FamilyCurvature) -> list[str]:
    lines = [
        f"{f'{response} on {regressor}':<20}{line.r2:>7.3f}  {_ends(line.r2_interval, '.3f'):<16}{line.slope:>11.4g}"
        f"  {_ends(line.slope_interval, '.4g')}"
        for (response, regressor), line in found.regressions.items()
        if math.isfinite(line.r2)
    ]
    if not lines:
        return []
    head = (
        f"{f'over {len(found.pairs)} cases':<20}{'R^2':>7}  {'95% interval':<16}{'slope':>11}  95% interval"
    )
    return [head, *lines]


def _ends(interval: tuple[float, float], form: str) -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"
