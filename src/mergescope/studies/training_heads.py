"""Which head a network is fine-tuned with, by policy and kind of network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mergescope.data import load_tokenizer
from mergescope.errors import DataError, MergescopeError, MismatchError, did_you_mean
from mergescope.models.features import Features, kind_of_model
from mergescope.models.heads import FILE, Head, linear_head, load_head, require_classes
from mergescope.models.with_head import WithHead
from mergescope.models.zero_shot import user_cache, zero_shot_head
from mergescope.weights import Checkpoint

AUTO, OWN, ZERO_SHOT = "auto", "none", "zero-shot"

HEADS = {
    AUTO: "zero-shot for a CLIP with a text tower, none for networks that write or have a shared head, else trained",
    "trained": "linear, random at first, trained with the body",
    "frozen-random": "linear, random, never trained",
    ZERO_SHOT: "the class names through CLIP's text tower, never trained",
    OWN: "the network's own outputs are trained",
}
"""Policies of a task head; a directory with a head is the other choice."""


def head_policy(head: str, network: nn.Module) -> str:
    """Which head a network gets.

    Args:
        head: one of [`HEADS`][], or a directory with a head.
        network: the pretrained network.

    Returns:
        The policy, not ``"auto"``, or the directory.

    Raises:
        MergescopeError: there is no such head, or the network takes none or not this one.

    Example:
        >>> from mergescope import MLP
        >>> head_policy("auto", MLP((4, 3, 2)))
        'none'
    """
    if head not in HEADS and not Path(head, FILE).is_file():
        raise MergescopeError(
            f"There is no head {head!r}.{did_you_mean(head, HEADS)} Choose one of {', '.join(HEADS)}, or a directory "
            f"with {FILE}."
        )
    name, kind = type(network).__name__, kind_of_model(network)
    if kind in ("plain", "encoder-decoder"):
        if head not in (AUTO, OWN):
            why = "ends in a head that its tasks share" if kind == "plain" else "writes its answers"
            raise MergescopeError(f"{name} {why}, so it takes no head {head!r}. Leave the head out.")
        return OWN
    if head == ZERO_SHOT and not _reads_and_sees(network):
        raise MergescopeError(
            f"{name} has no text tower to make a zero-shot head of. Fine-tune the whole CLIPModel, or name a directory "
            f"with a head that its text tower made ({FILE})."
        )
    if head != AUTO:
        return head
    if kind == "decoder" and Features.of(network).writes:
        return OWN
    return ZERO_SHOT if _reads_and_sees(network) else "trained"


def _reads_and_sees(network: nn.Module) -> bool:
    wanted = ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")
    return all(hasattr(network, name) for name in wanted)


def make_head(
    policy: str,
    network: Any,
    base: Checkpoint,
    inputs: Any,
    *,
    classes: Sequence[str],
    words: Sequence[str] = (),
    templates: Sequence[str] = (),
    task: str = "the data",
    seed: int = 0,
) -> Head:
    """A head as it is before training.

    Args:
        policy: from [`head_policy`][], not ``"none"``.
        network: the pretrained network.
        base: its checkpoint, whose directory has the tokenizer.
        inputs: of one batch, to see what the network's embedding is.
        classes: names as the data have them, in the order of the labels.
        words: the classes in words, for zero-shot heads.
        templates: texts with one ``{}`` for the class, for zero-shot heads.
        task: what to call the data.
        seed: of random heads.

    Returns:
        The head. Its classes are called as in the data, so that the data can be measured with it.

    Raises:
        MismatchError: a given head is for other classes or embeddings.
        DataError: there is no tokenizer, or it does not fit.
    """  # noqa: DOC502 (raised by what this calls)
    if policy == ZERO_SHOT:
        if base.directory is None:
            raise DataError(f"{base.name} has no directory, so there is no tokenizer for its class names.")
        scale = float(network.logit_scale.detach())
        tokenizer = load_tokenizer(getattr(base, "tokenizer_directory", base.directory))
        head = zero_shot_head(network, tokenizer, words, templates, logit_scale=scale, cache=user_cache())
        return replace(head, classes=tuple(classes))
    size = embedding_size(network, inputs)
    if policy in HEADS:
        return linear_head(size, classes, seed, policy)
    head = load_head(Path(policy))
    require_classes(head, classes, task)
    if head.dim != size:
        raise MismatchError(
            f"The head in {policy} does not fit {base.name}:",
            [f"it takes embeddings of length {head.dim}, the network gives {size}"],
            "Take a head of this base's fine-tunes, or have one made: head='auto'.",
        )
    return (
        replace(head, policy="given") if head.policy == "trained" else head
    )  # it is given, and stays as it is


@torch.no_grad()
def embedding_size(network: nn.Module, inputs: Any) -> int:
    """Length of the embedding that a head is put on.

    Args:
        network: a backbone.
        inputs: of one batch.

    Returns:
        The length.

    Example:
        >>> embedding_size(nn.Linear(5, 4), torch.ones(1, 5))
        4
    """
    return WithHead(network, linear_head(1, ["any"], 0)).embedding(inputs).shape[-1]
