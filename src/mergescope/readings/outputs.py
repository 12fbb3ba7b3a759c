"""Accuracy and loss of every point, sample by sample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from mergescope.errors import DataError, MergescopeError
from mergescope.readings.reading import (
    Batch,
    class_labels,
    place_among,
    require_labels_alike,
    require_same_start,
)


class Outputs:
    """Predicted class and, with labels, cross-entropy loss and correctness per sample for each point.

    With ``ensembles``, the same for the *mean of the logits* of several points (CTL 4.2 compares
    ``f(mean theta)`` with ``mean f(theta)``).

    Args:
        classes: the task's classes; other logits are masked out (one head shared by tasks).
        ensembles: name to the points whose logits are averaged.

    Example:
        >>> reading = Outputs()
        >>> reading.start(["a"], [])
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> reading.update(Batch({}, [logits], torch.tensor([0, 0])))
        >>> reading.correct("a"), reading.predictions("a")
        (array([1., 0.]), array([0, 1]))
    """

    needs_features = False

    def __init__(
        self,
        classes: Sequence[int] | None = None,
        ensembles: Mapping[Hashable, Sequence[Hashable]] | None = None,
    ) -> None:
        self.classes = None if classes is None else sorted(classes)
        self.ensembles = {name: list(members) for name, members in (ensembles or {}).items()}
        self.points: list[Hashable] = []
        self.layers: list[str] = []

    def start(self, points: Sequence[Hashable], layers: Sequence[str]) -> None:
        """Fix the points.

        Args:
            points: the trace's points, in order.
            layers: not used.

        Raises:
            MergescopeError: the reading was started before, or an ensemble names an unknown point.
        """
        if self.points:
            raise MergescopeError("A reading belongs to one trace: make a new Outputs() for each.")
        unknown = [m for members in self.ensembles.values() for m in members if m not in points]
        if unknown:
            raise MergescopeError(
                f"Outputs: these members of ensembles are not points of this trace: {unknown}."
            )
        self.points, self.layers = list(points), list(layers)
        self._index = {point: i for i, point in enumerate([*points, *self.ensembles])}
        self._losses: list[np.ndarray] = []
        self._predictions: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def update(self, batch: Batch) -> None:
        """Add the losses and predictions of a batch.

        Args:
            batch: outputs of all points, ``(batch, classes)`` each, with labels if there are any.

        Raises:
            DataError: labels are no classes, outside the classes or missing in some batches, or outputs are no
                logits.
        """
        if not batch.outputs:
            return
        labels = batch.labels
        if self._predictions:
            require_labels_alike(self.labelled, labels is not None)
        logits = torch.stack([output.float() for output in batch.outputs])
        if logits.ndim != 3:
            shape = list(batch.outputs[0].shape)
            raise DataError(f"Accuracy and loss need logits (batch, classes); this model gives {shape}.")
        labels = None if labels is None else class_labels(labels, logits.shape[1])
        if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[-1]):
            raise DataError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, but the model has "
                f"{logits.shape[-1]} classes (0 to {logits.shape[-1] - 1})."
            )
        position = {point: i for i, point in enumerate(self.points)}
        means = [logits[[position[m] for m in members]].mean(0) for members in self.ensembles.values()]
        if means:
            logits = torch.cat([logits, torch.stack(means)])
        if self.classes is not None:
            keep = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            keep[self.classes] = True
            if labels is not None and not bool(keep[labels].all()):
                bad = sorted(set(labels[~keep[labels]].tolist()))
                raise DataError(f"Labels {bad} are not among the task's classes {self.classes}.")
            logits = logits.masked_fill(~keep, float("-inf"))
        self._predictions.append(logits.argmax(-1).cpu().numpy())
        if labels is None:
            return
        count, samples, classes = logits.shape
        losses = F.cross_entropy(logits.reshape(-1, classes), labels.repeat(count), reduction="none")
        self._losses.append(losses.view(count, samples).double().cpu().numpy())
        self._labels.append(labels.cpu().numpy())

    def merge(self, other: Outputs) -> None:
        """Append the samples of a later part of the pass.

        Args:
            other: a reading of the same points, classes and ensembles.

        Raises:
            MergescopeError: its points, classes or ensembles differ.
            DataError: one has labels and the other has none.
        """  # noqa: DOC502 (raised by what this calls)
        require_same_start(self, other)
        if (self.classes, self.ensembles) != (other.classes, other.ensembles):
            raise MergescopeError("Only Outputs of the same classes and ensembles can be merged.")
        if self._predictions and other._predictions:
            require_labels_alike(self.labelled, other.labelled)
        self._losses += other._losses
        self._predictions += other._predictions
        self._labels += other._labels

    @property
    def labelled(self) -> bool:
        """Whether there are labels, hence losses."""
        return bool(self._labels)

    def losses(self, point: Hashable) -> np.ndarray:
        """Cross-entropy of each sample.

        Args:
            point: a point or the name of an ensemble.

        Returns:
            ``(samples,)``, natural logarithm.

        Raises:
            DataError: the data have no labels.
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        self._require_labels()
        return np.concatenate(self._losses, axis=1)[place_among(point, self._index)]

    def predictions(self, point: Hashable) -> np.ndarray:
        """Predicted class of each sample.

        Args:
            point: a point or the name of an ensemble.

        Returns:
            ``(samples,)``, integers.

        Raises:
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        return np.concatenate(self._predictions, axis=1)[place_among(point, self._index)]

    def correct(self, point: Hashable) -> np.ndarray:
        """Whether each sample is classified correctly.

        Args:
            point: a point or the name of an ensemble.

        Returns:
            ``(samples,)`` of 0.0 and 1.0; its mean is the accuracy.

        Raises:
            DataError: the data have no labels.
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        self._require_labels()
        return (self.predictions(point) == np.concatenate(self._labels)).astype(float)

    def _require_labels(self) -> None:
        if not self._labels:
            raise DataError("Accuracy and loss need labels: yield (inputs, labels).")

    def agreement(self, first: Hashable, second: Hashable) -> np.ndarray:
        """Whether two points predict the same class.

        Args:
            first: a point or ensemble.
            second: another.

        Returns:
            ``(samples,)`` of 0.0 and 1.0.

        Raises:
            PointError: a point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        return (self.predictions(first) == self.predictions(second)).astype(float)
