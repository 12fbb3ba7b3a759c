"""Figures of Theorem 5.1: the gap of the loss against curvature, distance and the exact term (CTL C.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergescope.reports.panels import legend, mark
from mergescope.reports.style import INK, MUTED, WIDTH, look, new_figure, settle, styled
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gaps_against(rows: Sequence[Row]) -> Figure:
    """Draw every pair's gap against the product, each of its factors, and the exact second-order term.

    Args:
        rows: of one check; pairs are named ``CHECKPOINT: models``.

    Returns:
        Four panels.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.kind == "theorem 5.1" and not row.measure.startswith(("R^2", "slope")):
            found.setdefault(row.points, {})[row.measure] = row.mean
    names = list(found)
    bases = list(dict.fromkeys(name.partition(":")[0] for name in names))
    gap, lam, square, term = (
        np.array([found[name][measure] for name in names])
        for measure in ("gap", "lambda", "|d|^2", "exact term")
    )
    panels = (
        ("λ |d|²", lam * square, np.abs(gap), "|gap|"),
        ("λ", lam, np.abs(gap), ""),
        ("|d|²", square, np.abs(gap), ""),
        ("exact second-order term", term, gap, "gap"),
    )
    with styled():
        figure = new_figure(WIDTH, 2.9)
        for axes, (xlabel, x, y, ylabel) in zip(figure.subplots(1, 4), panels, strict=True):
            for number, base in enumerate(bases):
                entry = look(number)
                mine = [place for place, name in enumerate(names) if name.partition(":")[0] == base]
                axes.plot(
                    x[mine],
                    y[mine],
                    marker=entry.marker,
                    color=entry.colour,
                    mec=INK,
                    mew=0.5,
                    ms=5.5,
                    ls="none",
                )
            if np.ptp(x) > 1e-12 * np.abs(x).max() and len(x) > 2:
                slope, start = np.polyfit(x, y, 1)
                ends = np.array([x.min(), x.max()])
                axes.plot(ends, start + slope * ends, color=MUTED, lw=1.2, ls=(0, (5, 1.5)), zorder=1)
                axes.set_title(f"R² = {np.corrcoef(x, y)[0, 1] ** 2:.2f}")
            if xlabel.startswith("exact"):
                ends = np.array([min(x.min(), 0), max(x.max(), 0)])
                axes.plot(ends, ends, color=INK, lw=1, zorder=1)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
            axes.locator_params(axis="x", nbins=4)
        legend(figure, [(base, mark(look(number))) for number, base in enumerate(bases)])
        return settle(figure)
