"""Where a network's layers are: suffix patterns, a table of them by family, and captured outputs.

A pattern names modules by the end of their dotted path, one ``*`` a segment:
``encoder.layers.*`` matches ``vision_model.encoder.layers.3`` and, in transformers 5, where the
prefix is gone, ``encoder.layers.3`` as well. Adding an architecture is adding a line to
[`FAMILIES`][].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError, did_you_mean

OUTPUT = "output"
"""The pseudo-layer that is the network's own output (logits or embedding)."""

FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mergescope nets, timm ViT", ("blocks.*",)),
    ("ViT, BERT, RoBERTa", ("encoder.layer.*",)),
    ("CLIP, SigLIP, BART encoder", ("encoder.layers.*",)),
    ("T5", ("encoder.block.*", "decoder.block.*")),
    ("Llama, Qwen, Mistral, Gemma", ("model.layers.*",)),
    ("GPT-2, Bloom, Falcon", ("transformer.h.*",)),
    ("OPT, BART decoder", ("decoder.layers.*",)),
    ("ResNet", ("layer1.*", "layer2.*", "layer3.*", "layer4.*")),
    ("DistilBERT", ("transformer.layer.*",)),
    ("open_clip", ("transformer.resblocks.*",)),
    ("headless decoder", ("layers.*",)),
    ("headless GPT-2", ("h.*",)),
)


def find_layers(model: nn.Module, layers: str | Sequence[str] = "blocks") -> list[str]:
    """Full names of the layers that patterns choose, in the network's order.

    Args:
        model: the network.
        layers: ``"blocks"`` for the blocks of the first family in the table that fits, then the
            output; or one or more suffix patterns; ``"output"`` is the network's output.

    Returns:
        Module names, with [`OUTPUT`][] last if chosen.

    Raises:
        LayerError: a pattern matches nothing (near matches are suggested), or no family fits.

    Example:
        >>> from mergescope.models import MLP
        >>> find_layers(MLP())
        ['blocks.0', 'blocks.1', 'output']
        >>> find_layers(MLP(), "blocks.*.0")
        ['blocks.0.0', 'blocks.1.0']
    """
    names = [name for name, _ in model.named_modules() if name]
    if layers == "blocks":
        for _, patterns in FAMILIES:
            found = _matching(names, patterns)
            if found:
                return [*found, OUTPUT]
        known = "; ".join(f"{family}: {', '.join(patterns)}" for family, patterns in FAMILIES)
        raise LayerError(
            f"No known block layout in {type(model).__name__}. Name its layers by suffix patterns, "
            f"layers='path.to.blocks.*'; its modules include {_sample(names)}. Known layouts: {known}."
        )
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    for pattern in patterns:
        if pattern != OUTPUT and not _matching(names, (pattern,)):
            tails = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names}
            tails |= {".".join(name.split(".")[i:]) for name in tails for i in range(name.count(".") + 1)}
            hint = did_you_mean(pattern, sorted(tails))
            raise LayerError(
                f"The layer pattern {pattern!r} matches no module of {type(model).__name__}.{hint} "
                f"Its modules include {_sample(names)}."
            )
    chosen = _matching(names, tuple(pattern for pattern in patterns if pattern != OUTPUT))
    return [*chosen, OUTPUT] if OUTPUT in patterns else chosen


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    tests = [
        re.compile(r"(^|.*\.)" + re.escape(pattern).replace(r"\*", r"[^.]+") + "$") for pattern in patterns
    ]
    return [name for name in names if any(test.match(name) for test in tests)]


def _sample(names: list[str], limit: int = 8) -> str:
    shown = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
    return ", ".join(shown[:limit]) + (", ..." if len(shown) > limit else "")


def feature_of(output: Any, layer: str) -> torch.Tensor:
    """The tensor in what a module returned: itself, a tuple's first, or a ModelOutput's main one.

    Args:
        output: what ``forward`` returned. Hugging Face layers return tuples in transformers 4
            and bare tensors in 5; models return ModelOutputs.
        layer: the layer's name, for the error.

    Returns:
        The feature, ``(batch, ...)``.

    Raises:
        LayerError: there is no floating-point tensor in it.
    """
    if isinstance(output, torch.Tensor):
        return output
    for field in ("logits", "image_embeds", "text_embeds", "last_hidden_state"):
        value = getattr(output, field, None)
        if isinstance(value, torch.Tensor):
            return value
    if isinstance(output, (tuple, list)):
        for value in output:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                return value
    raise LayerError(
        f"The layer {layer!r} returned a {type(output).__name__} without a feature tensor. "
        "Choose a module that returns a tensor, a tuple that starts with one, or a ModelOutput."
    )
