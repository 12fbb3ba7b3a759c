"""Figures of mergeability: outcomes against figures known before, correlations, held-out predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.mergeability import PREDICTORS, Analysis, Related, Verdict
from mergescope.protocols.mergeability.predictors import FLOOR
from mergescope.protocols.mergeability.rules import Table, fitted
from mergescope.reports.panels import legend, whisker
from mergescope.reports.style import INK, MUTED, WIDTH, Look, look, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 3
"""Predictors that are drawn against the outcome."""

ROWS = 24
"""Predictors in the figure of correlations."""

FEW = 7
"""Colours there are."""

SIZES = {2: 16, 3: 34, 4: 54}
"""Number of models to area of the mark; more models are drawn like the largest."""


def scatter(found: Analysis, related: Sequence[Related]) -> Figure:
    """The average's normalised accuracy against a few predictors, with the rule of each for pairs and larger groups.

    Args:
        found: the analysis.
        related: the predictors; one or more.

    Returns:
        The figure.
    """
    table = found.tables["average"]
    with styled():
        figure = new_figure(WIDTH, 3.6)
        panels = figure.subplots(1, len(related), sharey=True, squeeze=False)[0]
        for axes, one in zip(panels, related, strict=True):
            predictor = PREDICTORS[one.predictor]
            raw = np.array([case.predictors[one.predictor] for case in table.cases])
            if predictor.scale == "log":
                raw = np.maximum(raw, FLOOR)  # as the rule takes it: a logarithmic axis has no place for 0
            _points(axes, table, raw, table.y)
            _rule(axes, table, one.predictor, raw)
            if predictor.scale == "log":
                _logarithmic(axes, raw)
            axes.set_xlabel(shorten(predictor.title, 46))
            axes.set_title(f"Spearman {one.spearman}", fontweight="normal")
        panels[0].set_ylabel("normalised accuracy of the average")
        legend(figure, _families(table))
        return settle(figure)


def correlations(related: Sequence[Related]) -> Figure:
    """Spearman's correlation of predictors with the average's normalised accuracy: over all, and within regimes.

    Args:
        related: the predictors, from top to bottom; one or more.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(WIDTH, 1.1 + 0.24 * len(related))
        axes = figure.subplots()
        entries: list[tuple[str, dict[str, Any]]] = []
        for place, (said, what) in enumerate((
            ("spearman", "over all cases"),
            ("within", "within regimes, pairs"),
        )):
            style = look(place)
            for row, one in enumerate(related):
                number, y = getattr(one, said), row + (place - 0.5) * 0.32
                if not np.isfinite(number.value):
                    continue
                axes.plot([number.low, number.high], [y, y], color=INK, lw=1, zorder=2)
                axes.plot([number.value], [y], marker=style.marker, color=style.colour, mec=INK, mew=0.5, ms=5.5,
                          ls="none", zorder=3)  # fmt: skip
            entries.append((
                what,
                {"marker": style.marker, "color": style.colour, "mec": INK, "mew": 0.5, "ms": 6},
            ))
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        axes.set_yticks(
            range(len(related)), [shorten(PREDICTORS[one.predictor].title, 56) for one in related]
        )
        axes.set_ylim(len(related) - 0.4, -0.6)
        axes.set_xlim(-1.02, 1.02)
        axes.grid(True, axis="x")
        axes.set_xlabel("Spearman's correlation with the average's normalised accuracy")
        legend(figure, [*entries, ("95 % interval over families and regimes", whisker())])
        return settle(figure)


def predictions(found: Analysis, verdicts: Sequence[Verdict]) -> Figure:
    """Held-out predictions against the truth, one panel a level.

    Args:
        found: the analysis.
        verdicts: of the average; one or more.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(WIDTH, 3.6)
        panels = figure.subplots(1, len(verdicts), sharex=True, sharey=True, squeeze=False)[0]
        for axes, it in zip(panels, verdicts, strict=True):
            table = found.tables[it.outcome]
            _points(axes, table, it.predicted, table.y)
            ends = [float(table.y.min()), float(table.y.max())]
            axes.plot(ends, ends, color=INK, lw=1, zorder=1)
            axes.set_title(f"from {it.level}: error {it.left_tasks.mae}", fontweight="normal")
            axes.set_xlabel("predicted, its tasks left out")
        panels[0].set_ylabel("normalised accuracy of the average")
        legend(figure, _families(found.tables["average"]))
        return settle(figure)


def _points(axes: Axes, table: Table, x: np.ndarray, y: np.ndarray) -> None:
    names = _names(table)
    for number, name in enumerate(names):
        style = _look(number)
        at = np.array([case.family == name for case in table.cases])
        areas = [SIZES.get(len(case.models), 80) for case in table.cases if case.family == name]
        axes.scatter(x[at], y[at], s=areas, c=style.colour, marker=style.marker, alpha=0.6, lw=0, zorder=3)


def _rule(axes: Axes, table: Table, name: str, raw: np.ndarray) -> None:
    rule = fitted(table, name)
    sizes = sorted({len(case.models) for case in table.cases})
    spaced = np.geomspace if PREDICTORS[name].scale == "log" else np.linspace
    grid = spaced(raw.min(), raw.max(), 60)
    for size in sizes:
        axes.plot(
            grid,
            [rule(size, float(value)) for value in grid],
            color=INK,
            lw=0.8 + 0.1 * size,
            alpha=0.8,
            zorder=4,
        )
        axes.annotate(
            str(size), (grid[-1], rule(size, float(grid[-1]))), xytext=(3, 0), textcoords="offset points", fontsize=7.5,
            va="center",
        )  # fmt: skip


def _logarithmic(axes: Axes, raw: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    wide = raw.max() / raw.min() > 20
    axes.xaxis.set_major_locator(LogLocator() if wide else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _look(number: int) -> Look:
    # There may be more families than colours: then colours come again with another mark.
    first = look(number)
    return replace(first, marker=look(number + number // FEW).marker)


def _names(table: Table) -> list[str]:
    return sorted({case.family for case in table.cases})


def _families(table: Table) -> list[tuple[str, dict[str, Any]]]:
    return [
        (shorten(name), {"marker": _look(number).marker, "color": _look(number).colour, "ms": 6})
        for number, name in enumerate(_names(table))
    ]
