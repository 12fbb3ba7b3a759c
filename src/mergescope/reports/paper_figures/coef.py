"""How coef is distributed over samples at every layer, all tests and repetitions (CTL Figs 3, 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.protocols.linearity import COEF_HOLDS
from mergescope.readings import EDGES, Histogram
from mergescope.reports.panels import legend
from mergescope.reports.paper_figures.multiples import (
    PANELS,
    SYMBOLS,
    WORDS,
    Band,
    Tests,
    columns_of,
    layers_on,
    name_small,
    read_tests,
    small_multiples,
)
from mergescope.reports.paper_figures.ran import Ran, repetitions, times
from mergescope.reports.protocol_view import Drawing
from mergescope.reports.style import BAND, INK, PAGE, SHADE, WIDTH, look, settle, styled
from mergescope.studies.rundir import DISTRIBUTIONS, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLIP = (0.005, 0.995)
"""Shares of the samples at which the overview's axis ends."""

SHARES = (0.025, 0.25, 0.5, 0.75, 0.975)
"""Of the samples, below what small panels and the table tell."""

Found = Mapping[tuple[str, str], Histogram]
"""Test (empty: all of them) and layer to the counts of all samples and repetitions."""


def coef_figure(ran: Sequence[Ran], kind: str) -> Drawing:
    """Draw one kind of tests.

    Args:
        ran: steps of one regime, one a repetition.
        kind: ``ctl``, ``eq1``, ``eq2`` or ``eq3``.

    Returns:
        The figure: densities over the samples of all tests, and quantiles of every test by itself.

    Raises:
        StudyError: there are no such tests, or their distributions were not kept.
    """  # noqa: DOC502 (raised by what this calls)
    tests = read_tests(ran, kind)
    found = _distributions(ran, kind, tests)
    lines = [
        {
            "test": name or "all tests", "layer": layer, "trivial": layer in tests.trivial, "samples": histogram.n,
            **{f"quantile {share:g}": histogram.quantile(share) for share in SHARES},
        }
        for (name, layer), histogram in found.items()
    ]  # fmt: skip
    count, seeds = len(tests.names), repetitions(ran)
    over = times(count, WORDS[kind], seeds)
    caption = f"{SYMBOLS[kind]}. Top: how coef of single samples is distributed, {over} together; bars mark the middle "
    caption += "half of the samples, white marks their median. "
    if count > 1:
        first = f"the first {PANELS} of {count}" if count > PANELS else f"each {WORDS[kind]}"
        caption += f"Below: {first}, its median, and shaded the middle 50 % and 95 % of its samples. "
    drawing = _draw(tests, found)
    return Drawing(
        drawing,
        f"distribution of coef over samples by layer, {SYMBOLS[kind]}",
        caption + _finding(tests, found),
        lines,
    )


def _distributions(ran: Sequence[Ran], kind: str, tests: Tests) -> Found:
    bins: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in ran:
        if not (each.folder / DISTRIBUTIONS).is_file():
            raise StudyError(
                f"{each.folder} has no {DISTRIBUTIONS}: an earlier version made it. Remove that directory and run the "
                "study again; its models stay."
            )
        for line in read_table(each.folder / DISTRIBUTIONS):
            at = line["parameter"]
            if (line["kind"], line["measure"]) == (kind, "coef") and (
                at == tests.parameter or math.isnan(at)
            ):
                bins.setdefault((line["points"], line["layer"]), []).append(line)
    single = {
        (name, layer): Histogram.read("coef", bins.get((name, layer), ()))
        for name in tests.names
        for layer in tests.layers
    }
    whole = {
        ("", layer): Histogram("coef", sum(single[name, layer].counts for name in tests.names))  # type: ignore[arg-type]
        for layer in tests.layers
    }
    return {**whole, **single}


def _draw(tests: Tests, found: Found) -> Figure:
    evidence = [layer for layer in tests.layers if layer not in tests.trivial]
    ends = [found["", layer].quantile(share) for layer in evidence for share in CLIP]
    shown = [1 - COEF_HOLDS, 1 + COEF_HOLDS, *(end for end in ends if math.isfinite(end))]
    room = 0.05 * (max(shown) - min(shown))
    limits = min(shown) - room, max(shown) + room
    with styled():
        figure, (wide,), small = small_multiples(len(tests.names), 1)
        for place, layer in enumerate(tests.layers):
            if layer in evidence and found["", layer].n:
                _violin(wide, place, found["", layer], limits)
        _scale(wide, limits)
        layers_on(wide, tests, WIDTH - 0.7)
        wide.set(xlabel="layer", ylabel="coef of single samples")
        columns = columns_of(len(small))
        for axes, name in zip(small, tests.names, strict=False):
            _quantiles(axes, [found[name, layer] for layer in tests.layers])
            _scale(axes, limits)
            layers_on(axes, tests, WIDTH / columns - 0.4)
            name_small(axes, name, columns)
        for axes in small[::columns]:
            axes.set_ylabel("coef")
        entries: list[tuple[str, dict[str, Any]]] = [
            ("samples", {"facecolor": look(0).colour, "alpha": 0.5, "hatch": ""}),
            ("median", {"color": look(0).colour, "marker": "o", "mfc": PAGE, "ls": "-", "lw": 1.2}),
            ("exactly linear: 1", {"color": INK, "ls": "-", "lw": 0.9}),
            (f"CTL holds: within {COEF_HOLDS:g}", {"marker": "s", "color": BAND, "ms": 9}),
        ]
        if tests.trivial:
            entries.append(("linear by construction", {"marker": "s", "color": SHADE, "ms": 9}))
        legend(figure, entries)
        return settle(figure)


def _violin(axes: Axes, place: float, histogram: Histogram, limits: tuple[float, float]) -> None:
    edges = EDGES["coef"]
    middle, counts = (edges[1:] + edges[:-1]) / 2, histogram.counts[1:-1].astype(float)
    low, median, high = (histogram.quantile(share) for share in (0.25, 0.5, 0.75))
    # Silverman's bandwidth from the quartiles: outliers must not blur the shape.
    bins = max(0.5, 0.9 * (high - low) / 1.34 * histogram.n**-0.2 / (edges[1] - edges[0]))
    reach = np.arange(-int(4 * bins) - 1, int(4 * bins) + 2)
    kernel = np.exp(-0.5 * (reach / bins) ** 2)
    density = np.convolve(counts, kernel / kernel.sum(), mode="full")[len(reach) // 2 :][: len(counts)]
    live = (density > 0.004 * density.max()) & (middle >= limits[0]) & (middle <= limits[1])
    half = 0.42 * density / density.max()
    axes.fill_betweenx(middle, place - half, place + half, where=live, facecolor=look(0).colour, edgecolor=INK,
                       lw=0.6, alpha=0.5, zorder=3)  # fmt: skip
    axes.plot([place, place], [low, high], color=INK, lw=4, solid_capstyle="butt", zorder=4)
    axes.plot([place], [median], marker="o", mfc=PAGE, mec=INK, ms=5, zorder=5)


def _quantiles(axes: Axes, histograms: Sequence[Histogram]) -> None:
    wide, low, middle, high, far = (
        np.array([each.quantile(share) for each in histograms]) for share in SHARES
    )
    entry, places = look(0), range(len(histograms))
    style = {"color": entry.colour, "marker": "o", "mfc": PAGE, "ls": "-", "ms": 3.0, "lw": 1.0}
    axes.fill_between(places, wide, far, color=entry.colour, alpha=0.2, lw=0, zorder=2)
    Band(middle, low, high).draw(axes, places, style)


def _scale(axes: Axes, limits: tuple[float, float]) -> None:
    axes.axhline(1, color=INK, lw=0.9, zorder=1)
    axes.axhspan(1 - COEF_HOLDS, 1 + COEF_HOLDS, color=BAND, zorder=0, lw=0)
    axes.set_ylim(*limits)


def _finding(tests: Tests, found: Found) -> str:
    evidence = [layer for layer in tests.layers if layer not in tests.trivial and found["", layer].n]
    if not evidence:
        return "There is no layer with live features that is not linear by construction."
    medians = {layer: found["", layer].quantile(0.5) for layer in evidence}
    furthest = max(evidence, key=lambda layer: abs(medians[layer] - 1))
    edges = EDGES["coef"]
    within = np.flatnonzero((edges[1:] > 1 - COEF_HOLDS) & (edges[:-1] < 1 + COEF_HOLDS)) + 1
    total = sum(found["", layer].n for layer in evidence)
    inside = sum(int(found["", layer].counts[within].sum()) for layer in evidence)
    return (
        f"The median is furthest from 1 at {furthest}, {medians[furthest]:.3g}; over all layers "
        f"{inside / total:.0%} of the samples are within {COEF_HOLDS:g} of 1."
    )
