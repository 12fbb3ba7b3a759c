"""Loss and error along the line between two fine-tuned models, and its barriers (CTL Table 1; LMC)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.multiples import Band
from mergescope.reports.paper_figures.ran import Ran, repetitions, times
from mergescope.reports.protocol_figures import REFERENCE
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.style import INK, MUTED, WIDTH, look, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("loss", "error")

PAIRS = 36
"""Pairs that are named at most: those with the largest barriers."""


def barriers_figure(ran: Sequence[Ran]) -> Drawing:
    """Draw all pairs of fine-tuned models.

    Args:
        ran: steps of one regime, one a repetition, with rows of ``mergescope measure``.

    Returns:
        The figure: above, loss and error less the chord between the ends; below, the barrier of every pair, of many
        those with the largest ones.

    Raises:
        StudyError: there are no lines between fine-tuned models.
    """
    curves: dict[tuple[str, str], dict[float, list[float]]] = {}
    barriers: dict[tuple[str, str], list[float]] = {}
    for each in ran:
        # The base's lines to the fine-tuned models are in the same table; they have no test of CTL.
        pairs = {row.points for row in each.of(kind="ctl")}
        for measure in MEASURES:
            for row in each.of(kind="barrier", measure=measure):
                if row.points in pairs and math.isfinite(row.mean):
                    barriers.setdefault((measure, row.points), []).append(row.mean)
            for name in pairs:
                line = {row.parameter: row.mean for row in each.of(kind="line", measure=measure, points=name)}
                for alpha, value in _above_chord(line).items():
                    curves.setdefault((measure, name), {}).setdefault(alpha, []).append(value)
    if not barriers or not curves:
        raise StudyError(f"The steps have no barriers between fine-tuned models to be drawn. {AGAIN}")
    lines = [
        {"measure": f"{measure} above the chord", "pair": name, "alpha": alpha, **_ends(values)}
        for (measure, name), line in curves.items()
        for alpha, values in sorted(line.items())
    ]
    lines += [
        {"measure": f"{measure} barrier", "pair": name, "alpha": math.nan, **_ends(values)}
        for (measure, name), values in barriers.items()
    ]
    count, seeds = len({name for _, name in barriers}), repetitions(ran)
    said = []
    for measure in MEASURES:
        means = [float(np.mean(values)) for (of, _), values in barriers.items() if of == measure]
        if means:
            said.append(f"of the {measure} {np.mean(means):.3g} on average, at most {max(means):.3g}")
    caption = f"{times(count, 'pair', seeds)}. Above: loss and error along "
    caption += (
        "the line between two models, less the chord between its ends; thin: single pairs, bold: their mean. "
    )
    first = next(measure for measure in MEASURES if any(of == measure for of, _ in barriers))
    shown = "every pair" if count <= PAIRS else f"the {PAIRS} pairs with the largest barriers of the {first}"
    caption += (
        f"Above 0 there is a barrier. Below: the barrier of {shown}, bars from the smallest to the largest "
    )
    caption += f"repetition. Barriers {'; '.join(said)}."
    return Drawing(_draw(curves, barriers), "loss and error between models, and barriers", caption, lines)


def _above_chord(line: Mapping[float, float]) -> dict[float, float]:
    found = {alpha: value for alpha, value in line.items() if math.isfinite(alpha) and math.isfinite(value)}
    if not {0.0, 1.0} <= found.keys():
        return {}
    return {alpha: value - (1 - alpha) * found[0.0] - alpha * found[1.0] for alpha, value in found.items()}


def _ends(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def _draw(
    curves: Mapping[tuple[str, str], Mapping[float, Sequence[float]]],
    barriers: Mapping[tuple[str, str], Sequence[float]],
) -> Figure:
    measures = [measure for measure in MEASURES if any(of == measure for of, _ in barriers)]
    names = sorted(
        {name for _, name in barriers},
        key=lambda name: -float(np.mean(barriers.get((measures[0], name), [0.0]))),
    )[:PAIRS]
    with styled():
        figure = new_figure(WIDTH, 6.3)
        engine: Any = figure.get_layout_engine()
        engine.set(h_pad=0.1)  # upright names take a little more than they are thought to
        parts: Any = figure.subfigures(2, 1, height_ratios=[2.5, 3.5])
        top, bottom = parts
        for axes, measure in zip(top.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            mine = {name: line for (of, name), line in curves.items() if of == measure}
            alphas = sorted(set.intersection(*(set(line) for line in mine.values())))
            values = np.array([[np.mean(line[alpha]) for alpha in alphas] for line in mine.values()])
            for line in values:
                axes.plot(alphas, line, color=MUTED, lw=0.7, alpha=0.5, zorder=2)
            Band(values.mean(0), values.mean(0), values.mean(0)).draw(axes, alphas, _style(0))
            axes.axhline(0, zorder=1, **REFERENCE)
            axes.set(xlabel="α", ylabel=f"{measure} above the chord", xlim=(-0.02, 1.02))
        panels = bottom.subplots(len(measures), 1, squeeze=False, sharex=True)[:, 0]
        for number, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
            for place, name in enumerate(names):
                values_of = barriers.get((measure, name), ())
                if values_of:
                    axes.plot([place] * 2, [min(values_of), max(values_of)], color=INK, lw=1.1, zorder=3)
                    axes.plot([place], [np.mean(values_of)], zorder=4, **{**_style(number + 1), "ls": "none"})
            axes.axhline(0, zorder=1, **REFERENCE)
            axes.set_ylabel(f"{measure} barrier")
            axes.set_xlim(-0.7, len(names) - 0.3)
            axes.margins(y=0.18)
        labels = [" + ".join(shorten(part, 12) for part in name.split(" + ")) for name in names]
        panels[-1].set_xticks(range(len(names)), labels, rotation=90 if len(names) > 8 else 0, fontsize=7.5)
        entries = [
            ("one pair", {"color": MUTED, "ls": "-", "lw": 0.9}), ("mean over pairs", _style(0)),
            *((f"{measure} barrier of a pair", {**_style(place + 1), "ls": "none"})
              for place, measure in enumerate(measures)),
            ("no barrier", REFERENCE),
        ]  # fmt: skip
        legend(figure, entries)
        return settle(figure)


def _style(place: int) -> dict[str, Any]:
    entry = look(place)
    return {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5.0, "lw": 2.0}
