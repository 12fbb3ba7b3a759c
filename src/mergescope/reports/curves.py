"""Figures of merging: loss along lines, matrices over pairs, the search of lambda."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergescope.reports.heat import over
from mergescope.reports.panels import legend
from mergescope.reports.results import Results
from mergescope.reports.style import (
    FAINT,
    INK,
    MUTED,
    WIDTH,
    family_name,
    look,
    new_figure,
    settle,
    shorten,
    styled,
)
from mergescope.reports.tables import NONE, number
from mergescope.reports.verdicts import Family

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_ROW = 6
"""Pairs side by side in a barrier figure."""


def barrier_curves(results: Results, network: str) -> Figure:
    """Loss and error on the line between the models of each pair, with the chord of its ends.

    Args:
        results: of a run.
        network: which network.

    Returns:
        A column for each pair; rows loss, error. Barrier values stand above each panel.
    """
    families = [family for family in results.families if family[0] == network]
    pairs = [
        pair
        for pair in results.pairs
        if any(results.select(f, "line", "loss", points=pair) for f in families)
    ]
    columns = min(PER_ROW, max(len(pairs), 1))
    blocks = math.ceil(max(len(pairs), 1) / columns)
    room = min(40, int((WIDTH / columns - 0.55) / 0.072))  # characters above a panel
    with styled():
        figure = new_figure(WIDTH, 0.5 + blocks * (2 * (1.45 + 0.16 * len(families))))
        grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
        for axes in grid.flat:
            axes.axis("off")
        for i, pair in enumerate(pairs):
            for j, measure in enumerate(("loss", "error")):
                axes = grid[2 * (i // columns) + j][i % columns]
                axes.axis("on")
                said = [shorten(pair, room)] if j == 0 else []
                said += [
                    f"{shorten(family[1], room - 7)} {_draw_line(axes, results, family, measure, pair)}"
                    for family in families
                ]
                axes.set_title("\n".join(said), fontsize=8, fontweight="normal", linespacing=1.25)
                axes.set_xlim(-0.04, 1.04)
                axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
                axes.tick_params(labelbottom=True)
                axes.margins(y=0.12)
                if i % columns == 0:
                    axes.set_ylabel(measure)
                if j == 1:
                    axes.set_xlabel("α")
        entries = [(shorten(regime), {"color": look(i).colour, "marker": look(i).marker, "ls": look(i).line, "ms": 4})
                   for i, regime in enumerate(results.regimes) if (network, regime) in families]  # fmt: skip
        legend(
            figure, [*entries, ("chord between the ends", {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.2})]
        )
        return settle(figure)


def _draw_line(axes, results: Results, family: Family, measure: str, pair: str) -> str:  # type: ignore[no-untyped-def]
    found = sorted(results.select(family, "line", measure, points=pair), key=lambda row: row.parameter)
    found = [row for row in found if math.isfinite(row.mean) and math.isfinite(row.parameter)]
    entry = look(results.regimes.index(family[1]))
    if found:
        ends = [found[0], found[-1]]
        axes.plot([row.parameter for row in found], [row.mean for row in found], color=entry.colour, ls=entry.line,
                  marker=entry.marker, ms=3, lw=1.4, zorder=3)  # fmt: skip
        axes.plot(
            [row.parameter for row in ends], [row.mean for row in ends], color=MUTED, ls=(0, (1, 1.5)), lw=1.1
        )
    return number(results.value(family, "barrier", measure, points=pair), sign=True)


def pair_matrices(results: Results, measure: str) -> Figure:
    """A matrix over pairs of tasks for each network and regime, numbers in its cells.

    Args:
        results: of a run.
        measure: ``"cos"`` shows each pair's lowest over layers, ``"coef"`` the one furthest from 1.

    Returns:
        The matrices, lower triangles; trivial layers don't count.
    """
    size = max(len(results.tasks) - 1, 1)
    panel = max(2.4, 0.75 + 0.5 * size)
    columns = max(1, min(max(len(results.families), 3), int(WIDTH / panel)))
    rows = math.ceil(len(results.families) / columns)
    with styled():
        import matplotlib

        colours = matplotlib.colormaps["cividis" if measure == "cos" else "PuOr"]
        values = {family: _matrix(results, family, measure) for family in results.families}
        flat = [value for grid in values.values() for line in grid for value in line if math.isfinite(value)]
        if measure == "cos":
            limits = (min([*flat, 0.9]), 1.0)
        else:
            reach = max([abs(value - 1) for value in flat] + [0.1])
            limits = (1 - reach, 1 + reach)
        height = 2.05 if size < 5 else 0.7 + 0.36 * size
        figure = new_figure(WIDTH, 0.35 + rows * height)
        grid = figure.subplots(rows, columns, squeeze=False)
        image = None
        for axes in grid.flat[len(results.families) :]:
            axes.axis("off")
        for axes, family in zip(grid.flat, results.families, strict=False):
            image = axes.imshow(values[family], cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
            axes.set_title(family_name(family, WIDTH / columns + 0.8))
            axes.set_xticks(range(size), [shorten(task, 12) for task in results.tasks[:size]])
            axes.set_yticks(range(size), [shorten(task, 12) for task in results.tasks[1:]])
            axes.tick_params(length=0)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            for i, line in enumerate(values[family]):
                for j, value in enumerate(line[: i + 1]):
                    known = math.isfinite(value)
                    text = f"{value:.2f}" if known else NONE
                    colour = over(image.cmap(image.norm(value))) if known else INK
                    axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
        label = "lowest cos of the layers" if measure == "cos" else "coef furthest from 1"
        if image is not None:
            bar = figure.colorbar(image, ax=grid, label=label, fraction=0.03, pad=0.01, aspect=28)
            bar.outline.set_visible(False)
        return settle(figure)


def _matrix(results: Results, family: Family, measure: str) -> list[list[float]]:
    size = max(len(results.tasks) - 1, 1)
    grid = [[math.nan] * size for _ in range(size)]
    layers = results.evidence(family[0])
    for pair in results.pairs:
        a, b = results.ends(pair)
        if a not in results.tasks or b not in results.tasks:
            continue
        found = [
            row.mean
            for row in results.select(family, "ctl", measure, at=results.alpha, points=pair)
            if row.layer in layers and math.isfinite(row.mean)
        ]
        if found:
            value = min(found) if measure == "cos" else max(found, key=lambda coef: abs(coef - 1))
            grid[results.tasks.index(b) - 1][results.tasks.index(a)] = value
    return grid


def lambda_search(results: Results) -> Figure:
    """Normalised validation accuracy of task arithmetic for every coefficient tried.

    Args:
        results: of a run.

    Returns:
        A panel for each network; the coefficient chosen is circled.
    """
    with styled():
        columns = min(len(results.networks), 3)
        rows = math.ceil(len(results.networks) / columns)
        figure = new_figure(WIDTH, 0.5 + 2.5 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(results.networks) :]:
            axes.axis("off")
        for axes, network in zip(grid.flat, results.networks, strict=False):
            for i, regime in enumerate(results.regimes):
                found = sorted(
                    results.select((network, regime), "lambda-search", "normalised accuracy"),
                    key=lambda row: row.parameter,
                )
                found = [row for row in found if math.isfinite(row.mean)]
                if not found:
                    continue
                entry = look(i)
                best = min(found, key=lambda row: (-row.mean, row.parameter))
                axes.plot([row.parameter for row in found], [row.mean for row in found], color=entry.colour,
                          ls=entry.line, marker=entry.marker, ms=3.5, lw=1.4)  # fmt: skip
                axes.plot(
                    [best.parameter], [best.mean], marker="o", mfc="none", mec=INK, ms=11, mew=1.3, ls="none"
                )
            axes.axhline(1, color=FAINT, lw=1)
            axes.set(title=shorten(network), xlabel="λ", ylabel="normalised accuracy, validation")
        entries = [(shorten(regime), {"color": look(i).colour, "marker": look(i).marker, "ls": look(i).line, "ms": 4})
                   for i, regime in enumerate(results.regimes)]  # fmt: skip
        legend(
            figure, [*entries, ("chosen", {"marker": "o", "mfc": "none", "mec": INK, "ms": 10, "mew": 1.3})]
        )
        return settle(figure)
