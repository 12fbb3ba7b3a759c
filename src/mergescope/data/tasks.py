"""Tasks: named classification problems with train, validation and test splits in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mergescope.errors import DataError


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    Attributes:
        inputs: ``(samples, channels, height, width)``, float32 in [0, 1].
        labels: ``(samples,)``, int64.
        units: ``(samples,)``, what each sample is a view of (the same digit under two rotations is
            one unit); used to resample honestly.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    units: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: np.ndarray | torch.Tensor) -> Split:
        """Some of the samples.

        Args:
            index: integer positions or a boolean mask.

        Returns:
            The split with only those.
        """
        places = np.asarray(index)
        return Split(
            self.inputs[torch.as_tensor(places)], self.labels[torch.as_tensor(places)], self.units[places]
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over inputs and labels."""
        whole = hashlib.sha256(f"{tuple(self.inputs.shape)}".encode())
        whole.update(self.inputs.contiguous().numpy().data)
        whole.update(self.labels.contiguous().numpy().data)
        return whole.hexdigest()


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: for tables, for example ``"45 deg"``.
        train: what fine-tuning sees.
        validation: for choosing coefficients; taken from the training part, never from test.
        test: for reporting only.
        classes: the classes that occur; logits of others are masked when the head is shared.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[int, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the three splits and the classes."""
        parts = [
            self.train.fingerprint,
            self.validation.fingerprint,
            self.test.fingerprint,
            str(self.classes),
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def batches(split: Split, size: int = 256) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut a split into batches, in order: the data of a trace.

    Args:
        split: the samples.
        size: samples a batch; the last may be smaller.

    Returns:
        Pairs ``(inputs, labels)``.

    Raises:
        DataError: the split is empty.

    Example:
        >>> split = Split(torch.zeros(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64), np.arange(5))
        >>> [len(labels) for _, labels in batches(split, 2)]
        [2, 2, 1]
    """
    if not len(split):
        raise DataError("The split is empty: there is nothing to batch.")
    return list(zip(split.inputs.split(size), split.labels.split(size), strict=True))


def stratified_split(labels: np.ndarray, shares: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Disjoint random parts with every class in the same proportion.

    Args:
        labels: ``(samples,)``.
        shares: the share of each part; they sum to 1.
        seed: of the shuffle.

    Returns:
        Positions of each part, ascending.

    Raises:
        DataError: the shares don't sum to 1, or a class is too small to be in every part.

    Example:
        >>> parts = stratified_split(np.repeat([0, 1], 10), (0.7, 0.1, 0.2), seed=0)
        >>> [len(part) for part in parts]
        [14, 2, 4]
    """
    if abs(sum(shares) - 1) > 1e-9:
        raise DataError(f"The shares of a split must sum to 1, got {list(shares)}.")
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(shares) * len(members)).astype(int)
        pieces = np.split(members, ends[:-1])
        if any(share > 0 and not len(piece) for share, piece in zip(shares, pieces, strict=True)):
            raise DataError(
                f"Class {label} has only {len(members)} samples: too few for shares {list(shares)}."
            )
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) for part in parts)
