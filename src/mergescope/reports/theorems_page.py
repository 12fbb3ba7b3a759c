"""The page of CTL's theorems: premises beside conclusions, and how many of each hold."""

from __future__ import annotations

import math

import numpy as np

from mergescope.protocols.family_theorems_result import SAYS
from mergescope.protocols.premises import Checked
from mergescope.protocols.tallies import Tally
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.tables import NONE, Cell, Grid, number
from mergescope.reports.theorems_figures import barriers, conclusions_against_premises
from mergescope.reports.theorems_view import Theorems, stored_theorems


def theorems_page(stored: Stored) -> Shown:
    """What the page of theorems shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    found = stored_theorems(stored)
    drawings: dict[str, Drawing] = {}
    if found.of_layers:
        drawings["gaps"] = Drawing(
            conclusions_against_premises(found),
            "gap that is concluded against the largest gap that is supposed, theorem by theorem",
            "A mark for models, data and layer. Premises hold left of the vertical line, conclusions below the "
            "horizontal one: a mark at the lower right is right without the theorem, one at the upper left is wrong in "
            "spite of it.",
        )
    lines = [line for _, theorem in found.lines if theorem.theorem == "3.3" for line in theorem.checked]
    if lines:
        drawings["barriers"] = Drawing(
            barriers(lines, found.loss),
            "barrier against the difference of losses, and the two parts of the barrier",
            "A mark a pair and data set. Left: Theorem 3.3 supposes equal losses (left of the dotted line) and linear "
            "outputs (filled). Right: above the line, non-linearity outweighs convexity, and there is a barrier.",
        )
    return Shown(
        "Do CTL’s theorems say something here?",
        "Premises and conclusions of Theorems 3.3, 4.2 and 4.3, and the transitivity that 4.2 takes for granted.",
        _headline(found),
        [_sentence(count) for count in found.counts]
        + [
            f"A gap counts as none up to {found.gap:g}; losses as equal, and a barrier as none, up to {found.loss:g} "
            "nats. Layers that are linear by construction are not counted."
        ],
        drawings,
        [_counts(found), *_layers(found)],
        ["premise, conclusion", "predicted gap", "transitivity"],
        caveat=any(count.both < count.premises or not count.premises for count in found.counts),
        small="",
    )  # fmt: skip


def _headline(found: Theorems) -> str:
    told = [count for count in found.counts if count.premises]
    cases, both = sum(count.premises for count in told), sum(count.both for count in told)
    silent = [count.theorem for count in found.counts if not count.premises]
    said = f"Where premises hold ({cases:,} cases), conclusions do in {both:,}."
    return said + (f" Premises never hold for {', '.join(silent)}." if silent else "")


def _sentence(count: Tally) -> str:
    name = count.theorem.partition(" at ")[0]
    share = f" ({100 * count.both / count.premises:.0f} %)" if count.premises else ""
    rest, lucky = count.cases - count.premises, count.conclusions - count.both
    more = f"; without them in {lucky:,} of {rest:,} ({100 * lucky / rest:.0f} %)" if rest else ""
    return (
        f"{count.theorem}, {SAYS[name]}: the premises hold in {count.premises:,} of {count.cases:,} cases, the "
        f"conclusion in {count.both:,} of these{share}{more}."
    )


def _counts(found: Theorems) -> Grid:
    body = tuple(
        (
            count.theorem,
            (
                Cell(f"{count.cases:,}"),
                Cell(f"{count.premises:,}"),
                Cell(f"{count.both:,}"),
                Cell(f"{count.conclusions - count.both:,} of {count.cases - count.premises:,}"),
                Cell(f"{count.proved:,} of {count.provable:,}" if count.provable else NONE),
            ),
        )
        for count in found.counts
    )
    heads = (
        "theorem",
        "cases",
        "premises hold",
        "and the conclusion",
        "conclusion without premises",
        "proved inequality",
    )
    return Grid("Counts", heads, body)


def _layers(found: Theorems) -> list[Grid]:
    layers = list(dict.fromkeys(entry.layer for entry in found.gaps))
    trivial = {entry.layer for entry in found.gaps if entry.trivial}
    columns: dict[str, dict[str, list[Checked]]] = {}
    for value, theorem in found.lines:
        if theorem.theorem != "3.3":
            here = columns.setdefault(theorem.theorem + ("" if math.isnan(value) else f" at {value:.3g}"), {})
            for line in theorem.checked:
                here.setdefault(line.layer, []).append(line)
    heads = [head for name in columns for head in (f"{name}: largest premise", "gap of all")]
    body = []
    for layer, label in zip(layers, short_layers(layers), strict=True):
        cells = []
        for of in columns.values():
            worst = [max(said.mean for said in line.premises.values()) for line in of.get(layer, ())]
            whole = [line.conclusions["gap of all"].mean for line in of.get(layer, ())]
            cells += [Cell(number(float(np.mean(values))) if values else NONE) for values in (worst, whole)]
        body.append((label + (" (trivial)" if layer in trivial else ""), tuple(cells)))
    return [Grid("Gaps by layer, means over data", ("layer", *heads), tuple(body))] if columns else []
