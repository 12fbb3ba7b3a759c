"""What averaging models found: tables of soups and of subsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, figure, pivot
from mergescope.protocols.scores import as_fields
from mergescope.readings import Summary
from mergescope.readings.correlation import Correlation
from mergescope.weights import Point

LAYER_MEASURES = ("cos", "coef", "gap", "baseline")
"""The measures of Eq. 1 that are told of every layer."""


@dataclass(frozen=True)
class Ingredient:
    """A step of a greedy soup.

    Attributes:
        model: which was tried.
        validation: accuracy (or loss) of the average with it.
        taken: whether it is in the soup.
    """

    model: str
    validation: float
    taken: bool


@dataclass(frozen=True)
class Soup:
    """An average of models, or one of them.

    Attributes:
        name: ``"best"``, ``"uniform"``, ``"greedy"`` or ``"ensemble"``.
        members: the models that it is made of.
        point: the averaged weights; None for the ensemble, which averages logits.
        validation: accuracy (or loss), the mean over data sets.
        test: on test data, if there are any.
    """

    name: str
    members: tuple[str, ...]
    point: Point | None
    validation: Summary
    test: Summary | None


@dataclass(frozen=True)
class Soups:
    """The result of [`soups`][mergescope.protocols.soups.soups]; prints as a table.

    Attributes:
        soups: the best model, soups, and the ensemble of all models' logits.
        steps: of the greedy soup, in order.
        measure: ``accuracy`` or ``loss``.
        forward_passes: of a batch of validation data.
        data: names of the data sets.
        notes: what the user should know.
        network: name of the network's class.
        linearized: whether figures are of the network linearised around the base.
        seconds: of all passes.
    """

    soups: tuple[Soup, ...]
    steps: tuple[Ingredient, ...]
    measure: str
    forward_passes: int
    data: tuple[str, ...]
    notes: tuple[str, ...] = ()
    network: str = ""
    linearized: bool = False
    seconds: float = 0.0

    def __getitem__(self, name: str) -> Soup:
        return next(soup for soup in self.soups if soup.name == name)

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    @property
    def says(self) -> str:
        """Whether averaging helped, in words."""
        tested = all(soup.test is not None for soup in self.soups)
        greedy, best = (self[name].test or self[name].validation for name in ("greedy", "best"))
        apart = greedy.low > best.high or best.low > greedy.high
        return (
            f"Greedy soup of {' + '.join(self['greedy'].members)}: {'test' if tested else 'validation'} {self.measure} "
            f"{greedy.mean:.4f}, best single model {best.mean:.4f}; their intervals "
            f"{'do not overlap' if apart else 'overlap'}."
        )

    def _view(self) -> View:
        def cell(found: Summary | None) -> Cell:
            return Cell(NONE) if found is None else figure(found.mean, found.low, found.high)

        made = tuple(
            (soup.name, " + ".join(soup.members), cell(soup.validation), cell(soup.test))
            for soup in self.soups
        )
        tried = tuple(
            (step.model, figure(step.validation), "taken" if step.taken else "left out")
            for step in self.steps
        )
        tables = (
            Table(f"Soups, {self.measure}", ("soup", "models", "validation", "test"), made),
            Table("Steps of the greedy soup", ("with", f"validation {self.measure}", "step"), tried),
        )
        return View(self.says, tables, self.notes)

    def __str__(self) -> str:
        lines = [f"{self.measure:<10}{'models':>7}{'validation':>12}{'test':>9}  95% interval"]
        for soup in self.soups:
            line = f"{soup.name:<10}{len(soup.members):>7}{soup.validation.mean:>12.4f}"
            if soup.test is not None:
                line += f"{soup.test.mean:>9.4f}  [{soup.test.low:.4f}, {soup.test.high:.4f}]"
            lines.append(line)
        tried = ", ".join(
            f"{'+' if step.taken else '-'}{step.model} ({step.validation:.4f})" for step in self.steps
        )
        return "\n".join([*lines, f"Greedy: {tried}", *(f"Note: {note}." for note in self.notes)])

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "soup", "data": " ∪ ".join(self.data)}
        out: list[dict[str, Any]] = []
        for soup in self.soups:
            line = {**common, "points": f"{soup.name}: {' + '.join(soup.members)}"}
            out.append({**line, "measure": f"validation {self.measure}", **as_fields(soup.validation)})
            if soup.test is not None:
                out.append({**line, "measure": f"test {self.measure}", **as_fields(soup.test)})
        for number, step in enumerate(self.steps):
            tried = {**common, "points": f"greedy step: {step.model}", "parameter": float(number)}
            out.append({**tried, "measure": f"validation {self.measure}", "mean": step.validation})
            out.append({**tried, "measure": "taken", "mean": float(step.taken)})
        return out


@dataclass(frozen=True)
class SubsetScores:
    """Some of the models, averaged in two ways.

    Attributes:
        members: the models.
        point: the averaged weights.
        soup: their accuracy, the mean over data sets.
        ensemble: accuracy of the averaged logits.
        single: mean accuracy of the members by themselves.
    """

    members: tuple[str, ...]
    point: Point
    soup: Summary
    ensemble: Summary
    single: float


@dataclass(frozen=True)
class Subsets:
    """The result of [`subsets`][mergescope.protocols.soups.subsets]; prints as tables.

    Attributes:
        size: k.
        subsets: those that were measured.
        total: how many there are.
        singles: model to accuracy.
        correlation: ``"pearson"`` and ``"spearman"`` of both accuracies over subsets.
        difference: accuracy of averaged weights less that of averaged logits, the mean over subsets.
        layers: layer to the measures of Eq. 1, each the mean over subsets of means over samples.
        trivial: layers that are linear in the weights by construction.
        data: names of the data sets.
        forward_passes: of a batch.
        notes: what the user should know.
        network: name of the network's class.
        linearized: whether figures are of the network linearised around the base.
        seconds: of all passes.
    """

    size: int
    subsets: tuple[SubsetScores, ...]
    total: int
    singles: Mapping[str, float]
    correlation: Mapping[str, Correlation]
    difference: Summary
    layers: Mapping[str, Mapping[str, Summary]]
    trivial: frozenset[str]
    data: tuple[str, ...]
    forward_passes: int
    notes: tuple[str, ...] = ()
    network: str = ""
    linearized: bool = False
    seconds: float = 0.0

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    @property
    def says(self) -> str:
        """How both ways to average compare, in words."""
        gap, pearson = self.difference, self.correlation["pearson"]
        return (
            f"Averaged weights less averaged logits: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]; Pearson "
            f"correlation {pearson.value:.3f} [{pearson.low:.3f}, {pearson.high:.3f}]."
        )

    def _view(self) -> View:
        scores = tuple(
            (" + ".join(line.members), *map(figure, (line.soup.mean, line.ensemble.mean, line.single)))
            for line in self.subsets
        )
        drawn = "" if len(self.subsets) == self.total else f" of {self.total:,}, drawn by chance"
        tables = [
            Table(
                f"Accuracy of {len(self.subsets)} subsets of {self.size}{drawn}",
                ("models", "weights", "logits", "single"), scores,
            )
        ]  # fmt: skip
        layers = [row for row in self.rows() if "layer" in row]
        tables.append(pivot(layers, "Eq. 1, mean over subsets", "layer", "measure", only=LAYER_MEASURES))
        return View(self.says, tuple(tables), self.notes)

    def __str__(self) -> str:
        wide = max([6, *(len(" + ".join(line.members)) for line in self.subsets)])
        drawn = "" if len(self.subsets) == self.total else f" of {self.total:,}, drawn by chance"
        lines = [
            f"{len(self.subsets)} subsets of {self.size}{drawn}, {self.forward_passes:,} forward passes of a batch",
            f"{'models':<{wide}}  {'weights':>8}  {'logits':>8}  {'single':>8}",
        ]
        lines += [
            "  ".join([
                f"{' + '.join(line.members):<{wide}}",
                *(f"{value:>8.4f}" for value in (line.soup.mean, line.ensemble.mean, line.single)),
            ])
            for line in self.subsets
        ]
        for name, found in self.correlation.items():
            lines.append(f"{name.capitalize()} correlation {found}")
        gap = self.difference
        lines.append(
            f"Averaged weights less averaged logits: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        )
        lines.append(f"{'Eq. 1':<28}" + "".join(f"{name:>10}" for name in LAYER_MEASURES))
        for layer, measures in self.layers.items():
            cells = "".join(f"{measures[name].mean:>10.4f}" for name in LAYER_MEASURES)
            lines.append(f"{layer:<28}{cells}{'  trivial' if layer in self.trivial else ''}")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "averaging", "data": " ∪ ".join(self.data), "parameter": float(self.size)}
        out: list[dict[str, Any]] = [
            {
                **common,
                "points": " + ".join(line.members),
                "measure": f"accuracy of averaged {what}",
                **as_fields(found),
            }
            for line in self.subsets
            for what, found in (("weights", line.soup), ("logits", line.ensemble))
        ]
        single = {**common, "parameter": 1.0, "measure": "accuracy of a single model"}
        out += [{**single, "points": name, "mean": value} for name, value in self.singles.items()]
        members = {**common, "measure": "mean accuracy of the single models"}
        out += [{**members, "points": " + ".join(line.members), "mean": line.single} for line in self.subsets]
        every = {**common, "points": f"{len(self.subsets)} subsets"}
        out += [
            {
                **every,
                "measure": name,
                "mean": found.value,
                "low": found.low,
                "high": found.high,
                "n": found.n,
            }
            for name, found in self.correlation.items()
        ]
        out.append({**every, "measure": "weights less logits", **as_fields(self.difference)})
        return out + [
            {**every, "layer": layer, "trivial": layer in self.trivial, "measure": name, **as_fields(found)}
            for layer, measures in self.layers.items()
            for name, found in measures.items()
        ]
