"""What was predicted: tests, interactions, outcomes, and how they agree with what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, figure, pivot
from mergescope.errors import MergescopeError
from mergescope.protocols.linearity import Linearity
from mergescope.protocols.prediction.agreement import Agreement
from mergescope.protocols.prediction.expansion import Expansion
from mergescope.protocols.prediction.gaps import GapErrors
from mergescope.protocols.prediction.interactions import Interaction
from mergescope.protocols.prediction.surface import Outcome
from mergescope.protocols.prediction.surfaces import Surface
from mergescope.protocols.scores import as_fields

if TYPE_CHECKING:
    from mergescope.protocols.prediction.predict import PredictionSettings


@dataclass(frozen=True)
class PredictedTest:
    """One linearity test.

    Attributes:
        kind: ``ctl``, ``eq1``, ``eq2`` or ``eq3``.
        name: of the models.
        data: names of the data.
        predicted: what was predicted.
        measured: what was measured, or None.
        errors: of the predicted gap's vector, one entry a layer; empty if nothing was measured.
    """

    kind: str
    name: str
    data: tuple[str, ...]
    predicted: Linearity
    measured: Linearity | None
    errors: tuple[GapErrors, ...]

    @property
    def parameter(self) -> float:
        """The test's alpha or lambda; NaN for Eq. 1."""
        found = self.predicted.test.parameter
        return float("nan") if found is None else found

    def rows(self) -> list[dict[str, Any]]:
        """The measures as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        said = {"predicted": self.predicted, "measured": self.measured}
        common = {"points": self.name, "data": " ∪ ".join(self.data), "parameter": self.parameter}
        found = [
            {
                **common, "kind": f"{how}-{self.kind}", "layer": entry.layer, "trivial": entry.trivial,
                "measure": measure, **as_fields(summary),
            }
            for how, linearity in said.items()
            if linearity is not None
            for entry in linearity.layers
            for measure, summary in entry.measures.items()
        ]  # fmt: skip
        return found + [
            {
                **common, "kind": f"predicted-{self.kind}", "layer": it.layer, "measure": "gap error",
                **as_fields(it.error),
            }
            for it in self.errors
        ]  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """The result of [`predict`][mergescope.protocols.prediction.predict].

    Attributes:
        tests: predicted linearity tests.
        interactions: of every two task vectors, and of each with itself, at every layer.
        outcomes: predicted accuracy of task addition over the grid; empty where it can't be predicted.
        surfaces: predicted accuracy of each pair over both coefficients; empty where it can't be predicted.
        agreements: predicted against measured, one entry a layer; empty if nothing was measured.
        settings: what was asked for.
        network: name of its class.
        samples: data name to samples.
        forward_passes: of a batch.
        derivatives: second derivatives of a batch.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        expansions: data name to expansion, from which any other merge can be predicted.
        notes: what the user should know.
    """

    tests: tuple[PredictedTest, ...]
    interactions: tuple[Interaction, ...]
    outcomes: tuple[Outcome, ...]
    surfaces: tuple[Surface, ...]
    agreements: tuple[Agreement, ...]
    settings: PredictionSettings
    network: str
    samples: Mapping[str, int]
    forward_passes: int
    derivatives: int
    seconds: float
    peak_bytes: int
    expansions: Mapping[str, Expansion] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __getitem__(self, key: tuple[str, str]) -> PredictedTest:
        for test in self.tests:
            if (test.kind, test.name) == key:
                return test
        known = ", ".join(dict.fromkeys(f"{test.kind} of {test.name}" for test in self.tests))
        raise MergescopeError(f"{key[0]} of {key[1]} was not predicted. Predicted: {known}.")

    @property
    def best(self) -> Outcome | None:
        """The coefficient with the highest predicted normalised accuracy; among equals the smallest."""
        return max(self.outcomes, key=lambda it: (it.normalised.mean, -it.lam), default=None)

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        found = [row for test in self.tests for row in test.rows()]
        for entry in self.interactions:
            common = {
                "kind": "interaction", "points": f"{entry.one} + {entry.other}", "data": " ∪ ".join(entry.data),
                "layer": entry.layer, "trivial": entry.trivial,
            }  # fmt: skip
            found.append({**common, "measure": "interaction", **as_fields(entry.relative)})
            found.append({**common, "measure": "interaction size", **as_fields(entry.size)})
        every = " ∪ ".join(self.samples)
        for at in self.agreements:
            common = {
                "kind": "prediction",
                "points": "all",
                "data": every,
                "layer": at.layer,
                "trivial": at.trivial,
            }
            found += [
                {**common, "measure": measure.replace("_", " "), "mean": getattr(at, measure), "n": at.n}
                for measure in ("slope", "r2", "error", "takes_over")
            ]
        for outcome in self.outcomes:
            found += _outcome_rows(outcome)
        for square in self.surfaces:
            found += square.rows()
        cost = {
            "seconds": round(self.seconds, 3), "forward_passes": self.forward_passes, "peak_bytes": self.peak_bytes,
        }  # fmt: skip
        return [{**row, **cost} for row in found]

    @property
    def says(self) -> str:
        """What is predicted of task addition, else what it was predicted from, in words."""
        best = self.best
        if best is None:
            derivatives = f"{self.derivatives:,} second derivatives and " if self.derivatives else ""
            return f"Predicted from {derivatives}{self.forward_passes:,} forward passes of a batch."
        return f"Best predicted coefficient: {best.lam:g}, with a normalised accuracy of {best.normalised.mean:.4f}."

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        rows, best = self.rows(), self.best
        at_output = {"kind": "interaction", "layer": "output", "measure": "interaction"}
        tables = [
            _test_table(self),
            pivot(rows, "Interaction of task vectors", "points", "layer", **at_output),
        ]
        if self.agreements:
            caption = "Predicted against measured gaps"
            tables.append(pivot(rows, caption, "layer", "measure", kind="prediction", points="all"))
        if best is not None:
            added = {"points": "task addition", "measure": "normalised accuracy"}
            tables.append(pivot(rows, "Task addition, normalised accuracy", "parameter", "kind", **added))
        return View(self.says, tuple(tables), self.notes)

    def __str__(self) -> str:
        lines = [
            f"Predicted from {self.derivatives:,} second derivatives and {self.forward_passes:,} forward passes of a "
            f"batch; samples: {', '.join(f'{count:,} of {name}' for name, count in self.samples.items())}",
            "",
            *_test_lines(self),
            "",
            *_interaction_lines(self),
        ]
        if self.agreements:
            lines += ["", *_agreement_lines(self)]
        if self.outcomes:
            lines += ["", *_outcome_lines(self)]
        return "\n".join(lines)


def _test_table(found: Prediction) -> Table:
    lines = []
    for test in found.tests:
        evidence = test.predicted.evidence
        several = len({other.parameter for other in found.tests if other.kind == test.kind}) > 1
        at = f" at {test.parameter:g}" if several and test.kind != "eq1" else ""
        name = f"{test.kind}: {test.name}{at}"
        if not evidence:
            lines.append((name, "no layer that is evidence", *[Cell(NONE)] * 4))
            continue
        worst = max(evidence, key=lambda entry: entry.measures["gap"].mean)
        cos, coef, gap = (worst.measures[name] for name in ("cos", "coef", "gap"))
        true = None if test.measured is None else test.measured[worst.layer].measures["gap"]
        lines.append((
            name, worst.layer, figure(cos.mean), figure(coef.mean),
            figure(gap.mean, gap.low, gap.high), Cell(NONE) if true is None else figure(true.mean),
        ))  # fmt: skip
    heads = ("test", "largest gap at", "cos", "coef", "gap", "measured gap")
    return Table("Tests of linearity, predicted", heads, tuple(lines))


def _test_lines(found: Prediction) -> list[str]:
    width = max([6, *(len(test.name) for test in found.tests)])
    compared = any(test.measured for test in found.tests)
    more = f"{'measured gap':>14}{'error':>8}" if compared else ""
    lines = [
        f"{'test':<6}{'models':<{width}}  {'coef.':>5}  {'largest gap at':<24}{'cos':>8}{'coef':>8}{'gap':>8}  "
        f"{'95% interval':<18}{more}"
    ]
    for test in found.tests:
        evidence = test.predicted.evidence
        if not evidence:
            lines.append(f"{test.kind:<6}{test.name:<{width}}  no layer with live, non-trivial features")
            continue
        worst = max(evidence, key=lambda entry: entry.measures["gap"].mean)
        gap = worst.measures["gap"]
        more = ""
        if test.measured is not None:
            error = next(it.error.mean for it in test.errors if it.layer == worst.layer)
            more = f"{test.measured[worst.layer].measures['gap'].mean:>14.4f}{error:>8.3f}"
        at = "" if test.kind == "eq1" else f"{test.parameter:g}"
        lines.append(
            f"{test.kind:<6}{test.name:<{width}}  {at:>5}  {worst.layer:<24}{worst.measures['cos'].mean:>8.4f}"
            f"{worst.measures['coef'].mean:>8.4f}{gap.mean:>8.4f}  {f'[{gap.low:.4f}, {gap.high:.4f}]':<18}{more}"
        )
    return [line.rstrip() for line in lines]


def _interaction_lines(found: Prediction) -> list[str]:
    here = [entry for entry in found.interactions if entry.layer == "output"]
    width = max([6, *(len(f"{entry.one} + {entry.other}") for entry in here)])
    return [
        "Interaction of task vectors at the output, relative to what each changes",
        *(
            f"{f'{it.one} + {it.other}':<{width}}  {it.relative.mean:>8.4f}  [{it.relative.low:.4f}, "
            f"{it.relative.high:.4f}]"
            for it in here
        ),
    ]


def _agreement_lines(found: Prediction) -> list[str]:
    lines = [
        "Predicted against measured gaps",
        f"{'layer':<28}{'slope':>8}{'R^2':>8}{'error':>8}{'third order takes over at':>28}{'n':>8}",
    ]
    for it in found.agreements:
        note = "  trivial" if it.trivial else ""
        lines.append(
            f"{it.layer:<28}{it.slope:>8.3f}{it.r2:>8.3f}{it.error:>8.3f}{it.takes_over:>28.3g}{it.n:>8}{note}"
        )
    return lines


def _outcome_lines(found: Prediction) -> list[str]:
    compared = any(it.measured_normalised is not None for it in found.outcomes)
    lines = [
        "Task addition, normalised accuracy",
        f"{'lambda':>6}  {'predicted':>9}  {'95% interval':<18}{'  measured' if compared else ''}".rstrip(),
    ]
    for it in found.outcomes:
        true = "" if it.measured_normalised is None else f"  {it.measured_normalised.mean:>8.4f}"
        said = f"[{it.normalised.low:.4f}, {it.normalised.high:.4f}]"
        lines.append(f"{it.lam:>6.2f}  {it.normalised.mean:>9.4f}  {said:<18}{true}".rstrip())
    best = found.best
    if best is not None:
        lines.append(f"Best predicted coefficient: {best.lam:g}")
    return lines


def _outcome_rows(outcome: Outcome) -> list[dict[str, Any]]:
    every = " ∪ ".join(outcome.accuracy)
    common = {"points": "task addition", "parameter": outcome.lam}
    found = [
        {**common, "kind": kind, "data": task, "measure": measure, **as_fields(summary)}
        for kind, measure, values in (
            ("predicted", "accuracy", outcome.accuracy), ("predicted", "loss", outcome.loss),
            ("measured", "accuracy", outcome.measured),
        )
        for task, summary in values.items()
    ]  # fmt: skip
    both = {"predicted": outcome.normalised, "measured": outcome.measured_normalised}
    return found + [
        {**common, "kind": kind, "data": every, "measure": "normalised accuracy", **as_fields(summary)}
        for kind, summary in both.items()
        if summary is not None
    ]
