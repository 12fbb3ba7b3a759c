"""What a search for coefficients found, at which cost, and why it was kept or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, figure, number
from mergescope.protocols.scores import as_fields
from mergescope.protocols.search import Choice
from mergescope.readings import Summary
from mergescope.weights import Point

KIND = "coefficient-search"


@dataclass(frozen=True)
class SurrogateFit:
    """How well a surrogate predicts scores of points that it was not fitted on.

    Attributes:
        order: of the polynomial.
        points: how many it was fitted on.
        terms: how many it has.
        held_out: how many points it was judged on.
        correlation: of predicted and true scores; NaN if either does not vary.
        error: mean absolute error of the score.
        spread: standard deviation of the true scores, to compare the error with.
        trusted: whether it was good enough to be optimised.
    """

    order: int
    points: int
    terms: int
    held_out: int
    correlation: float
    error: float
    spread: float
    trusted: bool

    def __str__(self) -> str:
        named = "first" if self.order == 1 else "second"
        return (
            f"{named} order, {self.terms} terms from {self.points} points; on {self.held_out} others, correlation "
            f"{self.correlation:.3f}, mean error {self.error:.4f} (spread {self.spread:.4f})"
        )


@dataclass(frozen=True)
class Method:
    """A way to find coefficients.

    Attributes:
        name: ``"base"``, ``"grid (0.4)"``, ``"surrogate"`` or ``"random"``.
        coefficients: task and group of layers to coefficient.
        validation: the measure on all validation samples.
        points: how many points were passed through the validation data to find it; random search is given as many
            as the surrogate took.
        test: on test data, if there are any.
    """

    name: str
    coefficients: Mapping[tuple[str, str], float]
    validation: float
    points: int
    test: Summary | None = None


@dataclass(frozen=True)
class CoefficientSearch:
    """What [`search_coefficients`][mergescope.protocols.coefficients.search.search_coefficients] found; it prints.

    Attributes:
        kept: ``"grid"`` or ``"surrogate"``: whose answer the coefficients are.
        reason: why.
        coefficients: task and group of layers to coefficient.
        point: the model that they make.
        objective: what was searched by.
        measure: what validation figures are.
        grid: the single coefficient's choice.
        fit: the surrogate's error.
        gain: of the best candidate over the grid's answer, on samples that were not optimised on; None if nothing was
            to be compared.
        methods: what each way found.
        test_measure: what test figures are; empty without test data.
        forward_passes: of a batch of validation data.
        seconds: of all of it.
        notes: what the user should know.
        network: name of the network's class.
        linearized: whether figures are of the network linearised around the base.
    """

    kept: str
    reason: str
    coefficients: Mapping[tuple[str, str], float]
    point: Point
    objective: str
    measure: str
    grid: Choice
    fit: SurrogateFit
    gain: Summary | None
    methods: tuple[Method, ...]
    test_measure: str = ""
    forward_passes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    network: str = ""
    linearized: bool = False

    def __getitem__(self, method: str) -> Method:
        return next(found for found in self.methods if found.name.split(" ")[0] == method)

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        tasks, groups = (list(dict.fromkeys(key[place] for key in self.coefficients)) for place in (0, 1))
        ways = tuple(
            (
                it.name, figure(it.validation), Cell(number(it.points)),
                Cell(NONE) if it.test is None else figure(it.test.mean, it.test.low, it.test.high),
            )
            for it in self.methods
        )  # fmt: skip
        kept = tuple((task, *(figure(self.coefficients[task, group]) for group in groups)) for task in tasks)
        heads = ("found by", f"validation {self.measure}", "points", f"test {self.test_measure}".rstrip())
        named = ("task", *(groups if len(groups) > 1 else ["coefficient"]))
        tables = (
            Table("What each way found", heads, ways),
            Table("Coefficients that were kept", named, kept),
        )
        return View(f"Kept: the {self.kept}'s answer; {self.reason}", tables, self.notes)

    def __str__(self) -> str:
        first = max(len(found.name) for found in self.methods)
        heads = f"{'found by':<{first}}  {'validation':>10}  {'points':>6}"
        lines = [
            f"Coefficients by {self.measure}",
            heads + (f"  test {self.test_measure}" if self.test_measure else ""),
        ]
        for found in self.methods:
            line = f"{found.name:<{first}}  {found.validation:>10.4f}  {found.points:>6}"
            if found.test is not None:
                line += f"  {found.test.mean:.4f} [{found.test.low:.4f}, {found.test.high:.4f}]"
            lines.append(line)
        lines += [f"Surrogate: {self.fit}.", f"Kept: the {self.kept}'s answer; {self.reason}."]
        if self.grid.at_end:
            lines.append("The grid's answer is its largest coefficient: a larger one might be better.")
        lines += [f"Note: {note}." for note in self.notes]
        groups = list(dict.fromkeys(group for _, group in self.coefficients))
        tasks = list(dict.fromkeys(task for task, _ in self.coefficients))
        wide = max([4, *map(len, tasks)])
        shown = groups if len(groups) > 1 else ["coefficient"]
        lines.append("  ".join([f"{'task':<{wide}}", *(f"{name:>11}" for name in shown)]))
        for task in tasks:
            cells = [f"{self.coefficients[task, group]:>11.4f}" for group in groups]
            lines.append("  ".join([f"{task:<{wide}}", *cells]))
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]: for each method the validation and test figures, the
            points it took and its coefficients (``parameter``: 1 for what was kept); whether the grid's answer is at
            its end; whether the surrogate is trusted, and its error; the gain.
        """
        common = {"kind": KIND, "data": " ∪ ".join(dict.fromkeys(task for task, _ in self.coefficients))}
        out: list[dict[str, Any]] = []
        for found in self.methods:
            name, kept = found.name.split(" ")[0], float(found.name.split(" ")[0] == self.kept)
            line = {**common, "points": name, "parameter": kept}
            out.append({**line, "measure": f"validation {self.measure}", "mean": found.validation})
            out.append({**line, "measure": "evaluated points", "mean": float(found.points)})
            if found.test is not None:
                out.append({**line, "measure": f"test {self.test_measure}", **as_fields(found.test)})
            out += [
                {**line, "data": task, "layer": group, "measure": "coefficient", "mean": value}
                for (task, group), value in found.coefficients.items()
            ]
        out.append({**common, "points": "grid", "measure": "at_end", "mean": float(self.grid.at_end)})
        surrogate = {**common, "points": "surrogate"}
        out.append({**surrogate, "measure": "trusted", "mean": float(self.fit.trusted)})
        if math.isfinite(self.fit.correlation):
            out.append({
                **surrogate,
                "measure": "correlation",
                "mean": self.fit.correlation,
                "n": self.fit.held_out,
            })
        out.append({**surrogate, "measure": "mean error", "mean": self.fit.error, "n": self.fit.held_out})
        if self.gain is not None:
            out.append({**surrogate, "measure": "confirmed gain", **as_fields(self.gain)})
        return out
