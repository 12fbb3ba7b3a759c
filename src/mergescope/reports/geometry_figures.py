"""Figures of task-vector geometry: heat maps of cosines and sign conflicts, distances by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mergescope.reports.heat import around_middle, number_cells
from mergescope.reports.style import FAINT, MUTED, WIDTH, look, new_figure, render, settle, shorten, styled
from mergescope.weights.files import atomic_file
from mergescope.weights.geometry import Geometry
from mergescope.weights.sums import Sums

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("distances", "similarity", "similarity-by-group", "regimes")
"""Files of these figures, without suffix."""

PAIRS = 28
"""Pairs in the figure by block and kind of module at most."""

_NUMBERED_CELLS = 144
"""A heat map with more cells than this shows no numbers in them."""


def similarity(found: Geometry) -> Figure:
    """Draw the matrices of the whole model: cosines (ATTN, Fig. 5) and sign conflicts.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry], of two models or more.

    Returns:
        Two heat maps side by side; grey is what says nothing: the diagonal, and a model that equals the base.
    """
    names = [shorten(name, 18) for name in found.models]
    total = found.total
    cosines, conflicts = (_of_moved(total, values) for values in (total.cosines, total.conflicts))
    with styled():
        # Of more models there are no numbers in the cells, which can be as low as it takes.
        rows = min(len(names), math.isqrt(_NUMBERED_CELLS))
        figure = new_figure(WIDTH, max(3.2, 1.6 + 0.42 * rows))
        left, right = figure.subplots(1, 2)
        _heat_map(figure, left, cosines, names, names, "cosine of task vectors", _COSINE)
        _heat_map(figure, right, conflicts, names, names, "opposite signs where both changed", _CONFLICT)
        return settle(figure)


def by_group(found: Geometry) -> Figure:
    """Draw cosines and sign conflicts of every pair, by block and by kind of module.

    Args:
        found: of two models or more.

    Returns:
        Two rows (blocks, kinds) of two heat maps, with a column for each pair; of many pairs, for those whose task
        vectors are least orthogonal, which the title says.
    """
    every = [(i, j) for i in range(len(found.models)) for j in range(i)]
    cosines = found.total.cosines
    pairs = every
    if len(every) > PAIRS:
        pairs = sorted(every, key=lambda pair: -abs(float(cosines[pair])))[:PAIRS]
    join = "\n+ " if len(pairs) <= 3 else " + "
    labels = [f"{shorten(found.models[j], 14)}{join}{shorten(found.models[i], 14)}" for i, j in pairs]
    groups = [found.groups("layer"), found.groups("kind")]
    with styled():
        heights = [max(1.2, 0.24 * len(group)) for group in groups]
        figure = new_figure(max(WIDTH, 3.5 + 0.7 * len(pairs)), 2.2 + sum(heights))
        if len(every) > PAIRS:
            said = f"The {PAIRS} of {len(every):,} pairs whose cosine is furthest from 0, these first"
            figure.suptitle(said, fontsize=9.5)
        grid = figure.subplots(2, 2, height_ratios=heights, squeeze=False)
        for axes_row, group, what in zip(grid, groups, ("block", "kind of module"), strict=True):
            columns = labels if group is groups[-1] else [""] * len(labels)  # once, below both
            rows = short_layers(list(group))
            for axes, measure, title, scale in (
                (axes_row[0], "cosines", "cosine", _COSINE),
                (axes_row[1], "conflicts", "opposite signs", _CONFLICT),
            ):
                values = np.array([
                    [float(getattr(sums, measure)[i, j]) if sums.moved(i, j) else math.nan for i, j in pairs]
                    for sums in group.values()
                ])
                _heat_map(figure, axes, values, rows, columns, f"{title}, by {what}", scale)
        return settle(figure)


def distances(found: Geometry) -> Figure:
    """Draw how far each model went from the base, by block and by kind of module.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry].

    Returns:
        Two panels; one mark a model.
    """
    with styled():
        figure = new_figure(WIDTH, 3.9)
        panels = figure.subplots(1, 2)
        for axes, scope, title in zip(panels, ("layer", "kind"), ("block", "kind of module"), strict=True):
            group = found.groups(scope)  # type: ignore[arg-type]
            top = 0.0
            for k, model in enumerate(found.models):
                values = [sums.distances[k] for sums in group.values()]
                shown = [value if math.isfinite(value) else math.nan for value in values]
                top = max([top, *(value for value in shown if not math.isnan(value))])
                entry = look(k)
                # Side by side, so that equal distances don't hide one another.
                shift = 0.0 if scope == "layer" else 0.5 * ((k + 0.5) / len(found.models) - 0.5)
                axes.plot(
                    [position + shift for position in range(len(shown))], shown,
                    color=entry.colour, marker=entry.marker, ms=5, lw=1.2,
                    ls=entry.line if scope == "layer" else "none", label=shorten(model, 24),
                )  # fmt: skip
            axes.set_xticks(range(len(group)), short_layers(list(group)))
            axes.set_ylim(0, top * 1.08 or 1.0)
            axes.set(
                title=f"relative distance from {shorten(found.base, 24)}, by {title}", ylabel="|τ| / |θ₀|"
            )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), handlelength=3.2
        )
        return settle(figure)


def by_regime(found: Mapping[str, Geometry]) -> Figure:
    """Draw the cosines of the same tasks in several regimes (ATTN, Fig. 5), on one scale.

    Args:
        found: label of a regime to the geometry of its models, two or more.

    Returns:
        A heat map a regime; last, the mean cosine of all pairs in each block. Models that equal the base have none:
        they are grey, and take no part in means.
    """
    columns = min(4, len(found) + 1)
    lines = math.ceil((len(found) + 1) / columns)
    totals = {label: geometry.total for label, geometry in found.items()}
    matrices = {label: _of_moved(total, total.cosines) for label, total in totals.items()}
    known = np.concatenate([values[np.isfinite(values)] for values in matrices.values()])
    most = float(np.abs(known).max(initial=0.0))
    scale = (_COSINE[0], _COSINE[1], min(1.0, max(0.1, math.ceil(most * 20) / 20)), _COSINE[3])
    with styled():
        figure = new_figure(WIDTH * max(1.0, columns / 3), 0.6 + 2.9 * lines)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat[len(found) :]:
            axes.axis("off")
        for axes, (label, geometry) in zip(panels.flat, found.items(), strict=False):
            names = [shorten(name, 12) for name in geometry.models]
            mean = _mean(matrices[label])
            title = shorten(label, 20) + (f": mean {mean:.3f}" if math.isfinite(mean) else "")
            _heat_map(figure, axes, matrices[label], names, names, title, scale, fixed=True)
            axes.tick_params(axis="x", labelrotation=90)
        last = panels.flat[len(found)]
        last.axis("on")
        for place, (label, geometry) in enumerate(found.items()):
            # The blocks: what is around them is alike in all tasks (a final norm), and would press them flat.
            every = geometry.groups("layer")
            group = {name: sums for name, sums in every.items() if "." in name} or every
            means = [_mean(_of_moved(sums, sums.cosines)) for sums in group.values()]
            entry = look(place)
            last.plot(
                range(len(means)), means, color=entry.colour, marker=entry.marker, ls=entry.line, ms=4, lw=1.3,
                label=shorten(label, 20),
            )  # fmt: skip
        last.set_xticks(range(len(group)), short_layers(list(group)), rotation=90)
        last.set_title("mean cosine, by block")
        figure.legend(loc="outside lower center", ncols=min(4, len(found)), handlelength=3.2)
        return settle(figure)


def off_diagonal(values: np.ndarray) -> np.ndarray:
    """A square matrix without its diagonal, which says nothing.

    Args:
        values: ``(models, models)``.

    Returns:
        A copy with NaN on the diagonal.

    Example:
        >>> off_diagonal(np.ones((2, 2))).tolist()
        [[nan, 1.0], [1.0, nan]]
    """
    found = np.array(values, dtype=float)
    np.fill_diagonal(found, np.nan)
    return found


def geometry_figures(found: Geometry) -> dict[str, Figure]:
    """All figures that the number of models allows.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry].

    Returns:
        File name without suffix to figure.
    """
    drawn = {"distances": distances(found)}
    if len(found.models) > 1:
        drawn |= {"similarity": similarity(found), "similarity-by-group": by_group(found)}
    return drawn


def write_geometry_figures(found: Geometry, folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry].
        folder: where to; made if absent.

    Returns:
        The files.
    """
    return write_figures(geometry_figures(found), folder)


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as SVG and PNG.

    Args:
        figures: file name without suffix to figure.
        folder: where to; made if absent.

    Returns:
        The files.
    """
    written = []
    for name, figure in figures.items():
        for suffix in ("svg", "png"):
            path = folder / f"{name}.{suffix}"
            with atomic_file(path) as temporary:
                temporary.write_bytes(render(figure, suffix))
            written.append(path)
    return written


def short_layers(layers: Sequence[str]) -> list[str]:
    """Names of blocks without what all share: ``encoder.layer.3`` becomes ``3``.

    Args:
        layers: names of blocks and of groups outside them.

    Returns:
        The labels; with several stacks they keep the words that tell them apart.

    Example:
        >>> short_layers(["embedding", "model.layers.0", "model.layers.1", "head"])
        ['embedding', '0', '1', 'head']
        >>> short_layers(["encoder.block.0", "decoder.block.0"])
        ['encoder 0', 'decoder 0']
    """
    stacks = list(dict.fromkeys(name.rpartition(".")[0] for name in layers if "." in name))
    words = [stack.split(".") for stack in stacks]
    own = {
        stack: " ".join(word for word in parts if not all(word in other for other in words))
        for stack, parts in zip(stacks, words, strict=True)
    }
    labels = []
    for name in layers:
        stack, _, number = name.rpartition(".")
        labels.append(shorten(f"{own[stack]} {number}".strip(), 20) if stack else name)
    return labels


def _of_moved(sums: Sums, values: torch.Tensor) -> np.ndarray:
    # NaN for pairs with a model that equals the base, whose task vector has no direction.
    found = off_diagonal(values.numpy())
    still = sums.changed.diagonal().numpy() == 0
    found[still] = np.nan
    found[:, still] = np.nan
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


_COSINE = ("RdBu_r", 0.0, 1.0, "{:.2f}")
_CONFLICT = ("PuOr_r", 0.5, 0.5, "{:.0%}")
"""Colour map, middle, most that a value can be off it, and format of the numbers."""


def _heat_map(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    scale: tuple[str, float, float, str],
    fixed: bool = False,
) -> None:
    from matplotlib import colormaps

    colours, middle, reach, text = scale
    finite = values[np.isfinite(values)]
    # The range of what is there, symmetric around the middle, so that small cosines are seen too.
    most = float(np.abs(finite - middle).max()) if finite.size else 0.0
    span = reach if fixed else min(reach, max(0.1, math.ceil(most * 20) / 20))
    numbered = values.size <= (_NUMBERED_CELLS // 4 if fixed else _NUMBERED_CELLS)
    shown = colormaps[around_middle(colours, numbered)].with_extremes(bad=FAINT)
    image = axes.imshow(values, cmap=shown, vmin=middle - span, vmax=middle + span, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=20 if len(rows) < 16 else 40)
    bar.set_ticks([middle + span * part for part in (-1, -0.5, 0, 0.5, 1)])
    bar.outline.set_edgecolor(MUTED)
    percent = "%" in text
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if percent else f"{value:.2f}")
    if not numbered:
        return
    number_cells(axes, image, values, lambda value: text.format(value).replace("-0.00", "0.00"), 8)
