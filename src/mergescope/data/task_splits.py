"""The splits of a task as tables: train, validation that is held out of it, test; labels checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.data.columns import choose_image_column, is_text, known_column
from mergescope.data.labels import read_labels
from mergescope.data.prompts import Wording, canonical
from mergescope.data.registry import TEXT_TO_TEXT, TaskSpec
from mergescope.data.sources import load_table, quiet_datasets
from mergescope.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")

SHARE, MOST = 0.1, 5000
"""Validation is this share of train, and at most so many rows (TA)."""

SEED = 0
"""Of the choice of validation rows: one for all runs, so that no run sees another's validation data."""


def held_out(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a training split: 10 % of it, at most 5 000 rows, are for validation (TA).

    Args:
        rows: how many the training split has.

    Returns:
        Places to train on and places to validate on, ascending. The same on every call.

    Raises:
        DataError: there are too few rows to divide.

    Example:
        >>> train, validation = held_out(60000)
        >>> len(train), len(validation)
        (55000, 5000)
    """
    if rows < 2:
        raise DataError(f"A training split of {rows} row(s) can't be divided into training and validation.")
    order = np.random.default_rng(SEED).permutation(rows)
    count = max(1, min(round(SHARE * rows), MOST))
    return np.sort(order[count:]), np.sort(order[:count])


def load_split(
    spec: TaskSpec,
    split: str,
    *,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """One split of a task.

    Args:
        spec: the task.
        split: ``"train"``, ``"validation"`` or ``"test"``. Validation is held out of train (see
            [`held_out`][]), except where the task has a split of its own for it.
        classes: numbers of the classes that make up the task, where it is a part of a data set
            (Split CIFAR-100, MC-SGD); rows of others are left out.
        limit: at most so many rows, a random choice in the order of the data. A larger limit keeps
            the rows of a smaller one.
        seed: of that choice.

    Returns:
        The rows. Labels are class numbers with names (``ClassLabel``) wherever names are known, the
        same numbers in every split, with or without ``classes``. Tasks with a wording have the columns
        ``text`` and ``answer``.

    Raises:
        DataError: the data can't be read, the labels don't fit the task, or a class has no sample to
            train on.
    """
    if split not in SPLITS:
        raise DataError(
            f"A task has no split {split!r}.{did_you_mean(split, SPLITS)} Choose one of {', '.join(SPLITS)}."
        )
    if limit is not None and limit < 1:
        raise DataError(f"The limit must be at least 1 row, got {limit}.")
    if spec.kind == TEXT_TO_TEXT and spec.wording is None:
        raise DataError(f"The text-to-text task {spec.name} has no wording. Give its TaskSpec one.")
    part = split if split in spec.splits else "train"
    table = load_table(spec.source, split=spec.splits[part], config=spec.config, revision=spec.revision)
    if spec.kind != TEXT_TO_TEXT:
        table = _with_names(spec, table, label_column(spec, table))
        require_labels(spec, table, part, classes)
    elif classes is not None:
        raise DataError(f"The task {spec.name} is {spec.kind}: it has no classes to choose from.")
    if part == "train" and "validation" not in spec.splits:
        train, validation = held_out(len(table))
        table = table.select(validation if split == "validation" else train)
    if classes is not None:
        table = _of_classes(spec, table, split, classes)
    if limit is not None and limit < len(table):
        table = table.select(np.sort(np.random.default_rng(seed).permutation(len(table))[:limit]))
    return table if spec.wording is None else _as_text(spec, spec.wording, table)


def label_column(spec: TaskSpec, table: datasets.Dataset) -> str:
    """The column of a task's labels.

    Args:
        spec: a classification task.
        table: one of its splits.

    Returns:
        Its name.

    Raises:
        DataError: there is no such column, or the task has no classes.
    """
    if "label" not in spec.columns:
        raise DataError(f"The task {spec.name} is {spec.kind}: it has answers, and no labels.")
    return known_column(table, spec.columns["label"], f"the labels of the task {spec.name}")


def image_column(spec: TaskSpec, table: datasets.Dataset) -> str:
    """The column of a task's images: the data set's own, or the only one of a local copy.

    Args:
        spec: an image task.
        table: one of its splits.

    Returns:
        Its name.

    Raises:
        DataError: no column holds images, or several do.
    """  # noqa: DOC502 (raised by what this calls)
    named = spec.columns.get("image")
    return choose_image_column(table, named if named in table.features else None)


def class_words(spec: TaskSpec, table: datasets.Dataset) -> tuple[str, ...]:
    """The classes in words, in the order of a table's own labels: what a zero-shot head is made of.

    The order is that of the data. Where the task is known, the words are the registry's, and every
    name in the data must be one of them.

    Args:
        spec: a classification task.
        table: one of its splits.

    Returns:
        One name a label.

    Raises:
        DataError: the names in the data are not the task's; the first that differ are listed.
    """  # noqa: DOC502 (raised by what this calls)
    return matched_words(spec, getattr(table.features[label_column(spec, table)], "names", None))


def matched_words(spec: TaskSpec, names: Sequence[str] | None) -> tuple[str, ...]:
    """Match the class names of a data set with those of the task.

    Args:
        spec: the task.
        names: of the data's classes in the order of the labels, or None if they have no names.

    Returns:
        The words for each label.

    Raises:
        DataError: names are not the task's, or there are none at all.

    Example:
        >>> from mergescope.data.registry import task_spec
        >>> matched_words(task_spec("imdb"), ["neg", "pos"])
        ('negative', 'positive')
    """
    if spec.classes is None:
        if names is None:
            raise DataError(
                f"The labels of {spec.name} are numbers without names, so there are no words for a zero-shot head. "
                "Cast the label column to a datasets.ClassLabel with names, or use a linear head."
            )
        return tuple(name.replace("_", " ").strip() for name in names)
    if names is None:
        return spec.classes
    if sorted(int(name) if name.isdecimal() else -1 for name in names) == list(range(len(spec.classes))):
        return tuple(spec.classes[int(name)] for name in names)  # directories called by number
    known = {canonical(name): name for name in spec.classes}
    known |= {canonical(other): name for other, name in spec.aliases.items()}
    found = [known.get(canonical(name)) for name in names]
    missing = [name for name in spec.classes if name not in found]
    if None in found or missing or len(found) != len(spec.classes):
        pairs = zip(names, found, strict=True)
        foreign = [f"{name!r} (label {place})" for place, (name, match) in enumerate(pairs) if match is None]
        raise DataError(
            f"The classes of {spec.source} are not those of the task {spec.name}: it has {len(names)}, the task "
            f"{len(spec.classes)}. Not known to the task: {_some(foreign)}. Not in the data: "
            f"{_some([repr(name) for name in missing])}. If this is another data set, give it another name: "
            "name=directory."
        )
    return tuple(str(name) for name in found)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def require_labels(
    spec: TaskSpec, table: datasets.Dataset, part: str, classes: Sequence[int] | None = None
) -> None:
    """Refuse labels that are no classes of the task, and classes that nothing can be learned of.

    Args:
        spec: a classification task.
        table: a whole split.
        part: ``"train"`` or another. Only in train must every class occur.
        classes: those that make up the task; by default all.

    Raises:
        DataError: a label is missing or out of range, names differ, or a class is empty.
    """
    column = label_column(spec, table)
    names = getattr(table.features[column], "names", None)
    words = None if spec.classes is None and names is None else matched_words(spec, names)
    ids = set(read_labels(table, column, classes=None if words is None else len(words)).ids.tolist())
    if part != "train":
        return
    count = max(ids) + 1 if words is None else len(words)
    unknown = sorted(set(classes or ()) - set(range(count)))
    if unknown or (classes is not None and not classes):
        raise DataError(
            f"{spec.name} ({spec.source}) has the classes 0 to {count - 1}, so that its part can't be made up of "
            f"{unknown or 'none'}. Choose some of them."
        )
    absent = sorted(set(range(count) if classes is None else classes) - ids)
    if absent:
        advice = "Fetch the whole data set, or take the empty classes out of the label names."
        if words is None:
            advice = f"Number the classes from 0, or choose those that occur: classes={sorted(ids)}."
        raise DataError(
            f"The training split of {spec.name} ({spec.source}) has no sample of {len(absent)} of its {count} "
            f"classes: {_some([_named(words, label) for label in absent])}. {advice}"
        )


def _named(words: Sequence[str] | None, label: int) -> str:
    return f"label {label}" if words is None else f"{words[label]!r} (label {label})"


def _of_classes(
    spec: TaskSpec, table: datasets.Dataset, split: str, classes: Sequence[int]
) -> datasets.Dataset:
    column = label_column(spec, table)
    ids = read_labels(table, column).ids.numpy()
    absent = sorted(set(classes) - set(ids.tolist()))
    if absent and split == "train":
        names = getattr(table.features[column], "names", None)
        raise DataError(
            f"Nothing is left to train on of {len(absent)} of the {len(classes)} classes that were chosen of "
            f"{spec.name} ({spec.source}): {_some([_named(names, label) for label in absent])}. What they have is "
            "held out for validation. Leave them out, or fetch more data."
        )
    chosen = np.flatnonzero(np.isin(ids, list(classes)))
    if not len(chosen):
        raise DataError(
            f"The {split} split of {spec.name} ({spec.source}) has no sample of the classes {sorted(classes)}. "
            "Choose more classes, or fetch more data."
        )
    return table.select(chosen)


def _with_names(spec: TaskSpec, table: datasets.Dataset, column: str) -> datasets.Dataset:
    if not is_text(table.features[column]):
        return table
    import datasets

    names: set[str] = set()
    for split in spec.splits.values():  # one split may lack a class: both decide on the numbers
        rows = load_table(spec.source, split=split, config=spec.config, revision=spec.revision)
        names |= {name for name in rows[column][:] if name is not None}
    with quiet_datasets():
        # First to plain strings: the long ones of pandas can't be cast by every version of the library.
        plain = table.cast_column(column, datasets.Value("string"))
        return plain.cast_column(column, datasets.ClassLabel(names=sorted(names)))


def _as_text(spec: TaskSpec, wording: Wording, table: datasets.Dataset) -> datasets.Dataset:
    import datasets

    classes: tuple[str, ...] = ()
    column = wording.label
    if column is not None and column in table.features:  # else the wording says what the data lack
        table = _with_names(spec, table, column)
        names = getattr(table.features[column], "names", None)
        if spec.classes is None and names is None:  # numbers are names enough
            names = [str(n) for n in range(int(read_labels(table, column).ids.max()) + 1)]
        classes = matched_words(spec, names)
    parts = ("text", "answer")
    features = datasets.Features({part: datasets.Value("string") for part in parts})

    def fill(row: dict[str, Any]) -> dict[str, str | None]:
        return dict(zip(parts, wording.fill_what_is_there(row, classes), strict=True))

    with quiet_datasets():
        filled = table.map(fill, remove_columns=table.column_names, features=features)
    if any(filled.data.column(part).null_count == len(filled) for part in parts):
        wording.fill(table[0], classes)  # says which field is empty
    return filled.select_columns(list(parts))
