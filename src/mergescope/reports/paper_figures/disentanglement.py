"""Heat maps of the disentanglement error, regimes side by side on one scale (ATTN Fig. 3; TANGENT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.protocols.error_grids import ErrorGrid
from mergescope.reports.disentanglement_page import stored_grids
from mergescope.reports.heat import box_line
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.ran import Ran, by_regime, repetitions, times
from mergescope.reports.protocol_view import Drawing
from mergescope.reports.style import WIDTH, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 3
"""Pairs that have maps of their own, below the mean over all."""

TOP = 0.98
"""The scale ends where this share of all errors lies below: divergences far out are hundreds of times larger."""


def disentanglement_figure(ran: Sequence[Ran]) -> Drawing:
    """Draw the mean over pairs, and some pairs by themselves.

    Args:
        ran: steps of all regimes and repetitions, with grids of ``mergescope disentangle``.

    Returns:
        The figure: a row of maps for the mean and for each pair, a column a regime.

    Raises:
        StudyError: a step has no grids, or they are not of the same pairs and coefficients.
    """
    regimes = by_regime(ran)
    found: dict[str, list[ErrorGrid]] = {
        regime: [grid for each in mine for grid in stored_grids(each.stored)]
        for regime, mine in regimes.items()
    }
    first = next(iter(found.values()))[0]
    for regime, grids in found.items():
        if any((grid.coefficients, grid.distance) != (first.coefficients, first.distance) for grid in grids):
            raise StudyError(
                f"The grids of {regime} are of other coefficients or distances than those before it: they can't share "
                "a figure. Run all regimes with the same options."
            )
    names = list(dict.fromkeys(grid.name for grids in found.values() for grid in grids))
    maps = {("", regime): _mean(grids) for regime, grids in found.items()} if len(names) > 1 else {}
    for name in names[:PAIRS]:
        for regime, grids in found.items():
            mine = [grid for grid in grids if grid.name == name]
            if mine:
                maps[name, regime] = _mean(mine)
    values = first.coefficients
    lines = [
        {
            "pair": name or f"mean of {times(len(names), 'pair')}", "regime": regime, "alpha 1": values[a],
            "alpha 2": values[b], "error": error,
        }
        for (name, regime), errors in maps.items()
        for (a, b), error in np.ndenumerate(errors)
    ]  # fmt: skip
    low, high = first.box
    boxed = {
        regime: float(np.nanmean([grid.summaries["mean error of the box"].mean for grid in grids]))
        for regime, grids in found.items()
    }
    seeds = repetitions(ran)
    best = min(boxed, key=lambda regime: boxed[regime])
    caption = f"Means over {seeds} repetitions. " if seeds > 1 else ""
    if len(names) > 1:
        some = f"{'the first ' if len(names) > PAIRS else ''}{times(min(PAIRS, len(names)), 'pair')}"
        caption += f"Top row: mean over {times(len(names), 'pair')}; below, {some}. "
    caption += (
        "Dark is good: there, either task’s vector leaves the other’s data alone. All maps share one scale. "
    )
    caption += f"Inside the box, {low:g} to {high:g}, the mean error is "
    caption += (
        ", ".join(f"{value:.3f} ({regime})" for regime, value in boxed.items()) + f": lowest for {best}."
    )
    figure = _draw(maps, list(found), first, boxed)
    return Drawing(figure, "heat maps of the disentanglement error by regime", caption, lines)


def _mean(grids: Sequence[ErrorGrid]) -> np.ndarray:
    return np.mean([grid.error for grid in grids], axis=0)


def _draw(
    maps: Mapping[tuple[str, str], np.ndarray],
    regimes: Sequence[str],
    first: ErrorGrid,
    boxed: Mapping[str, float],
) -> Figure:
    names = list(dict.fromkeys(name for name, _ in maps))
    every = np.concatenate([errors.ravel() for errors in maps.values()])
    top = float(np.quantile(every, TOP if first.distance == "kl" else 1.0)) or 1.0
    values, (low, high) = np.array(first.coefficients), first.box
    columns = max(len(regimes), 4)
    side = (WIDTH - 1.0) / columns - 0.55
    with styled():
        figure = new_figure(WIDTH, 0.9 + len(names) * (side + 0.5))
        width = (len(regimes) * (side + 0.55) + 1.0) / WIDTH
        engine: Any = figure.get_layout_engine()
        engine.set(rect=((1 - width) / 2, 0, width, 1))
        grid = figure.subplots(len(names), len(regimes), squeeze=False, sharex=True, sharey=True)
        image: Any = None
        for (row, column), axes in np.ndenumerate(grid):
            name, regime = names[row], regimes[column]
            if (name, regime) not in maps:
                axes.axis("off")
                continue
            # Rows of an image go up the second axis: alpha 2.
            image = axes.pcolormesh(values, values, maps[name, regime].T, cmap="cividis", vmin=0, vmax=top,
                                    shading="nearest", edgecolors="face", lw=0.4)  # fmt: skip
            axes.plot([low, high, high, low, low], [low, low, high, high, low], **box_line())
            axes.set_aspect("equal")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{shorten(regime, 20)}\nin the box: {boxed[regime]:.3f}")
            if column == 0:
                called = "mean over pairs" if not name else shorten(name, 26)
                axes.set_ylabel(f"{called}\nα₂")
            if row == len(names) - 1:
                axes.set_xlabel("α₁")
        label = "ξ: share of other predictions, both tasks"
        if first.distance == "kl":
            label = f"ξ: symmetrised KL{f' of features of {first.layer}' if first.layer else ''}, nats"
        bar = figure.colorbar(
            image, ax=grid, label=label, fraction=0.03, pad=0.02, aspect=14 * len(names),
            extend="max" if every.max() > top else "neither",
        )  # fmt: skip
        bar.outline.set_visible(False)
        legend(figure, [(f"search box, {low:g} to {high:g}", box_line())])
        return settle(figure)
