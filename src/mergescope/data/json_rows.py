"""Rows of JSON files: one mapping a line, a list of mappings, or one mapping of columns.

Python's own parser reads them. The one that Arrow brings ends the whole process on some files (a row that is ``null``),
takes texts that look like dates for times, and does not say in which line it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.data.json_columns import JsonColumn, Place, json_error
from mergescope.documents import DocumentError, unique_keys

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1000
"""So many rows are Python objects at a time."""

SPARSE = 10
"""So many values may a table have for each byte of its files; keys that few rows have are empty in all others."""

_FREE = 10_000_000
_NO_NAME = re.compile("[\0\ud800-\udfff]")  # names of columns go through C, where a null character ends them
_BLANK = re.compile(r"[ \t\n\r]*")

Row = tuple[Place, dict[str, Any]]


def read_json_rows(files: Sequence[Path]) -> pa.Table:
    r"""The rows of JSON files as one table.

    The type of a column is that of its values: truth values, numbers (int64, or float64 if one of them isn't whole),
    texts, or lists and mappings of these. A key that a row lacks is empty there. Lists and mappings that don't go
    together (a number here, a text there) are kept as bytes, the JSON of each.

    Args:
        files: read one after the other. Each holds one mapping a line, a list of mappings, or (``.json``) one
            mapping of lists of the same length, the columns.

    Returns:
        The table, in memory; columns in the order in which they appear.

    Raises:
        DataError: a file is no UTF-8 or no JSON, a row is no mapping, or a column holds values of two kinds; the file
            and line are named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "x.jsonl"
        ...     _ = file.write_text('{"text": "a", "label": 0}\n{"text": "b"}\n')
        ...     read_json_rows([file]).to_pylist()
        [{'text': 'a', 'label': 0}, {'text': 'b', 'label': None}]
    """  # noqa: DOC502 (raised by what this calls)
    import pyarrow as pa

    budget = max(_FREE, SPARSE * sum(file.stat().st_size for file in files))
    columns: dict[str, JsonColumn] = {}
    chunk: list[Row] = []
    done = 0

    def add() -> None:
        nonlocal done
        for _, row in chunk:
            for name in row:
                if name not in columns:
                    columns[name] = JsonColumn(name, done, budget)
        done += len(chunk)
        if len(columns) * done > budget:
            raise json_error(
                chunk[-1][0], f"so far the rows have {len(columns):,} different keys, which would be as many columns",
                "Give every row the same keys.",
            )  # fmt: skip
        places = [place for place, _ in chunk]
        for name, column in columns.items():
            column.add([row.get(name) for _, row in chunk], places)
        chunk.clear()

    for file in files:
        for row in _rows(file):
            chunk.append(row)
            if len(chunk) == ROWS:
                add()
    if chunk:
        add()
    return pa.table({name: column.joined() for name, column in columns.items()})


def _rows(file: Path) -> Iterator[Row]:
    found = ((place, _row(place, value)) for place, value in _values(file))
    if file.suffix.lower() != ".json":
        yield from found
        return
    first, second = next(found, None), next(found, None)
    if first is not None and second is None:
        yield from _of_columns(*first)
        return
    yield from (row for row in (first, second) if row is not None)
    yield from found


def _row(place: Place, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        got = "a list" if isinstance(value, list) else json.dumps(value)[:40]
        raise json_error(
            place,
            f"expected a mapping of columns, got {got}",
            'Write {"text": ..., "label": ...} for every row.',
        )
    return value


def _of_columns(place: Place, row: dict[str, Any]) -> Iterator[Row]:
    if not row or not all(isinstance(values, list) for values in row.values()):
        yield place, row
        return
    lengths = {name: len(values) for name, values in row.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name!r} {count:,}" for name, count in list(lengths.items())[:5])
        raise json_error(place, f"columns of one table have the same length, got {said}")
    for values in zip(*row.values(), strict=True):
        yield place, dict(zip(row, values, strict=True))


def _values(file: Path) -> Iterator[tuple[Place, Any]]:
    first = True
    with file.open("rb") as stream:
        for line, written in enumerate(stream, 1):
            place = file, line
            text = _text(place, written).removeprefix("\ufeff" if line == 1 else "")
            if not text.strip():
                continue
            if first and (text.lstrip().startswith("[") or not _is_whole(text)):
                yield from _of_document(place, text + _text((file, line + 1), stream.read()))
                return
            first = False
            value, end = _decoded(place, text, _after_blanks(text, 0))
            if text[end:].strip():
                raise json_error(
                    place, f"expected the line's end after its mapping, got {text[end:].strip()[:40]!r}"
                )
            yield place, value


def _text(place: Place, written: bytes) -> str:
    try:
        return written.decode("utf-8")
    except UnicodeDecodeError as error:
        file, line = place
        raise json_error(
            (file, line + written.count(b"\n", 0, error.start)), f"it is no UTF-8 text ({error.reason})",
            "Convert the file, and try again.",
        ) from error  # fmt: skip


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _of_document(place: Place, text: str) -> Iterator[tuple[Place, Any]]:
    # Lists are taken apart here: one row at a time is built, and the line of each is known.
    file, line = place
    at = _after_blanks(text, 0)
    listed = text.startswith("[", at)
    at = _after_blanks(text, at + listed)
    counted = 0
    while at < len(text) and not (listed and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        value, end = _decoded((file, line), text, at)
        yield (file, line), value
        at = _after_blanks(text, end)
        if listed and text.startswith(",", at):
            at = _after_blanks(text, at + 1)
        elif listed and not text.startswith("]", at):
            break
    rest = text[at:].strip()
    if listed and rest != "]":
        closed = "nothing after" if rest.startswith("]") else ""
        line += text.count("\n", counted, at)
        got = repr(rest.removeprefix("]").lstrip()[:40]) if rest else "the end of the file"
        raise json_error((file, line), f"expected {closed or 'a comma or'} the list's end, got {got}")


def _after_blanks(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # nothing matches as well


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = unique_keys(pairs)
    if _NO_NAME.search("".join(found)):
        name = next(name for name in found if _NO_NAME.search(name))
        raise DocumentError(f"the key {name!r:.60} holds a null character or half a character")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_mapping)


def _decoded(place: Place, text: str, at: int) -> tuple[Any, int]:
    file, line = place
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise json_error(place, "it is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = file, line + text.count("\n", at, error.pos)
        raise json_error(place, f"{error.msg} at character {error.colno}") from error
    except ValueError as error:  # numbers of thousands of digits, and wrong keys
        raise json_error(place, str(error)) from error
