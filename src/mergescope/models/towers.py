"""The part of a pretrained network that a task head is put on."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mergescope.errors import MergescopeError


def headless(network: nn.Module) -> nn.Module:
    """The part of a network that a task head is put on; it shares the network's memory.

    Of a model of images and texts (CLIP, SigLIP) that is the image tower, with its projection if it has
    one; of a network with a head for another task its body; else the network itself.

    Args:
        network: any network.

    Returns:
        A part of it, or the network.

    Raises:
        MergescopeError: it has two towers of a family that is not known.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> headless(net) is net
        True
    """  # noqa: DOC502 (raised by what this calls)
    if hasattr(network, "vision_model") and hasattr(network, "text_model"):
        return _image_tower(network)
    # A projection is no head: it is what images and texts are compared by.
    if not hasattr(network, "base_model_prefix") or type(network).__name__.endswith("WithProjection"):
        return network
    body = getattr(network, str(network.base_model_prefix), network)
    return body if hasattr(body, "main_input_name") else network


def _image_tower(network: Any) -> nn.Module:
    inner = network.vision_model
    projected = hasattr(network, "visual_projection")
    if not projected and hasattr(inner, "main_input_name"):  # transformers 5: a model of its own
        return inner
    end = "VisionModelWithProjection" if projected else "VisionModel"
    wanted = type(network).__name__.removesuffix("Model") + end
    make = getattr(importlib.import_module(type(network).__module__), wanted, None)
    if make is None:
        raise MergescopeError(
            f"The image tower of a {type(network).__name__} can't be taken out: transformers has no {wanted}. Save the "
            "tower as a model of its own, and fine-tune that."
        )
    with torch.device("meta"):  # nothing is drawn at random: all of it is the network's own
        tower = make(network.config.vision_config)
    tower.vision_model = inner
    if projected:
        tower.visual_projection = network.visual_projection
    return tower.train(network.training)


def text_tower_entries(keys: Iterable[str]) -> set[str]:
    """Those of a whole model's entries that images don't run through: its text tower, and its scales.

    Args:
        keys: names of tensors.

    Returns:
        Some of them.

    Example:
        >>> text_tower_entries(["text_model.final_layer_norm.bias", "vision_model.post_layernorm.bias"])
        {'text_model.final_layer_norm.bias'}
    """
    return {key for key in keys if key.startswith(("text_model.", "text_projection.", "logit_"))}
