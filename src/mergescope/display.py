"""How results show themselves: in notebooks as HTML tables, at a prompt as text, and whole as pandas tables.

A result has ``rows()``, everything as lines of a tidy table, and ``_view()``, what of it is worth a look. With one line
in its class it is then at home in every notebook:

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

Nothing of the package but errors is known here, so that every part of it can use this.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

from mergescope.errors import MergescopeError, printable

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"
"""Stands for what is not there: NaN, or a cell without a value."""

MOST_LINES = 20
MOST_COLUMNS = 14
MOST_LETTERS = 56
"""Longer tables, wider ones and longer names are cut in the middle; ``to_pandas`` has all."""

_FRAME = (
    "kind", "points", "data", "layer", "trivial", "parameter", "measure", "mean", "std", "low", "high", "n", "dead",
    "seconds", "forward_passes", "peak_bytes",
)  # fmt: skip
_LEFT = ' style="text-align:left"'
_RIGHT = ' align="right"'  # short, and kept by viewers that strip styles
_NAME = ' style="text-align:left;white-space:nowrap"'
_CAPTION = ' style="caption-side:top;text-align:left;white-space:nowrap;font-weight:bold"'


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is shown.
        note: smaller text after it, such as an interval.
    """

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it is about.
        heads: of the columns; the first is that of the lines' names.
        lines: each a name and its cells: words as plain text, figures as a [`Cell`][].
    """

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class View:
    """What is worth a look.

    Attributes:
        said: the verdict, in words.
        tables: the figures.
        notes: what the user should know.
    """

    said: str
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


class HasRows(Protocol):
    """What can be a pandas table."""

    def rows(self) -> Sequence[Any]:
        """Everything as lines of a tidy table."""


class HasView(Protocol):
    """What can be shown."""

    def _view(self) -> View: ...


def as_pandas(self: HasRows) -> pd.DataFrame:
    """Everything that was found as a pandas table: a line a number, as in ``results.parquet`` of a run directory.

    Args:
        self: the result.

    Returns:
        Its ``rows()``.

    Raises:
        MergescopeError: pandas is not installed.
    """  # noqa: DOC502 (raised by what this calls)
    return frame(row if isinstance(row, Mapping) else vars(row) for row in self.rows())


def as_html(self: HasView) -> str:
    """What a notebook shows.

    Args:
        self: the result.

    Returns:
        HTML without colours of its own, for light and dark pages.
    """
    view = self._view()
    return "".join([
        '<div class="mergescope">',
        f"<p><strong>{_escaped(_sentence(view.said))}</strong></p>",
        *(_html(table) for table in view.tables),
        *(f"<p>Note: {_escaped(_sentence(note))}</p>" for note in view.notes),
        "</div>",
    ])


def as_text(self: HasView) -> str:
    """The same as plain text, for results that have no format of their own.

    Args:
        self: the result.

    Returns:
        Lines.
    """
    view = self._view()
    parts = [_sentence(view.said), *(_text(table) for table in view.tables)]
    return printable("\n".join([*parts, *(f"Note: {_sentence(note)}" for note in view.notes)]))


def as_pretty(self: object, printer: Any, cycle: bool) -> None:
    """What IPython shows where there is no HTML.

    Args:
        self: the result.
        printer: IPython's.
        cycle: whether the result is inside itself, which no result is.
    """
    printer.text(str(self))


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lines of a table in pandas.

    Args:
        rows: lines; what one lacks is empty text, False or NaN, like what the others have there.

    Returns:
        The table; the columns of results come first, in one order for all.

    Raises:
        MergescopeError: pandas is not installed.

    Example:
        >>> frame([{"mean": 0.5, "points": "a"}, {"points": "b", "layer": "blocks.0"}]).columns.tolist()
        ['points', 'layer', 'mean']
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MergescopeError(
            "A table in pandas needs pandas, which is not installed: pip install pandas. Without it, "
            "rows() gives the same lines as dictionaries."
        ) from error
    lines = list(rows)
    found = dict.fromkeys(name for line in lines for name in line)
    names = [*(name for name in _FRAME if name in found), *(name for name in found if name not in _FRAME)]
    columns = {}
    for name in names:
        kind = type(next(line[name] for line in lines if name in line))
        empty = {str: "", bool: False}.get(kind, math.nan)
        columns[name] = [line.get(name, empty) for line in lines]
    return pd.DataFrame(columns)


def number(value: float) -> str:
    """A number for a table.

    Args:
        value: the number.

    Returns:
        Integers in full, others with four digits, small ones with two; a true minus sign.

    Example:
        >>> [number(value) for value in (0.98765, -12.5, 3, 1234567, 2.5e-7, float("nan"))]
        ['0.9877', '−12.5', '3', '1,234,567', '2.5e−07', '–']
    """
    if math.isnan(value):
        return NONE
    if isinstance(value, Integral):
        text = f"{value:,}"
    elif value == 0 or 1e-3 <= abs(value) < 10:
        text = f"{abs(value) if value == 0 else value:.4f}"
    else:
        text = f"{value:.4g}" if abs(value) >= 10 else f"{value:.2g}"
    return text.replace("-", "−").replace("inf", "∞")


def figure(value: float, low: float = math.nan, high: float = math.nan) -> Cell:
    """A number with its interval.

    Args:
        value: the number.
        low: lower end; NaN without an interval.
        high: upper end.

    Returns:
        The cell.

    Example:
        >>> figure(0.5, 0.25, 0.75)
        Cell(text='0.5000', note='[0.2500, 0.7500]')
    """
    note = f"[{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return Cell(number(value), note)


def pivot(
    rows: Iterable[Mapping[str, Any]],
    caption: str,
    lines: str | Sequence[str],
    columns: str,
    *,
    only: Sequence[str] = (),
    **having: Hashable,
) -> Table:
    """A table of tidy rows.

    Args:
        rows: with ``mean``, and ``low`` and ``high`` where there is an interval.
        caption: of the table.
        lines: fields that name a line.
        columns: the field that names a column.
        only: the columns to show, in this order; by default all.
        **having: field to the value that rows must have.

    Returns:
        The table. Lines of layers that are linear by construction say so.

    Example:
        >>> rows = [{"layer": "a", "measure": name, "mean": 0.5} for name in ("cos", "coef")]
        >>> table = pivot(rows, "CTL", "layer", "measure")
        >>> table.heads, table.lines[0][0]
        (('layer', 'cos', 'coef'), 'a')
    """
    fields = [lines] if isinstance(lines, str) else list(lines)
    chosen = [row for row in rows if all(row.get(name) == value for name, value in having.items())]
    names = list(only) or list(dict.fromkeys(str(row[columns]) for row in chosen))
    found: dict[str, dict[str, Cell]] = {}
    for row in chosen:
        parts = (row.get(field, "") for field in fields)
        name = ", ".join(
            f"{part:g}" if isinstance(part, float) else str(part) for part in parts if part != ""
        )
        line, column = f"{name} (trivial)" if row.get("trivial") else name, str(row[columns])
        again = 2
        while column in found.get(line, {}):  # models of one name
            line, again = f"{name} ({again})", again + 1
        found.setdefault(line, {})[column] = figure(
            row["mean"], row.get("low", math.nan), row.get("high", math.nan)
        )
    return Table(
        caption,
        (", ".join(fields), *names),
        tuple((name, *(cells.get(column, Cell(NONE)) for column in names)) for name, cells in found.items()),
    )


def _html(table: Table) -> str:
    heads, lines, cut = _cut(table)
    sides = _sides(heads, lines)
    head = "".join(
        f'<th scope="col"{_RIGHT if right else _LEFT}>{_name(text)}</th>'
        for text, right in zip(heads, sides, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row"{_NAME}>{_name(_told(first))}</th>{"".join(map(_cell, cells))}</tr>'
        for first, *cells in lines
    )
    return (
        f"<table><caption{_CAPTION}>{_escaped(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>" + (f"<p><small>{cut}</small></p>" if cut else "")
    )


def _text(table: Table) -> str:
    heads, lines, cut = _cut(table)
    told = [[*map(_shortened, heads)]]
    told += [[_shortened(_told(first)), *map(_told, rest)] for first, *rest in lines]
    widths = [max(map(len, column)) for column in zip(*told, strict=True)]
    sides = [">" if right else "<" for right in _sides(heads, lines)]
    shown = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
        for line in told
    ]
    return "\n".join([table.caption, *(line.rstrip() for line in shown), *([cut] if cut else [])])


def _sides(heads: tuple[str, ...], lines: list[tuple[Any, ...]]) -> list[bool]:
    # Columns of figures are to the right.
    return [any(isinstance(cell, Cell) for cell in column) for column in zip(heads, *lines, strict=True)]


def _cut(table: Table) -> tuple[tuple[str, ...], list[tuple[Any, ...]], str]:
    # From the middle: the first and the last layers, and the sums at the end of a line, say the most.
    wide, long = len(table.heads) - MOST_COLUMNS, len(table.lines) - MOST_LINES
    heads, lines = table.heads, list(table.lines)
    if wide > 0:
        start = MOST_COLUMNS // 2
        heads = (*heads[:start], "…", *heads[start + wide :])
        lines = [(*line[:start], "…", *line[start + wide :]) for line in lines]
    if long > 0:
        start = MOST_LINES // 2
        lines[start : start + long] = [tuple("…" for _ in heads)]
    told = [f"{more} of {count} {what}" for more, count, what in (
        (long, len(table.lines), "lines"), (wide, len(table.heads), "columns")
    ) if more > 0]  # fmt: skip
    return heads, lines, f"{' and '.join(told)} left out; to_pandas() has all." if told else ""


def _told(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell.text} {cell.note}".rstrip()


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td{_LEFT}>{_escaped(cell)}</td>"
    note = _escaped(cell.note).replace(" ", "&nbsp;")
    return f"<td{_RIGHT}>{_escaped(cell.text)}{f'<br><small>{note}</small>' if note else ''}</td>"


def _name(text: str) -> str:
    short = _shortened(text)
    return _escaped(text) if short == text else f'<span title="{_escaped(text)}">{_escaped(short)}</span>'


def _shortened(text: str) -> str:
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[: half - 1]} … {text[2 - half :]}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _escaped(text: str) -> str:
    return escape(printable(text))
