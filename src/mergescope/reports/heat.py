"""How heat maps look: numbers and lines that are seen on every cell, and colours that grey shows too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.reports.style import STRONG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ON_DARK, ON_LIGHT = "#fefefe", "#000000"
"""Marks and texts on heat maps. Their cells have the same colours on a dark page, so these stay too."""

_EVEN = 0.179
"""Luminance from which black and white are equally far off."""


def over(ground: tuple[float, float, float, float]) -> str:
    """The colour of a text on a cell: the one that is further off in luminance, after WCAG 2.2.

    Args:
        ground: red, green, blue and opacity of the cell, 0 to 1.

    Returns:
        [`ON_DARK`][] or [`ON_LIGHT`][]; the contrast is 4.5 or more, whatever the cell's colour.

    Example:
        >>> over((0.0, 0.13, 0.3, 1.0)), over((1.0, 0.9, 0.2, 1.0))
        ('#fefefe', '#000000')
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in ground[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return ON_DARK if luminance < _EVEN else ON_LIGHT


def number_cells(
    axes: Axes, image: Any, values: np.ndarray, text: Callable[[float], str], size: float = 7
) -> None:
    """Write the values into the cells of a heat map.

    Args:
        axes: where.
        image: the heat map.
        values: ``(rows, columns)``; NaN get nothing.
        text: makes a number text.
        size: of the text, in points.
    """
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            colour = over(image.cmap(image.norm(value)))
            axes.text(column, row, text(value), ha="center", va="center", fontsize=size, color=colour)


def around_middle(colours: str, numbered: bool) -> str:
    """The colours of values around a middle, which grey shows only where the numbers stand in the cells.

    Args:
        colours: name of a diverging colour map.
        numbered: whether they do.

    Returns:
        That map, or one whose lightness only grows.

    Example:
        >>> around_middle("PuOr", numbered=False)
        'cividis'
    """
    return colours if numbered else "cividis"


def edged(width: float, colour: str) -> list[Any]:
    """An edge around a line, so that it is seen on cells that are as light as itself.

    Args:
        width: of line and edge together, in points.
        colour: of the edge.

    Returns:
        Matplotlib's path effects.
    """
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground=colour), Normal()]


def box_line() -> dict[str, Any]:
    """How the search box is drawn.

    Returns:
        Properties of its line.
    """
    return {"color": STRONG, "ls": "-", "lw": 2.0, "path_effects": edged(3.6, ON_DARK)}
