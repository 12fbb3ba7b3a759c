"""Cosines between the task vectors of different tasks, regimes side by side on one scale (ATTN Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.heat import around_middle, number_cells
from mergescope.reports.paper_figures.ran import Ran, by_regime, repetitions
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.style import FAINT, MUTED, WIDTH, new_figure, settle, shorten, styled
from mergescope.studies.papers.runner import GEOMETRY, unmoved
from mergescope.studies.rundir import read_table

COLUMNS = 4
"""Matrices side by side."""

NUMBERED = 10
"""Matrices of more tasks than this have no numbers in their cells."""


def cosines_figure(ran: Sequence[Ran]) -> Drawing:
    """Draw a matrix a regime.

    Args:
        ran: steps of all regimes and repetitions, with tables of ``mergescope geometry``.

    Returns:
        The figure; cells are means over repetitions. Models that equal the base have no cosine: they are grey, and take
        no part in means.

    Raises:
        StudyError: a step has no such table, or fewer than two models.
    """  # noqa: DOC502 (raised by what this calls)
    found: dict[str, tuple[list[str], np.ndarray]] = {}
    lines: list[dict[str, Any]] = []
    for regime, mine in by_regime(ran).items():
        matrices = [_matrix(each.folder) for each in mine]
        names = matrices[0][0]
        each_seed = np.array([values for _, values in matrices])
        mean = np.full(each_seed.shape[1:], math.nan)
        for i in range(len(names)):
            for j in range(i):
                known = each_seed[np.isfinite(each_seed[:, i, j]), i, j]
                ends = (known.mean(), known.min(), known.max()) if known.size else (math.nan,) * 3
                mean[i, j] = mean[j, i] = ends[0]
                lines.append({
                    "regime": regime, "model": names[i], "other": names[j],
                    **dict(zip(("cos", "low", "high"), map(float, ends), strict=True)), "repetitions": len(known),
                })  # fmt: skip
        found[regime] = names, mean
    known_cells = {regime: values[np.isfinite(values)] for regime, (_, values) in found.items()}
    means = {regime: float(cells.mean()) for regime, cells in known_cells.items() if cells.size}
    most = max(float(np.abs(cells).max(initial=0.0)) for cells in known_cells.values())
    reach = min(1.0, max(0.1, math.ceil(most * 20) / 20))
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    side = (WIDTH - 0.9) / max(columns, 3)
    with styled():
        from matplotlib import colormaps

        figure = new_figure(WIDTH, 0.3 + rows * (side + 0.55))
        width = (columns * side + 0.9) / WIDTH
        engine: Any = figure.get_layout_engine()
        engine.set(rect=((1 - width) / 2, 0, width, 1))
        grid = figure.subplots(rows, columns, squeeze=False)
        numbered = all(len(names) <= NUMBERED for names, _ in found.values())
        colours = colormaps[around_middle("RdBu_r", numbered)].with_extremes(bad=FAINT)
        image: Any = None
        for axes in grid.flat[len(found) :]:
            axes.axis("off")
        for place, (axes, (regime, (names, values))) in enumerate(
            zip(grid.flat, found.items(), strict=False)
        ):
            image = axes.imshow(values, cmap=colours, vmin=-reach, vmax=reach)
            axes.set_title(shorten(regime, 18) + (f": mean {means[regime]:.3f}" if regime in means else ""))
            labels = [shorten(name, 14) for name in names]
            axes.set_xticks(range(len(names)), labels, rotation=90)
            axes.set_yticks(range(len(names)), labels if place % columns == 0 else [])
            axes.tick_params(length=0, labelsize=8)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            if numbered:
                number_cells(axes, image, values, _short, 7.5)
        bar = figure.colorbar(
            image, ax=grid, label="cosine of task vectors", fraction=0.03, pad=0.02, aspect=24
        )
        bar.outline.set_edgecolor(MUTED)
        settle(figure)
    seeds = repetitions(ran)
    caption = "Between the task vectors of every two tasks, over all weights that training may change"
    caption += f"; means over {seeds} repetitions" if seeds > 1 else ""
    caption += ". 0: at right angles. All matrices share one scale."
    if means:
        said = ", ".join(f"{value:.3f} ({regime})" for regime, value in means.items())
        caption += f" Mean over pairs: {said}."
    if any(math.isnan(line["cos"]) for line in lines):
        caption += " Grey: no cosine, as a model equals the base."
    return Drawing(figure, "cosines between task vectors by regime", caption, lines)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("0.", ".", 1).replace("-", "−")


def _matrix(folder: Path) -> tuple[list[str], np.ndarray]:
    whole = [line for line in read_table(folder / GEOMETRY) if line["scope"] == "model"]
    table = [line for line in whole if line["measure"] == "cos" and line["other"]]
    if not table:
        raise StudyError(f"{folder / GEOMETRY} has no cosines: they take two models or more. {AGAIN}")
    names = list(dict.fromkeys(name for line in table for name in (line["model"], line["other"])))
    still = unmoved(whole)
    values = np.full((len(names), len(names)), math.nan)
    for line in table:
        if still.isdisjoint((line["model"], line["other"])):
            i, j = names.index(line["model"]), names.index(line["other"])
            values[i, j] = values[j, i] = line["value"]
    return names, values
