"""Figures of a measurement by model: matrices over all models, loss along the lines between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.reports.depth import COLUMNS, MOST_PAIRS
from mergescope.reports.heat import around_middle, number_cells
from mergescope.reports.measured import TITLES, Measured, Told
from mergescope.reports.panels import legend
from mergescope.reports.scales import (
    DOTS,
    NEAREST,
    cell_cos,
    clipped,
    cos_ticks,
    cosines,
    look_of,
    pair_label,
    room_for,
    steps,
)
from mergescope.reports.style import FAINT, MUTED, WIDTH, new_figure, settle, shorten, styled
from mergescope.reports.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_NUMBERED = 9
"""Matrices of more models than this and one show colours only."""


@dataclass(frozen=True)
class Map:
    """A matrix over models.

    Attributes:
        title: what it shows.
        values: ``(models - 1, models - 1)``, NaN where there is nothing.
        colours: name of the colour map.
        norm: from values to colours.
        text: makes a number text.
        ticks: of the colour bar, if matplotlib's own won't do.
    """

    title: str
    values: np.ndarray
    colours: str
    norm: Any
    text: Callable[[float], str]
    ticks: dict[float, str] | None = None


def matrices(found: Measured) -> Figure:
    """Draw model against model: the worst layer's cos, and if there are any, equal predictions and loss barriers.

    Args:
        found: the measurement.

    Returns:
        Lower triangles, side by side; grey where a pair has no value.
    """
    from matplotlib.colors import FuncNorm, ListedColormap, Normalize

    def lowest(pair: Told) -> float:
        row = found.worst(pair, "cos")
        return math.nan if row is None else row.mean

    def same(pair: Told) -> float:
        row = found.agreement(pair)
        return math.nan if row is None else row.mean

    cos, agree, barrier = (_matrix(found, value) for value in (lowest, same, found.barrier))
    cos = clipped(cos)
    least = float(np.min(cos, initial=0.9, where=np.isfinite(cos)))
    reach = float(np.max(np.abs(barrier), initial=0.05, where=np.isfinite(barrier)))
    size = len(found.models) - 1
    numbered = size <= _NUMBERED
    maps = [
        Map("lowest cos of the layers", cos, "cividis", FuncNorm((steps, cosines), least, 1 - NEAREST), cell_cos,
            cos_ticks(least, 1 - NEAREST)),
        Map("share of equal predictions", agree, "viridis", Normalize(0, 1), "{:.0%}".format),
        Map("loss barrier", barrier, around_middle("PuOr_r", numbered), Normalize(-reach, reach), _signed),
    ]  # fmt: skip
    maps = [entry for entry in maps if np.isfinite(entry.values).any()] or maps[:1]
    names = [shorten(name, 16) for name in found.models]
    with styled():
        figure = new_figure(WIDTH if len(maps) > 1 else 0.6 * WIDTH, 1.6 + min(0.42 * size, 4.0))
        grid = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, entry in zip(grid, maps, strict=True):
            missing = np.where((np.tri(size) > 0) & ~np.isfinite(entry.values), 1.0, np.nan)
            axes.imshow(missing, cmap=ListedColormap([FAINT]), aspect="auto")
            image = axes.imshow(entry.values, cmap=entry.colours, norm=entry.norm, aspect="auto")
            axes.set_xticks(range(size), names[:-1])
            axes.set_yticks(range(size), names[1:] if entry is maps[0] else [""] * size)
            axes.tick_params(length=0)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(entry.title)
            bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24)
            bar.outline.set_visible(False)
            if entry.ticks:
                bar.set_ticks(list(entry.ticks), labels=list(entry.ticks.values()))
                bar.ax.minorticks_off()
            if numbered:
                number_cells(axes, image, entry.values, entry.text)
        return settle(figure)


def _signed(value: float) -> str:
    return number(value, 2, sign=True).replace("0.", ".", 1)


def _matrix(found: Measured, value: Any) -> np.ndarray:
    # Rows: all models but the first; columns: all but the last.
    size = len(found.models) - 1
    grid = np.full((size, size), np.nan)
    for pair in found.pairs:
        first, second = sorted((found.models.index(pair.a), found.models.index(pair.b)))
        grid[second - 1, first] = value(pair)
    return grid


def barriers(found: Measured) -> Figure:
    """Draw the loss along the line between the models of each pair, with the chord of its ends.

    Args:
        found: the measurement, with losses.

    Returns:
        A panel a pair, of many the ones with the largest barrier; its value stands above.
    """
    pairs = [pair for kind in found.kinds for pair in found.of_kind(kind) if found.line(pair)]
    if len(pairs) > MOST_PAIRS:
        chosen = sorted(pairs, key=lambda pair: -found.barrier(pair))[:MOST_PAIRS]
        pairs = [pair for pair in pairs if pair in chosen]
    columns = min(COLUMNS, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    chord = {"color": MUTED, "ls": DOTS, "lw": 1.2}
    with styled():
        figure = new_figure(WIDTH, 0.5 + 1.95 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(pairs) :]:
            axes.axis("off")
        for i, (axes, pair) in enumerate(zip(grid.flat, pairs, strict=False)):
            entry = look_of(pair.kind)
            alphas, losses = zip(*found.line(pair), strict=True)
            axes.plot(alphas, losses, color=entry.colour, marker=entry.marker, ms=4, lw=1.5, zorder=3)
            axes.plot([alphas[0], alphas[-1]], [losses[0], losses[-1]], **chord)
            label = pair_label(pair, room_for(WIDTH / columns))
            axes.set_title(f"{label}\n{pair.kind}, barrier {number(found.barrier(pair), sign=True)}", fontsize=8.5,
                           fontweight="normal")  # fmt: skip
            axes.set_xlim(-0.05, 1.05)
            axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            axes.margins(y=0.12)
            axes.ticklabel_format(axis="y", useOffset=False)
            if i % columns == 0:
                axes.set_ylabel("loss")
            if i + columns >= len(pairs):
                axes.set_xlabel("α")
        looks = {kind: look_of(kind) for kind in found.kinds}
        lines = [
            (f"{kind}: {TITLES[kind]}", {"color": entry.colour, "marker": entry.marker, "ls": "-", "ms": 4})
            for kind, entry in looks.items()
        ]
        legend(figure, [*lines, ("chord between the ends", chord)])
        return settle(figure)
