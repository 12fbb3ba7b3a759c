"""How figures look: colours that colour-blind people tell apart, markers that survive greyscale."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Width of a figure in inches; the report shows it at 1140 pixels where there is room."""

PAGE, INK, MUTED, FAINT = "#ffffff", "#222222", "#5a5a5a", "#d9d9d9"

GRID, SHADE, BAND, WARM = "#ececec", "#e6e6e6", "#dfe9f1", "#f8ecd0"
"""Grounds: grid lines; layers that are linear by construction; what CTL allows; an area that needs a word."""

SCHEMED = {
    PAGE: "page", INK: "ink", MUTED: "muted", FAINT: "faint", GRID: "grid", SHADE: "shade", BAND: "band",
    WARM: "warm",
}  # fmt: skip
"""Colours that are others on a dark page, to their names in ``page.css``; all others are the same."""

# Okabe and Ito's palette, in an order whose neighbours also differ in lightness.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#222222")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.2, 1.5, 1.2)))
STRONG = _COLOURS[3]
"""What a figure is about: a chosen coefficient, a task's own model, the search box."""

_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")

FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans", "WenQuanYi Zen Hei",
    "PingFang SC", "Microsoft YaHei", "Arial Unicode MS",
)  # fmt: skip
"""The first one comes with matplotlib; of the others, those that are installed draw what it lacks (Chinese names)."""

_RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": PAGE,
    "savefig.facecolor": PAGE,
    "hatch.linewidth": 0.5,
    # Outlines, not text: the SVG looks the same where the font is not installed.
    "svg.fonttype": "path",
    # Fixed salt: the same rows give the same bytes.
    "svg.hashsalt": "mergescope",
    # Task names are data, never formulas.
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Look:
    """How one series looks.

    Attributes:
        colour: of marks and lines.
        marker: shape of the mark.
        line: line style.
        hatch: fill pattern of areas.
    """

    colour: str
    marker: str
    line: Any
    hatch: str


def look(index: int) -> Look:
    """The look of the series with this number; repeats only after many.

    Args:
        index: from 0.

    Returns:
        The look.

    Example:
        >>> look(0).marker, look(1).marker
        ('o', 's')
    """
    return Look(
        _COLOURS[index % len(_COLOURS)],
        _MARKERS[index % len(_MARKERS)],
        _LINES[index % len(_LINES)],
        _HATCHES[index % len(_HATCHES)],
    )


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib settings of this project, whatever the user's own are.

    Yields:
        Nothing; the settings hold inside the block.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    # It warns of each font that has no bold letters.
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            matplotlib.rcParams["font.family"] = [name for name in FONTS if name in installed]
            yield
    finally:
        logger.setLevel(level)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window and no global state.

    Args:
        width: in inches.
        height: in inches.

    Returns:
        The figure, laid out so that labels have room.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Figure) -> Figure:
    """Turn the tick labels of crowded axes, then thin them out, until none overlap.

    Args:
        figure: with everything drawn on it.

    Returns:
        The same figure.
    """
    for angle in (35, 90):
        _lay_out(figure)
        crowded = [axes for axes in figure.axes if _crowded(axes)]
        if not crowded:
            break
        for axes in crowded:
            for label in axes.get_xticklabels():
                label.set(
                    rotation=angle,
                    ha="right" if angle < 90 else "center",
                    rotation_mode="anchor" if angle < 90 else None,
                )
    else:
        _lay_out(figure)
    # The layout is final: saving must neither solve it again for every format, nor draw once more to ask for it.
    with styled():
        figure.set_layout_engine()
    for axes in figure.axes:
        for side, too_close in (("x", _crowded), ("y", _touching)):
            labels = getattr(axes, f"get_{side}ticklabels")()  # all: those that are hidden are no more listed
            step = 1
            while too_close(axes) and step < 64:
                step *= 2
                for i, label in enumerate(labels):
                    label.set_visible(i % step == 0)
    return figure


def _lay_out(figure: Figure) -> None:
    # What drawing would do first; the rest of it takes half as long again.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def _crowded(axes: Any) -> bool:
    renderer = axes.figure.canvas.get_renderer()
    boxes = [
        (label.get_rotation(), label.get_window_extent(renderer))
        for label in axes.get_xticklabels()
        if label.get_visible() and label.get_text()
    ]
    boxes.sort(key=lambda entry: entry[1].x0)
    for (angle, left), (_, right) in zip(boxes, boxes[1:], strict=False):
        # Slanted labels share bounding boxes without touching: what counts is the distance of their ends.
        free = right.x1 - left.x1 if 0 < angle < 90 else right.x0 - left.x1 + 11
        if free < 14:
            return True
    return False


def _touching(axes: Any) -> bool:
    # Labels of the y axis. A line is a little higher than its letters.
    renderer = axes.figure.canvas.get_renderer()
    labels = (label for label in axes.get_yticklabels() if label.get_visible() and label.get_text())
    boxes = sorted((label.get_window_extent(renderer) for label in labels), key=lambda box: float(box.y0))
    return any(upper.y0 < lower.y1 - 1.5 for lower, upper in zip(boxes, boxes[1:], strict=False))


def shorten(text: str, length: int = 22) -> str:
    """A name that fits a figure.

    Args:
        text: the name.
        length: at most this many characters.

    Returns:
        The name on one line, its middle left out if it is too long.

    Example:
        >>> shorten("a very long name of a task", 11)
        'a ver… task'
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[len(text) - (length - 1 - half) :]}"


def family_name(family: tuple[str, str], inches: float) -> str:
    """Network and regime, short enough for the title of a panel.

    Args:
        family: network and regime.
        inches: width of the panel with its labels.

    Returns:
        The names.

    Example:
        >>> family_name(("mlp", "moderate"), 3)
        'mlp, moderate'
    """
    room = max(8, int((inches - 0.9) / 0.095) - 8)
    if len(family[0]) + len(family[1]) <= room:
        return ", ".join(shorten(name, room) for name in family)
    return ", ".join(shorten(name, max(4, room // 2)) for name in family)


def render(figure: Figure, format: str, dpi: int = 160) -> bytes:
    """The bytes of a figure, without dates, so that equal figures are equal files.

    Args:
        figure: the figure.
        format: ``"svg"`` or ``"png"``.
        dpi: dots an inch of a PNG.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "mergescope"} if format == "svg" else {"Software": "mergescope"}
    with styled():
        figure.savefig(buffer, format=format, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
