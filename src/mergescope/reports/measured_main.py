"""The main figure of a measurement: where linearity is lost, and between whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.depth import profile
from mergescope.reports.measured import TITLES, Measured, Told
from mergescope.reports.panels import legend
from mergescope.reports.scales import DOTS, clipped, layer_axis, look_of, measure_axis, pair_label
from mergescope.reports.style import BAND, FAINT, INK, MUTED, PAGE, WIDTH, new_figure, settle, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 18
"""Pairs in the lower half of the main figure."""


def main(found: Measured) -> Figure:
    """Where linearity is lost (above, by layer) and between whom (below, by pair).

    Args:
        found: the measurement.

    Returns:
        Columns cos, coef and the relative gap; above mean and range over the pairs of each kind,
        below each pair's worst layer, which is named.
    """
    pairs = [pair for kind in found.kinds for pair in found.of_kind(kind)]
    if len(pairs) > MOST_ROWS:
        chosen = found.least_linear(pairs, MOST_ROWS)
        pairs = [pair for kind in found.kinds for pair in chosen if pair.kind == kind]
    columns = {"cos": "cos", "coef": "coef", found.gap: found.gap_title}
    with styled():
        height = 0.75 + 0.27 * len(pairs)
        figure = new_figure(WIDTH, 0.9 + 2.3 + height)
        grid = figure.subplots(2, 3, squeeze=False, height_ratios=(2.3, height))
        for column, (measure, title) in enumerate(columns.items()):
            layers, lines = grid[0][column], grid[1][column]
            layers.set_title(f"{title}, by layer")
            measure_axis(layers, measure, _by_depth(layers, found, measure), "y")
            worst = {"cos": "lowest cos of the layers", "coef": "coef furthest from 1"}
            lines.set_title(worst.get(measure, f"largest {title}"))
            measure_axis(lines, measure, _by_pair(lines, found, measure, pairs), "x")
            names = [pair_label(pair, 30) if column == 0 else "" for pair in pairs]
            lines.set_yticks(range(len(pairs)), names)
            lines.set_ylim(len(pairs) - 0.4, -0.75)
            lines.tick_params(axis="y", length=0)
            lines.grid(False)
        words = grid[1][2].secondary_yaxis("right")
        words.set_yticks(range(len(pairs)), [pair.word for pair in pairs])
        words.tick_params(axis="y", length=0)
        words.spines[:].set_visible(False)
        legend(figure, _main_legend(found), columns=3)
        return settle(figure)


def _by_depth(axes: Axes, found: Measured, measure: str) -> list[float]:
    places, shown = np.arange(len(found.layers)), []
    for kind in found.kinds:
        entry = look_of(kind)
        middle, low, high = profile(found, found.of_kind(kind), measure)
        axes.fill_between(places, low, high, color=entry.colour, alpha=0.2, lw=0, zorder=2)
        axes.plot(
            places, middle, color=entry.colour, marker=entry.marker, ls=entry.line, ms=4.5, lw=1.6, zorder=4
        )
        shown += [*middle, *low, *high]
    layer_axis(axes, found, 1.9)
    return shown


def _by_pair(axes: Axes, found: Measured, measure: str, pairs: Sequence[Told]) -> list[float]:
    shown: list[float] = []
    for place, pair in enumerate(pairs):
        entry = look_of(pair.kind)
        axes.axhline(place, color=FAINT, lw=0.6, zorder=0)
        row = found.worst(pair, measure)
        if row is None:
            axes.annotate("no live layer", (0.5, place), xycoords=("axes fraction", "data"), fontsize=7.5,
                          ha="center", va="center", color=MUTED)  # fmt: skip
            continue
        points = np.array([row.mean, row.low, row.high])
        if measure == "cos":
            points = clipped(points)
            baseline = float(clipped(np.array(found.mean(pair, "baseline", row.layer))))
            if math.isfinite(baseline):
                axes.plot(
                    [baseline, points[0]], [place, place], color=entry.colour, lw=1, alpha=0.6, zorder=2
                )
                axes.plot([baseline], [place], marker=entry.marker, mfc=PAGE, mec=entry.colour, mew=1.3, ms=5.5,
                          zorder=3)  # fmt: skip
                shown.append(baseline)
        axes.plot(points[1:], [place, place], color=INK, lw=1.3, zorder=4, solid_capstyle="butt")
        axes.plot(
            points[:1], [place], marker=entry.marker, color=entry.colour, mec=INK, mew=0.5, ms=6.5, zorder=5
        )
        name = "out" if found.label(row) == "output" else found.label(row)
        axes.annotate(name, (points[0], place), (0, 5), textcoords="offset points", fontsize=6.5, ha="center",
                      va="bottom", color=MUTED)  # fmt: skip
        shown += points.tolist()
    return shown


def _main_legend(found: Measured) -> list[tuple[str, dict[str, Any]]]:
    entries: list[tuple[str, dict[str, Any]]] = []
    for kind in found.kinds:
        entry, count = look_of(kind), len(found.of_kind(kind))
        line = {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5}
        entries.append((f"{kind}, {TITLES[kind]}: {count} pair{'s' * (count > 1)}", line))
    entries.append(("baseline: cos between the two models", {"marker": "o", "mfc": PAGE, "mec": MUTED, "mew": 1.2,
                                                            "ms": 6}))  # fmt: skip
    entries.append(("95 % interval", {"color": INK, "ls": "-", "lw": 1.4}))
    entries.append((f"CTL asks: cos at least {COS_HOLDS:g}", {"color": MUTED, "ls": DOTS, "lw": 1.2}))
    entries.append((
        f"CTL asks: coef within {COEF_HOLDS:g} of 1",
        {"marker": "s", "color": BAND, "ms": 9},
    ))
    return entries
