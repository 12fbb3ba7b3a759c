"""The page of weight disentanglement: error grids of pairs of tasks, rebuilt from what is stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.protocols.error_grids import ErrorGrid, inside
from mergescope.readings import Summary
from mergescope.reports.disentanglement_figures import error_maps
from mergescope.reports.protocol_figures import Line, ranking
from mergescope.reports.protocol_view import AGAIN, Drawing, Shown, Stored
from mergescope.reports.protocol_words import cell, told
from mergescope.reports.tables import Grid, number
from mergescope.studies.disentangled import GRIDS
from mergescope.studies.rundir import Row, read_table

KIND = "disentanglement"

SUMMARIES = (
    "mean error of the box",
    "share below of the box",
    "mean error of the square",
    "share below of the square",
)

FEW = 9
"""Fewer points than this in the search box say little about it."""

COLUMNS = ("pair", "task 1", "task 2", "alpha 1", "alpha 2", "term 1", "term 2")


def disentanglement_page(stored: Stored) -> Shown:
    """What the page of weight disentanglement shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    grids = stored_grids(stored)
    first = grids[0]
    rows = {
        (grid.name, name): stored.one(kind=KIND, points=grid.name, measure=f"{name} ({first.distance})")
        for grid in grids
        for name in SUMMARIES
    }
    low, high = first.box
    drawings = {
        "disentanglement": Drawing(
            error_maps(grids),
            "heat maps of the error over both coefficients, one a pair",
            "One map a pair, above it the share of the whole square with small errors. Dark is good: there, either "
            f"task’s vector leaves the other’s data alone. The line is where the error is {first.threshold:g}; the "
            f"square is where coefficients are searched, {low:g} to {high:g}. On the axes, one coefficient is 0 and so "
            "is the error of one of the tasks. All maps share their scale.",
        )
    }
    ordered = sorted(grids, key=lambda grid: rows[grid.name, SUMMARIES[0]].mean)
    if len(grids) > 1:
        drawings["pairs"] = Drawing(
            ranking(
                [Line(grid.name, [rows[grid.name, SUMMARIES[0]]]) for grid in ordered],
                ["mean error in the box"],
                "mean error in the search box",
            ),
            "mean error in the search box, pair by pair",
            "Pairs from the least to the most entangled.",
        )
    where = " In the network linearised around the base." if stored.provenance.get("linearized") else ""
    return Shown(
        "Do these tasks get in each other’s way?",
        "How much adding one task’s vector changes what the model says on the other’s data." + where,
        _headline(rows, [grid.name for grid in ordered], first),
        _sentences(rows, [grid.name for grid in ordered], first),
        drawings,
        [_grid(rows, [grid.name for grid in ordered], first)],
        ["disentanglement error ξ(α₁, α₂)", "search box", "task vector"],
        caveat=int(inside(first.coefficients, first.box).sum()) < FEW,
    )


def stored_grids(stored: Stored) -> list[ErrorGrid]:
    """The error grids of a run.

    Args:
        stored: the run.

    Returns:
        The grids, in the order in which they were measured.

    Raises:
        StudyError: something is missing or damaged.
    """
    path = stored.path / GRIDS
    table = read_table(path)
    lacking = [name for name in COLUMNS if not table or name not in table[0]]
    if lacking:
        raise StudyError(
            f"{path} has no column {', '.join(lacking)}: it is damaged, or of another version. {AGAIN}"
        )
    pairs: dict[str, list[dict[str, Any]]] = {}
    for found in table:
        pairs.setdefault(found["pair"], []).append(found)
    distance, layer = stored.setting("distance"), stored.setting("layer") or ""
    low, high = (float(end) for end in stored.setting("box"))
    grids = []
    for name, cells in pairs.items():
        values = tuple(dict.fromkeys(found["alpha 1"] for found in cells))
        size = len(values)
        if [(found["alpha 1"], found["alpha 2"]) for found in cells] != [
            (a, b) for a in values for b in values
        ]:
            raise StudyError(
                f"{path}: the grid of {name} is not complete, it has {len(cells)} cells for {size} coefficients. "
                f"{AGAIN}"
            )
        parts = np.array([[found[term] for found in cells] for term in ("term 1", "term 2")])
        summaries = {
            what: _summary(stored.one(kind=KIND, points=name, measure=f"{what} ({distance})"))
            for what in SUMMARIES
        }
        tasks = cells[0]["task 1"], cells[0]["task 2"]
        grids.append(ErrorGrid(
            tasks, values, parts.reshape(2, size, size), (0, 0), distance, layer, summaries,
            float(stored.setting("threshold")), (low, high),
        ))  # fmt: skip
    return grids


def _summary(row: Row) -> Summary:
    return Summary(row.mean, row.std, row.low, row.high, row.n, row.dead)


def _headline(rows: dict[tuple[str, str], Row], names: list[str], first: ErrorGrid) -> str:
    error, share = SUMMARIES[:2]
    low, high = first.box
    if not math.isfinite(rows[names[0], error].mean):
        return f"No point of the grid is in the search box, {low:g} to {high:g}."
    what = "error" if first.distance == "predictions" else "divergence"
    if len(names) == 1:
        row = rows[names[0], error]
        return (
            f"{names[0]}: mean {what} {told(row)} in the search box; below {first.threshold:g} on "
            f"{_share(rows[names[0], share])} of it."
        )
    values = [rows[name, error].mean for name in names]
    shares = [rows[name, share].mean for name in names]
    return (
        f"Mean {what} in the search box: {np.mean(values):.3f} over {len(names)} pairs, from {values[0]:.3f} to "
        f"{values[-1]:.3f}; below {first.threshold:g} on {100 * np.mean(shares):.0f} % of it."
    )


def _sentences(rows: dict[tuple[str, str], Row], names: list[str], first: ErrorGrid) -> list[str]:
    box, square = SUMMARIES[0], SUMMARIES[2]
    said = []
    if len(names) > 1 and math.isfinite(rows[names[0], box].mean):
        least, most = names[0], names[-1]
        said.append(
            f"Least entangled: {least}, {told(rows[least, box])}; most: {most}, {told(rows[most, box])}."
        )
    whole = float(np.mean([rows[name, square].mean for name in names]))
    count = len(first.coefficients)
    within = int(inside(first.coefficients, first.box).sum())
    low, high = number(first.coefficients[0], 1), number(first.coefficients[-1], 1)
    said.append(
        f"Over the whole square, {low} to {high} with {count} x {count} points, the mean is {whole:.3f}."
    )
    said.append(
        f"{within} of these points {'is' if within == 1 else 'are'} in the search box"
        + (": a finer grid says more about it (--points, --reach)." if within < FEW else ".")
    )
    if first.distance == "predictions":
        said.append("The error is the share of predictions that change, summed over both tasks: at most 2.")
    else:
        what = f"the features of {first.layer}" if first.layer else "the outputs"
        said.append(f"The error is the symmetrised divergence of {what}, in nats, summed over both tasks.")
    return said


def _share(row: Row) -> str:
    return f"{100 * row.mean:.0f} % ({100 * row.low:.0f} to {100 * row.high:.0f})"


def _grid(rows: dict[tuple[str, str], Row], names: list[str], first: ErrorGrid) -> Grid:
    small = f"share below {first.threshold:g}"
    heads = ["mean error, box", f"{small}, box", "mean error, square", f"{small}, square"]
    body = tuple((name, tuple(cell(rows[name, measure]) for measure in SUMMARIES)) for name in names)
    return Grid("Summaries by pair, the least entangled first", ("pair", *heads), body)
