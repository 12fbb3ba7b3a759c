"""The body that models with different heads share.

Fine-tunes of one base often end in different heads: a language-model head in the base, classifiers
of 2, 12 and 20 classes in the fine-tunes. Their bodies can be combined and measured; each task's
head stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mergescope.errors import MismatchError
from mergescope.models.layers import OUTPUT
from mergescope.models.loading import matching_keys
from mergescope.weights.selection import Selection


@dataclass(frozen=True)
class Body:
    """What models have in common.

    Attributes:
        models: the models, each as a view of its body under the network's names.
        fixed: entries of the network's state dict that are no part of it: its head.
        left_out: model name to its tensors that are no part of it.
    """

    models: tuple[Selection, ...]
    fixed: frozenset[str]
    left_out: dict[str, tuple[str, ...]]


def shared_body(network: nn.Module, models: Sequence[Any], layers: Sequence[str]) -> Body:
    """Find the tensors that all models have, under a network's names.

    Args:
        network: one model's network; its head is kept as it is.
        models: checkpoints.
        layers: the network's blocks; everything before their end must be common.

    Returns:
        The body.

    Raises:
        MismatchError: a tensor of the blocks, or before them, is missing or of another shape; all are named.
    """
    entries = network.state_dict(keep_vars=True)
    maps = [
        {
            name: key
            for name, key in matching_keys(network, model).items()
            if model.spec[key].shape == tuple(entries[name].shape)
        }
        for model in models
    ]
    common = [name for name in entries if all(name in found for found in maps)]
    blocks = tuple(f"{layer}." for layer in layers if layer != OUTPUT)
    last = max((place for place, name in enumerate(entries) if name.startswith(blocks)), default=-1)
    names = list(entries)
    problems = [
        f"{name}: {'missing' if key is None else list(model.spec[key].shape)} in {model.name}, "
        f"{list(entries[name].shape)} in {type(network).__name__}"
        for model, found in zip(models, maps, strict=True)
        for name in names[: last + 1]
        if name not in found
        for key in [matching_keys(network, model).get(name)]
    ]
    if problems or last < 0:
        raise MismatchError(
            f"{', '.join(model.name for model in models)} have no common body in {type(network).__name__}:",
            problems or ["its blocks hold no tensors"],
            "Measure models that were fine-tuned from one base, with the same vocabulary.",
        )
    views = tuple(
        Selection(model, {name: found[name] for name in common})
        for model, found in zip(models, maps, strict=True)
    )
    left_out = {
        model.name: tuple(key for key in model.spec if key not in set(view.names.values()))
        for model, view in zip(models, views, strict=True)
    }
    return Body(
        views, frozenset(entries) - set(common), {name: keys for name, keys in left_out.items() if keys}
    )
