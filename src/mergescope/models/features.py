"""How a layer's output becomes one vector a sample, and a model's output what readings take.

The conventions of CTL (Figs 7 and 19 to 24). The layers of transformers return token maps; texts differ in
length and are padded. What counts as *the* feature of a sample is a choice:

| choice | feature of a sample |
|---|---|
| ``all`` | every token that counts, one after another; padding is zero and so adds nothing |
| ``mean`` | mean over the tokens that count |
| ``last`` | the last token that counts |
| ``cls`` | the first token that is not padding |
| ``each`` | every token that counts is a sample of its own |

Tokens that count are those of ``token_mask`` in a batch (to leave out a prompt), else those of
``attention_mask`` (of an encoder-decoder's decoder: ``decoder_attention_mask``), else all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mergescope.errors import DataError, LayerError, did_you_mean
from mergescope.models.calling import call_model
from mergescope.models.layers import OUTPUT, feature_of

TOKEN_MASK = "token_mask"  # noqa: S105 (not a password)
"""Key of a batch: which tokens count, ``(batch, tokens)``. It is not passed to the model."""

CHOICES = {
    "auto": "what the field uses for this kind of model",
    "all": "every token that counts, one after another",
    "mean": "mean over the tokens that count",
    "last": "the last token that counts",
    "cls": "the first token that is not padding",
    "each": "every token that counts as a sample of its own",
}

DEFAULT = {"plain": "all", "image": "all", "encoder": "all", "decoder": "last", "encoder-decoder": "mean"}
"""What ``auto`` means for each kind of model."""


_JUDGES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Ends of names of networks that judge a text, although their family writes texts."""


@dataclass(frozen=True)
class NextTokens:
    """What a causal language model says about the tokens of a batch, without the logits.

    Attributes:
        losses: ``(batch, tokens - 1)``, cross-entropy of each next token, float32.
        predicted: the most likely next tokens.
        wanted: the tokens that came.
        counts: which of them count: no padding, no prompt.
    """

    losses: torch.Tensor
    predicted: torch.Tensor
    wanted: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class Features:
    """The convention of one measurement.

    Attributes:
        kind: ``"plain"`` (any ``nn.Module``), ``"image"``, ``"encoder"`` (text), ``"decoder"``
            (causal language model) or ``"encoder-decoder"``.
        choice: one of [`CHOICES`][], not ``auto``.
        start: token that an encoder-decoder's decoder begins with.
        writes: whether a decoder's logits are of next tokens; not if the network judges texts.

    Example:
        >>> features = Features("encoder", "mean")
        >>> batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
        >>> features.rows("layer", torch.tensor([[[1.0], [3.0], [99.0]]]), batch)
        tensor([[2.]])
    """

    kind: str = "plain"
    choice: str = "all"
    start: int | None = None
    writes: bool = True

    @classmethod
    def of(cls, model: nn.Module, choice: str = "auto") -> Features:
        """The convention for a model.

        Args:
            model: the network.
            choice: one of [`CHOICES`][].

        Returns:
            The convention.

        Raises:
            LayerError: there is no such choice.
        """
        if choice not in CHOICES:
            raise LayerError(
                f"There are no features {choice!r}.{did_you_mean(choice, CHOICES)} Choose one of: "
                f"{'; '.join(f'{name} ({meaning})' for name, meaning in CHOICES.items())}."
            )
        if getattr(model, "affine", False):  # of a linearised network, the one inside says how it is called
            model = getattr(model, "network", model)
        kind = kind_of_model(model)
        config: Any = getattr(model, "config", None)
        start = None
        if kind == "encoder-decoder":
            start = getattr(config, "decoder_start_token_id", None)
            if start is None:
                start = getattr(config, "pad_token_id", None) or 0
        writes = not type(model).__name__.endswith(_JUDGES)
        return cls(kind, DEFAULT[kind] if choice == "auto" else choice, start if writes else None, writes)

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the model on a batch: one forward pass, no generation.

        Args:
            model: the network.
            inputs: a tensor or a mapping of arguments.

        Returns:
            What the model returns. An encoder-decoder gets the start token as its decoder's input,
            so its output is that of the first generated token.
        """
        if not isinstance(inputs, Mapping):
            if self.kind not in ("decoder", "encoder-decoder"):
                return call_model(model, inputs)
            inputs = {"input_ids": inputs}
        arguments = {key: value for key, value in inputs.items() if key != TOKEN_MASK}
        if self.kind == "encoder-decoder" and self.writes and "decoder_input_ids" not in arguments:
            ids = arguments["input_ids"]
            arguments["decoder_input_ids"] = ids.new_full((len(ids), 1), self.start or 0)
        if self.kind in ("decoder", "encoder-decoder"):
            arguments.setdefault("use_cache", False)
        return call_model(model, arguments)

    def rows(self, layer: str, value: torch.Tensor, inputs: Any) -> torch.Tensor:
        """One vector a sample (or, with ``each``, a token) of a layer's output.

        Args:
            layer: its name.
            value: ``(batch, tokens, width)``, or any ``(batch, ...)``, which is flattened.
            inputs: of the batch, for the masks.

        Returns:
            ``(rows, dim)``; may share memory with the value.

        Raises:
            LayerError: the layer's output has no tokens to choose from.
        """
        if value.ndim < 3:
            return value.unsqueeze(-1).flatten(1)  # one number a sample is a vector, too
        if self.kind == "plain" or (self.kind == "image" and value.ndim == 4):
            if self.choice not in ("all", "mean"):
                raise LayerError(
                    f"The layer {layer!r} returns {list(value.shape)}, not tokens, so features {self.choice!r} make "
                    "no sense. Choose all or mean."
                )
            if self.choice == "all":
                return value.flatten(1)
            # (batch, tokens, width), or maps of (batch, channels, height, width)
            return value.mean(1) if value.ndim == 3 else value.flatten(2).mean(2)
        value = value.flatten(2)
        places = torch.arange(len(value), device=value.device)
        if self.choice == "cls":
            mask = self._mask(layer, value, inputs, prompt=True)
            return value[:, 0] if mask is None else value[places, mask.int().argmax(1)]
        mask = self._mask(layer, value, inputs)
        if self.choice == "each":
            return value.flatten(0, 1) if mask is None else value[mask]
        if self.choice == "last":
            return value[:, -1] if mask is None else value[places, _last(mask)]
        if mask is not None:  # filled and not multiplied: whatever stands at padding, even NaN, is left out
            value = value.masked_fill(~mask.unsqueeze(-1), 0)
        if self.choice == "all":
            return value.flatten(1)
        # Half precision would round every sum of tokens.
        sums = value.sum(1, dtype=torch.promote_types(value.dtype, torch.float32))
        return sums / (value.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp_min(1))

    def units(self, layer: str, value: torch.Tensor, inputs: Any) -> torch.Tensor | None:
        """Which sample each row of [`Features.rows`][] belongs to.

        Args:
            layer: its name.
            value: a layer's output.
            inputs: of the batch.

        Returns:
            ``(rows,)`` positions in the batch, or None where each sample gives one row.
        """
        if self.choice != "each" or value.ndim < 3 or self.kind == "plain":
            return None
        samples, tokens = value.shape[:2]
        mask = self._mask(layer, value, inputs)
        index = torch.arange(samples, device=value.device).unsqueeze(1).expand(samples, tokens)
        return index.flatten() if mask is None else index[mask]

    def _mask(
        self, layer: str, value: torch.Tensor, inputs: Any, prompt: bool = False
    ) -> torch.Tensor | None:
        if not isinstance(inputs, Mapping):
            return None
        names: tuple[str, ...] = ("attention_mask",) if prompt else (TOKEN_MASK, "attention_mask")
        # A decoder's tokens are those of the decoder's input, which the other masks don't describe.
        if self.kind == "encoder-decoder" and (layer == OUTPUT or "decoder" in layer.split(".")):
            # One that judges a text is given the text again, one place to the right.
            names = ("decoder_attention_mask", *(() if self.writes else ("attention_mask",)))
        for name in names:
            mask = inputs.get(name)
            if mask is not None and mask.shape == value.shape[:2]:
                return mask.bool()
        return None

    def output(self, result: Any, inputs: Any, labels: torch.Tensor | None) -> torch.Tensor | NextTokens:
        """What readings of outputs take.

        Args:
            result: what the model returned.
            inputs: of the batch.
            labels: ``(batch,)`` classes, for language models ``(batch, tokens)`` with -100 where
                nothing is to be predicted, or None.

        Returns:
            Logits or embedding ``(batch, dim)``; for a causal language model on text, [`NextTokens`][].

        Raises:
            DataError: the labels don't fit.
        """  # noqa: DOC502 (raised by what this calls)
        value = feature_of(result, OUTPUT)
        if self.kind == "decoder" and self.writes and value.ndim == 3 and hasattr(result, "logits"):
            return self._next_tokens(value, inputs, labels)
        if self.kind == "encoder-decoder" and labels is not None and labels.ndim != 1:
            raise DataError(
                f"An encoder-decoder's labels are the first tokens that it should generate, (batch,), got "
                f"{list(labels.shape)}. Give labels[:, 0], or leave labels out."
            )
        return self.output_rows(result, inputs)

    def require_centred(self, layer: str, value: torch.Tensor, inputs: Any) -> None:
        """Refuse features of which no mean can be taken away: at padding it would stand with the other sign.

        Args:
            layer: its name.
            value: as for [`rows`][].
            inputs: of the batch, for the masks.

        Raises:
            LayerError: they are those of all tokens, and there is padding.
        """
        if self.choice != "all" or value.ndim < 3 or self.kind in ("plain", "image"):
            return
        mask = self._mask(layer, value.flatten(2), inputs)
        if mask is not None and not bool(mask.all()):
            raise LayerError(
                f"The features of {layer!r} are all tokens of padded texts, which have no mean to be centred by. "
                "Choose features mean, last, cls or each."
            )

    def output_rows(self, result: Any, inputs: Any) -> torch.Tensor:
        """The feature of the network's own output: logits, or the embedding of a headless model.

        Args:
            result: what the model returned.
            inputs: of the batch.

        Returns:
            ``(batch, dim)``. A token map is reduced to the last token that counts for decoders and
            to the mean over tokens for others: a map of logits over a vocabulary is too large.
        """
        value = feature_of(result, OUTPUT)
        if value.ndim < 3 or self.kind == "plain":
            return value.unsqueeze(-1).flatten(1)
        choice = self.choice if self.choice in ("mean", "last", "cls") else None
        last = self.kind in ("decoder", "encoder-decoder")
        choice = choice or ("last" if last else "mean")
        return Features(self.kind, choice, self.start, self.writes).rows(OUTPUT, value, inputs)

    def _next_tokens(self, logits: torch.Tensor, inputs: Any, labels: torch.Tensor | None) -> NextTokens:
        wanted = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
        if labels is not None:
            wanted = labels
        if wanted is None or wanted.shape != logits.shape[:2]:
            raise DataError(
                f"A causal language model's labels are tokens of shape {list(logits.shape[:2])}, got "
                f"{'none' if wanted is None else list(wanted.shape)}. Leave labels out to predict the text itself."
            )
        wanted = wanted[:, 1:]
        counts = wanted >= 0
        mask = self._mask(OUTPUT, logits, inputs)
        if mask is not None:
            counts = counts & mask[:, 1:]
        mask = self._mask(OUTPUT, logits, inputs, prompt=True)
        if mask is not None:  # nothing is predicted from padding: sides of padding make no difference
            counts = counts & mask[:, :-1]
        losses, predicted = [], []
        # Float32 logits of one text at a time.
        for row, target in zip(logits[:, :-1], wanted.clamp_min(0), strict=True):
            losses.append(F.cross_entropy(row.float(), target, reduction="none"))
            predicted.append(row.argmax(-1))
        return NextTokens(torch.stack(losses), torch.stack(predicted), wanted, counts)


def _last(mask: torch.Tensor) -> torch.Tensor:
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)


def kind_of_model(model: nn.Module) -> str:
    """What sort of model it is, for conventions.

    Args:
        model: any network.

    Returns:
        ``"plain"``, ``"image"``, ``"encoder"``, ``"decoder"`` or ``"encoder-decoder"``.

    Example:
        >>> kind_of_model(nn.Linear(2, 1))
        'plain'
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not hasattr(model, "main_input_name"):
        return "plain"
    if getattr(config, "is_encoder_decoder", False) and not type(model).__name__.endswith("EncoderModel"):
        return "encoder-decoder"
    if model.main_input_name == "pixel_values":
        return "image"
    from transformers.models.auto import modeling_auto as auto

    name = config.model_type
    causal = name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if causal and name not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"
