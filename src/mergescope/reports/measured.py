"""Questions that tables, figures and sentences ask of a measurement of somebody's models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergescope.errors import StudyError
from mergescope.protocols.measure import Measurement
from mergescope.reports.geometry_figures import short_layers
from mergescope.studies.measured import rows
from mergescope.studies.rundir import Row

FINE_TUNES, WITH_BASE = "FT–FT", "PT–FT"
"""Kinds of pairs: two fine-tunes, and the base with one of them."""

KINDS = {FINE_TUNES: "ctl", WITH_BASE: "pt-ft"}
"""Kind of a pair to the kind of its rows."""

TITLES = {FINE_TUNES: "two fine-tunes", WITH_BASE: "base and fine-tune"}

UNKNOWN = "no verdict"

STATUS = {"CTL holds": "holds", "LLFC only": "partly", "not linear": "fails", UNKNOWN: "unknown"}
"""A pair's verdict to the look it has on a page."""

MERGED = ", merged"
"""What follows a pair's name in the rows of loss and accuracy."""


@dataclass(frozen=True)
class Told:
    """A pair of models and the verdict on it.

    Attributes:
        kind: ``"FT–FT"`` or ``"PT–FT"``.
        name: ``"a + b"``.
        a: the model at alpha = 1.
        b: the model at alpha = 0.
        data: names of the data it was measured on.
        word: one of [`STATUS`][].
        reason: why, in words.
        linearized: whether it is of the network linearised around the base.
    """

    kind: str
    name: str
    a: str
    b: str
    data: tuple[str, ...]
    word: str
    reason: str
    linearized: bool = False

    @property
    def status(self) -> str:
        """``"holds"``, ``"partly"``, ``"fails"`` or ``"unknown"``."""
        return STATUS[self.word]


class Measured:
    """The rows of a measurement, indexed.

    Args:
        table: as [`rows`][mergescope.studies.measured.rows] gives them.
        verdicts: a mapping for each pair with ``pair``, ``kind``, ``a``, ``b``, ``data``, ``says`` and ``reason``.

    Attributes:
        pairs: every pair with its verdict, in order.
        alphas: interpolation weights, ascending.
        alpha: the one that the verdicts are read off.
        layers: in the network's order.
        labels: the same, shortened to what differs.
        trivial: layers that are linear in the weights by construction.
        local: whether layers were fed the base's input too.
        gap: the measure that relates a gap to a distance: ``"gap_rel"`` with a base, else ``"gap_between"``.
        losses: model and data set to its rows of loss and accuracy.

    Raises:
        StudyError: there are no verdicts, or a pair has no rows.
    """

    def __init__(self, table: Iterable[Row], verdicts: Sequence[Mapping[str, Any]]) -> None:
        self._layers: dict[tuple[str, str, float, str, str], Row] = {}
        self._others: dict[tuple[str, str, str], list[Row]] = {}
        self.losses: dict[tuple[str, str], dict[str, Row]] = {}
        for row in table:
            if row.layer:
                self._layers[row.kind, row.points, row.parameter, row.layer, row.measure] = row
            elif row.kind == "accuracy":
                self.losses.setdefault((row.points, row.data), {})[row.measure] = row
            else:
                self._others.setdefault((row.kind, row.points, row.measure), []).append(row)
        found = [row for row in self._layers.values() if row.measure == "cos" and row.kind in KINDS.values()]
        tested = {(row.kind, row.points) for row in found}
        lacking = [
            str(told["pair"]) for told in verdicts if (KINDS[told["kind"]], told["pair"]) not in tested
        ]
        if lacking or not verdicts:
            what = "; ".join(lacking[:5]) if lacking else "any pair"
            raise StudyError(f"The results lack the rows of {what}. Measure again into the same directory.")
        offered = list(dict.fromkeys(row.parameter for row in found))
        self.alpha = min(offered, key=lambda alpha: abs(alpha - 0.5))
        self.alphas = sorted(offered)
        self.layers = list(dict.fromkeys(row.layer for row in found))
        self.labels = dict(zip(self.layers, short_layers(self.layers), strict=True))
        self.trivial = {row.layer for row in found if row.trivial}
        self.local = any(kind.endswith("-local") for kind, *_ in self._layers)
        relative = [row for row in self._layers.values() if row.measure == "gap_rel"]
        self.gap = "gap_rel" if any(math.isfinite(row.mean) for row in relative) else "gap_between"
        self.pairs = [
            Told(
                told["kind"],
                told["pair"],
                told["a"],
                told["b"],
                tuple(told["data"]),
                told["says"],
                told["reason"],
                told.get("linearized", False),
            )
            for told in verdicts
        ]

    @classmethod
    def of(cls, found: Measurement) -> Measured:
        """The same view of a measurement that was just made.

        Args:
            found: the measurement.

        Returns:
            The view.
        """
        verdicts = [
            {
                "pair": pair.name,
                "kind": pair.kind,
                "a": pair.a,
                "b": pair.b,
                "data": pair.data,
                "says": pair.word,
                "reason": pair.reason,
                "linearized": pair.linearized,
            }
            for pair in found.pairs
        ]
        return cls(rows(found), verdicts)

    def of_kind(self, kind: str) -> list[Told]:
        """Pairs of a kind.

        Args:
            kind: ``"FT–FT"`` or ``"PT–FT"``.

        Returns:
            The pairs, in order.
        """
        return [pair for pair in self.pairs if pair.kind == kind]

    @property
    def kinds(self) -> list[str]:
        """Kinds of which there is a pair."""
        return [kind for kind in KINDS if self.of_kind(kind)]

    @property
    def models(self) -> list[str]:
        """Names of the models, the base first if there is one."""
        bases = [pair.a for pair in self.of_kind(WITH_BASE)]
        others = [name for pair in self.of_kind(FINE_TUNES) for name in (pair.a, pair.b)]
        return list(dict.fromkeys([*bases, *others, *(pair.b for pair in self.of_kind(WITH_BASE))]))

    @property
    def gap_title(self) -> str:
        """What the relative gap is called."""
        return "gap / change" if self.gap == "gap_rel" else "gap / distance"

    def row(
        self, pair: Told, measure: str, layer: str, *, local: bool = False, alpha: float | None = None
    ) -> Row | None:
        """One measure of a pair at a layer.

        Args:
            pair: which pair.
            measure: for example ``"cos"``.
            layer: which layer.
            local: with the base's input to the layer.
            alpha: the verdict's by default.

        Returns:
            The row; None if it was not measured.
        """
        at = self.alpha if alpha is None else alpha
        return self._layers.get((KINDS[pair.kind] + "-local" * local, pair.name, at, layer, measure))

    def mean(self, pair: Told, measure: str, layer: str, *, local: bool = False) -> float:
        """The mean of one measure of a pair at a layer.

        Args:
            pair: which pair.
            measure: for example ``"cos"``.
            layer: which layer.
            local: with the base's input to the layer.

        Returns:
            The mean; NaN if it was not measured, or no sample has a value.
        """
        row = self.row(pair, measure, layer, local=local)
        return math.nan if row is None else row.mean

    def worst(
        self, pair: Told, measure: str, *, local: bool = False, alpha: float | None = None
    ) -> Row | None:
        """The layer that decides: lowest cos, coef furthest from 1, largest gap.

        Args:
            pair: which pair.
            measure: for example ``"cos"``.
            local: with the base's input to every layer.
            alpha: the verdict's by default.

        Returns:
            Its row; None if no layer but trivial ones has a value.
        """
        found = (self.row(pair, measure, layer, local=local, alpha=alpha) for layer in self.layers)
        live = [row for row in found if row is not None and not row.trivial and math.isfinite(row.mean)]
        return max(live, key=lambda row: badness(measure, row.mean), default=None)

    def least_linear(self, pairs: Iterable[Told], count: int) -> list[Told]:
        """The pairs with the lowest cos, lowest first.

        Args:
            pairs: from which to choose.
            count: how many at most.

        Returns:
            The pairs; those without a value come last.
        """

        def rank(pair: Told) -> float:
            row = self.worst(pair, "cos")
            return math.inf if row is None else row.mean

        return sorted(pairs, key=rank)[:count]

    def agreement(self, pair: Told, between: str = "a, b") -> Row | None:
        """How often two models predict the same.

        Args:
            pair: which pair.
            between: ``"a, b"``, ``"a, middle"`` or ``"b, middle"``.

        Returns:
            The row; None without predictions.
        """
        return next(iter(self._others.get(("agreement", pair.name, between), [])), None)

    def barrier(self, pair: Told, measure: str = "loss") -> float:
        """Largest excess over the line between both ends.

        Args:
            pair: which pair.
            measure: ``"loss"`` or ``"error"``.

        Returns:
            The barrier; NaN without labels.
        """
        found = self._others.get(("barrier", pair.name, measure), [])
        return found[0].mean if found else math.nan

    def line(self, pair: Told, measure: str = "loss") -> list[tuple[float, float]]:
        """Loss or error along the line between two models.

        Args:
            pair: which pair.
            measure: ``"loss"`` or ``"error"``.

        Returns:
            Pairs of alpha and value, ascending; those without a value are left out.
        """
        found = self._others.get(("line", pair.name, measure), [])
        return sorted((row.parameter, row.mean) for row in found if math.isfinite(row.mean))

    def holding(self, kind: str) -> tuple[int, int]:
        """Over all interpolation weights, how many tests of CTL pass.

        Args:
            kind: of pairs.

        Returns:
            Passed, tested.
        """
        found = [
            row.mean
            for pair in self.of_kind(kind)
            if pair.word != UNKNOWN
            for row in self._others.get((KINDS[kind], pair.name, "CTL holds"), [])
        ]
        return sum(value > 0.5 for value in found), len(found)

    def label(self, row: Row) -> str:
        """The short name of a row's layer.

        Args:
            row: of a layer.

        Returns:
            The name.
        """
        return self.labels[row.layer]


def badness(measure: str, value: float) -> float:
    """How far a value is from what exact linearity would give.

    Args:
        measure: for example ``"cos"``.
        value: its value.

    Returns:
        Larger is worse.

    Example:
        >>> badness("coef", 0.5), badness("gap", 0.2)
        (0.5, 0.2)
    """
    return abs(value - 1) if measure.startswith("coef") else value if measure.startswith("gap") else -value
