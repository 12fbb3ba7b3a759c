"""Figures of soups and subsets: scores, greedy steps, averaged weights against averaged logits, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.panels import legend, mark
from mergescope.reports.protocol_figures import REFERENCE
from mergescope.reports.style import (
    INK,
    MUTED,
    PAGE,
    SHADE,
    STRONG,
    WIDTH,
    look,
    new_figure,
    settle,
    shorten,
    styled,
)
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("cos", "baseline", "coef")


def greedy_steps(steps: Sequence[tuple[str, float, bool]], measure: str) -> Figure:
    """Draw what each model would do to the greedy soup, in the order in which they were tried.

    Args:
        steps: model, validation score of the average with it, whether it was taken.
        measure: ``accuracy`` or ``loss``.

    Returns:
        The figure.
    """
    with styled():
        figure = new_figure(WIDTH, 3.3)
        axes = figure.subplots()
        soup = steps[0][1]
        for place, (_, value, taken) in enumerate(steps):
            axes.plot([place - 1 if place else place, place], [soup, value], color=INK if taken else MUTED, lw=1.2,
                      ls="-" if taken else (0, (1, 1.5)), zorder=2)  # fmt: skip
            style = mark(look(0), hollow=not taken)
            axes.plot([place], [value], ls="none", zorder=3, **style)
            if taken:
                soup = value
            else:  # the soup stays what it was
                axes.plot([place - 1, place], [soup, soup], color=INK, lw=1.2, zorder=1)
        axes.set_xticks(range(len(steps)), [shorten(name, 26) for name, _, _ in steps])
        axes.set_ylabel(f"validation {measure} with it")
        axes.margins(x=0.05, y=0.2)
        entries = [("taken", mark(look(0))), ("tried, not taken", mark(look(0), hollow=True))]
        legend(figure, [*entries, ("the soup so far", {"color": INK, "ls": "-", "lw": 1.2})])
        return settle(figure)


def weights_against_logits(subsets: Sequence[tuple[Row, Row, Row]], singles: Sequence[Row]) -> Figure:
    """Draw accuracy of averaged weights against that of averaged logits (CTL Fig. 4).

    Args:
        subsets: of each subset averaged weights, averaged logits, and the mean of its single models.
        singles: accuracy of the models by themselves.

    Returns:
        Left one mark a subset, with the diagonal; right the gain of both over the mean single model.
    """
    with styled():
        figure = new_figure(WIDTH, 4.6)
        left, right = figure.subplots(1, 2)
        weights, logits, members = ([row.mean for row in rows] for rows in zip(*subsets, strict=True))
        values = [*weights, *logits]
        margin = 0.08 * (max(values) - min(values)) or 0.01
        ends = min(values) - margin, max(values) + margin
        left.plot(ends, ends, zorder=1, **REFERENCE)
        left.plot(logits, weights, ls="none", zorder=3, alpha=0.75, **mark(look(0)))
        left.set(
            xlim=ends, ylim=ends, xlabel="accuracy of averaged logits", ylabel="accuracy of averaged weights"
        )
        left.set_aspect("equal")
        left.grid(axis="both")
        for place, (rows, index) in enumerate(((logits, 1), (weights, 0))):
            gains = [value - own for value, own in zip(rows, members, strict=True)]
            # Spread evenly over the width, in order: marks don't hide each other.
            at = [place + 0.6 * ((number + 0.5) / len(gains) - 0.5) for number in range(len(gains))]
            right.plot(at, sorted(gains), ls="none", zorder=3, alpha=0.75, **mark(look(index)))
        right.axhline(0, zorder=1, **REFERENCE)
        best = max(row.mean for row in singles) - sum(row.mean for row in singles) / len(singles)
        right.axhline(best, color=STRONG, lw=1.2, zorder=1)
        right.set_xticks([0, 1], ["averaged logits", "averaged weights"])
        right.set_xlim(-0.5, 1.5)
        right.set_ylabel("accuracy less the mean of the subset’s models")
        legend(
            figure,
            [
                ("one subset", mark(look(0))),
                ("left: equal; right: no gain", REFERENCE),
                ("best model less the mean of all", {"color": STRONG, "ls": "-", "lw": 1.2}),
            ],
        )
        return settle(figure)


def layer_curves(layers: Mapping[str, Mapping[str, Row]]) -> Figure:
    """Draw cos with its baseline, and coef, by layer (CTL Eq. 1, Figs 5, 6).

    Args:
        layers: layer to measure to the mean over subsets.

    Returns:
        Two panels.
    """
    names = list(layers)
    with styled():
        figure = new_figure(WIDTH, 3.5)
        panels = figure.subplots(1, 2)
        titles: dict[str, dict[str, Any]] = {
            "cos": {"color": look(0).colour, "marker": "o", "ls": "-", "lw": 1.6, "ms": 5},
            "baseline": {"color": look(0).colour, "marker": "o", "mfc": PAGE, "ls": (0, (1, 1.5)), "lw": 1.2,
                         "ms": 5},
            "coef": {"color": look(1).colour, "marker": "s", "ls": "-", "lw": 1.6, "ms": 5},
        }  # fmt: skip
        for axes, measures in zip(panels, (MEASURES[:2], MEASURES[2:]), strict=True):
            for measure in measures:
                rows = [layers[layer][measure] for layer in names]
                axes.fill_between(range(len(names)), [row.low for row in rows], [row.high for row in rows],
                                  color=titles[measure]["color"], alpha=0.15, lw=0)  # fmt: skip
                axes.plot(range(len(names)), [row.mean for row in rows], zorder=3, **titles[measure])
            axes.axhline(1, color=INK, lw=1, zorder=1)
            for place, layer in enumerate(names):
                if next(iter(layers[layer].values())).trivial:
                    axes.axvspan(place - 0.5, place + 0.5, color=SHADE, zorder=0, lw=0)
            axes.set_xticks(range(len(names)), short_layers(names))
            axes.set_xlabel("layer")
            axes.set_title(" and ".join(measures))
        legend(figure, [(name, style) for name, style in titles.items()])
        return settle(figure)
