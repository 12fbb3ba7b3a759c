"""Validation accuracy for every coefficient, one line a regime: how much depends on tuning it (ATTN Tables 1, 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.multiples import Band
from mergescope.reports.paper_figures.ran import Ran, by_regime, repetitions
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.protocol_words import listed
from mergescope.reports.style import INK, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.studies.rundir import Row

ADDITION = {
    "normalised accuracy": ("lambda-search", "validation normalised accuracy"),
    "absolute accuracy": ("lambda-search", "validation accuracy"),
}
NEGATION = {
    "accuracy on the task": ("negation-search", "validation target accuracy"),
    "accuracy on the other tasks": ("negation-search", "validation control accuracy"),
}
"""Panel to kind and measure of its rows; the lines are means over tasks."""


def lambda_figure(ran: Sequence[Ran]) -> Drawing:
    """Draw the searches of all regimes and repetitions, of addition or of negation.

    Args:
        ran: steps of all regimes and repetitions, with rows of ``mergescope search``.

    Returns:
        The figure: lines are means over repetitions, areas their range; circles mark what is chosen.

    Raises:
        StudyError: a regime has no search of a coefficient.
    """
    negated = any(each.of(kind="negation-search") for each in ran)
    panels = NEGATION if negated else ADDITION
    regimes = by_regime(ran)
    curves: dict[tuple[str, str], tuple[list[float], Band]] = {}
    for regime, mine in regimes.items():
        for title, (kind, measure) in panels.items():
            each_seed = [_curve(each.of(kind=kind, measure=measure)) for each in mine]
            lams = sorted(set.intersection(*(set(curve) for curve in each_seed)))
            if not lams:
                raise StudyError(f"The steps have no {measure} of the regime {regime}. {AGAIN}")
            values = np.array([[curve[lam] for lam in lams] for curve in each_seed])
            curves[regime, title] = lams, Band(values.mean(0), values.min(0), values.max(0))
    lines = [
        {
            "regime": regime, "of": title, "lambda": lam, "mean": band.middle[place], "low": band.low[place],
            "high": band.high[place],
        }
        for (regime, title), (lams, band) in curves.items()
        for place, lam in enumerate(lams)
    ]  # fmt: skip
    # The grid of a search is extended where its end binds: all are drawn as far as that of most, or the last optimum.
    shown = float(np.median([lams[-1] for lams, _ in curves.values()]))
    first = next(iter(panels))
    best = {regime: int(np.argmax(curves[regime, first][1].middle)) for regime in regimes}
    if not negated:
        shown = max([shown, *(curves[regime, first][0][place] for regime, place in best.items())])
    cut = [regime for regime in regimes if max(curves[regime, title][0][-1] for title in panels) > shown]
    with styled():
        figure = new_figure(WIDTH, 4.0)
        for axes, title in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            for number, regime in enumerate(regimes):
                lams, band = curves[regime, title]
                entry = look(number)
                style = {
                    "color": entry.colour,
                    "marker": entry.marker,
                    "ls": entry.line,
                    "ms": 4.0,
                    "lw": 1.5,
                }
                band.draw(axes, lams, style)
                if not negated:
                    place = best[regime]
                    axes.plot([lams[place]], [band.middle[place]], marker="o", mfc="none", mec=INK, ms=12, mew=1.4,
                              ls="none", zorder=6)  # fmt: skip
            axes.set(title=title, xlabel="λ", ylim=(0, None), xlim=(-0.02 * shown, 1.02 * shown))
        figure.axes[0].set_ylabel("mean over tasks, validation data")
        entries: list[tuple[str, dict[str, Any]]] = [
            (
                shorten(regime),
                {"color": look(i).colour, "marker": look(i).marker, "ls": look(i).line, "ms": 4},
            )
            for i, regime in enumerate(regimes)
        ]
        if not negated:
            entries.append(("highest", {"marker": "o", "mfc": "none", "mec": INK, "ms": 10, "mew": 1.4}))
        legend(figure, entries)
        settle(figure)
    seeds = repetitions(ran)
    caption = (
        "Mean over tasks" + (f" and {seeds} repetitions, shaded: their range" if seeds > 1 else "") + ". "
    )
    said = {regime: curves[regime, first] for regime in regimes}
    caption += (
        f"At λ = {shown:g}, the accuracy on the subtracted task is {_listed(said, shown)}."
        if negated
        else f"A flat line needs no tuning. At λ = 1, of the highest normalised accuracy there remains {_kept(said)}."
    )
    if cut:
        caption += f" What was tried beyond λ = {shown:g} is not shown: {listed(cut)}."
    return Drawing(figure, "validation accuracy by coefficient and regime", caption, lines)


def _curve(rows: Sequence[Row]) -> dict[float, float]:
    # The mean over tasks at every coefficient that all of them were given.
    found: dict[float, list[float]] = {}
    for row in rows:
        if math.isfinite(row.parameter) and math.isfinite(row.mean):
            found.setdefault(row.parameter, []).append(row.mean)
    most = max(map(len, found.values()), default=0)
    return {lam: float(np.mean(values)) for lam, values in found.items() if len(values) == most}


def _listed(curves: Mapping[str, tuple[list[float], Band]], lam: float) -> str:
    return ", ".join(
        f"{band.middle[int(np.argmin(np.abs(np.array(lams) - lam)))]:.1%} ({regime})"
        for regime, (lams, band) in curves.items()
    )


def _kept(curves: Mapping[str, tuple[list[float], Band]]) -> str:
    return ", ".join(
        f"{band.middle[int(np.argmin(np.abs(np.array(lams) - 1)))] / band.middle.max():.0%} ({regime})"
        for regime, (lams, band) in curves.items()
    )
