"""What a reading is: a streaming reduction over a trace.

A trace calls ``start`` once, ``update`` for each batch, and ``merge`` when a pass was split.
Readings know tensors and positions only, no checkpoints and no networks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from mergescope.errors import DataError, LayerError, MergescopeError, PointError, did_you_mean


@dataclass(frozen=True)
class Batch:
    """What all points made of one batch.

    Attributes:
        features: layer to one tensor a point, each ``(rows, dim)``, on the model's device. Layers may
            come one at a time (the streamed executor), samples always in the same order.
        outputs: one a point, logits or embeddings ``(batch, dim)`` or next-token losses; empty if
            this part of a batch brings layers only.
        labels: ``(batch,)`` class indices, or None.
        local: like ``features``, but each layer was fed the reference's input to it.
        units: layer to ``(rows,)``, the sample that each row belongs to, counted over the pass;
            layers with one row a sample are absent.
    """

    features: Mapping[str, Sequence[torch.Tensor]]
    outputs: Sequence[Any]
    labels: torch.Tensor | None
    local: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    units: Mapping[str, np.ndarray] = field(default_factory=dict)


class Reading(Protocol):
    """A streaming reduction. ``merge`` appends the samples of a later part of the same pass."""

    needs_features: bool

    def start(self, points: Sequence[Hashable], layers: Sequence[str]) -> None:
        """Learn which points and layers will come, in which order."""

    def update(self, batch: Batch) -> None:
        """Take in one batch."""

    def merge(self, other: Any) -> None:
        """Append another reading of the same kind, points and layers."""


def require_labels_alike(one: bool, other: bool) -> None:
    """Refuse data of which only some batches have labels.

    Args:
        one: whether some batches have labels.
        other: whether others have.

    Raises:
        DataError: they differ.
    """
    if one != other:
        raise DataError("Some batches have labels and some have none. Give labels to all or to none.")


def require_same_start(first: Any, second: Any) -> None:
    """Refuse to merge readings of different points or layers.

    Args:
        first: a started reading.
        second: the one to append.

    Raises:
        MergescopeError: their kind, points or layers differ.
    """
    if type(first) is not type(second) or first.points != second.points or first.layers != second.layers:
        raise MergescopeError(
            "Only readings of the same kind, points and layers can be merged: "
            f"{type(first).__name__} of {len(first.points)} points at {list(first.layers)}, "
            f"{type(second).__name__} of {len(second.points)} points at {list(second.layers)}."
        )


def class_labels(labels: torch.Tensor, samples: int) -> torch.Tensor:
    """Labels as indices of classes, whatever integers they are.

    Args:
        labels: of a batch.
        samples: how many it has.

    Returns:
        ``(samples,)``, int64.

    Raises:
        DataError: they are no integers, or not one a sample.

    Example:
        >>> class_labels(torch.tensor([0, 2], dtype=torch.uint8), 2)
        tensor([0, 2])
    """
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (samples,):
        dtype = str(labels.dtype).removeprefix("torch.")
        raise DataError(
            f"A batch of {samples} samples needs a class for each, integers of shape [{samples}], got labels {dtype} "
            f"{list(labels.shape)}. Give the numbers of the classes, or leave labels out."
        )
    return labels.long()


def place_among(point: Hashable, places: Mapping[Hashable, int]) -> int:
    """Position of a point in a reading.

    Args:
        point: what is asked for.
        places: point to position.

    Returns:
        The position.

    Raises:
        PointError: the point was not traced.

    Example:
        >>> place_among("b", {"a": 0, "b": 1})
        1
    """
    if point not in places:
        name = str(getattr(point, "name", point))
        hint = did_you_mean(name, [str(known) for known in places])
        raise PointError(f"{name} was not traced.{hint} Give it to trace(), or choose one of trace.points.")
    return places[point]


def require_layer(layer: str, layers: Sequence[str]) -> None:
    """Refuse a layer that was not captured.

    Args:
        layer: what is asked for.
        layers: the captured ones.

    Raises:
        LayerError: it is none of them.
    """
    if layer not in layers:
        known = ", ".join(layers) or "none"
        raise LayerError(f"There is no layer {layer!r}.{did_you_mean(str(layer), layers)} Layers: {known}.")
