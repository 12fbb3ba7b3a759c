"""Columns of a table that grow from rows of JSON: a type for all values of a key, or the line where they differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import DataError, printable

if TYPE_CHECKING:
    import pyarrow as pa

DEPTH = 20
"""Lists and mappings may be nested so deep: the types of deeper ones can't be copied."""

NESTED = "a list or mapping"
_KINDS = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a text",
    list: NESTED,
    dict: NESTED,
}

Place = tuple[Path, int]
"""A file and a line of it."""


def json_error(place: Place, why: str, advice: str = "Check that the file is complete.") -> DataError:
    """The error of a line that can't be read.

    Args:
        place: file and line.
        why: what is wrong there.
        advice: what to do.

    Returns:
        The error.

    Example:
        >>> print(json_error((Path("a.jsonl"), 3), "it is nested too deeply"))
        a.jsonl can't be read as json: line 3: it is nested too deeply. Check that the file is complete.
    """
    file, line = place
    return DataError(f"{file} can't be read as json: line {line:,}: {printable(why)}. {advice}")


class JsonColumn:
    """The values of one key, as Arrow arrays.

    Values are of one kind: truth values, numbers, texts, or lists and mappings. Lists and mappings become Arrow's own
    where their parts go together, else bytes: the JSON of each, without empty
    keys.

    Args:
        name: the key.
        absent: how many rows came before the first that has it.
        budget: how many values it may have with those that its mappings lack.

    Example:
        >>> column = JsonColumn("label", 0, 100)
        >>> column.add([1, None, 0.5], [(Path("a.jsonl"), line) for line in (1, 2, 3)])
        >>> column.joined().to_pylist()
        [1.0, None, 0.5]
    """

    def __init__(self, name: str, absent: int, budget: int) -> None:
        import pyarrow as pa

        self._name, self._budget = name, budget
        self._kind: str | None = None
        self._since: Place | None = None
        self._size = 0
        self._chunks: list[Any] = [pa.nulls(absent)]

    def add(self, values: Sequence[Any], places: Sequence[Place]) -> None:
        """Append the values of further rows.

        Args:
            values: one a row, as the parser gives them; None where the row has none.
            places: where each row is.

        Raises:
            DataError: a value is of another kind than those before, or can't be stored.
        """  # noqa: DOC502 (raised by what this calls)
        import pyarrow as pa

        types = {type(value) for value in values} - {type(None)}
        kinds = {_KINDS[kind] for kind in types} | ({self._kind} if self._kind else set())
        if NESTED in kinds:
            self._kind, added = NESTED, self._nested(values, places)
        elif len(kinds) > 1:
            raise self._misfit(values, places)
        elif types:
            if self._kind is None:
                (self._kind,) = kinds
                self._since = next(
                    place for value, place in zip(values, places, strict=True) if value is not None
                )
            added = self._plain(values, types, places)
        else:
            added = pa.nulls(len(values))
        self._chunks += added.chunks if isinstance(added, pa.ChunkedArray) else [added]

    def _misfit(self, values: Sequence[Any], places: Sequence[Place]) -> DataError:
        kind, since = self._kind, self._since
        for value, place in zip(values, places, strict=True):
            here = None if value is None else _KINDS[type(value)]
            if kind is None:
                kind, since = here, place
            elif here not in (None, kind):
                break
        file, line = since or place
        where = f"in line {line:,}{f' of {file}' if file != place[0] else ''}"
        return json_error(
            place, f"{self._name!r} is {here} ({json.dumps(value)[:40]}), and {kind} {where}",
            "Give the values of a key one type in all rows.",
        )  # fmt: skip

    def _plain(self, values: Sequence[Any], types: set[type], places: Sequence[Place]) -> pa.Array:
        import pyarrow as pa

        if types == {int}:
            with contextlib.suppress(OverflowError):  # what has no 64 bits becomes float64
                return pa.array(values, pa.int64())
        try:
            if types <= {int, float}:
                return pa.array([None if value is None else float(value) for value in values], pa.float64())
            return pa.array(values)
        except (OverflowError, UnicodeEncodeError):
            place, why = next(
                (place, why)
                for value, place in zip(values, places, strict=True)
                if (why := _unstorable(value))
            )
            raise json_error(place, f"{self._name!r} {why}", "Correct the value.") from None

    def _nested(self, values: Sequence[Any], places: Sequence[Place]) -> pa.Array:
        import pyarrow as pa

        for value, place in zip(values, places, strict=True):
            if not _is_shallow(value, DEPTH):
                raise json_error(
                    place, f"{self._name!r} is nested more than {DEPTH} deep", "Simplify the value."
                )
        try:
            kind = pa.infer_type(values)
            self._size += len(values) * _leaves(kind)
            if self._size <= self._budget:
                return pa.array(values, kind)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass  # the parts don't go together
        return _as_json(values)

    def joined(self) -> pa.ChunkedArray:
        """The whole column.

        Returns:
            All values, of one type.
        """
        import pyarrow as pa

        types = list(dict.fromkeys(chunk.type for chunk in self._chunks))
        known = [kind for kind in types if not pa.types.is_null(kind)]
        if self._kind == NESTED:
            return self._joined_nested(known)
        target = (pa.float64() if len(known) > 1 else known[0]) if known else pa.null()
        return pa.chunked_array([chunk.cast(target, safe=False) for chunk in self._chunks], target)

    def _joined_nested(self, types: Sequence[pa.DataType]) -> pa.ChunkedArray:
        import pyarrow as pa

        if pa.binary() not in types:
            try:
                schemas = [pa.schema([(self._name, kind)]) for kind in types]
                (kind,) = pa.unify_schemas(schemas, promote_options="permissive").types
                if _leaves(kind) * sum(map(len, self._chunks)) <= self._budget:
                    # From Python's values, since not every Arrow can cast a mapping to one of more keys.
                    alike = (it if it.type == kind else pa.array(it.to_pylist(), kind) for it in self._chunks)
                    return pa.chunked_array(list(alike), kind)
            except (pa.ArrowException, ValueError, TypeError):
                pass  # the rows don't go together
        written = (
            chunk if pa.types.is_binary(chunk.type) else _as_json(chunk.to_pylist()) for chunk in self._chunks
        )
        return pa.chunked_array(list(written), pa.binary())


def _as_json(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    written = (None if value is None else json.dumps(_without_empty(value)).encode() for value in values)
    return pa.array(list(written), pa.binary())


def _without_empty(value: Any) -> Any:
    # Arrow's mappings have the keys of all rows.
    if isinstance(value, dict):
        return {key: _without_empty(part) for key, part in value.items() if part is not None}
    return [_without_empty(part) for part in value] if isinstance(value, list) else value


def _is_shallow(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return depth > 0 and all(_is_shallow(part, depth - 1) for part in value)


def _leaves(kind: pa.DataType) -> int:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return _leaves(kind.value_type)
    if pa.types.is_struct(kind):
        return max(1, sum(_leaves(kind.field(number).type) for number in range(kind.num_fields)))
    return 1


def _unstorable(value: Any) -> str:
    try:
        _ = value.encode() if isinstance(value, str) else float(value or 0)
    except UnicodeEncodeError:
        return "holds half a character"
    except OverflowError:
        return "is a number beyond what float64 holds"
    return ""
