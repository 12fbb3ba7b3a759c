"""The page of a search for one coefficient a task, or a task and group of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.reports.heat import number_cells
from mergescope.reports.panels import legend, mark
from mergescope.reports.protocol_figures import Line, ranking
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.protocol_words import apart, cell, told
from mergescope.reports.style import INK, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.reports.tables import Cell, Grid, number
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "coefficient-search"

WAYS = {
    "base": "base",
    "grid": "single coefficient (grid)",
    "surrogate": "own coefficients (surrogate)",
    "random": "own coefficients (random)",
}
"""What rows call the ways to find coefficients, and what the page does."""


@dataclass(frozen=True)
class Found:
    """What a way to find coefficients found.

    Attributes:
        name: of the way.
        kept: whether its answer was kept.
        validation: its score there.
        points: passed through validation data to find it.
        test: on test data; None without.
        coefficients: task and group of layers to coefficient.
    """

    name: str
    kept: bool
    validation: Row
    points: int
    test: Row | None
    coefficients: Mapping[tuple[str, str], float]


def coefficients_page(stored: Stored) -> Shown:
    """What the page of a search for coefficients shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    ways = found_by(stored)
    validation = ways[0].validation.measure.partition(" ")[2]
    drawings = {
        "found": Drawing(
            _scores(ways, validation),
            "validation and test scores of base, grid, surrogate and random search",
            "The single coefficient of the grid is what the others must beat. On the right: the points that were "
            "passed through validation data to find it."
            + (" Losses: left is better." if validation == "loss" else ""),
        ),
    }
    if any(way.name in ("surrogate", "random") for way in ways):
        drawings["coefficients"] = Drawing(
            coefficient_figure(ways),
            "coefficients by task and group of layers",
            "What each way found. The dotted line is the single coefficient of the grid."
            if len(_groups(ways)) == 1
            else "What each way found, by task and group of layers, from the input’s side to the output’s.",
        )
    return Shown(
        "Which coefficients?",
        "A coefficient for each task (and group of layers), searched on validation data with few passes.",
        _headline(stored, ways),
        _sentences(stored, ways),
        drawings,
        [_score_grid(ways, validation), _coefficient_grid(ways)],
        ["task vector", "surrogate", "normalised accuracy", "validation, test", "the grid’s end"],
        caveat=bool(stored.one(kind=KIND, points="grid", measure="at_end").mean),
    )


def found_by(stored: Stored) -> list[Found]:
    """The ways to find coefficients, from their rows.

    Args:
        stored: the run.

    Returns:
        Base and grid; the surrogate, if it was to be trusted; random search, if it was asked for.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    found = []
    for name in WAYS:
        rows = [row for row in stored.of(kind=KIND, points=name) if math.isfinite(row.parameter)]
        if not rows and name in ("surrogate", "random"):
            continue
        scores = {row.measure.partition(" ")[0]: row for row in rows if row.measure != "coefficient"}
        placed = {(row.data, row.layer): row.mean for row in rows if row.measure == "coefficient"}
        lacking = [what for what in ("validation", "evaluated") if what not in scores]
        lacking += ["test"] * (stored.tested and "test" not in scores) + ["coefficients"] * (not placed)
        if lacking:
            raise stored.lacks(f"{lacking[0]} of {name!r}")
        found.append(Found(
            name, bool(rows[0].parameter), scores["validation"], int(scores["evaluated"].mean), scores.get("test"),
            placed,
        ))  # fmt: skip
    return found


def coefficient_figure(ways: list[Found]) -> Figure:
    """Draw coefficients: marks by task, or heat maps by task and group of layers.

    Args:
        ways: what was found, one or more besides base and grid.

    Returns:
        The figure.
    """
    groups, tasks = _groups(ways), _tasks(ways)
    grid, *searched = [way for way in ways if way.name != "base"]
    with styled():
        if len(groups) > 1:
            return _maps(searched, groups, tasks)
        figure = new_figure(WIDTH, 1.0 + 0.27 * len(tasks))
        axes = figure.subplots()
        entries: list[tuple[str, dict[str, Any]]] = []
        for number_of, way in enumerate(searched):
            style = mark(look(0 if number_of == 0 else 1), hollow=number_of > 0)
            axes.plot([way.coefficients[task, groups[0]] for task in tasks], range(len(tasks)), ls="none", zorder=3,
                      **style)  # fmt: skip
            entries.append((WAYS[way.name] + (", kept" if way.kept else ""), style))
        single = next(iter(grid.coefficients.values()))
        line: dict[str, Any] = {"color": INK, "ls": (0, (1, 1.5)), "lw": 1.3}
        axes.axvline(single, zorder=1, **line)
        entries.append((f"{WAYS['grid']}, {single:g}" + (", kept" if grid.kept else ""), line))
        axes.set_yticks(range(len(tasks)), [shorten(task, 40) for task in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("coefficient")
        legend(figure, entries)
        return settle(figure)


def _maps(ways: list[Found], groups: list[str], tasks: list[str]) -> Figure:
    from matplotlib.colors import Normalize

    values = [
        np.array([[way.coefficients[task, group] for group in groups] for task in tasks]) for way in ways
    ]
    scale = Normalize(0, max(float(table.max()) for table in values) or 1.0)
    figure = new_figure(WIDTH, 1.1 + 0.3 * len(tasks))
    panels = figure.subplots(1, len(ways), squeeze=False, sharey=True)[0]
    image: Any = None
    for axes, way, table in zip(panels, ways, values, strict=True):
        image = axes.imshow(table, cmap="cividis", norm=scale, aspect="auto")
        if len(groups) <= 12:
            number_cells(axes, image, table, "{:.2f}".format, 8)
        axes.set_title(WAYS[way.name] + (", kept" if way.kept else ""))
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlabel("group of layers")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(tasks)), [shorten(task, 30) for task in tasks])
    bar = figure.colorbar(image, ax=list(panels), label="coefficient", fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
    return settle(figure)


def _scores(ways: list[Found], validation: str) -> Figure:
    tested = next((way.test.measure.partition(" ")[2] for way in ways if way.test is not None), "")
    notes = [f"{way.points:,} point{'s' * (way.points != 1)}" for way in ways]
    names = [WAYS[way.name] + (", kept" if way.kept else "") for way in ways]
    # Different measures share no axis: then the figures that are reported are drawn.
    both = tested == validation
    series = ["validation", "test"] if both else ["test"] if tested else ["validation"]
    lines = [
        Line(name, [{"validation": way.validation, "test": way.test}[kind] for kind in series], note)
        for name, way, note in zip(names, ways, notes, strict=True)
    ]
    return ranking(lines, series, tested or validation)


def _headline(stored: Stored, ways: list[Found]) -> str:
    by_name = {way.name: way for way in ways}
    kept = next(way for way in ways if way.kept)
    single = next(iter(by_name["grid"].coefficients.values()))
    tested = "" if kept.test is None else f": {kept.test.measure} {told(kept.test)}"
    if kept.name == "grid":
        return f"A single coefficient, λ = {single:g}, is kept{tested}."
    against = by_name["grid"].test
    less = "" if against is None else f", against {told(against)} of the single coefficient {single:g}"
    return f"Coefficients of the tasks’ own are kept{tested}{less}."


def _sentences(stored: Stored, ways: list[Found]) -> list[str]:
    by_name = {way.name: way for way in ways}
    gain = stored.of(kind=KIND, points="surrogate", measure="confirmed gain")
    trusted = bool(stored.one(kind=KIND, points="surrogate", measure="trusted").mean)
    error = stored.one(kind=KIND, points="surrogate", measure="mean error")
    if gain:
        clear = "a clear gain" if gain[0].low > 0 else "no clear gain, so the single coefficient is kept"
        said = [
            "On validation samples that were not optimised on, own coefficients are worth "
            f"{told(gain[0], 4, sign=True)} over the single one: {clear}."
        ]
    elif trusted:
        said = ["No candidate was better than the single coefficient on the samples that were optimised on."]
    else:
        said = [
            "What the surrogate says of points that it was not fitted on is not to be trusted, so the single "
            "coefficient is kept."
        ]
    fit = stored.of(kind=KIND, points="surrogate", measure="correlation")
    said.append(
        f"The surrogate’s mean error on {error.n} points that it had not seen is {number(error.mean, 4)}"
        + (f", correlation {number(fit[0].mean)}." if fit else ".")
    )
    rival, surrogate = by_name.get("random"), by_name.get("surrogate")
    if rival is not None:
        row = rival.test or rival.validation
        text = f"Random search with {rival.points:,} points: {row.measure} {told(row)}"
        if surrogate is not None:
            other = surrogate.test or surrogate.validation
            text += f"; the surrogate, with {surrogate.points:,}: {told(other)}"
            if rival.test is not None:
                text += ", a clear difference" if apart(row, other) else ", no clear difference"
        said.append(text + ".")
    if stored.one(kind=KIND, points="grid", measure="at_end").mean:
        said.append("The grid’s end binds: a larger single coefficient might be better (--grid).")
    return said


def _score_grid(ways: list[Found], validation: str) -> Grid:
    tested = next((way.test.measure for way in ways if way.test is not None), "test")
    body = tuple(
        (
            WAYS[way.name] + (", kept" if way.kept else ""),
            (cell(way.validation, 4), Cell(f"{way.points:,}"), cell(way.test, 4)),
        )
        for way in ways
    )
    return Grid("What each way found", ("found by", f"validation {validation}", "points", tested), body)


def _coefficient_grid(ways: list[Found]) -> Grid:
    groups, tasks = _groups(ways), _tasks(ways)
    shown = [way for way in ways if way.name != "base"]
    columns = [
        WAYS[way.name] + (f": {group}" if len(groups) > 1 and way.name != "grid" else "")
        for way in shown
        for group in (groups if way.name != "grid" else groups[:1])
    ]
    body = tuple(
        (
            task,
            tuple(
                Cell(number(way.coefficients[task, group], 4))
                for way in shown
                for group in (groups if way.name != "grid" else groups[:1])
            ),
        )
        for task in tasks
    )
    return Grid("Coefficients", ("task", *columns), body)


def _groups(ways: list[Found]) -> list[str]:
    return list(dict.fromkeys(group for _, group in ways[0].coefficients))


def _tasks(ways: list[Found]) -> list[str]:
    return list(dict.fromkeys(task for task, _ in ways[0].coefficients))
