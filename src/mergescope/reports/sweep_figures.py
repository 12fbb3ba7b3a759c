"""Figures of sweeps: measures along what varies (CTL Figs 11, 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.reports.panels import legend
from mergescope.reports.style import FAINT, INK, MUTED, PAGE, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.studies.rundir import Row
from mergescope.studies.sweeps.root_causes import SWEEPS
from mergescope.studies.sweeps.trends import REFERENCE, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER: dict[str, Any] = {"color": MUTED, "lw": 1, "ls": (0, (1, 1.5)), "ms": 4, "mfc": PAGE, "mec": MUTED}
"""How CTL's own figures are drawn."""


def along_sweeps(rows: Sequence[Row], layers: Sequence[str], measures: Sequence[str]) -> Figure:
    """Draw measures along every sweep.

    Args:
        rows: of the study.
        layers: one row of panels each; an empty name for measures of no layer.
        measures: names as in [`series`][mergescope.studies.sweeps.trends.series].

    Returns:
        A column of panels a sweep.
    """
    with styled():
        figure = new_figure(WIDTH, 0.7 + 2.25 * len(layers))
        panels = figure.subplots(len(layers), len(SWEEPS), squeeze=False, sharey=True)
        shown = False
        for place, layer in enumerate(layers):
            for axes, sweep in zip(panels[place], SWEEPS, strict=True):
                shown |= _panel(axes, rows, sweep, layer, place, measures)
                if place == 0:
                    axes.set_title(sweep.replace("similarity ", "similarity\n"))
                if place == len(layers) - 1:
                    axes.set_xlabel("epochs" if "epochs" in sweep else "share of samples")
            label = measures[0] if len(measures) == 1 else "accuracy" if not layer else "1 − cosine"
            panels[place][0].set_ylabel(f"{shorten(layer, 24)}\n{label}" if layer else label)
        entries = [(measure.replace(" - ", " − "), _line(number)) for number, measure in enumerate(measures)]
        if shown:
            entries.append(("CTL", {**PAPER, "marker": "o"}))
        legend(figure, entries)
        return settle(figure)


def _panel(
    axes: Axes, rows: Sequence[Row], sweep: str, layer: str, place: int, measures: Sequence[str]
) -> bool:
    referred = False
    for number, measure in enumerate(measures):
        found = series(rows, sweep, layer, measure)
        values = sorted(found[0])
        each = np.array([[one[value] for value in values] for one in found])
        entry = look(number)
        axes.fill_between(values, each.min(0), each.max(0), color=entry.colour, alpha=0.16, lw=0)
        axes.plot(values, each.mean(0), **_line(number))
        paper = REFERENCE.get((sweep, measure, place))
        if paper is not None:
            axes.plot(list(paper), list(paper.values()), marker=entry.marker, zorder=1, **PAPER)
            referred = True
    if measures == ("coef",):
        axes.axhline(1, color=INK, lw=0.8, zorder=1)
    if "epochs" in sweep:
        axes.locator_params(axis="x", integer=True, nbins=5)
    else:
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.axhline(0, color=FAINT, lw=0.6, zorder=0)
    return referred


def _line(number: int) -> dict[str, Any]:
    entry = look(number)
    return {
        "color": entry.colour,
        "marker": entry.marker,
        "ls": entry.line,
        "lw": 1.6,
        "ms": 5,
        "mec": INK,
        "mew": 0.5,
    }
