"""Axes of a measurement's figures: layers, cosines spread out towards 1, plain numbers on logarithms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.heat import ON_DARK
from mergescope.reports.measured import KINDS, Measured, Told
from mergescope.reports.style import BAND, INK, MUTED, SHADE, Look, look, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Side = Literal["x", "y"]

NEAREST = 1e-4
"""Cosines nearer to 1 than this are drawn here: what decides lies further off."""

_COSINES = (0.99, 0.9, 1 - NEAREST, 0.999, 0.5, 0.95, 0.0, -1.0, 0.8)
"""Ticks, the most wanted first: those too near to one before them are left out."""

_ZERO = 0.08
"""How far 0 is below all other values of a logarithmic axis, as a share of the rest of it."""

DOTS: Any = (0, (1, 1.5))
"""Line style of thresholds."""


def layer_axis(axes: Axes, found: Measured, inches: float, over: bool = False) -> None:
    """Name the layers below an axis, as many as have room, and mark the trivial ones.

    Args:
        axes: where.
        found: the measurement.
        inches: width of the axis.
        over: hatch trivial layers over what is drawn, as a shade would hide it or be hidden.
    """
    names = ["out" if label == "output" else label for label in found.labels.values()]
    axes.set_xlim(-0.6, len(names) - 0.4)
    shown = spaced([0.075 * len(name) for name in names], inches)
    axes.set_xticks(shown, [names[place] for place in shown])
    axes.tick_params(axis="x", length=0)
    shade: dict[str, Any] = {"color": SHADE, "zorder": 0}
    if over:
        shade = {"facecolor": "none", "edgecolor": ON_DARK, "hatch": "////", "zorder": 2}
    for place, layer in enumerate(found.layers):
        if layer in found.trivial:
            axes.axvspan(place - 0.5, place + 0.5, lw=0, **shade)


def spaced(widths: Sequence[float], inches: float) -> list[int]:
    """Which labels of an axis are shown: the last, and others evenly apart, so that none touch.

    Args:
        widths: of the labels, in inches.
        inches: width of the axis.

    Returns:
        Their places, ascending.

    Example:
        >>> spaced([0.1] * 5, 2), spaced([0.1] * 13, 2)
        ([0, 1, 2, 3, 4], [0, 2, 4, 6, 8, 10, 12])
    """
    last, shown = len(widths) - 1, [len(widths) - 1]
    for step in range(1, len(widths) + 1):
        shown = [*(place for place in range(0, last, step) if last - place >= step), last]
        neighbours = zip(shown, shown[1:], strict=False)
        if all((b - a) * inches / len(widths) >= (widths[a] + widths[b]) / 2 + 0.07 for a, b in neighbours):
            break
    return shown


def cos_axis(axes: Axes, values: Iterable[float], side: Side = "y") -> None:
    """Spread an axis of cosines out towards 1: from 0.9 to 0.99 is as far as from 0.99 to 0.999.

    Args:
        axes: where.
        values: what must be visible; NaN are left out.
        side: which axis.
    """
    shown = clipped(np.array([value for value in values if math.isfinite(value)] or [0.9, 0.99]))
    low, high = steps(np.array([shown.min(), shown.max()]))
    room = max(0.06 * (high - low), 0.05)
    limits = cosines(np.array([low - room, high + room]))
    ticks = cos_ticks(float(limits[0]), float(limits[1]), apart=0.09 if side == "y" else 0.2)
    getattr(axes, f"set_{side}scale")("function", functions=(steps, cosines))
    getattr(axes, f"set_{side}lim")(*limits)
    getattr(axes, f"set_{side}ticks")(list(ticks), list(ticks.values()), minor=False)


def cos_ticks(low: float, high: float, apart: float = 0.09) -> dict[float, str]:
    """Ticks of an axis that is spread out towards 1.

    Args:
        low: the axis' lower end.
        high: its upper end.
        apart: least distance between two, as a share of the axis.

    Returns:
        Cosine to label.

    Example:
        >>> cos_ticks(0.4, 0.9995, apart=0.12)
        {0.99: '0.99', 0.9: '0.9', 0.999: '0.999', 0.5: '0.5'}
    """
    ends = steps(np.array([low, high]))
    ticks: list[float] = []
    for tick in _COSINES:
        place = float(steps(np.array(tick)))
        free = min((abs(place - float(steps(np.array(other)))) for other in ticks), default=math.inf)
        if ends[0] <= place <= ends[1] and free > apart * (ends[1] - ends[0]):
            ticks.append(tick)
    return {tick: "≈ 1" if tick == 1 - NEAREST else f"{tick:g}".replace("-", "−") for tick in ticks}


def steps(cosine: np.ndarray) -> np.ndarray:
    """How many powers of ten a cosine is from 1; beyond [`NEAREST`][] it goes on in a straight line.

    Args:
        cosine: any shape.

    Returns:
        The same shape.

    Example:
        >>> steps(np.array([0.9, 0.999]))
        array([1., 3.])
    """
    distance = 1 - np.asarray(cosine, dtype=float)
    beyond = -math.log10(NEAREST) + (NEAREST - distance) / NEAREST
    return np.where(distance > NEAREST, -np.log10(np.maximum(distance, NEAREST)), beyond)


def cosines(step: np.ndarray) -> np.ndarray:
    """The inverse of [`steps`][].

    Args:
        step: any shape.

    Returns:
        The same shape.
    """
    beyond = np.asarray(step, dtype=float) + math.log10(NEAREST)
    return 1 - np.where(beyond < 0, NEAREST * 10.0 ** -np.minimum(beyond, 0), NEAREST - NEAREST * beyond)


def clipped(cosines: np.ndarray) -> np.ndarray:
    """Cosines as [`cos_axis`][] draws them.

    Args:
        cosines: any shape.

    Returns:
        The same, at most ``1 - NEAREST``.

    Example:
        >>> clipped(np.array([0.5, 1.0]))
        array([0.5   , 0.9999])
    """
    return np.minimum(cosines, 1 - NEAREST)


def log_axis(axes: Axes, values: Iterable[float], side: Side = "y") -> None:
    """A logarithmic axis whose ticks are plain numbers; if a value is exactly 0, it begins with a tick for that.

    Args:
        axes: where.
        values: what must be visible; negative ones and NaN are left out.
        side: which axis.
    """
    from matplotlib.ticker import NullLocator

    known = [value for value in values if math.isfinite(value)]
    shown = [value for value in known if value > 0] or [0.1, 1.0]
    room = max(1.5, 2.5 / math.sqrt(max(shown) / min(shown)))  # never so narrow that there are no ticks
    low, high = min(shown) / room, max(shown) * room
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    across = decades * (1 if side == "y" else 1.7)
    bases = (1, 2, 5) if across < 2 else (1, 3) if across < 4 else (1,)
    ticks = [base * 10.0**power for power in powers for base in bases]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if 0 in known:
        # A logarithm has no zero: what is equal would vanish. Below all other values the axis is straight.
        apart = _ZERO * decades
        getattr(axes, f"set_{side}scale")("symlog", linthresh=low, linscale=0.9 * apart)
        getattr(axes, f"set_{side}lim")(-low / 2, high)
        ticks = [0.0, *ticks]
    else:
        getattr(axes, f"set_{side}scale")("log")
        getattr(axes, f"set_{side}lim")(low, high)
    axis = getattr(axes, f"{side}axis")
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def measure_axis(axes: Axes, measure: str, values: Iterable[float], side: Side = "y") -> None:
    """The axis of a measure, with what CTL asks for: spread out for cos, logarithmic for gaps.

    Args:
        axes: where.
        measure: for example ``"cos"``.
        values: what must be visible.
        side: which axis.
    """
    line, span = (axes.axhline, axes.axhspan) if side == "y" else (axes.axvline, axes.axvspan)
    if measure == "cos":
        cos_axis(axes, [*values, COS_HOLDS], side)
        line(COS_HOLDS, color=MUTED, lw=1, ls=DOTS, zorder=1)
    elif measure == "coef":
        shown = [1 - COEF_HOLDS, 1 + COEF_HOLDS, *(value for value in values if math.isfinite(value))]
        room = 0.06 * (max(shown) - min(shown))
        getattr(axes, f"set_{side}lim")(min(shown) - room, max(shown) + room)
        line(1, color=INK, lw=0.9, zorder=1)
        span(1 - COEF_HOLDS, 1 + COEF_HOLDS, color=BAND, zorder=0, lw=0)
    else:
        log_axis(axes, values, side)


def look_of(kind: str) -> Look:
    """The look of a kind of pairs.

    Args:
        kind: ``"FT–FT"`` or ``"PT–FT"``.

    Returns:
        The look.
    """
    return look(list(KINDS).index(kind))


def room_for(inches: float) -> int:
    """How many characters of a small title fit.

    Args:
        inches: width of the panel with its tick labels.

    Returns:
        Characters.
    """
    return max(9, int((inches - 0.45) / 0.086))


def pair_label(pair: Told, room: int) -> str:
    """A pair's name that fits.

    Args:
        pair: which pair.
        room: characters.

    Returns:
        The name; if it is too long, the middle of the longer half is left out, or of both.

    Example:
        >>> pair_label(Told("FT–FT", "", "a-very-long-name", "b", (), "", ""), 14)
        'a-ve…-name + b'
    """
    free = room - 3
    if len(pair.a) + len(pair.b) <= free:
        return f"{pair.a} + {pair.b}"
    half = free // 2
    first = min(len(pair.a), max(half, free - len(pair.b)))
    return f"{shorten(pair.a, first)} + {shorten(pair.b, max(free - first, 3))}"


def cell_cos(value: float) -> str:
    """A cosine in four characters, for the cells of a map.

    Args:
        value: the cosine.

    Returns:
        Its text, with more digits near 1.

    Example:
        >>> cell_cos(0.98765), cell_cos(0.5), cell_cos(-0.213), cell_cos(0.99999)
        ('.988', '.50', '−.21', '1.00')
    """
    text = f"{value:.3f}" if 0.9 <= value < 0.9995 else f"{value:.2f}"
    return text.replace("0.", ".", 1).replace("-", "−")
