"""Image data sets in memory, as tasks: so many images a class, and parts of consecutive classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergescope.data.digits import EMBEDDED, class_pairs, digits
from mergescope.data.labels import read_labels
from mergescope.data.pictures import pixels
from mergescope.data.registry import task_spec
from mergescope.data.task_splits import SPLITS, image_column, label_column, load_split
from mergescope.data.tasks import Split, Task
from mergescope.errors import DataError

if TYPE_CHECKING:
    import datasets


def image_task(
    source: str, *, train: int | None = None, test: int | None = None, channels: int = 3, seed: int = 0
) -> Task:
    """All classes of an image data set, with so many images of each.

    Args:
        source: ``"embedded"`` for the digits that come with the package's demo extra; otherwise as for
            [`task_spec`][mergescope.data.registry.task_spec]: a known task, a directory with parquet files, a hub id.
        train: images a class to train on; by default all.
        test: images a class of validation and of test data; by default all.
        channels: 1 or 3. Embedded digits have one.
        seed: of the choice.

    Returns:
        The task; the order of its samples is random, so that batches are not of one class. Images
        ``(samples, channels, height, width)`` in [0, 1].

    Raises:
        DataError: the data can't be read, hold no images or images of several sizes.
    """  # noqa: DOC502 (raised by what this calls)
    rng = np.random.default_rng(seed)
    wanted = {"train": train, "validation": test, "test": test}
    if source == EMBEDDED:
        whole = digits()
        parts = {name: getattr(whole, name) for name in SPLITS}
        parts = {
            name: part.select(_some(part.labels.numpy(), wanted[name], rng)) for name, part in parts.items()
        }
        return Task("digits", parts["train"], parts["validation"], parts["test"], whole.classes)
    spec = task_spec(source)
    first, parts = 0, {}
    for name in SPLITS:
        table = load_split(spec, name)
        ids = read_labels(table, label_column(spec, table)).ids.numpy()
        chosen = _some(ids, wanted[name], rng)
        inputs = _images(table.select(chosen), image_column(spec, table), channels, spec.name, name)
        units = first + chosen
        parts[name] = Split(inputs, torch.from_numpy(ids[chosen].astype(np.int64)), units)
        first += len(table)
    classes = tuple(np.unique(parts["train"].labels.numpy()).tolist())
    return Task(spec.name, parts["train"], parts["validation"], parts["test"], classes)


def balanced(split: Split) -> Split:
    """As many samples of every class, the first of each, so that parts of as many classes are of one size.

    Args:
        split: any.

    Returns:
        A split in the same order; the same one if its classes are balanced.

    Example:
        >>> labels = torch.tensor([0, 1, 0, 0, 1])
        >>> balanced(Split(torch.zeros(5, 1), labels, np.arange(5))).units.tolist()
        [0, 1, 2, 4]
    """
    labels = split.labels.numpy()
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if (counts == counts.min()).all():
        return split
    order = np.argsort(places, kind="stable")  # class by class, in the order of the samples
    within = np.empty(len(labels), np.int64)
    within[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return split.select(np.flatnonzero(within < counts.min()))


def consecutive_parts(task: Task, count: int) -> list[Task]:
    """Split a task into parts of consecutive classes, as Split CIFAR-100 (CTL; MC-SGD).

    Args:
        task: with all classes.
        count: how many parts; the classes that are left over are in none.

    Returns:
        One task a part, named by its first and last class.

    Raises:
        DataError: there are fewer than two classes for each part.

    Example:
        >>> labels = torch.arange(10)
        >>> split = Split(torch.zeros(10, 1, 2, 2), labels, labels.numpy())
        >>> [part.name for part in consecutive_parts(Task("ten", split, split, split, tuple(range(10))), 4)]
        ['0/1', '2/3', '4/5', '6/7']
    """
    size = len(task.classes) // count
    if size < 2:
        raise DataError(
            f"{task.name} has {len(task.classes)} classes: too few for {count} parts of two or more."
        )
    parts = [task.classes[place * size : (place + 1) * size] for place in range(count)]
    found = class_pairs(task, parts)
    return [
        Task(f"{part[0]}/{part[-1]}" if size == 2 else f"{part[0]}-{part[-1]}", it.train, it.validation, it.test, part)
        for it, part in zip(found, parts, strict=True)
    ]  # fmt: skip


def replaced(own: Split, other: Split, share: float, seed: int = 0) -> Split:
    """Replace some samples by those of another split (CTL Fig. 12).

    The samples that go, and those that come, are the first of fixed random orders: a larger share replaces more of
    the same.

    Args:
        own: the split.
        other: where the new samples come from; at least as many as are replaced.
        share: of samples to replace, in [0, 1].
        seed: of the orders.

    Returns:
        A split of the same size, in random order.

    Raises:
        DataError: the share is not in [0, 1], or the other split has too few samples.

    Example:
        >>> one, two = (Split(torch.full((4, 1), float(v)), torch.full((4,), v), np.arange(4)) for v in (1, 2))
        >>> sorted(replaced(one, two, 0.25).labels.tolist())
        [1, 1, 1, 2]
    """
    if not 0 <= share <= 1:
        raise DataError(f"The share of replaced samples is between 0 and 1, got {share:g}.")
    count = round(share * len(own))
    if count > len(other):
        raise DataError(f"{count} samples can't be replaced: the other part has only {len(other)}.")
    rng = np.random.default_rng(seed)
    stays = rng.permutation(len(own))[count:]
    comes = rng.permutation(len(other))[:count]
    order = rng.permutation(len(own))
    both = [own.select(stays), other.select(comes)]
    return Split(
        torch.cat([part.inputs for part in both]),
        torch.cat([part.labels for part in both]),
        np.concatenate([part.units for part in both]),
    ).select(order)


def _some(labels: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(labels))
    if count is None:
        return order
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return rng.permutation(np.concatenate(chosen))


def _images(table: datasets.Dataset, column: str, channels: int, task: str, split: str) -> torch.Tensor:
    import datasets

    table = table.cast_column(column, datasets.Image())  # files written without the library lack the type
    arrays: Sequence[Any] = [pixels(image, channels) for image in table[column][:]]
    sizes = {array.shape for array in arrays}
    if len(sizes) != 1:
        shown = ", ".join(f"{height}x{width}" for height, width, _ in sorted(sizes)[:3])
        raise DataError(
            f"The images of {task} ({split}) have different sizes: {shown or 'there is none'}. Resize them to one "
            "size first; the networks of this study take them as they are."
        )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255
