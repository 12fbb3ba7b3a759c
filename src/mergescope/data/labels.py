"""Class numbers from a label column, checked against what the model can say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergescope.data.columns import describe_columns, is_text, is_value
from mergescope.errors import DataError

if TYPE_CHECKING:
    import datasets

SHOWN = 8
"""How many names a message lists."""


@dataclass(frozen=True)
class Labels:
    """The labels of a table.

    Attributes:
        ids: ``(rows,)``, int64 class numbers.
        names: name of each class, where the data say it.
        notes: what a reader of results should know.
    """

    ids: torch.Tensor
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def read_labels(
    table: datasets.Dataset,
    column: str,
    *,
    classes: int | None = None,
    label2id: Mapping[str, int] | Mapping[int, int] | None = None,
) -> Labels:
    """Class numbers of all rows.

    Integers are class numbers. Names (strings, or those of a ``ClassLabel``) are looked up in
    ``label2id``, so that data and model may number their classes differently. Without it, or where
    it has no names but ``LABEL_0``, strings are numbered in sorted order.

    Args:
        table: the rows.
        column: of the labels.
        classes: how many the model knows.
        label2id: the model's numbers, by name or by the data's own numbers. By number, other classes
            must not occur.

    Returns:
        The labels.

    Raises:
        DataError: a label is missing, no class, out of range, or unknown to the model.

    Example:
        >>> from datasets import Dataset
        >>> labels = read_labels(Dataset.from_dict({"label": ["ham", "spam", "ham"]}), "label")
        >>> labels.ids, labels.names
        (tensor([0, 1, 0]), ('ham', 'spam'))
    """  # noqa: DOC502 (raised by what this calls)
    feature = table.features[column]
    values = list(table[column][:])
    _require_all(table, column, values)
    names: list[str] | None = list(feature.names) if hasattr(feature, "names") else None
    numbers = None
    if is_text(feature):
        names = sorted(set(values))
        numbers = _numbers(column, names, label2id, [True] * len(names))
        lookup = {name: place for place, name in enumerate(names)}
        ids = np.array([lookup[value] for value in values], dtype=np.int64)
    else:
        ids = _integers(table, column, values)
        if names is not None:
            occurs = np.isin(np.arange(len(names)), ids)
            numbers = _numbers(column, names, label2id, occurs.tolist())
            _require_range(table, column, ids, len(names))
    if label2id and _by_number(label2id):
        return _renumbered(column, ids, names, label2id)  # type: ignore[arg-type]
    notes = []
    if names is not None and numbers is not None:
        if numbers != list(range(len(names))):
            notes.append("the classes are numbered by name as the model numbers them, not as in the data")
        ids = np.array(numbers, dtype=np.int64)[ids]
        names = _ordered(names, numbers)
    elif names is not None:
        shown = ", ".join(f"{name} = {number}" for number, name in enumerate(names[:SHOWN]))
        order = " by sorted name" if is_text(feature) else " as in the data"
        notes.append(f"the classes are numbered{order}: {shown}{', ...' if len(names) > SHOWN else ''}")
        if classes is not None and len(names) < classes:
            notes.append(
                f"the data name {len(names)} classes and the model has {classes}: check that the numbers agree"
            )
    _require_range(table, column, ids, classes, names)
    if len(np.unique(ids)) == 1:
        called = f" ({names[ids[0]]})" if names is not None else ""
        notes.append(f"all {len(ids)} rows have the label {ids[0]}{called}: accuracy says little")
    return Labels(torch.from_numpy(ids), None if names is None else tuple(names), tuple(notes))


def _by_number(label2id: Mapping[str, int] | Mapping[int, int]) -> bool:
    return all(isinstance(key, int) for key in label2id)


def _renumbered(column: str, ids: np.ndarray, names: Sequence[str] | None, new: Mapping[int, int]) -> Labels:
    others = sorted(set(ids.tolist()) - set(new))
    if others:
        raise DataError(
            f"The label column {column!r} has the classes {others[:SHOWN]}, and the task is made up of {sorted(new)}. "
            "Leave their rows out, or choose them as well."
        )
    lookup = np.zeros(max(new) + 1, dtype=np.int64)
    lookup[list(new)] = list(new.values())
    kept = None if names is None else tuple(names[old] for old in sorted(new, key=new.__getitem__))
    shown = ", ".join(f"{old} = {number}" for old, number in list(new.items())[:SHOWN])
    changed = any(old != number for old, number in new.items())
    notes = (
        (f"the classes are numbered anew: {shown}{', ...' if len(new) > SHOWN else ''}",) if changed else ()
    )
    return Labels(torch.from_numpy(lookup[ids]), kept, notes)


def _ordered(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    placed = {number: name for name, number in zip(names, numbers, strict=True) if number >= 0}
    return [placed.get(number, str(number)) for number in range(max(placed) + 1)]


def _numbers(
    column: str,
    names: Sequence[str],
    label2id: Mapping[str, int] | Mapping[int, int] | None,
    occurs: Sequence[bool],
) -> list[int] | None:
    if not label2id or _by_number(label2id) or all(re.fullmatch(r"LABEL_\d+", str(n)) for n in label2id):
        return None
    exact = {str(name): int(number) for name, number in label2id.items()}
    folded = {name.casefold(): number for name, number in exact.items()}
    numbers = [exact.get(name, folded.get(name.casefold(), -1)) for name in names]
    unknown = [name for name, n, here in zip(names, numbers, occurs, strict=True) if here and n < 0]
    if unknown:
        raise DataError(
            f"The label column {column!r} has the classes {_list(unknown)}, which the model does not know: its "
            f"classes are {_list(list(exact))}. Choose another column with --label-column, or rename the classes."
        )
    return numbers


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _require_all(table: datasets.Dataset, column: str, values: Sequence[Any]) -> None:
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        where = f"row {missing[0]}{_excerpt(table, missing[0], column)}"
        raise DataError(
            f"The label column {column!r} has no label in {where}, and in {len(missing)} of {len(values)} rows. "
            "Remove those rows, or choose another column with --label-column."
        )


def _integers(table: datasets.Dataset, column: str, values: Sequence[Any]) -> np.ndarray:
    feature = table.features[column]
    kind = getattr(feature, "dtype", "") if is_value(feature) or hasattr(feature, "names") else ""
    if not kind.startswith(("int", "uint", "bool", "float")):
        raise DataError(
            f"The label column {column!r} holds no classes. Columns: {describe_columns(table)}. Choose one of "
            "numbers or names with --label-column."
        )
    found = np.asarray(values)
    ids = found.astype(np.int64)
    broken = np.flatnonzero(ids != found)
    if len(broken):
        raise DataError(
            f"The label column {column!r} has {found[broken[0]]:g} in row {broken[0]}, which is no class number. "
            "Choose another column with --label-column."
        )
    return ids


def _require_range(
    table: datasets.Dataset,
    column: str,
    ids: np.ndarray,
    classes: int | None,
    names: Sequence[str] | None = None,
) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= (classes if classes is not None else np.iinfo(np.int64).max)))
    if not len(wrong):
        return
    row, label = int(wrong[0]), int(ids[wrong[0]])
    called = f" ({names[label]})" if names is not None and 0 <= label < len(names) else ""
    known = "classes start at 0" if classes is None else f"the model knows the classes 0 to {classes - 1}"
    hidden = (
        " The label -1 means that a split's labels are hidden: choose another split." if label == -1 else ""
    )
    raise DataError(
        f"The label column {column!r} has {label}{called} in row {row}{_excerpt(table, row, column)}, but {known} "
        f"({len(wrong)} of {len(ids)} rows are out of range).{hidden} Choose another column with --label-column, or "
        "data of the model's task."
    )


def _excerpt(table: datasets.Dataset, row: int, column: str) -> str:
    # The row of a random subset is not that of the file, but its first text can be searched for.
    texts = [name for name, feature in table.features.items() if is_text(feature) and name != column]
    value = table.select_columns(texts[:1])[row][texts[0]] if texts else None
    return "" if value is None else f" ({value[:40] + ('...' if len(value) > 40 else '')!r})"
