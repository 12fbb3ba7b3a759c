"""The logits of every point, kept: what a surrogate of them is fitted to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from mergescope.errors import DataError, MergescopeError
from mergescope.readings.reading import (
    Batch,
    class_labels,
    place_among,
    require_labels_alike,
    require_same_start,
)

MEMORY = 2**31
"""Bytes that kept logits may take by default: 2 GiB, 64 points x 8,000 samples x 1,000 classes."""


class Logits:
    """Logits of each sample and point, in memory: ``points x samples x classes`` numbers of four bytes.

    Every other reading reduces; this one keeps, so it has a limit and refuses data that exceed it.

    Args:
        classes: the task's classes; only their logits are kept, in ascending order, and labels are counted
            among them.
        memory: bytes that the logits may take.

    Example:
        >>> reading = Logits(classes=(0, 2))
        >>> reading.start(["a"], [])
        >>> reading.update(Batch({}, [torch.tensor([[2.0, 9.0, 1.0]])], torch.tensor([2])))
        >>> reading.values("a"), reading.labels
        (tensor([[2., 1.]]), tensor([1]))
    """

    needs_features = False

    def __init__(self, classes: Sequence[int] | None = None, memory: int = MEMORY) -> None:
        self.classes = None if classes is None else sorted(classes)
        self.memory = memory
        self.points: list[Hashable] = []
        self.layers: list[str] = []

    def start(self, points: Sequence[Hashable], layers: Sequence[str]) -> None:
        """Fix the points.

        Args:
            points: the trace's points, in order.
            layers: not used.

        Raises:
            MergescopeError: the reading was started before.
        """
        if self.points:
            raise MergescopeError("A reading belongs to one trace: make a new Logits() for each.")
        self.points, self.layers = list(points), list(layers)
        self._index = {point: i for i, point in enumerate(self.points)}
        self._values: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._bytes = 0

    def update(self, batch: Batch) -> None:
        """Keep the logits of a batch.

        Args:
            batch: outputs of all points, ``(batch, classes)`` each, with labels if there are any.

        Raises:
            DataError: the outputs are no logits, labels are no classes, missing in some batches or not among them,
                or the logits take more than the memory allowed.
        """
        if not batch.outputs:
            return
        if not all(isinstance(output, torch.Tensor) and output.ndim == 2 for output in batch.outputs):
            raise DataError("Keeping logits needs a classifier whose outputs are (batch, classes).")
        values = torch.stack([output.detach().float().cpu() for output in batch.outputs])
        if self._values:
            require_labels_alike(bool(self._labels), batch.labels is not None)
        if batch.labels is not None:
            labels = class_labels(batch.labels, values.shape[1])
            self._labels.append(self._among(labels.cpu(), values.shape[-1]))
        if self.classes is not None:
            values = values[..., self.classes]
        self._values.append(values)
        self._bytes += values.nbytes
        self._require_room()

    def merge(self, other: Logits) -> None:
        """Append the samples of a later part of the pass.

        Args:
            other: a reading of the same points and classes.

        Raises:
            MergescopeError: its points or classes differ.
            DataError: one has labels and the other has none, or both together take more than the memory allowed.
        """  # noqa: DOC502 (raised by what this calls)
        require_same_start(self, other)
        if self.classes != other.classes:
            raise MergescopeError("Only Logits of the same classes can be merged.")
        if self._values and other._values:
            require_labels_alike(bool(self._labels), bool(other._labels))
        self._values += other._values
        self._labels += other._labels
        self._bytes += other._bytes
        self._require_room()

    def values(self, point: Hashable) -> torch.Tensor:
        """Logits of each sample.

        Args:
            point: a point of the trace.

        Returns:
            ``(samples, classes)``, float32.

        Raises:
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        place = place_among(point, self._index)
        return torch.cat([part[place] for part in self._values])

    @property
    def labels(self) -> torch.Tensor | None:
        """``(samples,)`` positions among the kept classes, or None if the data have no labels."""
        return torch.cat(self._labels) if self._labels else None

    def _require_room(self) -> None:
        if self._bytes > self.memory:
            seen, width = sum(part.shape[1] for part in self._values), self._values[-1].shape[-1]
            raise DataError(
                f"The logits of {seen} samples at {len(self.points)} points, {width} classes each, exceed the "
                f"{self.memory / 2**20:,.0f} MiB they may take. Give fewer samples, fewer points, or more memory=."
            )

    def _among(self, labels: torch.Tensor, width: int) -> torch.Tensor:
        known = torch.arange(width) if self.classes is None else torch.tensor(self.classes)
        places = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
        wrong = sorted(set(labels[known[places] != labels].tolist()))
        if wrong:
            named = f"0 to {width - 1}" if self.classes is None else str(self.classes)
            raise DataError(f"Labels {wrong} are not among the classes, {named}.")
        return places
