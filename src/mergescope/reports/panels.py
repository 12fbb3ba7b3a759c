"""Marks with whiskers over the layers of a network: what most figures are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergescope.reports.results import Results, Spread
from mergescope.reports.style import BAND, FAINT, INK, MUTED, PAGE, SHADE, Look, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """One mark per layer.

    Attributes:
        label: for the legend.
        look: colour and marker.
        values: one a layer; NaN is left out.
        references: a hollow mark below or above each, such as the baseline; none if empty.
    """

    label: str
    look: Look
    values: Sequence[Spread]
    references: Sequence[float] = ()


def layer_panel(axes: Axes, results: Results, network: str, series: Sequence[Series]) -> None:
    """Draw series side by side at every layer: mark = mean, whiskers = smallest to largest.

    Args:
        axes: where.
        results: of a run, for layer names.
        network: whose layers.
        series: what to draw; all have one value a layer.
    """
    layers, trivial = results.layers(network), results.trivial(network)
    step = min(0.24, 0.72 / max(len(series), 1))
    for i, entry in enumerate(series):
        shift = (i - (len(series) - 1) / 2) * step
        for position, value in enumerate(entry.values):
            x = position + shift
            if entry.references and math.isfinite(entry.references[position]):
                reference = entry.references[position]
                if math.isfinite(value.mean):
                    axes.plot(
                        [x, x], [reference, value.mean], color=entry.look.colour, lw=1, alpha=0.7, zorder=2
                    )
                axes.plot([x], [reference], marker=entry.look.marker, mfc=PAGE, mec=entry.look.colour,
                          mew=1.5, ms=5, ls="none", zorder=3)  # fmt: skip
            if math.isfinite(value.mean):
                axes.plot([x, x], [value.low, value.high], color=INK, lw=1.1, zorder=4, solid_capstyle="butt")
                axes.plot([x], [value.mean], marker=entry.look.marker, color=entry.look.colour, mec=INK, mew=0.5,
                          ms=6.5, ls="none", zorder=5)  # fmt: skip
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_xticks(
        range(len(layers)), [shorten(layer) + ("\n(trivial)" if layer in trivial else "") for layer in layers]
    )
    axes.tick_params(axis="x", length=0)
    for position in range(1, len(layers)):
        axes.axvline(position - 0.5, color=FAINT, lw=0.6, zorder=0)
    for position, layer in enumerate(layers):
        if layer in trivial:
            axes.axvspan(position - 0.5, position + 0.5, color=SHADE, zorder=0, lw=0)


def label_room(results: Results, network: str, inches: float) -> float:
    """Extra height that a panel needs if its layer names don't fit side by side.

    Args:
        results: of a run.
        network: whose layers.
        inches: width of the panel.

    Returns:
        Inches; 0 if they fit.
    """
    names = [shorten(layer) for layer in results.layers(network)]
    longest = max((len(name) for name in names), default=0)
    if len(names) * (0.075 * longest + 0.1) <= inches:
        return 0.0
    slanted = len(names) * 0.22 <= inches
    return (0.045 if slanted else 0.075) * longest


def line_at_one(axes: Axes, band: float = 0.0, floor: float = 0.0) -> None:
    """Mark the value 1 that exact linearity would give.

    Args:
        axes: where.
        band: shade 1 plus or minus this.
        floor: a dotted line at this value, if positive.
    """
    axes.axhline(1, color=INK, lw=1, zorder=1)
    if band:
        axes.axhspan(1 - band, 1 + band, color=BAND, zorder=0, lw=0)
    if floor:
        axes.axhline(floor, color=MUTED, lw=1, ls=(0, (1, 1.5)), zorder=1)


def legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]], columns: int = 0) -> None:
    """A legend above the panels.

    Args:
        figure: where.
        entries: text and properties of a line or mark, or of an area if they have a ``hatch``.
        columns: how many; as many as fit if 0.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(**properties) if "hatch" in properties else Line2D([], [], **{"ls": "none", **properties})
        for _, properties in entries
    ]
    texts = [text for text, _ in entries]
    if not columns:
        widths = [0.075 * len(text) + 0.65 for text in texts]
        fits = int(figure.get_figwidth() / max(widths))
        columns = len(texts) if sum(widths) < figure.get_figwidth() else max(1, min(len(texts), fits))
    # A label that begins with an underscore would be dropped: a thin space keeps it.
    texts = [f"\u200a{text}" if text.startswith("_") else text for text in texts]
    figure.legend(
        handles, texts, loc="outside upper center", ncols=columns, handletextpad=0.4, columnspacing=1.6
    )


def mark(entry: Look, hollow: bool = False) -> dict[str, Any]:
    """Legend properties of a mark.

    Args:
        entry: its look.
        hollow: as for references.

    Returns:
        Properties of a line without a line.
    """
    if hollow:
        return {"marker": entry.marker, "mfc": PAGE, "mec": entry.colour, "mew": 1.2, "ms": 6}
    return {"marker": entry.marker, "color": entry.colour, "mec": INK, "mew": 0.5, "ms": 7}


def whisker() -> dict[str, Any]:
    """Legend properties of a whisker.

    Returns:
        Properties of a vertical bar.
    """
    return {"marker": "|", "color": INK, "ms": 11, "mew": 1.3}
