"""Figures of stitching: accuracy after every block, and for every coefficient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mergescope.protocols.stitching import MIXED, SINGLE, WHOLE, Score, Stitching
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.panels import legend
from mergescope.reports.style import MUTED, WIDTH, look, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Panels side by side."""

PANELS = 24
"""Panels of a figure at most; further pairs are in the results only."""


def by_layer(found: Stitching) -> Figure:
    """Draw accuracy after every block (CTL Figs 9, 10), at the coefficient that tables show.

    Args:
        found: the scores.

    Returns:
        A panel a pair (or negated task) and data set: mixed features, single models' features, the base.
    """
    ends = _ends(found)
    with styled():
        figure, panels = _panels(len(ends))
        for axes, (points, data) in zip(panels, ends, strict=False):
            layers = list(found.layers[data])
            for place, (name, kind) in enumerate(_series(found, points)):
                scores = [found.score(kind, name, data, layer, found.shown) for layer in layers]
                _curve(axes, range(len(layers)), scores, place)
            _base(axes, found, data)
            axes.set_xticks(range(len(layers)), short_layers(layers))
            axes.set_title(_title(points, data))
            axes.set_xlabel("stitched after block")
        panels[0].set_ylabel(f"accuracy, λ = {found.shown:g}")
        legend(figure, _entries(found))
        return settle(figure)


def by_coefficient(found: Stitching) -> Figure:
    """Draw accuracy for every coefficient, stitched after the first, middle and last block.

    Args:
        found: the scores.

    Returns:
        A panel a pair (or negated task) and data set; lines of mixed features, and of the networks that are
        not stitched.
    """
    ends = _ends(found)
    with styled():
        figure, panels = _panels(len(ends))
        for axes, (points, data) in zip(panels, ends, strict=False):
            for place, (_, layer) in enumerate(_depths(found, data)):
                scores = [found.score(MIXED, points, data, layer, lam) for lam in found.lams]
                _curve(axes, found.lams, scores, place)
            for place, name in enumerate(found.members[points]):
                scores = [found.score(WHOLE, name, data, "", lam) for lam in found.lams]
                _curve(axes, found.lams, scores, 3 + place)
            _base(axes, found, data)
            axes.set_title(_title(points, data))
            axes.set_xlabel("λ")
        panels[0].set_ylabel("accuracy")
        first = next(iter(found.layers))
        names = [f"mixed after {name} block" for name, _ in _depths(found, first)]
        entries = [(name, _style(place)) for place, name in enumerate(names)]
        whole = (
            ["not stitched"]
            if found.protocol == "negation"
            else ["first, not stitched", "second, not stitched"]
        )
        entries += [(name, _style(3 + place)) for place, name in enumerate(whole)]
        legend(figure, [*entries, ("base", {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.3})])
        return settle(figure)


def stitching_figures(found: Stitching) -> dict[str, Figure]:
    """All figures that the scores allow.

    Args:
        found: the scores.

    Returns:
        File name without suffix to figure.
    """
    drawn = {"stitching-layers": by_layer(found)}
    if len(found.lams) > 1:
        drawn["stitching-coefficients"] = by_coefficient(found)
    return drawn


def _ends(found: Stitching) -> list[tuple[str, str]]:
    return list(dict.fromkeys((score.points, score.data) for score in found.select(kind=MIXED)))[:PANELS]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, max(count, 2))
    rows = math.ceil(count / columns)
    figure = new_figure(WIDTH, 0.7 + 2.3 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid


def _series(found: Stitching, points: str) -> list[tuple[str, str]]:
    return [(points, MIXED), *((name, SINGLE) for name in found.members[points])]


def _entries(found: Stitching) -> list[tuple[str, dict[str, Any]]]:
    names = ["mixed features"]
    names += ["negated weights"] if found.protocol == "negation" else ["first alone", "second alone"]
    entries = [(name, _style(place)) for place, name in enumerate(names)]
    return [*entries, ("base", {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.3})]


def _depths(found: Stitching, data: str) -> list[tuple[str, str]]:
    layers = found.layers[data]
    chosen = {layers[0]: "first", layers[len(layers) // 2]: "middle", layers[-1]: "last"}
    return [(name, layer) for layer, name in chosen.items()]


def _style(place: int) -> dict[str, Any]:
    entry = look(place)
    return {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 4, "lw": 1.4}


def _curve(axes: Axes, places: Any, scores: list[Score], place: int) -> None:
    values = [score.accuracy for score in scores]
    axes.plot(list(places), [value.mean for value in values], zorder=3, **_style(place))
    axes.fill_between(
        list(places), [value.low for value in values], [value.high for value in values],
        color=look(place).colour, alpha=0.12, lw=0,
    )  # fmt: skip


def _base(axes: Axes, found: Stitching, data: str) -> None:
    axes.axhline(found.base[data].accuracy.mean, color=MUTED, ls=(0, (1, 1.5)), lw=1.3)


def _title(points: str, data: str) -> str:
    return f"{shorten(points.replace('- ', 'less '), 24)}\non {shorten(data, 20)}"
