"""Figures over all pairs of a measurement: the main one, layers by pair, single layers against all before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.depth import over_pairs
from mergescope.reports.measured import FINE_TUNES, TITLES, Measured, Told
from mergescope.reports.panels import legend
from mergescope.reports.scales import (
    NEAREST,
    Side,
    cell_cos,
    clipped,
    cos_axis,
    cos_ticks,
    cosines,
    layer_axis,
    log_axis,
    pair_label,
    spaced,
    steps,
)
from mergescope.reports.style import FAINT, INK, MUTED, WIDTH, look, new_figure, settle, styled
from mergescope.reports.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 18
"""Pairs in the lower half of the main figure."""

_NUMBERED_LAYERS = 10
_SMALLEST = 1e-7
_ADDED, _ALONE = "#f8ecd0", "#dfdfdf"
_DOTS: Any = (0, (1, 1.5))


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
    columns = {"cos": "cos", "coef": "coef", found.gap: gap_title(found)}
    with styled():
        height = 0.75 + 0.27 * len(pairs)
        figure = new_figure(WIDTH, 0.9 + 2.3 + height)
        grid = figure.subplots(2, 3, squeeze=False, height_ratios=(2.3, height))
        for column, (measure, title) in enumerate(columns.items()):
            layers, lines = grid[0][column], grid[1][column]
            layers.set_title(f"{title}, by layer")
            _scale(layers, measure, _by_depth(layers, found, measure), "y")
            worst = {"cos": "lowest cos of the layers", "coef": "coef furthest from 1"}
            lines.set_title(worst.get(measure, f"largest {title}"))
            _scale(lines, measure, _by_pair(lines, found, measure, pairs), "x")
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


def gap_title(found: Measured) -> str:
    """What the relative gap is called.

    Args:
        found: the measurement.

    Returns:
        ``"gap / change"`` with a base, ``"gap / distance"`` without.
    """
    return "gap / change" if found.gap == "gap_rel" else "gap / distance"


def _by_depth(axes: Axes, found: Measured, measure: str) -> list[float]:
    places, shown = np.arange(len(found.layers)), []
    for kind in found.kinds:
        entry = look(_series(kind))
        table = np.array([[found.mean(pair, measure, layer) for layer in found.layers] for pair in found.of_kind(kind)])
        middle, low, high = (over_pairs(table, reduce) for reduce in (np.mean, np.min, np.max))
        if measure == "cos":
            middle, low, high = (clipped(values) for values in (middle, low, high))
        axes.fill_between(places, low, high, color=entry.colour, alpha=0.2, lw=0, zorder=2)
        axes.plot(places, middle, color=entry.colour, marker=entry.marker, ls=entry.line, ms=4.5, lw=1.6, zorder=4)
        shown += [*middle, *low, *high]
    layer_axis(axes, found, 1.9)
    return shown


def _by_pair(axes: Axes, found: Measured, measure: str, pairs: Sequence[Told]) -> list[float]:
    shown: list[float] = []
    for place, pair in enumerate(pairs):
        entry = look(_series(pair.kind))
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
                axes.plot([baseline, points[0]], [place, place], color=entry.colour, lw=1, alpha=0.6, zorder=2)
                axes.plot([baseline], [place], marker=entry.marker, mfc="white", mec=entry.colour, mew=1.3, ms=5.5,
                          zorder=3)  # fmt: skip
                shown.append(baseline)
        axes.plot(points[1:], [place, place], color=INK, lw=1.3, zorder=4, solid_capstyle="butt")
        axes.plot(points[:1], [place], marker=entry.marker, color=entry.colour, mec=INK, mew=0.5, ms=6.5, zorder=5)
        name = "out" if found.label(row) == "output" else found.label(row)
        axes.annotate(name, (points[0], place), (0, 5), textcoords="offset points", fontsize=6.5, ha="center",
                      va="bottom", color=MUTED)  # fmt: skip
        shown += points.tolist()
    return shown


def _scale(axes: Axes, measure: str, values: Sequence[float], side: Side) -> None:
    line = axes.axhline if side == "y" else axes.axvline
    if measure == "cos":
        cos_axis(axes, [*values, COS_HOLDS], side)
        line(COS_HOLDS, color=MUTED, lw=1, ls=_DOTS, zorder=1)
    elif measure == "coef":
        shown = [1 - COEF_HOLDS, 1 + COEF_HOLDS, *(value for value in values if math.isfinite(value))]
        room = 0.06 * (max(shown) - min(shown))
        getattr(axes, f"set_{side}lim")(min(shown) - room, max(shown) + room)
        line(1, color=INK, lw=0.9, zorder=1)
        span = axes.axhspan if side == "y" else axes.axvspan
        span(1 - COEF_HOLDS, 1 + COEF_HOLDS, color="#eef3f7", zorder=0, lw=0)
    else:
        log_axis(axes, values, side)


def _series(kind: str) -> int:
    return 0 if kind == FINE_TUNES else 1


def _main_legend(found: Measured) -> list[tuple[str, dict[str, Any]]]:
    entries: list[tuple[str, dict[str, Any]]] = []
    for kind in found.kinds:
        entry, count = look(_series(kind)), len(found.of_kind(kind))
        line = {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5}
        entries.append((f"{kind}, {TITLES[kind]}: {count} pair{'s' * (count > 1)}", line))
    entries.append(("baseline: cos between the two models", {"marker": "o", "mfc": "white", "mec": MUTED, "mew": 1.2,
                                                            "ms": 6}))  # fmt: skip
    entries.append(("95 % interval", {"color": INK, "ls": "-", "lw": 1.4}))
    entries.append((f"CTL asks: cos at least {COS_HOLDS:g}", {"color": MUTED, "ls": _DOTS, "lw": 1.2}))
    entries.append((f"CTL asks: coef within {COEF_HOLDS:g} of 1", {"marker": "s", "color": "#dbe6ee", "ms": 9}))
    return entries


def by_layer(found: Measured) -> Figure:
    """Draw cos and coef of every pair at every layer as heat maps.

    Args:
        found: the measurement.

    Returns:
        Two maps with the same rows; cells without a value are grey.
    """
    import matplotlib
    from matplotlib.colors import FuncNorm, Normalize

    pairs = found.pairs
    cos, coef = (
        np.array([[found.mean(pair, measure, layer) for layer in found.layers] for pair in pairs])
        for measure in ("cos", "coef")
    )
    cos = clipped(cos)
    lowest = float(np.min(cos, initial=0.9, where=np.isfinite(cos)))
    reach = float(np.max(np.abs(coef - 1), initial=COEF_HOLDS, where=np.isfinite(coef)))
    maps = {
        "cos": (cos, "cividis", FuncNorm((steps, cosines), lowest, 1 - NEAREST), cell_cos),
        "coef": (coef, "PuOr", Normalize(1 - reach, 1 + reach), number),
    }
    with styled():
        figure = new_figure(WIDTH, 1.1 + max(0.23 * len(pairs), 0.7))
        grid = figure.subplots(1, 2)
        for axes, (title, (values, colours, norm, text)) in zip(grid, maps.items(), strict=True):
            shown = matplotlib.colormaps[colours].with_extremes(bad=FAINT)
            image = axes.imshow(values, cmap=shown, norm=norm, aspect="auto")
            layer_axis(axes, found, 3.4)
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
            if len(found.layers) <= _NUMBERED_LAYERS:
                number_cells(axes, image, values, text)
        for axes in grid:
            for place in range(1, len(pairs)):
                if pairs[place].kind != pairs[place - 1].kind:
                    axes.axhline(place - 0.5, color="white", lw=4)
        return settle(figure)


def number_cells(axes: Axes, image: Any, values: np.ndarray, text: Callable[[float], str]) -> None:
    """Write the values into the cells of a heat map, dark on light and light on dark.

    Args:
        axes: where.
        image: the heat map.
        values: ``(rows, columns)``; NaN get nothing.
        text: makes a number text.
    """
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                column, row, text(value), ha="center", va="center", fontsize=7, color="white" if dark else INK
            )


def local_against_all(found: Measured) -> Figure:
    """Draw what each layer loses by itself against what all layers up to it have lost.

    Args:
        found: the measurement, with local linearity.

    Returns:
        A panel for each kind of pair; one mark a pair and layer, coloured by depth.
    """
    import matplotlib

    losses = {
        kind: [
            (layer, 1 - found.mean(pair, "cos", layer, local=True), 1 - found.mean(pair, "cos", layer))
            for pair in found.of_kind(kind)
            for layer in found.layers
            if layer not in found.trivial
        ]
        for kind in found.kinds
    }
    losses = {
        kind: [(layer, max(alone, _SMALLEST), max(whole, _SMALLEST)) for layer, alone, whole in marks
               if math.isfinite(alone + whole)]
        for kind, marks in losses.items()
    }  # fmt: skip
    everything = [value for marks in losses.values() for mark in marks for value in mark[1:]]
    fed = {layer for marks in losses.values() for layer, *_ in marks}
    layers = [layer for layer in found.layers if layer in fed]
    limit = 1 - COS_HOLDS
    with styled():
        figure = new_figure(WIDTH, 4.2)
        grid = figure.subplots(1, len(found.kinds), squeeze=False)[0]
        norm = matplotlib.colors.Normalize(0, max(len(layers) - 1, 1))
        scale = matplotlib.cm.ScalarMappable(norm, matplotlib.colormaps["viridis"])
        for axes, (kind, marks) in zip(grid, losses.items(), strict=True):
            for layer, alone, whole in marks:
                axes.plot(alone, whole, color=scale.to_rgba(layers.index(layer)), marker=look(_series(kind)).marker,
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
                entry = look(_series(kind))
                worst = [
                    [found.worst(pair, measure, alpha=alpha) for alpha in found.alphas] for pair in found.of_kind(kind)
                ]
                table = np.array([[math.nan if row is None else row.mean for row in line] for line in worst])
                table = clipped(table) if measure == "cos" else table
                for line in table:
                    axes.plot(found.alphas, line, color=entry.colour, lw=0.8, alpha=0.45, ls=entry.line, zorder=2)
                axes.plot(found.alphas, over_pairs(table, np.mean), color=entry.colour, marker=entry.marker, ms=5,
                          lw=2, ls=entry.line, zorder=4)  # fmt: skip
                values += table.ravel().tolist()
            _scale(axes, measure, values, "y")
            axes.set_xticks(found.alphas, [f"{alpha:g}" for alpha in found.alphas])
            title = "lowest cos of the layers" if measure == "cos" else "coef furthest from 1"
            axes.set(title=title, xlabel="α", ylabel=measure)
        entries = [
            (f"{kind}: {TITLES[kind]}, mean", {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5})
            for kind in found.kinds
            for entry in [look(_series(kind))]
        ]
        entries.append(("one pair", {"color": MUTED, "lw": 0.8, "ls": "-"}))
        legend(figure, [*entries, (f"CTL asks: cos at least {COS_HOLDS:g}", {"color": MUTED, "ls": _DOTS, "lw": 1.2})])
        return settle(figure)
