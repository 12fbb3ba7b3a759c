"""A backbone and a task head as one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mergescope.errors import MergescopeError, MismatchError
from mergescope.models.features import TOKEN_MASK, Features, kind_of_model
from mergescope.models.heads import Head
from mergescope.models.layers import OUTPUT, feature_of
from mergescope.models.loading import key_map, matching_keys
from mergescope.models.towers import headless, text_tower_entries
from mergescope.weights.kinds import kind_of
from mergescope.weights.selection import Selection

BACKBONE = "backbone"
"""The submodule that the backbone is."""


class Classified(NamedTuple):
    """What a backbone with a head returns.

    Attributes:
        logits: ``(batch, classes)``.
        embedding: ``(batch, dim)``, before it is normalised.
    """

    logits: torch.Tensor
    embedding: torch.Tensor


class Classifier(nn.Module):
    """A head as a module. Its parameters need a gradient if it is trained.

    Args:
        head: the head.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.normalise = head.normalise
        for name in ("weight", "bias"):
            value = head.tensors.get(name)
            self.register_parameter(
                name, None if value is None else nn.Parameter(value.clone(), requires_grad=head.trains)
            )

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits.

        Args:
            embedding: ``(batch, dim)``.

        Returns:
            ``(batch, classes)``.
        """
        if self.normalise:
            embedding = F.normalize(embedding, dim=-1)
        weight: Any = self.weight  # a mean over tokens is of float32, whatever the network computes in
        return F.linear(embedding.to(weight.dtype), weight, self.bias)  # type: ignore[arg-type]


class WithHead(nn.Module):
    """A backbone with a task head: ``head(pool(backbone(x)))``.

    The embedding of a sample is the network's own where it gives one (``image_embeds`` or
    ``text_embeds`` of CLIP with projection, the pooled output of CLIP without), the class token of
    other vision transformers (the mean over places of networks that have none), the mean over tokens
    of text encoders (a prompt's tokens too) and the last token of decoders.

    Of a whole CLIP only the image tower is taken, and of a network that ends in a head for another task
    its body (see [`headless`][mergescope.models.towers.headless]).

    Modules and tensors of the backbone keep their names, after ``backbone.``.

    Args:
        backbone: a network. Its memory is shared.
        head: the head.

    Raises:
        MismatchError: on the first pass, the head is for embeddings of another length.
        MergescopeError: the backbone is an encoder-decoder, which writes its answers.

    Example:
        >>> from mergescope.models.heads import linear_head
        >>> model = WithHead(nn.Linear(5, 4), linear_head(4, ["cat", "dog"], seed=0))
        >>> model(torch.ones(3, 5)).logits.shape, sorted(model.head_entries)
        (torch.Size([3, 2]), ['head.bias', 'head.weight'])
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        backbone = headless(backbone)
        kind = kind_of_model(backbone)
        if kind == "encoder-decoder":
            raise MergescopeError(
                f"{type(backbone).__name__} writes its answers, so it takes no head. Fine-tune it on text."
            )
        self.backbone = backbone
        self.head = Classifier(head)
        self.task_head = head
        self.config = getattr(backbone, "config", None)
        if hasattr(backbone, "main_input_name"):
            self.main_input_name = backbone.main_input_name
        if hasattr(backbone, "base_model_prefix"):
            self.base_model_prefix = (
                BACKBONE  # what PEFT and transformers ask of a network with a configuration
            )
        self._pooling = Features(kind, _choice(backbone, kind))

    def forward(self, *args: Any, **inputs: Any) -> Classified:
        """Classify.

        Args:
            args: what the backbone takes.
            inputs: what the backbone takes by name.

        Returns:
            Logits and embedding.

        Raises:
            MismatchError: the head is for embeddings of another length.
        """
        embedding = self._embedding(self.backbone(*args, **inputs), inputs or args[0])
        if embedding.shape[-1] != self.task_head.dim:
            raise MismatchError(
                f"The head does not fit {type(self.backbone).__name__}:",
                [
                    f"it takes embeddings of length {self.task_head.dim}, the backbone gives {embedding.shape[-1]}"
                ],
                "Make the head for this backbone.",
            )
        return Classified(self.head(embedding), embedding)

    def embedding(self, inputs: Any) -> torch.Tensor:
        """What the head is put on. A prompt's tokens count for it like all others.

        Args:
            inputs: of a batch, a tensor or a mapping of arguments.

        Returns:
            ``(batch, dim)``.
        """
        if isinstance(inputs, Mapping):  # as in a forward pass, which is not told where a prompt ends
            inputs = {name: value for name, value in inputs.items() if name != TOKEN_MASK}
        return self._embedding(self._pooling.call(self.backbone, inputs), inputs)

    def _embedding(self, output: Any, inputs: Any) -> torch.Tensor:
        for name in ("image_embeds", "text_embeds"):
            value = getattr(output, name, None)
            if isinstance(value, torch.Tensor):
                return value
        if getattr(self.config, "model_type", "").startswith(("clip", "siglip")):
            return output.pooler_output  # CLIP's projection is of this, not of the last hidden state
        return self._pooling.rows(OUTPUT, feature_of(output, OUTPUT), inputs)

    @property
    def head_entries(self) -> frozenset[str]:
        """Names of the head's entries in the state dict: what no backbone's checkpoint fills."""
        return frozenset(name for name in self.state_dict() if not name.startswith(f"{BACKBONE}."))

    @property
    def current_head(self) -> Head:
        """The head as it is now; after training, with other weights and digest.

        Raises:
            MergescopeError: it has changed, though its policy says that it does not.
        """  # noqa: DOC502 (raised by what this calls)
        return _head_of(self, self.head.state_dict())

    def view(self, source: Any) -> Selection:
        """A backbone's checkpoint under this network's names, to trace or load.

        Args:
            source: a checkpoint of the backbone. A head that it has for another task is left out, and so is
                the text tower of a whole CLIP.

        Returns:
            The view. Trace it with ``fixed=model.head_entries``.

        Raises:
            MismatchError: it does not fit the backbone; all tensors that don't are named.
        """  # noqa: DOC502 (raised by what this calls)
        own = set(matching_keys(self.backbone, source).values())
        others = text_tower_entries(source.spec) if self._pooling.kind == "image" else set()
        body = Selection(
            source,
            {key: key for key in source.spec if key in own or (kind_of(key) != "head" and key not in others)},
        )
        mapping = key_map(self.backbone, body)
        return Selection(source, {f"{BACKBONE}.{name}": key for name, key in mapping.items()})


def _choice(backbone: nn.Module, kind: str) -> str:
    if kind != "image":
        return {"plain": "all", "encoder": "mean", "decoder": "last"}[kind]
    tokens = ("cls_token", "class_token", "class_embedding")
    return "cls" if any(name.endswith(tokens) for name, _ in backbone.named_parameters()) else "mean"


def split_state(
    model: WithHead, names: Mapping[str, str] | None = None, state: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], Head]:
    """Take a network apart into what is saved as its backbone and what as its head.

    Args:
        model: the network.
        names: of [`WithHead.view`][] of the base (``view.names``): the network's names to those of the
            base's checkpoint, so that fine-tune and base have the same keys. Without it, the
            backbone's own names.
        state: the network's state dict, if it is not the one it has now: what a regime reads off a
            wrapper of it.

    Returns:
        The backbone's state dict (copies), and the head.

    Raises:
        MergescopeError: the head has changed, though its policy says that it does not.

    Example:
        >>> from mergescope.models.heads import linear_head
        >>> state, head = split_state(WithHead(nn.Linear(3, 4), linear_head(4, ["a", "b"], seed=0)))
        >>> sorted(state), head.classes
        (['bias', 'weight'], ('a', 'b'))
    """  # noqa: DOC502 (raised by what this calls)
    names, state = names or {}, model.state_dict() if state is None else state
    prefix = f"{BACKBONE}."
    body = {
        names.get(name, name.removeprefix(prefix)): value.detach().clone()
        for name, value in state.items()
        if name.startswith(prefix)
    }
    return body, _head_of(
        model, {n.removeprefix("head."): v for n, v in state.items() if n.startswith("head.")}
    )


def _head_of(model: WithHead, tensors: Mapping[str, torch.Tensor]) -> Head:
    head = model.task_head
    if head.trains:
        found = {name: value.detach().clone() for name, value in tensors.items()}
        return replace(head, weight=found["weight"], bias=found.get("bias"), digest="")
    for name, value in head.tensors.items():
        if not torch.equal(tensors[name].detach(), value.to(tensors[name])):
            raise MergescopeError(
                f"The {head.policy} head was changed: head.{name} has other values. Name it as frozen when training: "
                "frozen=('head',)."
            )
    return head
