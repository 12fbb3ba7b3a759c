"""What a run of theorems holds, as its page looks at it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergescope.protocols.family_theorems_result import cases_of
from mergescope.protocols.premises import Checked, Premises
from mergescope.protocols.tallies import Case, Tally
from mergescope.protocols.transitivity import PairGap
from mergescope.readings import Summary
from mergescope.reports.protocol_view import Stored
from mergescope.studies.rundir import Row

COUNTS = ("premise holds", "conclusion holds", "both hold", "proved part holds", "provable")


@dataclass(frozen=True)
class Theorems:
    """Cases and counts of a run.

    Attributes:
        cases: of every theorem.
        counts: of them.
        lines: coefficient and theorem, as they were measured.
        gaps: of all pairs.
        gap: threshold of gaps.
        loss: threshold of losses.
    """

    cases: list[Case]
    counts: tuple[Tally, ...]
    lines: tuple[tuple[float, Premises], ...]
    gaps: tuple[PairGap, ...]
    gap: float
    loss: float

    @property
    def layers(self) -> list[str]:
        """Layers that say something, in order."""
        return list(dict.fromkeys(entry.layer for entry in self.gaps if not entry.trivial))

    @property
    def of_layers(self) -> list[str]:
        """Theorems about layers of which there are cases: all but 3.3, which is about the loss."""
        return [count.theorem for count in self.counts if count.theorem != "Theorem 3.3" and count.cases]


def stored_theorems(stored: Stored) -> Theorems:
    """Everything of a run.

    Args:
        stored: the run.

    Returns:
        Cases and counts.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    gap, loss = float(stored.setting("gap")), float(stored.setting("loss"))
    counts = []
    for name in dict.fromkeys(row.points for row in stored.of(kind="tally")):
        rows = {measure: stored.one(kind="tally", points=name, measure=measure) for measure in COUNTS}
        figures = [int(rows[measure].mean) for measure in COUNTS]
        counts.append(Tally(name, rows["premise holds"].n, *figures))
    names = [row for row in stored.of(kind="transitivity", measure="gap")]
    models = _models(names)
    gaps = tuple(
        PairGap(*models[row.points], row.data, row.layer, row.trivial, _summary(row))
        for row in names
        if row.points in models
    )
    if not gaps:
        raise stored.lacks("kind 'transitivity', measure 'gap'")
    lines = _lines(stored)
    found = Theorems(cases_of(lines, gaps, gap, loss), tuple(counts), lines, gaps, gap, loss)
    said = {count.theorem: count.cases for count in found.counts}
    for name in dict.fromkeys([*said, *(case.theorem for case in found.cases)]):
        if sum(case.theorem == name for case in found.cases) != said.get(name):
            raise stored.lacks(f"{name}, or of its counts")
    return found


def _lines(stored: Stored) -> tuple[tuple[float, Premises], ...]:
    groups: dict[tuple[str, float | None], dict[tuple[str, str, str], dict[str, dict[str, Summary]]]] = {}
    for row in stored.rows:
        if row.kind.startswith("theorem "):
            part, _, measure = row.measure.partition(": ")
            value = None if math.isnan(row.parameter) else row.parameter  # NaN is no key of a dict
            key = row.kind.removeprefix("theorem "), value
            line = groups.setdefault(key, {}).setdefault(
                (row.points, row.data, row.layer), {"premise": {}, "conclusion": {}}
            )
            line[part][measure] = _summary(row)
    wanted = {
        "3.3": ({"difference of losses", "cos", "coef"}, {"barrier", "part of non-linearity", "convex part"})
    }
    chain = {"largest of pairs", "largest of steps"}, {"gap of all", "sum of steps"}
    found = []
    for (theorem, value), lines in groups.items():
        checked = []
        for (points, data, layer), parts in lines.items():
            premises, conclusions = wanted.get(theorem, chain)
            lacking = (premises - parts["premise"].keys()) | (conclusions - parts["conclusion"].keys())
            if lacking:
                raise stored.lacks(
                    f"theorem {theorem} of {points!r} on {data!r}: {', '.join(sorted(lacking))}"
                )
            checked.append(Checked(points, data, layer, parts["premise"], parts["conclusion"]))
        found.append((math.nan if value is None else value, Premises(theorem, "", tuple(checked))))
    return tuple(found)


def _models(rows: list[Row]) -> dict[str, tuple[str, str]]:
    # Pairs come in the order of combinations: (a, b), (a, c) ...; names may have a plus in them.
    pairs = list(dict.fromkeys(row.points for row in rows))
    count = round((1 + (1 + 8 * len(pairs)) ** 0.5) / 2)
    names = _names(pairs, count)
    return {f"{one} + {other}": (one, other) for i, one in enumerate(names) for other in names[i + 1 :]}


def _names(pairs: list[str], count: int) -> list[str]:
    if not pairs:
        return []
    splits = [
        (pairs[0][:at], pairs[0][at + 3 :]) for at in range(len(pairs[0])) if pairs[0][at : at + 3] == " + "
    ]
    for first, second in splits:
        names = [first, second, *(pair.removeprefix(f"{first} + ") for pair in pairs[1 : count - 1])]
        made = [f"{one} + {other}" for i, one in enumerate(names) for other in names[i + 1 :]]
        if made == pairs:
            return names
    return []


def _summary(row: Row) -> Summary:
    return Summary(row.mean, row.std, row.low, row.high, row.n, row.dead)
