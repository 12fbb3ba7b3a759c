"""What training minimises: cross-entropy of classes, of the next tokens, or of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mergescope.errors import DataError
from mergescope.models.features import TOKEN_MASK, Features
from mergescope.models.layers import OUTPUT, feature_of


class Objective:
    """Mean cross-entropy of a batch, and how many predictions are right.

    What a prediction is depends on the network:

    - a classifier predicts the class of a sample, over the logits of the task's classes;
    - a causal language model predicts each token that counts (labels other than -100, by default
      the text itself without padding and prompt);
    - an encoder-decoder predicts an answer. Its loss is the mean over the answer's tokens, each given those
      before it, so that results don't depend on which answers share a batch. It is right if all its
      tokens are: exactly then greedy decoding writes this answer.

    Args:
        model: decides which it is.
        classes: the task's classes; the loss is over these logits only (one shared head).
        label_smoothing: in [0, 1).
    """

    def __init__(
        self, model: nn.Module, classes: Sequence[int] | None = None, label_smoothing: float = 0.0
    ) -> None:
        self.features = Features.of(model)
        self.classes = classes
        self.label_smoothing = label_smoothing

    def __call__(
        self, model: nn.Module, inputs: Any, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a batch.

        Args:
            model: the network.
            inputs: a tensor or a mapping of arguments.
            labels: classes ``(batch,)``, tokens ``(batch, tokens)`` padded with -100, or None for text.

        Returns:
            Mean loss, number of right predictions, number of predictions.

        Raises:
            DataError: labels are missing or don't fit the network.
        """
        sequence = labels is not None and labels.ndim == 2
        if sequence and self.features.kind == "encoder-decoder":
            # The decoder sees the labels one place later; transformers shifts them itself.
            given = {key: value for key, value in inputs.items() if key != TOKEN_MASK}
            logits = feature_of(model(**given, labels=labels, use_cache=False), OUTPUT)
        else:
            logits = feature_of(self.features.call(model, inputs), OUTPUT)
        if self.features.kind == "decoder" and logits.ndim == 3:
            logits, labels = logits[:, :-1], self._next(inputs, labels)[:, 1:]
        if labels is None:
            raise DataError("Training needs labels: a column of classes, or a causal language model on text.")
        logits = logits.flatten(0, -2).float()
        flat = labels.flatten()
        if logits.shape[0] != flat.shape[0]:
            raise DataError(
                f"The network gives {logits.shape[0]} predictions for {flat.shape[0]} labels. Is its head that of this "
                "task?"
            )
        counted = flat[flat != -100]
        require_labels(counted, logits.shape[-1], self.classes)
        if sequence and self.features.kind == "encoder-decoder":
            return self._answers(logits, labels)
        logits = masked(logits, self.classes)
        if self.label_smoothing and self.classes is not None:  # spread over the task's classes only
            spread = -logits.log_softmax(-1)[:, list(self.classes)].mean()
            loss = (1 - self.label_smoothing) * F.cross_entropy(logits, flat) + self.label_smoothing * spread
        else:
            loss = F.cross_entropy(logits, flat, label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(-1) == flat).sum()
        return loss, right, len(counted)

    def _answers(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        each = F.cross_entropy(
            logits, labels.flatten(), reduction="none", label_smoothing=self.label_smoothing
        ).view_as(labels)
        counts = (labels != -100).sum(1)
        present = counts > 0
        loss = (each.sum(1) / counts.clamp_min(1))[present].mean()
        fits = (logits.detach().argmax(-1).view_as(labels) == labels) | (labels == -100)
        return loss, (fits.all(1) & present).sum(), int(present.sum())

    def _next(self, inputs: Any, labels: torch.Tensor | None) -> torch.Tensor:
        wanted = inputs["input_ids"] if labels is None else labels
        mask = inputs.get(TOKEN_MASK, inputs.get("attention_mask"))
        return wanted if mask is None else wanted.masked_fill(mask == 0, -100)


def require_labels(labels: torch.Tensor, outputs: int, classes: Sequence[int] | None) -> None:
    """Refuse labels that the network has no output for, or that are not the task's.

    Args:
        labels: any shape.
        outputs: how many logits there are.
        classes: the task's classes, or None.

    Raises:
        DataError: there are such labels; all are named.
    """
    known = set(range(outputs)) if classes is None else set(classes) & set(range(outputs))
    wrong = sorted(set(labels.unique().tolist()) - known)
    if wrong:
        task = "" if classes is None else f", and the task's classes are {sorted(classes)}"
        raise DataError(f"Labels {wrong} can't be learned: the network has {outputs} outputs{task}.")


def masked(logits: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
    """Logits of a task's classes, the others at minus infinity.

    Args:
        logits: ``(samples, outputs)``.
        classes: the task's, or None for all.

    Returns:
        Logits of the same shape.
    """
    if classes is None or len(classes) == logits.shape[-1]:
        return logits
    mask = torch.full((logits.shape[-1],), float("-inf"), device=logits.device)
    mask[list(classes)] = 0.0
    return logits + mask
