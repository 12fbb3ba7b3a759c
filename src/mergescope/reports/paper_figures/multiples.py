"""What the figures by layer share: an overview of all tests, and below it one small panel a test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.paper_figures.ran import Ran
from mergescope.reports.protocol_view import AGAIN
from mergescope.reports.scales import spaced
from mergescope.reports.style import FAINT, SHADE, WIDTH, new_figure, shorten
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 36
"""Small panels at most; further tests are in the table and in the overview."""

COLUMNS = 7
"""Small panels side by side."""

OVERVIEW, SMALL = 2.5, 1.3
"""Heights of the overview and of a row of small panels, in inches."""

WORDS = {"ctl": "pair", "eq1": "average", "eq2": "pair", "eq3": "task"}
"""What the tests of a kind are of."""

SYMBOLS = {
    "ctl": "CTL", "eq1": "Eq. 1, averages", "eq2": "Eq. 2, addition", "eq3": "Eq. 3, negation",
}  # fmt: skip


@dataclass(frozen=True)
class Tests:
    """The tests of one kind in one regime, over all repetitions.

    Attributes:
        names: of the tests, in order.
        layers: in order.
        trivial: those that are linear by construction.
        parameter: alpha or lambda; NaN for Eq. 1.
        rows: test, layer and measure to one row a repetition.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    trivial: frozenset[str]
    parameter: float
    rows: Mapping[tuple[str, str, str], Sequence[Row]]

    def band(self, name: str, measure: str) -> Band:
        """A measure of one test over the layers.

        Args:
            name: of the test.
            measure: such as ``cos``.

        Returns:
            Mean over repetitions; its ends are the smallest and largest of them, or of a single one its interval.
        """
        found = [self.rows.get((name, layer, measure), ()) for layer in self.layers]
        single = all(len(rows) == 1 for rows in found)
        return Band(
            _each(found, np.mean, "mean"),
            _each(found, np.min, "low" if single else "mean"),
            _each(found, np.max, "high" if single else "mean"),
        )

    def over_all(self, measure: str) -> Band:
        """A measure over the layers, of all tests and repetitions.

        Args:
            measure: such as ``cos``.

        Returns:
            Mean, smallest and largest.
        """
        found = [
            [row for name in self.names for row in self.rows.get((name, layer, measure), ())]
            for layer in self.layers
        ]
        return Band(*(_each(found, reduce, "mean") for reduce in (np.mean, np.min, np.max)))


@dataclass(frozen=True)
class Band:
    """Values with ends.

    Attributes:
        middle: ``(places,)``; NaN where there is none.
        low: lower ends.
        high: upper ends.
    """

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def from_one(self) -> Band:
        """``1 -`` the values, whose ends change sides.

        Returns:
            The band.
        """
        return Band(1 - self.middle, 1 - self.high, 1 - self.low)

    def draw(self, axes: Axes, places: Sequence[float], style: Mapping[str, Any], size: float = 1.0) -> None:
        """Draw a line with marks, and its ends as an area.

        Args:
            axes: where.
            places: on the x axis.
            style: of the line and its marks.
            size: of marks and line, in units of the style's.
        """
        axes.fill_between(places, self.low, self.high, color=style["color"], alpha=0.2, lw=0, zorder=2)
        scaled = {**style, "ms": style["ms"] * size, "lw": style["lw"] * size}
        axes.plot(places, self.middle, zorder=4, **scaled)


def _each(found: Sequence[Sequence[Row]], reduce: Any, end: str) -> np.ndarray:
    values = (np.array([getattr(row, end) for row in rows]) for rows in found)
    alive = (each[np.isfinite(each)] for each in values)
    return np.array([reduce(each) if each.size else math.nan for each in alive])


def read_tests(ran: Sequence[Ran], kind: str) -> Tests:
    """The tests of a kind.

    Args:
        ran: steps of one regime.
        kind: ``ctl``, ``eq1``, ``eq2`` or ``eq3``.

    Returns:
        The tests; of CTL those of the interpolation weight nearest to 0.5.

    Raises:
        StudyError: there are none.
    """
    rows = [(each, row) for each in ran for row in each.of(kind=kind) if row.layer]
    if not rows:
        raise StudyError(f"The steps have no tests of {kind} to be drawn. {AGAIN}")
    parameters = dict.fromkeys(row.parameter for _, row in rows)
    parameter = min(parameters, key=lambda value: abs(value - 0.5) if kind == "ctl" else 0.0)
    found: dict[tuple[str, str, str], list[Row]] = {}
    for _, row in rows:
        if row.parameter == parameter or math.isnan(parameter):
            found.setdefault((row.points, row.layer, row.measure), []).append(row)
    return Tests(
        tuple(dict.fromkeys(name for name, _, _ in found)), tuple(dict.fromkeys(layer for _, layer, _ in found)),
        frozenset(row.layer for _, row in rows if row.trivial), parameter, found,
    )  # fmt: skip


def small_multiples(count: int, overviews: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with wide panels in its first row and small ones below.

    Args:
        count: small panels; none of one test, which the overview shows.
        overviews: wide panels, at most two.

    Returns:
        The figure, its wide panels and its small ones.
    """
    count = 0 if count < 2 else min(count, PANELS)
    columns = columns_of(count)
    rows = math.ceil(count / columns)
    lower = rows * (SMALL + (0.25 if columns < 5 else 0.0))
    figure = new_figure(WIDTH, 0.6 + OVERVIEW + lower)
    if not count:
        return figure, list(figure.subplots(1, overviews, squeeze=False)[0]), []
    # Two figures in one, so that the labels of either don't take room from the other.
    parts: Any = figure.subfigures(2, 1, height_ratios=[OVERVIEW, lower])
    top, bottom = parts
    wide = list(top.subplots(1, overviews, squeeze=False)[0])
    grid = bottom.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    small = list(grid.flat)[:count]
    for axes in grid.flat[count:]:
        axes.axis("off")
    for place, axes in enumerate(small):
        axes.tick_params(labelbottom=place + columns >= count, labelsize=7.5)
    return figure, wide, small


def columns_of(count: int) -> int:
    """How many small panels are side by side, so that the last row is nearly full.

    Args:
        count: of the panels.

    Returns:
        At most [`COLUMNS`][].

    Example:
        >>> columns_of(8), columns_of(28), columns_of(6)
        (4, 7, 6)
    """
    rows = math.ceil(count / COLUMNS)
    return math.ceil(count / rows) if rows else 1


def layers_on(axes: Axes, tests: Tests, inches: float) -> None:
    """Name the layers below an axis, as many as have room, and shade the trivial ones.

    Args:
        axes: where.
        tests: whose layers.
        inches: width of the axis.
    """
    names = ["out" if name == "output" else shorten(name, 10) for name in short_layers(tests.layers)]
    shown = spaced([0.075 * len(name) for name in names], inches)
    axes.set_xticks(shown, [names[place] for place in shown])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="x", length=2)
    for place, layer in enumerate(tests.layers):
        if layer in tests.trivial:
            axes.axvspan(place - 0.5, place + 0.5, color=SHADE, lw=0, zorder=0)


def name_small(axes: Axes, name: str, columns: int) -> None:
    """A title of a small panel: each model on a line of its own.

    Args:
        axes: where.
        name: of the test.
        columns: panels side by side.
    """
    room = int((WIDTH / columns - 0.2) / 0.072)
    parts = name.split(" + ")
    if len(parts) > 2:  # an average of many, whose names often begin alike
        common = len(commonprefix(parts))
        lines = [shorten(", ".join([parts[0], *(part[common:] for part in parts[1:])]), room)]
    else:
        lines = [shorten(part, room - 2 * (len(parts) > 1)) for part in parts]
    style: dict[str, Any] = {"fontsize": 7.5, "fontweight": "normal", "linespacing": 1.1}
    axes.set_title("\n".join(" " for _ in lines), **style)  # keeps room above, but none beside
    axes.annotate(
        "\n+ ".join(lines), (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", in_layout=False,
        **style,
    )  # fmt: skip
    axes.spines[:].set_color(FAINT)
