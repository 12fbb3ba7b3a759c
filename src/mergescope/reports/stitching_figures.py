"""Figures of stitching: accuracy after every block, and for every coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.protocols.stitching_result import MIXED, SINGLE, WHOLE, Score, Stitching
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.panels import legend
from mergescope.reports.protocol_figures import task_panels
from mergescope.reports.style import MUTED, WIDTH, look, new_figure, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Panels side by side."""

PANELS = 16
"""Panels of a figure at most; further pairs are in the results only."""


def by_layer(found: Stitching) -> Figure:
    """Draw accuracy after every block (CTL Figs 9, 10), at the coefficient that tables show.

    Args:
        found: the scores.

    Returns:
        A panel a pair (or negated task) and data set: mixed features, single models' features, the base.
    """
    ends = ends_of(found)[:PANELS]
    with styled():
        figure, panels = task_panels(len(ends), columns=COLUMNS)
        for axes, (points, data) in zip(panels, ends, strict=True):
            layers = list(found.layers[data])
            for place, (name, kind) in enumerate(_series(found, points)):
                scores = [found.score(kind, name, data, layer, found.shown) for layer in layers]
                _curve(axes, range(len(layers)), scores, place)
            _base(axes, found, data)
            axes.set_xticks(range(len(layers)), short_layers(layers))
            axes.set_title(_title(found, points, data))
            axes.set_xlabel("stitched after block")
        panels[0].set_ylabel(f"accuracy, λ = {found.shown:g}")
        legend(figure, _entries(found))
        return settle(figure)


def mean_by_layer(found: Stitching) -> Figure:
    """Draw accuracy after every block, the mean over what is mixed and what it is judged on.

    Args:
        found: the scores.

    Returns:
        Of addition one panel; of negation one of the tasks themselves, and one of other data. Networks of several
        depths are drawn as deep as the shallowest.
    """
    layers = min(found.layers.values(), key=len)
    negation = found.protocol == "negation"
    panels: dict[str, list[tuple[str, str]]] = {}
    for points, data in ends_of(found):
        where = (
            "all pairs and data"
            if not negation
            else "the task itself"
            if points == f"- {data}"
            else "other data"
        )
        panels.setdefault(where, []).append((points, data))
    with styled():
        figure = new_figure(WIDTH, 3.4)
        for axes, (title, ends) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
        ):
            for place, (kind, of) in enumerate(_roles(found)):
                lines = [
                    [found.score(kind, name, data, found.layers[data][at], found.shown).accuracy.mean
                     for at in range(len(layers))]
                    for points, data in ends
                    for name in ([points] if kind == MIXED else found.members[points])
                    if of is None or (name == data) == of
                ]  # fmt: skip
                axes.plot(range(len(layers)), np.mean(lines, axis=0), zorder=3, **_style(place))
            base = np.mean([found.base[data].accuracy.mean for _, data in ends])
            axes.axhline(base, color=MUTED, ls=(0, (1, 1.5)), lw=1.3)
            axes.set_xticks(range(len(layers)), short_layers(layers))
            axes.set(title=title, xlabel="stitched after block")
        figure.axes[0].set_ylabel(f"mean accuracy, λ = {found.shown:g}")
        names = ["mixed features"]
        names += ["negated weights"] if negation else ["the task’s own model alone", "the other model alone"]
        entries = [(name, _style(place)) for place, name in enumerate(names)]
        legend(figure, [*entries, ("base", {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.3})])
        return settle(figure)


def by_coefficient(found: Stitching) -> Figure:
    """Draw accuracy for every coefficient, stitched after the first, middle and last block.

    Args:
        found: the scores.

    Returns:
        A panel a pair (or negated task) and data set; lines of mixed features, and of the networks that are
        not stitched.
    """
    ends = ends_of(found)[:PANELS]
    with styled():
        figure, panels = task_panels(len(ends), columns=COLUMNS)
        for axes, (points, data) in zip(panels, ends, strict=True):
            for place, (_, layer) in enumerate(_depths(found, data)):
                scores = [found.score(MIXED, points, data, layer, lam) for lam in found.lams]
                _curve(axes, found.lams, scores, place)
            for place, name in enumerate(found.members[points]):
                scores = [found.score(WHOLE, name, data, "", lam) for lam in found.lams]
                _curve(axes, found.lams, scores, 3 + place)
            _base(axes, found, data)
            axes.set_title(_title(found, points, data))
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


def ends_of(found: Stitching) -> list[tuple[str, str]]:
    """What mixed features are of, and the data that they are judged on.

    Args:
        found: the scores.

    Returns:
        Points and data set of each curve; negated tasks on their own data come first.
    """
    ends = dict.fromkeys((score.points, score.data) for score in found.select(kind=MIXED))
    return sorted(ends, key=lambda end: found.protocol == "negation" and end[0] != f"- {end[1]}")


def _series(found: Stitching, points: str) -> list[tuple[str, str]]:
    return [(points, MIXED), *((name, SINGLE) for name in found.members[points])]


def _roles(found: Stitching) -> list[tuple[str, bool | None]]:
    # Kind of features, and whether they are of the task's own model (None: either).
    if found.protocol == "negation":
        return [(MIXED, None), (SINGLE, None)]
    return [(MIXED, None), (SINGLE, True), (SINGLE, False)]


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


def _title(found: Stitching, points: str, data: str) -> str:
    if found.protocol == "negation":
        return f"less {shorten(points.removeprefix('- '), 19)}\non {shorten(data, 20)}"
    return f"{' + '.join(shorten(name, 11) for name in found.members[points])}\non {shorten(data, 20)}"
