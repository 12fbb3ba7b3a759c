"""``1 - cos`` of a test beside its baseline at every layer, all tests and repetitions (CTL Figs 2, 5, 7, 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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
from mergescope.reports.scales import log_axis
from mergescope.reports.style import PAGE, SHADE, WIDTH, look, settle, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = (
    ("cos", "1 − cos of the test: merged features against the mix", False),
    ("baseline", "1 − cos between the models’ own features (baseline)", True),
)
"""Measure, label, and whether its marks are hollow."""


def layers_figure(ran: Sequence[Ran], kind: str) -> Drawing:
    """Draw one kind of tests.

    Args:
        ran: steps of one regime, one a repetition.
        kind: ``ctl``, ``eq1``, ``eq2`` or ``eq3``.

    Returns:
        The figure: the mean over all tests, on a linear and on a logarithmic axis, and every test by itself.

    Raises:
        StudyError: there are no such tests.
    """  # noqa: DOC502 (raised by what this calls)
    tests = read_tests(ran, kind)
    bands = {
        (name, measure): (tests.over_all(measure) if not name else tests.band(name, measure)).from_one()
        for name in ("", *tests.names)
        for measure, _, _ in SERIES
    }
    lines = [
        {
            "test": name or "mean over tests", "measure": f"1 - {measure}", "layer": layer,
            "trivial": layer in tests.trivial, "mean": band.middle[place], "low": band.low[place],
            "high": band.high[place],
        }
        for (name, measure), band in bands.items()
        for place, layer in enumerate(tests.layers)
    ]  # fmt: skip
    count, seeds = len(tests.names), repetitions(ran)
    over = times(count, WORDS[kind], seeds)
    caption = f"{SYMBOLS[kind]}{_at(tests)}. Top: mean over {over}, shaded from the smallest to the largest; on the "
    caption += "right the same with a logarithmic axis. "
    if count > 1:
        ends = "smallest to largest repetition" if seeds > 1 else "95 % interval over samples"
        first = f"the first {PANELS} of {count}" if count > PANELS else "each by itself"
        caption += f"Below: {first}, shaded: {ends}. "
    return Drawing(
        _draw(tests, bands), f"1 - cos by layer, {SYMBOLS[kind]}", caption + _finding(tests, bands), lines
    )


def _at(tests: Tests) -> str:
    return "" if math.isnan(tests.parameter) else f" at {tests.parameter:g}"


def _draw(tests: Tests, bands: dict[tuple[str, str], Band]) -> Figure:
    places = range(len(tests.layers))
    with styled():
        figure, (linear, log), small = small_multiples(len(tests.names), 2)
        for axes in (linear, log):
            for number_of, (measure, _, hollow) in enumerate(SERIES):
                bands["", measure].draw(axes, places, _style(number_of, hollow))
            layers_on(axes, tests, WIDTH / 2 - 0.7)
            axes.set_xlabel("layer")
        linear.set(ylabel="1 − cos", ylim=(0, None))
        evidence = [place for place, layer in enumerate(tests.layers) if layer not in tests.trivial]
        shown = [bands["", measure] for measure, _, _ in SERIES]
        log_axis(
            log, [float(value) for band in shown for value in [*band.low[evidence], *band.high[evidence]]]
        )
        columns = columns_of(len(small))
        for axes, name in zip(small, tests.names, strict=False):
            for number_of, (measure, _, hollow) in enumerate(SERIES):
                bands[name, measure].draw(axes, places, _style(number_of, hollow), size=0.7)
            layers_on(axes, tests, WIDTH / columns - 0.4)
            name_small(axes, name, columns)
        if small:
            small[0].set_ylim(0, None)
            for axes in small[::columns]:
                axes.set_ylabel("1 − cos")
        entries = [(label, _style(place, hollow)) for place, (_, label, hollow) in enumerate(SERIES)]
        if tests.trivial:
            entries.append(("linear by construction", {"marker": "s", "color": SHADE, "ms": 9}))
        legend(figure, entries)
        return settle(figure)


def _style(place: int, hollow: bool) -> dict[str, Any]:
    entry = look(place)
    face = {"mfc": PAGE} if hollow else {}
    return {"color": entry.colour, "marker": entry.marker, "ls": entry.line, "ms": 5.0, "lw": 1.5, **face}


def _finding(tests: Tests, bands: dict[tuple[str, str], Band]) -> str:
    evidence = [place for place, layer in enumerate(tests.layers) if layer not in tests.trivial]
    test, base = (bands["", measure].middle[evidence] for measure, _, _ in SERIES)
    below = sum(
        bool(bands[name, "cos"].middle[place] < bands[name, "baseline"].middle[place])
        for name in tests.names
        for place in evidence
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share = test / base
    if not np.isfinite(share).any():
        return "There is no layer with live features that is not linear by construction."
    worst = int(np.nanargmax(share))
    layer = tests.layers[evidence[worst]]
    return (
        f"The filled line is below the hollow one in {below} of {len(tests.names) * len(evidence)} cases; it comes "
        f"nearest at {layer}, with {test[worst]:.2g} against {base[worst]:.2g}."
    )
