"""Next-token loss and agreement of causal language models, text by text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mergescope.errors import DataError, MergescopeError
from mergescope.readings.reading import Batch, place_among, require_same_start


class NextTokenLoss:
    """Mean cross-entropy of the next token, and the share of tokens guessed, per text and point.

    ``L(x) = -1/T sum_t log p(x_t | x_<t)`` over the ``T`` tokens that count (no padding, no prompt).
    It takes what [`Features.output`][mergescope.models.features.Features.output] makes of logits:
    losses and guesses, not the logits, which are as wide as the vocabulary.

    Example:
        >>> import torch
        >>> from mergescope.models.features import NextTokens
        >>> reading = NextTokenLoss()
        >>> reading.start(["a"], [])
        >>> said = NextTokens(torch.tensor([[0.5, 1.5]]), torch.tensor([[3, 4]]), torch.tensor([[3, 5]]),
        ...                   torch.tensor([[True, True]]))
        >>> reading.update(Batch({}, [said], None))
        >>> reading.losses("a"), reading.correct("a")
        (array([1.]), array([0.5]))
    """

    needs_features = False

    def __init__(self) -> None:
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
            raise MergescopeError("A reading belongs to one trace: make a new NextTokenLoss() for each.")
        self.points, self.layers = list(points), list(layers)
        self._index = {point: i for i, point in enumerate(self.points)}
        self._losses: list[np.ndarray] = []
        self._correct: list[np.ndarray] = []
        self._guesses: list[np.ndarray] = []

    def update(self, batch: Batch) -> None:
        """Add a batch of texts.

        Args:
            batch: its outputs are [`NextTokens`][mergescope.models.features.NextTokens].

        Raises:
            DataError: the outputs are not those of a causal language model.
        """
        if not batch.outputs:
            return
        said = batch.outputs
        if not all(hasattr(output, "counts") for output in said):
            raise DataError(
                "Next-token loss needs a causal language model on text; use Outputs() for classifiers."
            )
        counts = said[0].counts.cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            texts = counts.sum(1)
            # Chosen and not multiplied: whatever stands at padding, even NaN, is left out.
            losses = [
                np.where(counts, output.losses.double().cpu().numpy(), 0).sum(1) / texts for output in said
            ]
            hits = [
                ((output.predicted == output.wanted).cpu().numpy() * counts).sum(1) / texts for output in said
            ]
        self._losses.append(np.stack(losses))
        self._correct.append(np.stack(hits))
        ends = np.cumsum(texts)[:-1]
        guessed = np.stack([output.predicted.cpu().numpy()[counts].astype(np.int32) for output in said])
        self._guesses += np.split(guessed, ends, axis=1)

    def merge(self, other: NextTokenLoss) -> None:
        """Append the texts of a later part of the pass.

        Args:
            other: a reading of the same points.

        Raises:
            MergescopeError: its points differ.
        """  # noqa: DOC502 (raised by what this calls)
        require_same_start(self, other)
        self._losses += other._losses
        self._correct += other._correct
        self._guesses += other._guesses

    def losses(self, point: Hashable) -> np.ndarray:
        """Mean next-token loss of each text.

        Args:
            point: a point of the trace.

        Returns:
            ``(texts,)``, natural logarithm; NaN for a text without a token that counts.

        Raises:
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        return np.concatenate(self._losses, axis=1)[place_among(point, self._index)]

    def correct(self, point: Hashable) -> np.ndarray:
        """Share of each text's tokens that were guessed.

        Args:
            point: a point of the trace.

        Returns:
            ``(texts,)`` in [0, 1].

        Raises:
            PointError: the point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        return np.concatenate(self._correct, axis=1)[place_among(point, self._index)]

    def agreement(self, first: Hashable, second: Hashable) -> np.ndarray:
        """Share of each text's tokens for which two points guess the same.

        Args:
            first: a point.
            second: another.

        Returns:
            ``(texts,)`` in [0, 1].

        Raises:
            PointError: a point was not traced.
        """  # noqa: DOC502 (raised by what this calls)
        i, j = place_among(first, self._index), place_among(second, self._index)
        return np.array([
            float((guesses[i] == guesses[j]).mean()) if guesses.shape[1] else np.nan
            for guesses in self._guesses
        ])
