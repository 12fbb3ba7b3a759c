"""Accuracy of single-task and of merged models, bars by regime, beside a paper's table (ATTN Tables 1, 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.panels import legend, whisker
from mergescope.reports.paper_figures.ran import Ran, by_regime, repetitions, times
from mergescope.reports.protocol_figures import REFERENCE
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.style import INK, PAGE, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.studies.papers.figures import Quoted
from mergescope.studies.rundir import Row

GROUPS = {
    "single": ("single-task models", "mean accuracy", "single-task accuracy"),
    "absolute": ("(tuned)", "mean accuracy", "merged: absolute accuracy"),
    "normalised": ("(tuned)", "normalised accuracy", "merged: normalised accuracy"),
}
"""Group of bars to the end of the points' name, the measure, and what it is called."""


def regimes_figure(ran: Sequence[Ran], reference: Mapping[str, Quoted]) -> Drawing:
    """Draw what addition reaches in every regime.

    Args:
        ran: steps of all regimes and repetitions, with rows of ``mergescope search``.
        reference: regime to what a paper's table says of it.

    Returns:
        The figure; bars are means over repetitions, whiskers their range, or of a single one its interval.

    Raises:
        StudyError: a regime has no test figures of addition.
    """
    regimes = by_regime(ran)
    lines: list[dict[str, Any]] = []
    for regime, mine in regimes.items():
        quoted = reference.get(regime, Quoted())
        for group, (points, measure, _) in GROUPS.items():
            rows = [
                row
                for each in mine
                for row in each.of(kind="addition", measure=measure)
                if row.points.endswith(points)
            ]
            if not rows:
                raise StudyError(f"The steps have no {measure} of {points} in the regime {regime}. {AGAIN}")
            base = [
                row.mean for each in mine for row in each.of(kind="addition", measure=measure, points="base")
            ]
            lines.append({
                "regime": regime, "group": group, **_spread(rows),
                "base": 100 * float(np.mean(base)) if base and group != "single" else None,
                "paper": getattr(quoted, group),
            })  # fmt: skip
    # Where single-task models know nothing, a merged one may reach several times their accuracy.
    top = max(105.0, *(1.05 * line["high"] for line in lines))
    with styled():
        figure = new_figure(WIDTH, 4.2)
        axes = figure.subplots()
        width = 0.82 / len(regimes)
        for place, line in enumerate(lines):
            number, column = divmod(place, len(GROUPS))
            entry = look(number)
            x = column + (number - (len(regimes) - 1) / 2) * width
            axes.bar(x, line["mean"], width * 0.92, facecolor=entry.colour, edgecolor=INK, lw=0.6, alpha=0.8,
                     hatch=entry.hatch, zorder=2)  # fmt: skip
            axes.plot([x, x], [line["low"], line["high"]], color=INK, lw=1.3, zorder=4, solid_capstyle="butt")
            axes.annotate(f"{line['mean']:.1f}", (x, 0), (0, 4), textcoords="offset points", ha="center", zorder=6,
                          fontsize=8.5, bbox={"fc": PAGE, "ec": "none", "pad": 1.0})  # fmt: skip
            if line["base"] is not None:
                ends = [x - width * 0.46, x + width * 0.46]
                axes.plot(ends, [line["base"]] * 2, color=INK, ls=REFERENCE["ls"], lw=1.6, zorder=4)
            if line["paper"] is not None:
                axes.plot(
                    [x], [line["paper"]], marker="D", mfc=PAGE, mec=INK, mew=1.4, ms=7, ls="none", zorder=5
                )
        axes.set_xticks(range(len(GROUPS)), [title for _, _, title in GROUPS.values()])
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="%, mean over tasks, test data", ylim=(0, top), xlim=(-0.55, len(GROUPS) - 0.45))
        entries: list[tuple[str, dict[str, Any]]] = [
            (
                shorten(regime),
                {
                    "facecolor": look(i).colour,
                    "edgecolor": INK,
                    "lw": 0.6,
                    "alpha": 0.8,
                    "hatch": look(i).hatch,
                },
            )
            for i, regime in enumerate(regimes)
        ]
        seeds = repetitions(ran)
        entries.append(("range of the repetitions" if seeds > 1 else "95 % interval", whisker()))
        if any(line["paper"] is not None for line in lines):
            entries.append(("in the paper", {"marker": "D", "mfc": PAGE, "mec": INK, "mew": 1.4, "ms": 7}))
        if any(line["base"] is not None for line in lines):
            entries.append(("base", {**REFERENCE, "color": INK}))
        legend(figure, entries)
        settle(figure)
    best = max((line for line in lines if line["group"] == "normalised"), key=lambda line: line["mean"])
    caption = (
        f"Task vectors of all tasks added with one coefficient, chosen on validation data; {_tasks(ran)}"
    )
    caption += f"{f', means over {seeds} repetitions' if seeds > 1 else ''}. Highest normalised accuracy: "
    caption += f"{best['regime']}, {best['mean']:.1f} %. "
    if any(line["paper"] is not None for line in lines):
        caption += "Diamonds: the paper’s own figures, of its models and tasks. "
        caption += "Where those here are others, compare the order of the bars."
    return Drawing(figure, "accuracy by regime", caption.strip(), lines)


def _spread(rows: Sequence[Row]) -> dict[str, Any]:
    values = [100 * row.mean for row in rows]
    low, high = (min(values), max(values)) if len(rows) > 1 else (100 * rows[0].low, 100 * rows[0].high)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "repetitions": len(rows)}


def _tasks(ran: Sequence[Ran]) -> str:
    tasks = {row.data for row in ran[0].of(kind="addition", measure="accuracy")}
    return times(len(tasks), "task")
