"""Where a network's layers are: suffix patterns, a table of them by family, and captured outputs.

A pattern names modules by the end of their dotted path, one ``*`` a segment:
``encoder.layers.*`` matches ``vision_model.encoder.layers.3`` and, in transformers 5, where the
prefix is gone, ``encoder.layers.3`` as well. Adding an architecture is adding a line to
[`FAMILIES`][]; what no line fits is guessed from its structure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError, did_you_mean
from mergescope.models.guess import longest_run

OUTPUT = "output"
"""The pseudo-layer that is the network's own output (logits or embedding)."""

FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Lists within lists: before the lines whose lists are their stages.
    ("Swin", ("layers.*.blocks.*",)),
    ("ConvNeXt, ResNet, RegNet", ("stages.*.layers.*", "stages.*.blocks.*")),
    ("ResNet (torchvision)", ("layer1.*", "layer2.*", "layer3.*", "layer4.*")),
    ("mergescope nets, timm ViT, EfficientNet", ("blocks.*", "_blocks.*")),
    ("BERT, RoBERTa, MPNet, DeBERTa, ELECTRA, ViT, DeiT, DINOv2", ("encoder.layer.*",)),
    ("CLIP, SigLIP, BART, OPT", ("encoder.layers.*", "decoder.layers.*")),
    ("T5", ("encoder.block.*", "decoder.block.*")),
    ("Llama, Qwen, Mistral, Gemma, Phi, ModernBERT", ("model.layers.*",)),
    ("GPT-NeoX", ("gpt_neox.layers.*",)),
    ("GPT-2, GPT-J, Bloom, Falcon", ("transformer.h.*",)),
    ("DistilBERT", ("transformer.layer.*",)),
    ("open_clip", ("transformer.resblocks.*",)),
    # Short patterns last: they would take the lines above as well, under a wrong name.
    ("ViT, DeiT (transformers 5); ModernBERT, decoders without a head", ("layers.*",)),
    ("GPT-2, GPT-J, Bloom, Falcon without a head", ("h.*",)),
    ("DINOv3, MobileNet", ("layer.*",)),
)

SHARED = {"ALBERT": "albert_layer_groups.*"}
"""Families whose few layers run many times with the same weights, so that they have no feature."""


@dataclass(frozen=True)
class LayerChoice:
    """Layers, and how they were found.

    Attributes:
        names: full module names in the network's order, with [`OUTPUT`][] last if chosen.
        family: the lines of [`FAMILIES`][] that fit; None if none does, or if layers were named.
        guessed: whether blocks are a guess, for want of a line that fits the better part of the network.
    """

    names: tuple[str, ...]
    family: str | None = None
    guessed: bool = False


def layer_choice(model: nn.Module, layers: str | Sequence[str] = "blocks") -> LayerChoice:
    """The layers that patterns choose, and whether they are known or guessed.

    The blocks are those of every line of the table that fits, so that both towers of a CLIP, an
    encoder and a decoder, or a vision and a language model are taken. A line does not fit where its
    modules lie within those of an earlier line, or are repeated with the modules around them
    (experts of each block). Where no line fits, or the [longest run of equal
    modules][mergescope.models.guess.longest_run] lies elsewhere and is larger, that run is the guess.

    Args:
        model: the network.
        layers: ``"blocks"`` (or only that in a sequence) for the blocks and the output; or one or more suffix
            patterns; ``"output"`` is the network's output.

    Returns:
        The choice.

    Raises:
        LayerError: a pattern matches nothing (near matches are suggested), no family fits and
            nothing repeats, or the blocks share their weights.

    Example:
        >>> layer_choice(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()))
        LayerChoice(names=('0', '1', 'output'), family=None, guessed=True)
    """
    if layers == "blocks" or list(layers) == ["blocks"]:
        _refuse_shared(model)
        found, families = _by_family(model)
        run = longest_run(model)
        if _weight(model, run) > _weight(model, found) and not _overlap(run, found):
            # What fits the table is a small part of this network: its decoder's few blocks, a head.
            found = [name for name in _names(model) if name in {*found, *run}]
            return LayerChoice((*found, OUTPUT), " + ".join(families) or None, guessed=True)
        if found:
            return LayerChoice((*found, OUTPUT), " + ".join(families))
        known = "; ".join(f"{family}: {', '.join(patterns)}" for family, patterns in FAMILIES)
        raise LayerError(
            f"No known block layout in {type(model).__name__}, and no equal modules in a row to guess from. "
            "Name its layers by suffix patterns, layers='path.to.blocks.*'; its modules include "
            f"{_sample(_names(model))}. Known layouts: {known}."
        )
    names = _names(model)
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
    return LayerChoice((*chosen, OUTPUT) if OUTPUT in patterns else tuple(chosen))


def find_layers(model: nn.Module, layers: str | Sequence[str] = "blocks") -> list[str]:
    """Full names of the layers that patterns choose, in the network's order.

    Args:
        model: the network.
        layers: as for [`layer_choice`][].

    Returns:
        Module names, with [`OUTPUT`][] last if chosen.

    Raises:
        LayerError: as for [`layer_choice`][].

    Example:
        >>> from mergescope.models import MLP
        >>> find_layers(MLP())
        ['blocks.0', 'blocks.1', 'output']
        >>> find_layers(MLP(), "blocks.*.0")
        ['blocks.0.0', 'blocks.1.0']
    """  # noqa: DOC502 (raised by what this calls)
    return list(layer_choice(model, layers).names)


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _by_family(model: nn.Module) -> tuple[list[str], list[str]]:
    modules = dict(model.named_modules())
    runnable = [
        name for name in _names(model) if not isinstance(modules[name], (nn.ModuleList, nn.ModuleDict))
    ]
    composed = [name for name in runnable if any(modules[name].children())]
    # Heads keep single operations in lists of the same names, so those count only for want of blocks.
    for names in (composed, runnable):
        found: set[str] = set()
        families = []
        for family, patterns in FAMILIES:
            before = len(found)
            for name in (name for pattern in patterns for name in _once(names, pattern)):
                if not _overlap([name], found):
                    found.add(name)
            if len(found) > before:
                families.append(family)
        if found:
            return [name for name in names if name in found], families
    return [], []


def _overlap(names: list[str], others: Collection[str]) -> bool:
    return any(_within(name, other) or _within(other, name) for name in names for other in others)


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _weight(model: nn.Module, names: list[str]) -> int:
    return sum(entry.numel() for name in names for entry in model.get_submodule(name).parameters())


def _once(names: list[str], pattern: str) -> list[str]:
    """Matches whose surroundings are not numbered copies of each other.

    Args:
        names: of modules.
        pattern: a suffix pattern.

    Returns:
        Those that match in one place only: not the lists in each of many blocks.
    """
    test = _compile(pattern)
    places: dict[str, set[str]] = {}
    matched: list[tuple[str, str]] = []
    for name in names:
        match = test.match(name)
        if match:
            around = match[1]
            places.setdefault(re.sub(r"\d+", "*", around), set()).add(around)
            matched.append((name, around))
    return [name for name, around in matched if len(places[re.sub(r"\d+", "*", around)]) == 1]


def _refuse_shared(model: nn.Module) -> None:
    for family, pattern in SHARED.items():
        found = _matching(_names(model), (pattern,))
        count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
        if found and len(found) != count:
            raise LayerError(
                f"{type(model).__name__} ({family}) has no blocks to measure: it runs {', '.join(found)} with the "
                f"same weights for all of its {'' if count is None else f'{count} '}layers, which so have no single "
                "feature each. Measure its output, layers='output', or modules that run once."
            )


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    tests = [_compile(pattern) for pattern in patterns]
    return [name for name in names if any(test.match(name) for test in tests)]


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(^|.*\.)" + re.escape(pattern).replace(r"\*", r"[^.]+") + "$")


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
