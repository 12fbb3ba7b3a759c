"""Figures of CTL and Eq. 1 to 3: cos beside its baseline and coef at every layer (CTL Figs 2, 3, 5 to 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.panels import legend, mark, whisker
from mergescope.reports.style import FAINT, INK, PAGE, SHADE, WIDTH, look, new_figure, settle, styled
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Mapping[str, Sequence[Row]]]
"""Layer to measure to the rows of all tests of a kind."""

TITLES = {"ctl": "CTL", "eq1": "Eq. 1, averages", "eq2": "Eq. 2, addition", "eq3": "Eq. 3, negation"}


def by_layer(kinds: Mapping[str, Found]) -> Figure:
    """Draw 1 - cos beside 1 - baseline, and coef, one column of panels a kind of tests.

    Args:
        kinds: kind to its rows.

    Returns:
        Marks are means over tests, whiskers run from the smallest to the largest.
    """
    with styled():
        figure = new_figure(WIDTH, 5.2)
        panels = figure.subplots(2, len(kinds), squeeze=False, sharey="row")
        for column, (kind, found) in enumerate(kinds.items()):
            upper, lower = panels[0][column], panels[1][column]
            upper.set_title(TITLES[kind])
            for number, measure in enumerate(("cos", "baseline")):
                _marks(upper, found, measure, number, 0.13 * (2 * number - 1), flip=True, hollow=number > 0)
            _marks(lower, found, "coef", 2, 0.0)
            lower.axhline(1, color=INK, lw=1, zorder=1)
            for axes in (upper, lower):
                _layers(axes, found)
            upper.set_ylim(bottom=min(0.0, upper.get_ylim()[0]))
        panels[0][0].set_ylabel("1 − cosine")
        panels[1][0].set_ylabel("coef")
        entries = [
            ("1 − cos of the merged model", mark(look(0))), ("1 − cos between the models", mark(look(1), hollow=True)),
            ("coef", mark(look(2))), ("all tests", whisker()),
        ]  # fmt: skip
        legend(figure, entries)
        return settle(figure)


def _marks(
    axes: Axes, found: Found, measure: str, number: int, shift: float, *, flip: bool = False, hollow: bool = False
) -> None:  # fmt: skip
    entry = look(number)
    for place, measures in enumerate(found.values()):
        values = np.array([row.mean for row in measures.get(measure, ())])
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        values = 1 - values if flip else values
        x = place + shift
        axes.plot([x, x], [values.min(), values.max()], color=INK, lw=1.1, zorder=4, solid_capstyle="butt")
        face = PAGE if hollow else entry.colour
        axes.plot([x], [values.mean()], marker=entry.marker, mfc=face, mec=entry.colour if hollow else INK,
                  mew=1.2 if hollow else 0.5, ms=5.5, ls="none", zorder=5)  # fmt: skip


def _layers(axes: Axes, found: Found) -> None:
    names = list(found)
    axes.set_xticks(range(len(names)), short_layers(names))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="x", length=0)
    for place, measures in enumerate(found.values()):
        if any(row.trivial for rows in measures.values() for row in rows):
            axes.axvspan(place - 0.5, place + 0.5, color=SHADE, zorder=0, lw=0)
        elif place:
            axes.axvline(place - 0.5, color=FAINT, lw=0.5, zorder=0)
