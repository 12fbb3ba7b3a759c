"""Figures of predictions: gaps against what was measured, layers, interactions, accuracy over coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.heat import ON_DARK, ON_LIGHT, box_line, number_cells
from mergescope.reports.panels import legend
from mergescope.reports.prediction_view import Predicted, Square
from mergescope.reports.scales import DOTS, log_axis
from mergescope.reports.style import (
    FAINT,
    INK,
    MUTED,
    SHADE,
    STRONG,
    WIDTH,
    look,
    new_figure,
    settle,
    shorten,
    styled,
)
from mergescope.reports.tables import number
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"ctl": "CTL, pairs", "eq1": "Eq. 1, average", "eq2": "Eq. 2, addition", "eq3": "Eq. 3, negation"}
"""Tests, and what legends call them."""

PANELS = 8
"""Layers that have a panel of their own at most: the last, and others evenly apart."""

COLUMNS = 4
"""Panels side by side."""

_NUMBERED = 100
"""Heat maps with more cells than this show no numbers in them."""


def against_measured(found: Predicted) -> Figure:
    """Draw the measured gap of every test against the predicted one, a panel a layer.

    Args:
        found: what was predicted and measured.

    Returns:
        The panels, with the line on which both are equal, and slope and R^2 over samples above each.
    """
    layers = [found.layers[place] for place in _chosen(len(found.layers))]
    columns = min(COLUMNS, max(2, len(layers)))
    lines = math.ceil(len(layers) / columns)
    every = [mean for said in found.gaps.values() for pair in said.values() for mean in pair]
    labels = dict(zip(found.layers, short_layers(found.layers), strict=True))
    with styled():
        figure = new_figure(WIDTH, 0.6 + 2.5 * lines)
        grid = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
        for axes in grid[len(layers) :]:
            axes.axis("off")
        for place, (axes, layer) in enumerate(zip(grid, layers, strict=False)):
            for kind in found.kinds:
                entry = look(list(KINDS).index(kind))
                points = [pair for (of, _, _, at), pair in _flat(found) if of == kind and at == layer]
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], ls="none", marker=entry.marker, ms=4.5,
                    color=entry.colour, mec=INK, mew=0.4, alpha=0.85, zorder=3,
                )  # fmt: skip
            for side in ("x", "y"):
                log_axis(axes, every, side)
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color=INK, lw=0.9, zorder=1)
            slope, r2 = (found.agreement[layer][name].mean for name in ("slope", "r2"))
            axes.set_title(
                f"{shorten(labels[layer], 14)}: slope {number(slope, 2)}, R² {number(r2, 2)}", fontsize=8.5
            )
            axes.tick_params(labelbottom=place + columns >= len(layers))
        figure.supxlabel("predicted gap (mean over samples)", fontsize=9)
        figure.supylabel("measured gap", fontsize=9)
        legend(figure, [*_kinds(found.kinds), ("both equal", {"color": INK, "ls": "-", "lw": 0.9})])
        return settle(figure)


def by_layer(found: Predicted) -> Figure:
    """Draw the gap at every layer, predicted beside measured, a panel a kind of test.

    Args:
        found: what was predicted, and perhaps measured.

    Returns:
        The panels: means over tests, with bars from the smallest to the largest; gaps of zero at the bottom.
    """
    labels = short_layers(found.layers)
    with styled():
        figure = new_figure(WIDTH, 3.1)
        grid = figure.subplots(1, len(found.kinds), squeeze=False, sharey=True)[0]
        shown: list[float] = []
        for axes, kind in zip(grid, found.kinds, strict=True):
            for side in range(2 if found.measured else 1):
                entry = look(side)
                for place, layer in enumerate(found.layers):
                    values = [
                        pair[side] for (of, _, _, at), pair in _flat(found) if of == kind and at == layer
                    ]
                    live = [value for value in values if math.isfinite(value)]
                    if not live:
                        continue
                    x = place + (side - 0.5) * (0.24 if found.measured else 0)
                    low, middle, high = min(live), float(np.mean(live)), max(live)
                    shown += [low, high]
                    axes.plot([x, x], [low, high], color=entry.colour, lw=1.4, zorder=3)
                    axes.plot([x], [middle], color=entry.colour, marker=entry.marker, mec=INK, mew=0.5, ms=5.5,
                              ls="none", zorder=4)  # fmt: skip
            axes.set_title(KINDS[kind])
            axes.set_xticks(range(len(labels)), labels)
            for place, layer in enumerate(found.layers):
                if layer in found.trivial:
                    axes.axvspan(place - 0.5, place + 0.5, color=SHADE, lw=0, zorder=0)
        log_axis(grid[0], shown)
        grid[0].set_ylabel("gap")
        figure.supxlabel("layer", fontsize=9)
        names = ("predicted", "measured") if found.measured else ("predicted",)
        entries = [
            (name, {"marker": look(side).marker, "color": look(side).colour, "mec": INK, "mew": 0.5, "ms": 6})
            for side, name in enumerate(names)
        ]
        legend(
            figure,
            [
                *entries,
                ("smallest to largest of the tests", {"marker": "|", "color": INK, "ms": 11, "mew": 1.3}),
            ],
        )
        return settle(figure)


def third_order(found: Predicted) -> Figure:
    """Draw how far the prediction reaches: its error, and where the third order is as large as the second.

    Args:
        found: what was predicted and measured.

    Returns:
        Two panels over layers.
    """
    labels = short_layers(found.layers)
    with styled():
        figure = new_figure(WIDTH, 2.9)
        left, right = figure.subplots(1, 2)
        for axes, measure, title in (
            (left, "error", "error of the predicted gap, as a share of the measured one"),
            (right, "takes over", "coefficient at which the third order takes over"),
        ):
            values = [found.agreement[layer][measure].mean for layer in found.layers]
            live = [
                (place, value) for place, value in enumerate(values) if math.isfinite(value) and value > 0
            ]
            entry = look(0)
            axes.plot(
                [place for place, _ in live], [value for _, value in live], color=entry.colour, marker=entry.marker,
                ms=6, mec=INK, mew=0.5, lw=1.3, zorder=3,
            )  # fmt: skip
            log_axis(axes, [*(value for _, value in live), 1.0])
            axes.axhline(1, color=MUTED, lw=1.1, ls=DOTS, zorder=1)
            axes.set_xticks(range(len(labels)), labels)
            axes.set(title=title, xlabel="layer")
            axes.set_xlim(-0.5, len(labels) - 0.5)
        return settle(figure)


def interactions(found: Predicted) -> Figure:
    """Draw the interaction of every two task vectors, at the middle layer and at the last.

    Args:
        found: what was predicted.

    Returns:
        Two heat maps; the diagonal is a task vector's own curvature.
    """
    layers = [layer for layer in found.layers if layer not in found.trivial] or list(found.layers)
    chosen = list(dict.fromkeys([layers[(len(layers) - 1) // 2], layers[-1]]))
    names = [shorten(name, 16) for name in found.tasks]
    with styled():
        import matplotlib

        figure = new_figure(WIDTH, max(3.3, 1.7 + 0.38 * len(names)))
        grid = figure.subplots(1, len(chosen), squeeze=False)[0]
        for axes, layer in zip(grid, chosen, strict=True):
            values = found.interaction_matrix(layer)
            colours = matplotlib.colormaps["cividis"].with_extremes(bad=FAINT)
            top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
            image = axes.imshow(values, cmap=colours, vmin=0, vmax=top or 1.0, aspect="auto")
            _plain(axes)
            axes.set_xticks(range(len(names)), names)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(f"interaction at {shorten(layer, 30)}")
            bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
            bar.outline.set_visible(False)
            if values.size <= _NUMBERED:
                number_cells(axes, image, values, "{:.2f}".format, 7.5)
        return settle(figure)


def accuracy_line(predicted: Sequence[Row], measured: Sequence[Row], best: float) -> Figure:
    """Draw the predicted normalised accuracy of task addition over its coefficient, and what was measured.

    Args:
        predicted: one row a coefficient.
        measured: of those that were run.
        best: the coefficient with the highest prediction.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(WIDTH, 3.1)
        axes = figure.subplots()
        entry, other = look(0), look(1)
        lams = [row.parameter for row in predicted]
        axes.fill_between(
            lams, [row.low for row in predicted], [row.high for row in predicted], color=entry.colour, alpha=0.15, lw=0
        )  # fmt: skip
        said: dict[str, Any] = {"color": entry.colour, "marker": entry.marker, "ls": "-"}
        true: dict[str, Any] = {
            "color": other.colour,
            "marker": other.marker,
            "mec": INK,
            "mew": 0.5,
            "ls": "none",
        }
        axes.plot(lams, [row.mean for row in predicted], ms=3.5, lw=1.6, zorder=3, **said)
        for row in measured:
            axes.plot([row.parameter] * 2, [row.low, row.high], color=INK, lw=1.1, zorder=4)
            axes.plot([row.parameter], [row.mean], ms=7, zorder=5, **true)
        axes.axvline(best, color=STRONG, lw=1.2, ls=(0, (5, 2)), zorder=1)
        axes.axhline(1, color=MUTED, lw=1.1, ls=DOTS, zorder=1)
        axes.set(xlabel="λ, of every task vector", ylabel="normalised accuracy")
        axes.set_ylim(bottom=min(0.0, *(row.low for row in predicted)))
        entries: list[tuple[str, dict[str, Any]]] = [
            ("predicted", {**said, "ms": 4}),
            *([("measured", {**true, "ms": 6})] if measured else []),
            ("best predicted", {"color": STRONG, "ls": (0, (5, 2)), "lw": 1.2}),
            ("as good as the fine-tunes", {"color": MUTED, "ls": DOTS, "lw": 1.2}),
        ]
        legend(figure, entries)
        return settle(figure)


def surfaces(squares: Sequence[Square], box: tuple[float, float]) -> Figure:
    """Draw the predicted normalised accuracy of pairs over both coefficients.

    Args:
        squares: of pairs.
        box: where the best coefficients are looked for.

    Returns:
        A heat map a pair on one scale, with the search box, the best spot, and circles of what was measured.
    """
    columns = min(4, len(squares))
    lines = math.ceil(len(squares) / columns)
    width = min(WIDTH, 1.6 + 3.4 * columns)
    top = max(float(np.nanmax(square.values)) for square in squares)
    with styled():
        from matplotlib.colors import Normalize

        figure = new_figure(WIDTH, 0.9 + lines * (0.6 + 0.68 * (width - 1.2) / columns))
        engine: Any = figure.get_layout_engine()
        engine.set(rect=((1 - width / WIDTH) / 2, 0, width / WIDTH, 1))
        grid = figure.subplots(lines, columns, squeeze=False)
        image: Any = None
        scale = Normalize(0, max(top, 1e-9))
        for place, axes in enumerate(grid.flat):
            if place >= len(squares):
                axes.axis("off")
                continue
            image = _square(axes, squares[place], box, scale, int(64 / columns))
        bar = figure.colorbar(image, ax=grid, label="normalised accuracy", fraction=0.03, pad=0.01, aspect=28)
        bar.outline.set_visible(False)
        entries: list[tuple[str, dict[str, Any]]] = [
            (f"search box, {box[0]:g} to {box[1]:g}", box_line()),
            ("best predicted", {"marker": "X", "color": ON_DARK, "mec": ON_LIGHT, "mew": 1.0, "ms": 8}),
        ]
        if any(square.measured for square in squares):
            entries.append(("measured", {"marker": "o", "mfc": "none", "mec": INK, "mew": 1.2, "ms": 7}))
        legend(figure, entries)
        return settle(figure)


def _square(axes: Axes, square: Square, box: tuple[float, float], scale: Any, room: int) -> Any:
    values = np.array(square.coefficients)
    half = (values[1] - values[0]) / 2 if len(values) > 1 else 0.5
    ends = (values[0] - half, values[-1] + half)
    image = axes.imshow(square.values.T, cmap="cividis", norm=scale, origin="lower", extent=(*ends, *ends))
    low, high = box
    axes.plot([low, high, high, low, low], [low, low, high, high, low], **box_line())
    if square.measured:
        x, y = zip(*square.measured, strict=True)
        axes.scatter(x, y, c=ON_DARK, s=64, lw=0, zorder=4)
        said = list(square.measured.values())
        axes.scatter(
            x, y, c=said, cmap="cividis", norm=scale, s=40, edgecolors=ON_LIGHT, linewidths=1.0, zorder=4
        )
    axes.plot(*square.best, marker="X", ms=9, mfc=ON_DARK, mec=ON_LIGHT, mew=1.0, zorder=5)
    axes.set_aspect("equal")
    _plain(axes)
    one, other = (shorten(task, room) for task in square.tasks)
    axes.set(xlabel=f"λ of {one}", ylabel=f"λ of {other}")
    axes.set_title(
        f"best {number(square.worth.mean, 2)} at {square.best[0]:g}, {square.best[1]:g}", fontweight="normal"
    )
    return image


def _plain(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _flat(found: Predicted) -> list[tuple[tuple[str, str, float, str], tuple[float, float]]]:
    return [((*test, layer), pair) for test, said in found.gaps.items() for layer, pair in said.items()]


def _chosen(count: int) -> list[int]:
    if count <= PANELS:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, PANELS)})


def _kinds(kinds: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    looks: Mapping[str, Any] = {kind: look(list(KINDS).index(kind)) for kind in kinds}
    return [
        (
            KINDS[kind],
            {"marker": looks[kind].marker, "color": looks[kind].colour, "mec": INK, "mew": 0.4, "ms": 6},
        )
        for kind in kinds
    ]
