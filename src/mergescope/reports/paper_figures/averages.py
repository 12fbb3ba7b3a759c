"""Accuracy of averaged weights against that of the ensemble, one mark a subset of models (CTL Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.ran import Ran, repetitions, times
from mergescope.reports.protocol_figures import REFERENCE
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.style import WIDTH, look, new_figure, settle, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS, LOGITS = "accuracy of averaged weights", "accuracy of averaged logits"

SIDE = 4.4
"""Inches of a side of the panel."""


def averages_figure(ran: Sequence[Ran]) -> Drawing:
    """Draw all subsets of all repetitions.

    Args:
        ran: steps of one regime, one a repetition, with rows of ``mergescope soup``.

    Returns:
        The figure, with the diagonal on which both are equally good.

    Raises:
        StudyError: there are no subsets.
    """
    lines: list[dict[str, Any]] = []
    for each in ran:
        weights, logits = (
            {row.points: row for row in each.of(kind="averaging", measure=measure)}
            for measure in (WEIGHTS, LOGITS)
        )
        lines += [
            {
                "repetition": each.seed, "subset": name, "x, ensemble": logits[name].mean, "x low": logits[name].low,
                "x high": logits[name].high, "y, averaged weights": row.mean, "y low": row.low, "y high": row.high,
            }
            for name, row in weights.items() if name in logits
        ]  # fmt: skip
    if not lines:
        raise StudyError(f"The steps have no averages of subsets of models to be drawn. {AGAIN}")
    told = dict.fromkeys((line["repetition"] for line in lines), "unknown")
    for each in ran:
        for row in each.of(kind="averaging", measure="pearson"):
            if math.isfinite(row.mean):  # NaN where accuracies do not vary
                told[each.seed] = f"{row.mean:.2f}"
    x, y = (np.array([line[axis] for line in lines]) for axis in ("x, ensemble", "y, averaged weights"))
    with styled():
        figure, axes = square_panel([*x, *y])
        entries: list[tuple[str, dict[str, Any]]] = []
        for place, seed in enumerate(told):
            entry = look(place)
            style: dict[str, Any] = {
                "marker": entry.marker,
                "mfc": "none",
                "mec": entry.colour,
                "mew": 1.3,
                "ms": 7,
                "ls": "none",
            }
            mine = [line for line in lines if line["repetition"] == seed]
            axes.plot([line["x, ensemble"] for line in mine], [line["y, averaged weights"] for line in mine], zorder=3,
                      **style)  # fmt: skip
            name = "one subset" if len(told) == 1 else f"repetition {seed + 1}"
            entries.append((f"{name}, r = {told[seed]}", style))
        axes.set(xlabel="accuracy of the ensemble (averaged logits)", ylabel="accuracy of averaged weights")
        legend(figure, [*entries, ("equal", REFERENCE)])
        settle(figure)
    count, over = times(len(lines), "subset"), repetitions(ran)
    above = float((y - x).mean()) * 100
    said = ", ".join(told.values())
    caption = (
        f"One mark a subset, {count}{f' in {over} repetitions' if over > 1 else ''}. On the dotted line, "
    )
    caption += f"averaged weights are as good as the ensemble; here they are {abs(above):.1f} points "
    caption += f"{'above' if above >= 0 else 'below'} it on average. Pearson’s r: {said}."
    return Drawing(figure, "accuracy of averaged weights against that of the ensemble", caption, lines)


def square_panel(values: Sequence[float]) -> tuple[Figure, Axes]:
    """A square panel in the middle of a figure, with the same scale on both axes and the diagonal.

    Args:
        values: what must be visible on either axis.

    Returns:
        The figure and its panel.
    """
    margin = 0.08 * max(float(np.ptp(values)), 0.01)
    ends = min(values) - margin, max(values) + margin
    figure = new_figure(WIDTH, SIDE + 0.9)
    # Not stretched over the whole width: letters are as large as in other figures.
    engine: Any = figure.get_layout_engine()
    engine.set(rect=((1 - (SIDE + 1.0) / WIDTH) / 2, 0, (SIDE + 1.0) / WIDTH, 1))
    axes = figure.subplots()
    axes.plot(ends, ends, zorder=1, **REFERENCE)
    axes.set(xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    axes.grid(True, axis="both")
    return figure, axes
