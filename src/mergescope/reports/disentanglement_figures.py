"""Figures of weight disentanglement: a heat map of errors for each pair of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.error_grids import ErrorGrid
from mergescope.reports.heat import ON_DARK, ON_LIGHT, box_line, edged
from mergescope.reports.panels import legend
from mergescope.reports.style import WIDTH, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Heat maps side by side."""


def error_maps(grids: Sequence[ErrorGrid]) -> Figure:
    """Draw the errors of every pair over both coefficients, as TANGENT and ATTN do.

    Args:
        grids: of pairs, with one distance.

    Returns:
        A heat map a pair, on one scale; the search box is drawn in, and the line along which the error is the
        threshold of the summary.
    """
    lines = math.ceil(len(grids) / COLUMNS)
    columns = math.ceil(len(grids) / lines)
    width = min(WIDTH, 1.6 + 4.0 * columns)
    first = grids[0]
    values = np.concatenate([grid.error.ravel() for grid in grids])
    # Divergences far out are hundreds of times those near the base.
    top = float(np.quantile(values, 0.9 if first.distance == "kl" else 1.0)) or 1.0
    with styled():
        from matplotlib.colors import Normalize

        figure = new_figure(WIDTH, 0.9 + lines * (0.55 + 0.85 * (width - 1.2) / columns))
        # One map is not stretched over the whole width: letters are as large as in other figures.
        engine: Any = figure.get_layout_engine()
        engine.set(rect=((1 - width / WIDTH) / 2, 0, width / WIDTH, 1))
        axes = figure.subplots(lines, columns, squeeze=False)
        image: Any = None
        for place, panel in enumerate(axes.flat):
            if place >= len(grids):
                panel.axis("off")
                continue
            image = _map(panel, grids[place], Normalize(0, top), int(20 * 4 / columns))
        what = f"features of {first.layer}" if first.layer else "outputs"
        label = f"ξ: symmetrised KL of {what}, nats"
        if first.distance == "predictions":
            label = "ξ: share of other predictions, both tasks"
        bar = figure.colorbar(
            image, ax=axes, label=label, fraction=0.03, pad=0.01, aspect=28,
            extend="max" if values.max() > top else "neither",
        )  # fmt: skip
        bar.outline.set_visible(False)
        around = edged(2.4, ON_LIGHT)
        legend(
            figure,
            [
                (f"search box, {first.box[0]:g} to {first.box[1]:g}", box_line()),
                (
                    f"ξ = {first.threshold:g}",
                    {"color": ON_DARK, "ls": "-", "lw": 1.2, "path_effects": around},
                ),
            ],
        )
        return settle(figure)


def _map(axes: Axes, grid: ErrorGrid, scale: Any, room: int) -> Any:
    values = np.array(grid.coefficients)
    # Rows of an image go up the second axis: alpha 2.
    image = axes.pcolormesh(
        values, values, grid.error.T, cmap="cividis", norm=scale, shading="nearest", edgecolors="face", lw=0.4
    )
    if grid.error.min() < grid.threshold < grid.error.max():
        lines = axes.contour(
            values, values, grid.error.T, levels=[grid.threshold], colors=ON_DARK, linewidths=1.2
        )
        lines.set(path_effects=edged(2.4, ON_LIGHT))
    low, high = grid.box
    corners = [low, high, high, low, low], [low, low, high, high, low]
    axes.plot(*corners, **box_line())
    axes.set_aspect("equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    one, other = (shorten(task, room) for task in grid.tasks)
    axes.set(xlabel=f"α of {one}", ylabel=f"α of {other}")
    share = grid.summaries["share below of the square"].mean
    axes.set_title(f"{share:.0%} below {grid.threshold:g}", fontweight="normal")
    return image
