"""Figures of a measurement by depth: one small panel a pair, fine-tunes left, base and fine-tune right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.measured import TITLES, Measured, Told
from mergescope.reports.panels import legend
from mergescope.reports.scales import (
    DOTS,
    clipped,
    cos_axis,
    layer_axis,
    log_axis,
    pair_label,
    room_for,
)
from mergescope.reports.style import BAND, INK, MUTED, PAGE, SHADE, WIDTH, look, new_figure, settle, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PAIRS = 12
"""More pairs of a kind than this share one panel: their mean and range."""

COLUMNS = 4
"""Panels side by side at most."""


@dataclass(frozen=True)
class Curve:
    """One measure over the layers.

    Attributes:
        measure: for example ``"cos"``.
        label: for the legend.
        local: with the base's input to every layer.
        index: number of its look.
        hollow: marks without filling, for references.
        band: whether the interval is shaded.
    """

    measure: str
    label: str
    local: bool = False
    index: int = 0
    hollow: bool = False
    band: bool = True

    @property
    def properties(self) -> dict[str, Any]:
        """How its line and marks look."""
        entry = look(self.index)
        face = {"mfc": PAGE} if self.hollow else {}
        return {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 4, "lw": 1.4, **face}


def cos_by_depth(found: Measured) -> Figure:
    """Draw cos of every pair over the layers with its interval, the baseline, and cos of each layer by itself.

    Args:
        found: the measurement.

    Returns:
        The figure.
    """
    curves = [Curve("cos", "cos, 95 % interval")]
    if found.local:
        curves.append(Curve("cos", "cos of the layer by itself (fed the base's input)", local=True, index=2))
    curves.append(Curve("baseline", "baseline: cos between the two models", index=1, hollow=True, band=False))
    return _depth(found, curves, "cos")


def coef_by_depth(found: Measured) -> Figure:
    """Draw coef of every pair over the layers with its interval, and coef of each layer by itself.

    Args:
        found: the measurement.

    Returns:
        The figure.
    """
    curves = [Curve("coef", "coef, 95 % interval")]
    if found.local:
        curves.append(
            Curve("coef", "coef of the layer by itself (fed the base's input)", local=True, index=2)
        )
    return _depth(found, curves, "coef")


def gap_by_depth(found: Measured) -> Figure:
    """Draw the gap over the layers, raw and relative, on a logarithmic axis.

    Args:
        found: the measurement.

    Returns:
        The figure; relative to what fine-tuning changed, or without a base to the models' distance.
    """
    curves = [
        Curve("gap", "gap (relative to the length of the mix), 95 % interval"),
        Curve(found.gap, found.gap_title, index=3),
    ]
    return _depth(found, curves, "gap")


def _depth(found: Measured, curves: Sequence[Curve], what: str) -> Figure:
    panels = {kind: _panels(found, kind) for kind in found.kinds}
    columns = split_columns(*(len(entries) for entries in panels.values()))
    rows = max(math.ceil(len(entries) / n) for entries, n in zip(panels.values(), columns, strict=True))
    with styled():
        inches = WIDTH / sum(columns)
        figure = new_figure(WIDTH, 0.95 + rows * (2.25 if inches < 4 else 2.6))
        grid = figure.add_gridspec(rows, sum(columns))
        drawn: list[Axes] = []
        values: list[float] = []
        start = 0
        for (kind, entries), count in zip(panels.items(), columns, strict=True):
            for i, pairs in enumerate(entries):
                # One panel beside many takes the room of two.
                last = i // count + (2 if len(entries) == 1 and rows > 1 else 1)
                axes = figure.add_subplot(grid[i // count : last, start + i % count])
                axes.set_title(_title(pairs, room_for(inches)), fontsize=8.5, fontweight="normal")
                if i == 0:
                    axes.annotate(f"{kind}: {TITLES[kind]}", (0, 1), (0, 33), textcoords="offset points",
                                  xycoords="axes fraction", fontsize=9.5, fontweight="bold")  # fmt: skip
                for curve in curves:
                    values += _draw(axes, found, curve, pairs)
                layer_axis(axes, found, inches - 0.6)
                if i % count == 0:
                    axes.set_ylabel(what)
                drawn.append(axes)
            start += count
        for axes in drawn:
            _scale(axes, what, values)
            if axes.get_ylabel() == "":
                axes.tick_params(labelleft=False)
        legend(figure, _legend(curves, found, what))
        return settle(figure)


def _panels(found: Measured, kind: str) -> list[list[Told]]:
    pairs = found.of_kind(kind)
    return [pairs] if len(pairs) > MOST_PAIRS else [[pair] for pair in pairs]


def _title(pairs: Sequence[Told], room: int) -> str:
    if len(pairs) > 1:
        return f"{len(pairs)} pairs\nmean; shaded: smallest to largest"
    return f"{pair_label(pairs[0], room)}\n{pairs[0].word}"


def split_columns(*counts: int) -> list[int]:
    """How many columns each group of panels gets, so that the figure is low.

    Args:
        counts: panels of each group, one or two groups.

    Returns:
        Columns, at most [`COLUMNS`][] together.

    Example:
        >>> split_columns(6, 4), split_columns(1, 2), split_columns(1, 6), split_columns(5)
        ([2, 2], [1, 2], [1, 3], [4])
    """
    if len(counts) == 1:
        return [min(counts[0], COLUMNS)]
    left, right = counts
    offered = [(a, min(right, COLUMNS - a)) for a in range(1, min(left, COLUMNS - 1) + 1)]
    rows = [(math.ceil(left / a), math.ceil(right / b)) for a, b in offered]
    return list(min(zip(offered, rows, strict=True), key=lambda option: (max(option[1]), sum(option[1])))[0])


def _draw(axes: Axes, found: Measured, curve: Curve, pairs: Sequence[Told]) -> list[float]:
    # Draws the curve; what it says must be inside of the axis.
    middle, low, high = profile(found, pairs, curve.measure, local=curve.local)
    places = np.arange(len(found.layers))
    shaded = curve.band or len(pairs) > 1
    if shaded:
        axes.fill_between(places, low, high, color=curve.properties["color"], alpha=0.22, lw=0, zorder=2)
    axes.plot(places, middle, zorder=3 if curve.hollow else 4, **curve.properties)
    return [*middle, *low, *high] if shaded else [*middle]


def profile(
    found: Measured, pairs: Sequence[Told], measure: str, *, local: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A measure over the layers, as it is drawn.

    Args:
        found: the measurement.
        pairs: one pair or several.
        measure: for example ``"cos"``.
        local: with the base's input to every layer.

    Returns:
        Mean, lower and upper end, ``(layers,)`` each: the interval of one pair, the range of several.
    """

    def table(end: str) -> np.ndarray:
        rows = [[found.row(pair, measure, layer, local=local) for layer in found.layers] for pair in pairs]
        return np.array([[math.nan if row is None else getattr(row, end) for row in line] for line in rows])

    if len(pairs) == 1:
        middle, low, high = (table(end)[0] for end in ("mean", "low", "high"))
    else:
        means = table("mean")
        middle, low, high = (over_pairs(means, reduce) for reduce in (np.mean, np.min, np.max))
    if measure in ("cos", "baseline"):
        return clipped(middle), clipped(low), clipped(high)
    return middle, low, high


def over_pairs(values: np.ndarray, reduce: Callable[..., Any]) -> np.ndarray:
    """Reduce a measure over pairs, layer by layer.

    Args:
        values: ``(pairs, layers)``; NaN are left out.
        reduce: for example ``np.mean``.

    Returns:
        ``(layers,)``; NaN where no pair has a value.

    Example:
        >>> over_pairs(np.array([[1.0, np.nan], [3.0, np.nan]]), np.mean)
        array([ 2., nan])
    """
    columns = (column[np.isfinite(column)] for column in values.T)
    return np.array([reduce(column) if column.size else math.nan for column in columns])


def _scale(axes: Axes, what: str, values: Sequence[float]) -> None:
    # The same in all panels; the threshold is drawn where it is near.
    if what == "gap":
        log_axis(axes, values)
    elif what == "cos":
        cos_axis(axes, values)
        axes.axhline(COS_HOLDS, color=MUTED, lw=1, ls=DOTS, zorder=1)
    else:
        shown = [1.0, *(value for value in values if math.isfinite(value))]
        room = 0.06 * (max(shown) - min(shown)) or 0.001
        axes.set_ylim(min(shown) - room, max(shown) + room)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.axhline(1, color=INK, lw=0.9, zorder=1)
        axes.axhspan(1 - COEF_HOLDS, 1 + COEF_HOLDS, color=BAND, zorder=0, lw=0)


def _legend(curves: Sequence[Curve], found: Measured, what: str) -> list[tuple[str, dict[str, Any]]]:
    entries = [(curve.label, curve.properties) for curve in curves]
    if what == "cos":
        entries.append((
            f"CTL asks: at least {COS_HOLDS:g}",
            {"color": MUTED, "ls": DOTS, "lw": 1.2},
        ))
    if what == "coef":
        entries.append((
            f"CTL asks: within {COEF_HOLDS:g} of 1",
            {"marker": "s", "color": BAND, "ms": 9},
        ))
    if found.trivial:
        entries.append(("trivial: linear by construction", {"marker": "s", "color": SHADE, "ms": 9}))
    return entries
