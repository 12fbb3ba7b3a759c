"""What stitching found: scores of mixed features, of single models, and of networks that are not stitched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, number
from mergescope.errors import MergescopeError
from mergescope.readings import Summary
from mergescope.tracing.stitched import Stitched

SHOWN = 0.4
"""Tables show the coefficient nearest to this, which is CTL's."""

MIXED, SINGLE, WHOLE = "mixed", "single", "whole"
"""Mixed features, a single model's features, both with the base's rest; and a network that is not stitched."""


@dataclass(frozen=True)
class Score:
    """What one network scores on one data set.

    Attributes:
        kind: ``mixed``, ``single`` or ``whole``.
        points: whose features: ``"a + b"``, ``"a"``; of negation ``"- a"``.
        data: the data set.
        layer: after which the base's rest runs; empty if whole.
        lam: the coefficient.
        accuracy: share of samples, or of tokens, that are right.
        loss: cross-entropy.
    """

    kind: str
    points: str
    data: str
    layer: str
    lam: float
    accuracy: Summary
    loss: Summary


@dataclass(frozen=True)
class Stitching:
    """The result of [`stitch_addition`][] or [`stitch_negation`][].

    Attributes:
        protocol: ``addition`` or ``negation``.
        scores: everything measured.
        base: data set to what the base scores.
        lams: the coefficients.
        layers: data set to its blocks, in the order in which they run.
        members: points of mixed features to those of the single models to compare with.
        passes: data set to what stitching on it cost.
        notes: what the user should know.
    """

    protocol: str
    scores: tuple[Score, ...]
    base: Mapping[str, Score]
    lams: tuple[float, ...]
    layers: Mapping[str, tuple[str, ...]]
    members: Mapping[str, tuple[str, ...]]
    passes: Mapping[str, Stitched]
    notes: tuple[str, ...] = ()

    def select(self, **having: Any) -> list[Score]:
        """Scores with these attributes.

        Args:
            **having: attribute to value, for example ``kind="mixed"``.

        Returns:
            The scores, in order.
        """
        return [
            score
            for score in self.scores
            if all(getattr(score, name) == value for name, value in having.items())
        ]

    def score(self, kind: str, points: str, data: str, layer: str, lam: float) -> Score:
        """One score.

        Args:
            kind: of the features.
            points: whose.
            data: the data set.
            layer: after which it is stitched; empty if whole.
            lam: the coefficient.

        Returns:
            The score.

        Raises:
            MergescopeError: that was not measured.
        """
        key = kind, points, data, layer, lam
        if key not in self._found:
            raise MergescopeError(
                f"Stitched {self.protocol} has no score for {', '.join(map(str, key))}. See its layers and lams."
            )
        return self._found[key]

    @cached_property
    def _found(self) -> dict[tuple[str, str, str, str, float], Score]:
        return {(s.kind, s.points, s.data, s.layer, s.lam): s for s in self.scores}

    @property
    def shown(self) -> float:
        """The coefficient that tables show."""
        return min(self.lams, key=lambda lam: abs(lam - SHOWN))

    @property
    def forward_passes(self) -> int:
        """Forward passes of a batch through whole networks."""
        return sum(found.forward_passes for found in self.passes.values())

    @property
    def rest_passes(self) -> int:
        """Passes of a batch through what follows a block."""
        return sum(found.rest_passes for found in self.passes.values())

    def rows(self) -> list[dict[str, Any]]:
        """All scores as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]; the kinds are ``stitch-addition``,
            ``stitch-addition-single``, ``stitch-addition-whole`` (and of negation), and ``accuracy`` of the base.
        """
        table = []
        for score in (*self.base.values(), *self.scores):
            found, suffix = self.passes[score.data], "" if score.kind == MIXED else f"-{score.kind}"
            kind = "accuracy" if score is self.base[score.data] else f"stitch-{self.protocol}{suffix}"
            common = {
                "kind": kind, "points": score.points, "data": score.data, "layer": score.layer, "parameter": score.lam,
                "seconds": round(found.seconds, 3), "forward_passes": found.forward_passes,
                "peak_bytes": found.peak_bytes,
            }  # fmt: skip
            table += [
                {**common, "measure": measure, **vars(value)}
                for measure, value in (("accuracy", score.accuracy), ("loss", score.loss))
            ]
        return table

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        ends = sorted({(score.points, score.data) for score in self.select(kind=MIXED)})
        layers = list(dict.fromkeys(layer for _, data in ends for layer in self.layers[data]))
        lines, apart = [], []
        for points, data in ends:
            cells = []
            for layer in layers:
                if layer not in self.layers[data]:
                    cells.append(Cell(NONE))
                    continue
                mixed, *single = (
                    self.score(kind, name, data, layer, self.shown).accuracy.mean
                    for kind, name in [(MIXED, points), *((SINGLE, name) for name in self.members[points])]
                )
                cells.append(Cell(number(mixed), f"single: {', '.join(map(number, single))}"))
                apart.append((abs(mixed - sum(single) / len(single)), f"{points} on {data} after {layer}"))
            lines.append((f"{points} on {data}", *cells))
        most, where = max(apart)
        said = (
            f"Stitched {self.protocol} at lambda {self.shown:g}: mixed features' accuracy is at most {most:.4f} away "
            f"from the single models' mean ({where})"
        )
        caption = "Accuracy of mixed features after each block, and of single models' features"
        return View(said, (Table(caption, ("models and data", *layers), tuple(lines)),), self.notes)

    def __str__(self) -> str:
        ends = sorted({(score.points, score.data) for score in self.select(kind=MIXED)})
        lines = [f"Stitched {self.protocol}, accuracy at lambda {self.shown:g} (base, whole: not stitched)"]
        for points, data in ends:
            names = self.members[points]
            first = max(5, *map(len, self.layers[data]))
            lines.append(f"{points} on {data}")

            def line(
                name: str, values: Sequence[str], first: int = first, names: Sequence[str] = names
            ) -> str:
                widths = [max(5, len(name)) for name in ("mixed", *names)]
                cells = (f"  {value:>{width}}" for value, width in zip(values, widths, strict=False))
                return f"  {name:<{first}}{''.join(cells)}"

            lines.append(line("after", ["mixed", *names]))
            for layer in self.layers[data]:
                found = [self.score(MIXED, points, data, layer, self.shown)]
                found += [self.score(SINGLE, name, data, layer, self.shown) for name in names]
                lines.append(line(layer, [f"{score.accuracy.mean:.3f}" for score in found]))
            whole = [self.score(WHOLE, name, data, "", self.shown) for name in names]
            lines.append(line("whole", ["", *(f"{score.accuracy.mean:.3f}" for score in whole)]))
            lines.append(line("base", [f"{self.base[data].accuracy.mean:.3f}"]))
        return "\n".join(lines)
