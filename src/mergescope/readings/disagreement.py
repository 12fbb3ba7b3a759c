"""How far what two points say is apart, sample by sample: the ``dist`` of weight disentanglement."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from mergescope.errors import DataError, MergescopeError, did_you_mean
from mergescope.readings.reading import Batch, require_same_start

DISTANCES = ("predictions", "kl")
"""Names of distances between outputs."""


class Disagreement:
    """Distance between the outputs, or the representations, of pairs of points (TANGENT; ATTN Property 4).

    - ``predictions``: 1 where the predicted classes differ, else 0 (TANGENT); of a causal language model
      the share of a text's tokens that are guessed differently.
    - ``kl``: ``1/2 KL(p|q) + 1/2 KL(q|p)`` of the softmax of outputs or of a layer's features (ATTN), in
      nats: ``1/2 sum (p - q)(log p - log q)``.

    A batch is reduced at once: one number a pair and sample is kept, no output and no feature.

    Args:
        pairs: of points, in the order of the results.
        distance: one of [`DISTANCES`][].
        layer: whose features are compared, by ``kl``; None for outputs.
        classes: the task's classes; other logits are left out (one head shared by tasks).

    Raises:
        MergescopeError: there is no such distance, or features have no predictions.

    Example:
        >>> reading = Disagreement([("a", "b"), ("a", "a")])
        >>> reading.start(["a", "b"], [])
        >>> one, other = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> reading.update(Batch({}, [one, other], None))
        >>> reading.distances()
        array([[0., 1.],
               [0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Hashable, Hashable]],
        distance: str = "predictions",
        layer: str | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        require_distance(distance, layer)
        self.pairs, self.distance, self.layer = list(pairs), distance, layer
        self.classes = None if classes is None else sorted(classes)
        self.needs_features = layer is not None
        self.points: list[Hashable] = []
        self.layers: list[str] = []

    def start(self, points: Sequence[Hashable], layers: Sequence[str]) -> None:
        """Fix the points.

        Args:
            points: the trace's points, in order.
            layers: the trace's layers.

        Raises:
            MergescopeError: the reading was started before, or points or the layer are not in the trace.
        """
        if self.points:
            raise MergescopeError("A reading belongs to one trace: make a new Disagreement() for each.")
        places = {point: place for place, point in enumerate(points)}
        unknown = [point for pair in self.pairs for point in pair if point not in places]
        if unknown:
            raise MergescopeError(f"Disagreement: these are no points of this trace: {unknown[:3]}.")
        if self.layer is not None and self.layer not in layers:
            raise MergescopeError(
                f"Disagreement: {self.layer!r} is no layer of this trace.{did_you_mean(self.layer, layers)} Its layers "
                f"are {', '.join(layers)}."
            )
        self.points, self.layers = list(points), list(layers)
        self._places = np.array([(places[one], places[other]) for one, other in self.pairs]).reshape(-1, 2)
        self._values: list[np.ndarray] = []

    def update(self, batch: Batch) -> None:
        """Add the distances of a batch.

        Args:
            batch: outputs ``(batch, classes)`` or next tokens of all points, and the layer's features.

        Raises:
            DataError: rows are tokens and not samples, or outputs have no such distance.
        """
        values = batch.outputs if self.layer is None else batch.features.get(self.layer, ())
        if not values:
            return
        if self.layer in batch.units:
            raise DataError(
                f"Disagreement takes one feature a sample, and {self.layer} has one a token here. Choose features "
                "mean, last, cls or all."
            )
        if hasattr(values[0], "counts"):
            self._values.append(self._tokens(values))
        elif values[0].ndim != 2:
            raise DataError(
                f"Disagreement takes outputs (batch, classes); this model gives {list(values[0].shape)}."
            )
        else:
            self._values.append(self._divergences(values) if self.distance == "kl" else self._guesses(values))

    def _tokens(self, said: Sequence[Any]) -> np.ndarray:
        if self.distance == "kl":
            raise DataError(
                "The logits of a causal language model are as wide as its vocabulary and are not kept, so their "
                "divergence is not known. Compare predictions, or choose a layer."
            )
        counts = said[0].counts.cpu().numpy()
        guesses = np.stack([output.predicted.cpu().numpy() for output in said])
        texts = counts.sum(1)
        out = np.empty((len(self.pairs), len(texts)), np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            for row, (one, other) in enumerate(self._places):
                out[row] = ((guesses[one] != guesses[other]) & counts).sum(1) / texts
        return out

    def _guesses(self, logits: Sequence[torch.Tensor]) -> np.ndarray:
        guesses = np.stack([self._of_task(values).argmax(-1).cpu().numpy() for values in logits])
        return (guesses[self._places[:, 0]] != guesses[self._places[:, 1]]).astype(np.float32)

    def _divergences(self, values: Sequence[torch.Tensor]) -> np.ndarray:
        firsts: dict[int, torch.Tensor] = {}  # few points are compared with many
        out = np.empty((len(self.pairs), len(values[0])), np.float32)
        for row, (one, other) in enumerate(self._places):
            if one not in firsts:
                firsts[one] = self._log_softmax(values[one])
            p, q = firsts[one], firsts[one] if one == other else self._log_softmax(values[other])
            out[row] = (0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)).cpu().numpy()
        return out

    def _log_softmax(self, values: torch.Tensor) -> torch.Tensor:
        # Float64: near 0 the divergence is a sum of products of small differences.
        return self._of_task(values).double().log_softmax(-1)

    def _of_task(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.classes is None or self.layer is not None else values[:, self.classes]

    def merge(self, other: Disagreement) -> None:
        """Append the samples of a later part of the pass.

        Args:
            other: a reading of the same points, pairs and distance.

        Raises:
            MergescopeError: it is of others.
        """
        require_same_start(self, other)
        own, its = ((r.pairs, r.distance, r.layer, r.classes) for r in (self, other))
        if own != its:
            raise MergescopeError(
                "Only Disagreement of the same pairs, distance, layer and classes can be merged."
            )
        self._values += other._values

    def distances(self) -> np.ndarray:
        """Distance of each pair on each sample.

        Returns:
            ``(pairs, samples)``, float32; NaN for a text without a token that counts.
        """
        return np.concatenate(self._values, axis=1)


def require_distance(distance: str, layer: str | None = None) -> None:
    """Refuse a distance that does not exist, or not between features.

    Args:
        distance: its name.
        layer: whose features are to be compared, or None for outputs.

    Raises:
        MergescopeError: that is so.

    Example:
        >>> require_distance("kl", "blocks.0")
    """
    if distance not in DISTANCES:
        raise MergescopeError(
            f"There is no distance {distance!r}.{did_you_mean(distance, DISTANCES)} Choose one of "
            f"{', '.join(DISTANCES)}."
        )
    if layer is not None and distance != "kl":
        raise MergescopeError(
            f"The features of {layer} predict nothing. Compare them by their divergence: distance kl."
        )
