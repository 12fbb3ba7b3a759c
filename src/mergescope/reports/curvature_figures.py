"""Figures of curvature: eigenvalues, what bounds the gap, and what explains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergescope.reports.curvature_view import REGRESSORS, Curved
from mergescope.reports.panels import legend, mark
from mergescope.reports.protocol_figures import Line, ranking
from mergescope.reports.scales import log_axis
from mergescope.reports.style import INK, WIDTH, look, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eigenvalue_figure(found: Curved) -> Figure:
    """Draw the largest eigenvalues on every data set.

    Args:
        found: what was measured.

    Returns:
        A line a data set: the base, its fine-tune, and the points of its pairs. The axis is logarithmic, so those
        that are not positive have no mark.
    """
    kinds = ("at pairs’ points", "at the fine-tune", "at the base")
    with styled():
        figure = new_figure(WIDTH, 1.15 + 0.34 * len(found.data))
        axes = figure.subplots()
        shown: list[float] = []
        for place, data in enumerate(found.data):
            parts = [list(found.pairs[data].values()), list(found.tuned[data].values()), [found.base[data]]]
            for number, rows in enumerate(parts):
                entry = look(2 - number)
                for row in rows:
                    if row.mean > 0:
                        shown.append(row.mean)
                        axes.plot([row.mean], [place], ls="none", zorder=3 + number, **{
                            **mark(entry), "ms": 5 if number == 0 else 7, "alpha": 0.65 if number == 0 else 1.0,
                        })  # fmt: skip
        log_axis(axes, shown, "x")
        axes.set_yticks(range(len(found.data)), [shorten(name, 30) for name in found.data])
        axes.set_ylim(len(found.data) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("largest eigenvalue λ of the Hessian of the loss")
        legend(figure, [(name, mark(look(2 - number))) for number, name in reversed(list(enumerate(kinds)))])
        return settle(figure)


def bound_figure(found: Curved, term: str) -> Figure:
    """Draw the gap of every pair against its bound, and against the exact second-order term.

    Args:
        found: what was measured.
        term: where the exact term is taken, in words.

    Returns:
        Two panels of absolute values on logarithmic axes, with a tick for 0 where there is one; hollow marks have a
        term of the other sign.
    """
    with styled():
        figure = new_figure(WIDTH, 4.1)
        left, right = figure.subplots(1, 2, sharey=True)
        gaps = [abs(side.gap.mean) for side in found.sides]
        entry = look(0)
        for axes, name, title in (
            (left, "bound", "bound a(1−a)/2 λ |d|²"), (right, "exact term", f"|exact term|, from {term}"),
        ):  # fmt: skip
            values = [abs(side.found[name]) for side in found.sides]
            for side, x, y in zip(found.sides, values, gaps, strict=True):
                other = side.found[name] * side.gap.mean < 0 and name != "bound"
                axes.plot([x], [y], ls="none", zorder=3, **{**mark(entry, hollow=other), "ms": 5.5})
            log_axis(axes, [*values, *filter(None, gaps)] if name == "bound" else values, "x")
            if name == "bound":  # the panels share it
                log_axis(axes, gaps, "y")
            limits = axes.get_xlim(), axes.get_ylim()
            # Point by point: where one axis has a 0 and the other has not, the line is bent.
            line = _equal([*values, *gaps])
            axes.plot(line, line, color=INK, lw=0.9, zorder=1)
            axes.set(xlim=limits[0], ylim=limits[1], xlabel=title)
        left.set_ylabel("|gap of the loss|")
        legend(
            figure,
            [
                ("a pair on a data set", mark(entry)),
                ("term of the other sign", mark(entry, hollow=True)),
                ("both equal", {"color": INK, "ls": "-", "lw": 0.9}),
            ],
        )
        return settle(figure)


def _equal(values: Sequence[float]) -> np.ndarray:
    # From below the smallest positive value to above the largest.
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    return np.geomspace(min(known) / 10, max(known) * 10, 200)


def along_figure(found: Curved, same: bool) -> Figure:
    """Draw how much of the largest curvature there is along task vectors and merge directions.

    Args:
        found: what was measured.
        same: whether a pair's curvature is taken where its λ is: only then is 1 the most that there can be.

    Returns:
        A line a data set: its own task vector, and the directions between its pairs.
    """
    with styled():
        figure = new_figure(WIDTH, 1.15 + 0.34 * len(found.data))
        axes = figure.subplots()
        for place, data in enumerate(found.data):
            for side in found.sides:
                if side.data == data and side.found["bound"]:
                    axes.plot([-side.found["exact term"] / side.found["bound"]], [place], ls="none", zorder=3,
                              **{**mark(look(2)), "ms": 5, "alpha": 0.65})  # fmt: skip
            for (_, at), values in found.along.items():
                if at == data and values["bound"]:
                    axes.plot(
                        [values["d^T H d"] / values["bound"]], [place], ls="none", zorder=4, **mark(look(1))
                    )
        axes.axvline(0, color=INK, lw=0.9, zorder=1)
        axes.set_yticks(range(len(found.data)), [shorten(name, 30) for name in found.data])
        axes.set_ylim(len(found.data) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        room = 0.06 * (high - low)
        axes.set_xlim(low - room, high + room)
        tight = " (1: the bound is tight)" if same else ""
        axes.set_xlabel(f"curvature along the direction, as a share of λ{tight}")
        legend(
            figure, [("along its task vector", mark(look(1))), ("along differences of pairs", mark(look(2)))]
        )
        return settle(figure)


def explained_figure(found: Curved) -> Figure:
    """Draw how much of the gaps' variance each regressor explains, over all pairs and data.

    Args:
        found: what was measured, with regressions.

    Returns:
        A line a regressor.
    """
    lines = [
        Line(name, [found.lines.get(("|gap|", regressor)), found.lines.get(("gap", regressor))])
        for regressor, name in REGRESSORS.items()
    ]
    figure = ranking(lines, ["R² of |gap|", "R² of the signed gap"], "share of the variance explained, R²")
    figure.axes[0].set_xlim(-0.02, 1.02)
    return figure
