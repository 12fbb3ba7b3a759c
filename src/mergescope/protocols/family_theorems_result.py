"""What was found of CTL's theorems on a family; prints as a table and as counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.display import Cell, Table, View, as_html, as_pandas, as_pretty, number
from mergescope.protocols.premises import Checked, Premises
from mergescope.protocols.tallies import Case, Tally, llfc_and_length, tally
from mergescope.protocols.transitivity import PairGap, triples

if TYPE_CHECKING:
    from mergescope.protocols.family_theorems import TheoremsSettings

COLUMNS = ("premises", "conclusions")
"""What a line of a theorem has."""

ROUNDING = 1e-5
"""Sums of lengths in float32 may be off by this."""

SAYS = {
    "Theorem 3.3": "a convex loss, equal losses and LLFC at the output leave no barrier",
    "Theorem 4.2": "CTL of pairs, and of means of models, gives CTL of all",
    "Theorem 4.3": "CTL of pairs k times farther out gives one part a task",
    "Transitivity": "CTL of i and j, and of j and k, gives CTL of i and k",
}
"""Theorem to what it says."""


@dataclass(frozen=True)
class FamilyTheorems:
    """The result of [`check_family`][mergescope.protocols.family_theorems.check_family].

    Attributes:
        found: coefficient (NaN where there is none) and theorem, one entry a data set.
        gaps: of all pairs, on every data set and at every layer.
        settings: what was asked for.
        linearized: whether that is of the network linearised around the base.
        network: name of its class.
        forward_passes: of a batch.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        notes: what the user should know.
    """

    found: tuple[tuple[float, Premises], ...]
    gaps: tuple[PairGap, ...]
    settings: TheoremsSettings
    linearized: bool
    network: str
    forward_passes: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def trivial(self) -> frozenset[str]:
        """Layers that are linear in the weights by construction, which say nothing of a theorem."""
        return frozenset(entry.layer for entry in self.gaps if entry.trivial)

    @property
    def cases(self) -> list[Case]:
        """Premise and conclusion of every theorem, for all models, data and layers that say something."""
        return cases_of(self.found, self.gaps, self.settings.gap, self.settings.loss)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """For how many cases each theorem's premise and conclusion hold."""
        return tally(self.cases)

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        trivial = self.trivial
        rows = [
            {**row, "parameter": value, "trivial": row["layer"] in trivial}
            for value, theorem in self.found
            for row in theorem.rows()
        ]
        rows += [entry.row() for entry in self.gaps]
        data = " ∪ ".join(dict.fromkeys(entry.data for entry in self.gaps))
        for count in self.tallies:
            figures = {
                "premise holds": count.premises, "conclusion holds": count.conclusions, "both hold": count.both,
                "proved part holds": count.proved, "provable": count.provable,
            }  # fmt: skip
            rows += [
                {
                    "kind": "tally", "points": count.theorem, "data": data, "measure": name, "mean": float(value),
                    "n": count.cases,
                }
                for name, value in figures.items()
            ]  # fmt: skip
        cost = {
            "seconds": round(self.seconds, 3), "forward_passes": self.forward_passes, "peak_bytes": self.peak_bytes,
        }  # fmt: skip
        return [{**row, **cost} for row in rows]

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        counts = self.tallies
        premises, both, cases = (
            sum(getattr(it, name) for it in counts) for name in ("premises", "both", "cases")
        )
        s = self.settings
        said = (
            f"The premises hold in {premises} of {cases} cases, and the conclusion in {both} of these (a gap counts as "
            f"none up to {s.gap:g}, a barrier up to {s.loss:g} nats)"
        )
        lines = tuple(
            (it.theorem, *(Cell(number(value)) for value in (it.cases, it.premises, it.conclusions, it.both)))
            for it in counts
        )
        heads = ("theorem", "cases", "premises hold", "conclusion holds", "both")
        return View(said, (Table("For how many models, data and layers", heads, lines),), self.notes)

    def __str__(self) -> str:
        lines = [*_barrier_lines(self), *_chain_lines(self), *_transitivity_lines(self)]
        s = self.settings
        lines += [
            f"A gap counts as none up to {s.gap:g}; losses as equal and a barrier as none up to {s.loss:g} nats.",
            *(str(count) for count in self.tallies),
        ]
        return "\n".join(lines)


def cases_of(
    found: Sequence[tuple[float, Premises]], gaps: Sequence[PairGap], gap: float, loss: float
) -> list[Case]:
    """Premise and conclusion of every theorem, by thresholds.

    Args:
        found: theorems with their coefficients.
        gaps: of all pairs.
        gap: a gap as small counts as none.
        loss: losses that differ by no more count as equal, and a barrier no higher as none.

    Returns:
        The cases; none of trivial layers, nor where features are dead.
    """
    trivial = {entry.layer for entry in gaps if entry.trivial}
    cases = []
    for value, theorem in found:
        name = f"Theorem {theorem.theorem}" + ("" if math.isnan(value) else f" at {value:.3g}")
        for line in theorem.checked:
            if line.layer in trivial:
                continue
            made = _barrier(name, line, loss) if theorem.theorem == "3.3" else _chain(name, line, gap)
            if math.isfinite(made.supposed) and math.isfinite(made.concluded):
                cases.append(made)
    groups: dict[tuple[str, str], list[PairGap]] = {}
    for entry in gaps:
        if not entry.trivial:
            groups.setdefault((entry.data, entry.layer), []).append(entry)
    for (data, layer), some in groups.items():
        cases += [
            Case(
                "Transitivity", f"{' + '.join(it.ends)} by {it.middle}", data, layer, it.premise <= gap,
                it.conclusion <= gap, it.premise, it.conclusion,
            )
            for it in triples(some)
            if math.isfinite(it.premise) and math.isfinite(it.conclusion)
        ]  # fmt: skip
    return cases


def _barrier(name: str, line: Checked, loss: float) -> Case:
    said, told = line.premises, line.conclusions
    apart, barrier = abs(said["difference of losses"].mean), told["barrier"].mean
    linear = llfc_and_length(said["cos"].mean, said["coef"].mean)
    return Case(
        name, line.points, line.data, line.layer, linear and apart <= loss, barrier <= loss, apart, barrier,
        told["convex part"].mean <= ROUNDING,
    )  # fmt: skip


def _chain(name: str, line: Checked, gap: float) -> Case:
    worst = max(value.mean for value in line.premises.values())
    whole, bound = line.conclusions["gap of all"].mean, line.conclusions["sum of steps"].mean
    return Case(
        name, line.points, line.data, line.layer, worst <= gap, whole <= gap, worst, whole,
        whole <= bound * (1 + ROUNDING) + ROUNDING,
    )  # fmt: skip


def _barrier_lines(found: FamilyTheorems) -> list[str]:
    lines = [line for _, theorem in found.found if theorem.theorem == "3.3" for line in theorem.checked]
    if not lines:
        return []
    heads = ("loss diff.", "cos", "coef", "barrier", "non-linear", "convex")
    pairs, data = (max([4, *(len(getattr(line, name)) for line in lines)]) for name in ("points", "data"))
    out = [
        f"Theorem 3.3: {SAYS['Theorem 3.3']}",
        f"{'pair':<{pairs}}  {'data':<{data}}" + "".join(f"{head:>12}" for head in heads),
    ]
    for line in lines:
        cells = [*line.premises.values(), *line.conclusions.values()]
        out.append(
            f"{line.points:<{pairs}}  {line.data:<{data}}" + "".join(f"{cell.mean:>12.4f}" for cell in cells)
        )
    return [*out, ""]


def _chain_lines(found: FamilyTheorems) -> Iterator[str]:
    # Means over data sets: a line a layer.
    chains: dict[tuple[str, float | None], dict[str, list[Checked]]] = {}
    for value, theorem in found.found:
        if theorem.theorem != "3.3":
            key = theorem.theorem, None if math.isnan(value) else value
            layers = chains.setdefault(key, {})
            for line in theorem.checked:
                layers.setdefault(line.layer, []).append(line)
    for (name, coefficient), layers in chains.items():
        at = "" if coefficient is None else f", a = {coefficient:.3g}"
        many = len({line.data for lines in layers.values() for line in lines})
        yield f"Theorem {name}{at}: {SAYS[f'Theorem {name}']} (means over {many} data sets)"
        wide, trivial = max(map(len, layers)), found.trivial
        heads = dict.fromkeys(name for lines in layers.values() for name in _figures(lines[0]))
        yield f"{'layer':<{wide}}" + "".join(f"{head:>18}" for head in heads)
        for layer, lines in layers.items():
            means = [
                np.mean([_figures(line)[head] for line in lines if head in _figures(line)]) for head in heads
            ]
            note = "  trivial" if layer in trivial else ""
            yield f"{layer:<{wide}}" + "".join(f"{mean:>18.4f}" for mean in means) + note
        yield ""


def _transitivity_lines(found: FamilyTheorems) -> Iterator[str]:
    yield f"Transitivity: {SAYS['Transitivity']} (gaps of pairs, over data sets)"
    layers: dict[str, list[float]] = {}
    for entry in found.gaps:
        layers.setdefault(entry.layer, []).append(entry.gap.mean)
    wide, trivial = max(map(len, layers)), found.trivial
    yield f"{'layer':<{wide}}" + "".join(f"{head:>18}" for head in ("smallest", "median", "largest"))
    for layer, values in layers.items():
        note = "  trivial" if layer in trivial else ""
        cells = (np.nanmin(values), np.nanmedian(values), np.nanmax(values))
        yield f"{layer:<{wide}}" + "".join(f"{cell:>18.4f}" for cell in cells) + note
    yield ""


def _figures(line: Checked) -> Mapping[str, float]:
    return {name: value.mean for part in (line.premises, line.conclusions) for name, value in part.items()}
