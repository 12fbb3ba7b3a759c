"""Figures over all pairs of a measurement: every layer, single layers against all before them, every alpha."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.depth import over_pairs
from mergescope.reports.heat import around_middle, number_cells
from mergescope.reports.measured import TITLES, Measured
from mergescope.reports.panels import legend
from mergescope.reports.scales import (
    DOTS,
    NEAREST,
    cell_cos,
    clipped,
    cos_ticks,
    cosines,
    layer_axis,
    log_axis,
    look_of,
    measure_axis,
    pair_label,
    spaced,
    steps,
)
from mergescope.reports.style import FAINT, INK, MUTED, PAGE, WARM, WIDTH, new_figure, settle, styled
from mergescope.reports.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 40
"""Pairs in the maps by layer."""

_NUMBERED_LAYERS = 10
_SMALLEST = 1e-7
_ADDED, _ALONE = WARM, FAINT


def by_layer(found: Measured) -> Figure:
    """Draw cos and coef of every pair at every layer as heat maps.

    Args:
        found: the measurement.

    Returns:
        Two maps with the same rows, of many pairs the least linear ones; cells without a value are grey.
    """
    import matplotlib
    from matplotlib.colors import FuncNorm, Normalize

    pairs = found.pairs
    if len(pairs) > MOST_ROWS:
        chosen = found.least_linear(pairs, MOST_ROWS)
        pairs = [pair for kind in found.kinds for pair in chosen if pair.kind == kind]
    cos, coef = (
        np.array([[found.mean(pair, measure, layer) for layer in found.layers] for pair in pairs])
        for measure in ("cos", "coef")
    )
    cos = clipped(cos)
    lowest = float(np.min(cos, initial=0.9, where=np.isfinite(cos)))
    reach = float(np.max(np.abs(coef - 1), initial=COEF_HOLDS, where=np.isfinite(coef)))
    numbered = len(found.layers) <= _NUMBERED_LAYERS
    maps = {
        "cos": (cos, "cividis", FuncNorm((steps, cosines), lowest, 1 - NEAREST), cell_cos),
        "coef": (coef, around_middle("PuOr", numbered), Normalize(1 - reach, 1 + reach), number),
    }
    with styled():
        figure = new_figure(WIDTH, 1.1 + max(0.23 * len(pairs), 0.7))
        grid = figure.subplots(1, 2)
        for axes, (title, (values, colours, norm, text)) in zip(grid, maps.items(), strict=True):
            shown = matplotlib.colormaps[colours].with_extremes(bad=FAINT)
            image = axes.imshow(values, cmap=shown, norm=norm, aspect="auto")
            layer_axis(axes, found, 3.4, over=True)
            axes.set_xlim(-0.5, len(found.layers) - 0.5)
            names = [f"{pair_label(pair, 32)}" for pair in pairs] if title == "cos" else [""] * len(pairs)
            axes.set_yticks(range(len(pairs)), names)
            axes.tick_params(length=0)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{title} at α = {found.alpha:g}, by layer")
            bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24)
            bar.outline.set_visible(False)
            if title == "cos":
                ticks = cos_ticks(lowest, 1 - NEAREST)
                bar.set_ticks(list(ticks), labels=list(ticks.values()))
                bar.ax.minorticks_off()
            if numbered:
                number_cells(axes, image, values, text)
        for axes in grid:
            for place in range(1, len(pairs)):
                if pairs[place].kind != pairs[place - 1].kind:
                    axes.axhline(place - 0.5, color=PAGE, lw=4)
        return settle(figure)


def single_layers(found: Measured) -> dict[str, list[tuple[str, float, float]]]:
    """What each layer loses by itself, and what all layers up to it have lost.

    Args:
        found: the measurement.

    Returns:
        Kind of pairs to layer, ``1 - cos`` of the layer by itself and ``1 - cos`` with all layers
        before it, for every pair and layer that has both; empty if layers were not fed the base's input.
    """
    out: dict[str, list[tuple[str, float, float]]] = {}
    for pair in found.pairs:
        for layer in found.layers:
            alone, whole = (1 - found.mean(pair, "cos", layer, local=local) for local in (True, False))
            if layer not in found.trivial and math.isfinite(alone + whole):
                mark = (layer, max(alone, _SMALLEST), max(whole, _SMALLEST))
                out.setdefault(pair.kind, []).append(mark)
    return out


def local_against_all(found: Measured) -> Figure:
    """Draw what each layer loses by itself against what all layers up to it have lost.

    Args:
        found: the measurement, with [`single_layers`][].

    Returns:
        A panel for each kind of pair; one mark a pair and layer, coloured by depth.
    """
    import matplotlib

    losses = single_layers(found)
    everything = [value for marks in losses.values() for mark in marks for value in mark[1:]]
    fed = {layer for marks in losses.values() for layer, _, _ in marks}
    layers = [layer for layer in found.layers if layer in fed]
    limit = 1 - COS_HOLDS
    with styled():
        figure = new_figure(WIDTH, 4.2)
        grid = figure.subplots(1, len(losses), squeeze=False)[0]
        norm = matplotlib.colors.Normalize(0, max(len(layers) - 1, 1))
        scale = matplotlib.cm.ScalarMappable(norm, matplotlib.colormaps["viridis"])
        for axes, (kind, marks) in zip(grid, losses.items(), strict=True):
            for layer, alone, whole in marks:
                axes.plot(alone, whole, color=scale.cmap(norm(layers.index(layer))), marker=look_of(kind).marker,
                          ms=6, ls="none", mec=INK, mew=0.4, zorder=3)  # fmt: skip
            for side in ("x", "y"):
                log_axis(axes, [*everything, 2 * limit], side)
            axes.plot([_SMALLEST, 2], [_SMALLEST, 2], color=MUTED, lw=1, zorder=1, scalex=False, scaley=False)
            right, top = axes.get_xlim()[1], axes.get_ylim()[1]
            axes.fill_between([axes.get_xlim()[0], limit], limit, top, color=_ADDED, lw=0, zorder=0)
            axes.axvspan(limit, right, color=_ALONE, lw=0, zorder=0)
            axes.set(title=f"{kind}: {TITLES[kind]}", xlabel="1 − cos of the layer by itself")
            axes.grid(True, axis="both")
        grid[0].set_ylabel("1 − cos with all layers before it")
        bar = figure.colorbar(scale, ax=grid, fraction=0.03, pad=0.02, aspect=30)
        bar.ax.set_title("layer", fontsize=8.5, fontweight="normal")
        shown = spaced([0.3] * len(layers), 4.0)
        bar.set_ticks(shown, labels=[found.labels[layers[place]] for place in shown])
        bar.outline.set_visible(False)
        areas = (
            (f"below {COS_HOLDS:g} though linear by itself: layers before it add up", _ADDED),
            (f"below {COS_HOLDS:g} by itself", _ALONE),
        )
        marks_of = [(text, {"marker": "s", "color": colour, "ms": 10}) for text, colour in areas]
        legend(figure, [*marks_of, ("equal", {"color": MUTED, "ls": "-", "lw": 1})])
        return settle(figure)


def along_alpha(found: Measured) -> Figure:
    """Draw the worst layer's cos and coef of every pair against the interpolation weight.

    Args:
        found: the measurement, at more than one alpha.

    Returns:
        Two panels; thin lines are pairs, thick ones their mean.
    """
    with styled():
        figure = new_figure(WIDTH, 3.2)
        for axes, measure in zip(figure.subplots(1, 2), ("cos", "coef"), strict=True):
            values: list[float] = []
            for kind in found.kinds:
                entry = look_of(kind)
                worst = [
                    [found.worst(pair, measure, alpha=alpha) for alpha in found.alphas]
                    for pair in found.of_kind(kind)
                ]
                table = np.array([[math.nan if row is None else row.mean for row in line] for line in worst])
                table = clipped(table) if measure == "cos" else table
                for line in table:
                    axes.plot(
                        found.alphas, line, color=entry.colour, lw=0.8, alpha=0.45, ls=entry.line, zorder=2
                    )
                axes.plot(found.alphas, over_pairs(table, np.mean), color=entry.colour, marker=entry.marker, ms=5,
                          lw=2, ls=entry.line, zorder=4)  # fmt: skip
                values += table.ravel().tolist()
            measure_axis(axes, measure, values, "y")
            axes.set_xticks(found.alphas, [f"{alpha:g}" for alpha in found.alphas])
            title = "lowest cos of the layers" if measure == "cos" else "coef furthest from 1"
            axes.set(title=title, xlabel="α", ylabel=measure)
        entries = [
            (
                f"{kind}: {TITLES[kind]}, mean",
                {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5},
            )
            for kind in found.kinds
            for entry in [look_of(kind)]
        ]
        entries.append(("one pair", {"color": MUTED, "lw": 0.8, "ls": "-"}))
        legend(
            figure,
            [*entries, (f"CTL asks: cos at least {COS_HOLDS:g}", {"color": MUTED, "ls": DOTS, "lw": 1.2})],
        )
        return settle(figure)
