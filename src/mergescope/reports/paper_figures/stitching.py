"""Accuracy of mixed features in the base's rest, by layer or by coefficient (CTL Figs 9, 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mergescope.protocols.stitching_result import MIXED, SINGLE, Stitching
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.multiples import (
    PANELS,
    Band,
    columns_of,
    name_small,
    small_multiples,
)
from mergescope.reports.paper_figures.ran import Ran, repetitions, times
from mergescope.reports.protocol_view import Drawing
from mergescope.reports.scales import spaced
from mergescope.reports.stitching_page import stored_stitching
from mergescope.reports.style import MUTED, PAGE, WIDTH, look, settle, shorten, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Along = Literal["layer", "lambda"]

ADDED = ("mixed features", "either model’s features alone")
PAIR = ("mixed features", "first model’s features alone", "second model’s features alone")
NEGATED = (
    "task: features subtracted", "task: weights subtracted", "other tasks: features subtracted",
    "other tasks: weights subtracted",
)  # fmt: skip

BASE: dict[str, Any] = {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.3}


def stitching_figure(ran: Sequence[Ran], along: Along) -> Drawing:
    """Draw all pairs, or all negated tasks, of all repetitions.

    Args:
        ran: steps of one regime, one a repetition.
        along: what is on the x axis; the other one is CTL's coefficient 0.4, or the first, middle and last block.

    Returns:
        The figure: means over pairs or tasks, and each by itself.

    Raises:
        StudyError: a step has no results of stitching.
    """  # noqa: DOC502 (raised by what this calls)
    found = [stored_stitching(each.stored) for each in ran]
    first = found[0]
    layers = min(first.layers.values(), key=len)
    negation = first.protocol == "negation"
    names = tuple(first.members)
    # A panel of the overview: its title, and the layers and coefficients on its x axis.
    stops: dict[str, list[tuple[int, float]]]
    if along == "layer":
        stops = {f"λ = {first.shown:g}": [(place, first.shown) for place in range(len(layers))]}
    else:
        depths = {0: "first", len(layers) // 2: "middle", len(layers) - 1: "last"}
        stops = {
            f"after the {word} block": [(place, lam) for lam in first.lams] for place, word in depths.items()
        }
    shown = list(stops)[len(stops) // 2]
    whole = {
        title: {
            label: _middle_half([line for name in names for line in _lines(found, name, label, at)])
            for label in (NEGATED if negation else ADDED)
        }
        for title, at in stops.items()
    }
    single = {
        name: {
            label: _range(_lines(found, name, label, stops[shown]))
            for label in (NEGATED if negation else PAIR)
        }
        for name in names
    }
    base = {name: _base(found, name) for name in ("", *names)}
    x = list(range(len(layers))) if along == "layer" else list(first.lams)
    table = _table(whole, single, shown, along, short_layers(layers) if along == "layer" else x)
    drawing = _draw(whole, single, base, x, short_layers(layers) if along == "layer" else None)
    count, seeds = len(names), repetitions(ran)
    over = times(count, "task" if negation else "pair", seeds)
    caption = f"Top: mean over {over}; shaded: the middle half of them. "
    if count > 1:
        one = "task" if negation else "pair"
        caption += (
            f"Below: {f'the first {PANELS} of {count}' if count > PANELS else f'each {one}'}, {shown}. "
        )
    caption += "Dotted: the base, which nothing is stitched into. "
    caption += _finding(whole, base[""], negation, along, layers)
    return Drawing(drawing, f"accuracy of stitched networks by {along}", caption, table)


def _lines(
    found: Sequence[Stitching], name: str, label: str, at: Sequence[tuple[int, float]]
) -> list[np.ndarray]:
    # One line a repetition; of either model alone, two.
    return [line for one in found for line in _of_one(one, name, label, at)]


def _of_one(found: Stitching, name: str, label: str, at: Sequence[tuple[int, float]]) -> list[np.ndarray]:
    data = [score.data for score in found.select(kind=MIXED, points=name, lam=found.lams[0])]
    sets = list(dict.fromkeys(data))
    members = found.members[name]
    kind, points = MIXED, [name]
    if found.protocol == "negation":
        own = label.startswith("task")
        sets = [each for each in sets if (name == f"- {each}") == own]
        kind = MIXED if "features" in label else SINGLE
    elif label != PAIR[0]:
        kind = SINGLE
        points = list(members) if label == ADDED[1] else [members[PAIR.index(label) - 1]]
    if not sets:  # no other tasks
        return []
    return [
        np.array([
            np.mean([found.score(kind, point, each, found.layers[each][place], lam).accuracy.mean for each in sets])
            for place, lam in at
        ])
        for point in points
    ]  # fmt: skip


def _middle_half(lines: Sequence[np.ndarray]) -> Band:
    values = np.array(lines)
    if not values.size:
        return Band(*(np.full(1, np.nan),) * 3)
    return Band(values.mean(0), *np.quantile(values, (0.25, 0.75), axis=0))


def _range(lines: Sequence[np.ndarray]) -> Band:
    values = np.array(lines)
    if not values.size:
        return Band(*(np.full(1, np.nan),) * 3)
    return Band(values.mean(0), values.min(0), values.max(0))


def _base(found: Sequence[Stitching], name: str) -> float:
    # Of a negated task the base's accuracy on it; of a pair its mean on both; of all the mean of those.
    values = []
    for one in found:
        sets = {score.data for score in one.select(kind=MIXED) if score.points == name or not name}
        own = {each for each in sets if name == f"- {each}"}
        values += [one.base[each].accuracy.mean for each in own or sets]
    return float(np.mean(values))


def _table(
    whole: Mapping[str, Mapping[str, Band]], single: Mapping[str, Mapping[str, Band]], shown: str, along: Along,
    x: Sequence[Any],
) -> list[dict[str, Any]]:  # fmt: skip
    panels = [("mean", title, bands) for title, bands in whole.items()]
    panels += [(name, shown, bands) for name, bands in single.items()]
    return [
        {
            "of": name, "at": title, "series": label, along: value, "accuracy": band.middle[place],
            "low": band.low[place], "high": band.high[place],
        }
        for name, title, bands in panels
        for label, band in bands.items()
        if np.isfinite(band.middle).all()
        for place, value in enumerate(x)
    ]  # fmt: skip


def _draw(
    whole: Mapping[str, Mapping[str, Band]],
    single: Mapping[str, Mapping[str, Band]],
    base: Mapping[str, float],
    x: Sequence[float],
    layers: Sequence[str] | None,
) -> Figure:
    negation = next(iter(whole.values())).keys() == set(NEGATED)
    every = [band.high for bands in (*whole.values(), *single.values()) for band in bands.values()]
    top = min(1.02, 1.1 * max(float(np.nanmax(np.concatenate(every))), *base.values(), 0.01))
    with styled():
        figure, wide, small = small_multiples(len(single), len(whole))
        columns = columns_of(len(small))
        drawn = [(axes, "", bands, 1.0) for axes, bands in zip(wide, whole.values(), strict=True)]
        drawn += [
            (axes, name, bands, 0.7) for axes, (name, bands) in zip(small, single.items(), strict=False)
        ]
        for axes, name, bands, size in drawn:
            for place, band in enumerate(bands.values()):
                if np.isfinite(band.middle).all():
                    band.draw(axes, x, _style(place, negation, bool(name)), size)
            axes.axhline(base[name], **BASE)
            if layers is not None:
                names = [shorten(each, 10) for each in layers]
                inches = WIDTH / len(wide) - 0.7 if not name else WIDTH / columns - 0.4
                ticks = spaced([0.075 * len(each) for each in names], inches)
                axes.set_xticks(ticks, [names[place] for place in ticks])
            elif name:
                axes.set_xticks([x[0], x[-1]], [f"{x[0]:g}", f"{x[-1]:g}"])
            axes.set_ylim(0, top)
            if name:
                name_small(axes, f"less {name.removeprefix('- ')}" if negation else name, columns)
        for axes, title in zip(wide, whole, strict=True):
            axes.set(title=title, xlabel="λ" if layers is None else "stitched after block")
        wide[0].set_ylabel("accuracy on both tasks" if not negation else "accuracy")
        for axes in small[::columns]:
            axes.set_ylabel("accuracy")
        labels = NEGATED if negation else (ADDED[0], *PAIR[1:]) if small else ADDED
        entries = [(label, _style(place, negation, bool(small))) for place, label in enumerate(labels)]
        if not negation and small:
            entries.insert(1, (ADDED[1], _style(1, negation, False)))
        legend(figure, [*entries, ("base", BASE)])
        return settle(figure)


def _style(place: int, negation: bool, by_itself: bool) -> dict[str, Any]:
    # Of a pair, the two models alone look otherwise than their mean. Negated: one look a task, hollow for weights.
    number = place // 2 if negation else place + (place > 0 and by_itself)
    entry = look(number)
    hollow = {"mfc": PAGE} if negation and place % 2 else {}
    line = (0, (2, 1.2)) if negation and place % 2 else entry.line
    return {"color": entry.colour, "marker": entry.marker, "ls": line, "ms": 5.0, "lw": 1.5, **hollow}


def _finding(
    whole: Mapping[str, Mapping[str, Band]], base: float, negation: bool, along: Along, layers: Sequence[str]
) -> str:
    if negation:
        apart = max(
            float(np.abs(bands[NEGATED[0]].middle - bands[NEGATED[1]].middle).max())
            for bands in whole.values()
        )
        return (
            f"Features subtract as weights do where the filled and the hollow line agree: for the task they are at "
            f"most {apart * 100:.1f} points apart."
        )
    bands = next(iter(whole.values()))
    mixed, alone = (bands[label].middle for label in ADDED)
    where = f"after block {short_layers(layers)[-1]}" if along == "layer" else "at the largest λ"
    return (
        f"On both tasks’ data, mixed features reach {mixed[-1]:.1%} {where}, either model’s alone {alone[-1]:.1%}, the "
        f"base {base:.1%}."
    )
