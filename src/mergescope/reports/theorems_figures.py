"""Figures of theorems: conclusions against premises, and barriers with their parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.premises import Checked
from mergescope.protocols.tallies import llfc_and_length
from mergescope.reports.panels import legend, mark
from mergescope.reports.scales import DOTS, log_axis
from mergescope.reports.style import INK, MUTED, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.reports.theorems_view import Theorems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"Theorem 4.2": "4.2, the average of all", "Transitivity": "transitivity of pairs"}

MANY = 300
"""More marks than this are drawn small, and as one picture."""

FLOOR = 1e-7
"""Gaps below this are rounding, and drawn here."""


def conclusions_against_premises(found: Theorems) -> Figure:
    """Draw what is concluded against what is supposed, for Theorems 4.2 and 4.3 and transitivity.

    Args:
        found: cases and counts; there must be some of layers.

    Returns:
        A panel a theorem (and coefficient); darker marks are of earlier layers, lines are thresholds.
    """
    names = found.of_layers
    with styled():
        import matplotlib

        figure = new_figure(WIDTH, 0.9 + 2.9 * math.ceil(len(names) / 4))
        columns = min(4, max(2, len(names)))
        grid = list(
            figure.subplots(
                math.ceil(len(names) / columns), columns, squeeze=False, sharey=True, sharex=True
            ).flat
        )
        for axes in grid[len(names) :]:
            axes.axis("off")
        colours = matplotlib.colormaps["cividis"]
        depth = {layer: place / max(len(found.layers) - 1, 1) for place, layer in enumerate(found.layers)}
        shown: list[float] = [found.gap]
        image: Any = None
        for axes, name in zip(grid, names, strict=False):
            cases = [case for case in found.cases if case.theorem == name]
            x, y = (
                np.maximum([getattr(case, side) for case in cases], FLOOR)
                for side in ("supposed", "concluded")
            )
            shown += [*x, *y]
            many = len(cases) > MANY
            image = axes.scatter(
                x, y, c=[depth[case.layer] for case in cases], cmap=colours, vmin=0, vmax=1, s=9 if many else 20,
                alpha=0.7, zorder=3, rasterized=many, lw=0.4, edgecolors=MUTED,
            )  # fmt: skip
            axes.axvline(found.gap, color=MUTED, lw=1.1, ls=DOTS, zorder=4)
            axes.axhline(found.gap, color=MUTED, lw=1.1, ls=DOTS, zorder=4)
            axes.set_title(TITLES.get(name, name.removeprefix("Theorem ").replace(" at ", ", a = ")))
        for axes in grid[: len(names)]:
            for side in ("x", "y"):
                log_axis(axes, shown, side)
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color=INK, lw=0.9, zorder=2)
        figure.supxlabel("largest gap that is supposed to be small", fontsize=9)
        figure.supylabel("gap that is concluded to be small", fontsize=9)
        bar = figure.colorbar(image, ax=grid, fraction=0.03, pad=0.01, aspect=22)
        bar.set_ticks([0, 1], labels=["first layer", shorten(found.layers[-1], 14)])
        bar.outline.set_visible(False)
        legend(
            figure,
            [
                (f"counts as none up to {found.gap:g}", {"color": MUTED, "ls": DOTS, "lw": 1.2}),
                ("both equal", {"color": INK, "ls": "-", "lw": 0.9}),
            ],
        )
        return settle(figure)


def barriers(lines: list[Checked], loss: float) -> Figure:
    """Draw the barrier of every pair against its premise, and the two parts that it is the sum of.

    Args:
        lines: of Theorem 3.3.
        loss: threshold.

    Returns:
        Two panels.
    """
    with styled():
        figure = new_figure(WIDTH, 3.9)
        left, right = figure.subplots(1, 2)
        for line in lines:
            said = {**line.premises, **line.conclusions}
            linear = llfc_and_length(said["cos"].mean, said["coef"].mean)
            look_ = {**mark(look(0), hollow=not linear), "ms": 6, "ls": "none", "zorder": 3}
            left.plot([abs(said["difference of losses"].mean)], [said["barrier"].mean], **look_)
            right.plot([said["convex part"].mean], [said["part of non-linearity"].mean], **look_)
        left.axhline(loss, color=MUTED, lw=1.1, ls=DOTS, zorder=1)
        left.axvline(loss, color=MUTED, lw=1.1, ls=DOTS, zorder=1)
        left.axhline(0, color=INK, lw=0.9, zorder=1)
        left.set(
            xlabel="difference of both models’ losses, nats", ylabel="barrier at α = ½, nats",
            title="premise and conclusion",
        )  # fmt: skip
        low, high = right.get_xlim()
        ends = np.array([min(low, -0.01), max(high, 0.0)])
        right.plot(ends, -ends, color=INK, lw=0.9, zorder=1)
        right.axhline(0, color=MUTED, lw=0.8, zorder=0)
        right.set(
            xlabel="convex part (never positive)", ylabel="part of non-linearity", title="what the barrier is made of",
        )  # fmt: skip
        legend(
            figure,
            [
                ("outputs are linear enough", mark(look(0))),
                ("they are not", mark(look(0), hollow=True)),
                (f"counts as none up to {loss:g}", {"color": MUTED, "ls": DOTS, "lw": 1.2}),
                ("both parts cancel", {"color": INK, "ls": "-", "lw": 0.9}),
            ],
        )
        return settle(figure)
