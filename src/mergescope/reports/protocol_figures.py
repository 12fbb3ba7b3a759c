"""Figures that several protocols' pages share: scores by model and task, and numbers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergescope.reports.panels import legend, mark, whisker
from mergescope.reports.protocol_view import Scores
from mergescope.reports.style import (
    INK,
    MUTED,
    STRONG,
    WIDTH,
    Look,
    look,
    new_figure,
    settle,
    shorten,
    styled,
)
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE: dict[str, Any] = {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.3}
"""Lines to compare with."""


@dataclass(frozen=True)
class Line:
    """A line of a [`ranking`][].

    Attributes:
        name: on its left.
        marks: one a series; None where there is none.
        note: on its right.
    """

    name: str
    marks: Sequence[Row | None]
    note: str = ""


def ranking(
    lines: Sequence[Line],
    series: Sequence[str],
    xlabel: str,
    references: Sequence[tuple[str, float]] = (),
    heading: str = "",
) -> Figure:
    """Numbers with intervals, one line a name, from top to bottom.

    Args:
        lines: in order.
        series: what the marks of a line are; the last one is filled.
        xlabel: what the numbers are.
        references: name and value of vertical lines.
        heading: above the notes on the right.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(
            WIDTH, 0.95 + (0.14 + 0.09 * len(series) if len(series) > 2 else 0.3) * len(lines)
        )
        axes = figure.subplots()
        for place, line in enumerate(lines):
            for number, row in enumerate(line.marks):
                if row is not None and math.isfinite(row.mean):
                    shift = (number - (len(series) - 1) / 2) * min(0.3, 0.66 / len(series))
                    _dot(axes, row, place + shift, _look(number, series), hollow=number < len(series) - 1)
        for number, (_, value) in enumerate(references):
            axes.axvline(value, zorder=1, **_reference(number))
        _named(axes, [shorten(line.name, 40) for line in lines])
        axes.set_xlabel(xlabel)
        if any(line.note for line in lines):
            beside = axes.twinx()
            beside.grid(False)
            beside.spines[:].set_visible(False)
            beside.set_ylim(axes.get_ylim())
            beside.set_yticks(range(len(lines)), [line.note for line in lines])
            beside.tick_params(axis="y", length=0)
            axes.set_title(heading, loc="right", fontweight="normal", color=MUTED)
        entries = [
            (name, mark(_look(number, series), hollow=number < len(series) - 1))
            for number, name in enumerate(series)
        ]
        entries += [(name, _reference(number)) for number, (name, _) in enumerate(references)]
        legend(figure, [*entries, ("95 % interval", whisker())])
        return settle(figure)


def score_panels(
    scores: Scores, strong: Callable[[str, str], bool], series: tuple[str, str] = ("model", "chosen")
) -> Figure:
    """Scores of models over all tasks and on each, a panel each.

    Args:
        scores: of the models.
        strong: model and task (empty: over all) to whether the mark stands out.
        series: names of marks, and of those that stand out.

    Returns:
        The figure: models from top to bottom, the base as it is named in the rows.
    """
    panels = ["", *scores.tasks] if len(scores.tasks) > 1 or scores.whole[0] == "n" else list(scores.tasks)
    columns = min(len(panels), 5 if len(panels) > 8 else 4)
    rows = math.ceil(len(panels) / columns)
    names = [shorten(name, 24) for name in scores.names]
    with styled():
        figure = new_figure(WIDTH, 0.6 + rows * (0.75 + 0.2 * len(names)))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
        top = max(row.high if math.isfinite(row.high) else row.mean for row in scores.found.values()
                  if row.measure in ("accuracy", scores.whole))  # fmt: skip
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.axis("off")
                continue
            task = panels[place]
            for height, name in enumerate(scores.names):
                row = scores.accuracy(name, task) if task else scores.overall(name)
                chosen = strong(name, task)
                _dot(axes, row, height, Look(STRONG, "D", "-", "") if chosen else look(0))
            axes.set_title(shorten(task, 24 if columns < 5 else 19) if task else scores.whole)
            if task == "" and scores.whole[0] == "n":
                axes.axvline(1, zorder=1, **REFERENCE)
            axes.tick_params(axis="x", labelbottom=place + columns >= len(panels))
        _named(grid[0, 0], names)
        grid[0, 0].set_xlim(-0.02, max(1.0, top) + 0.03)
        for axes in grid.flat:
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("accuracy", fontsize=9)
        entries = [(series[0], mark(look(0)))]
        entries += [(series[1], mark(Look(STRONG, "D", "-", "")))]
        legend(figure, [*entries, ("95 % interval", whisker())])
        return settle(figure)


def task_panels(count: int, height: float = 2.3, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Panels of one height with one scale, as many in a row as fit.

    Args:
        count: how many.
        height: of a row, in inches.
        columns: at most.

    Returns:
        The figure, and its panels; what is left over is blank.
    """
    columns = min(columns, max(count, 2))
    rows = math.ceil(count / columns)
    figure = new_figure(WIDTH, 0.7 + height * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid[:count]


def _dot(axes: Axes, row: Row, height: float, entry: Look, hollow: bool = False) -> None:
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [height, height], color=INK, lw=1.1, zorder=4, solid_capstyle="butt")
    axes.plot([row.mean], [height], ls="none", zorder=5, **{**mark(entry, hollow), "ms": 6})


def _look(number: int, series: Sequence[str]) -> Look:
    return look(0 if len(series) == 1 else 1 - number if len(series) == 2 else number)


def _reference(number: int) -> dict[str, Any]:
    return {**REFERENCE, "ls": (REFERENCE["ls"], (0, (5, 2)), "-")[number % 3]}


def _named(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
