"""How a batch becomes a model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mergescope.errors import DataError

LABELS = ("labels", "label")


def split_batch(batch: Any) -> tuple[Any, torch.Tensor | None]:
    """Take the labels off a batch.

    Args:
        batch: a tensor of inputs, a pair ``(inputs, labels)``, or a mapping of keyword
            arguments which may hold ``labels``.

    Returns:
        Inputs (tensor or mapping) and labels (``(batch,)`` or None).

    Raises:
        DataError: the batch is something else.

    Example:
        >>> inputs, labels = split_batch({"pixel_values": torch.zeros(2, 3), "labels": torch.ones(2)})
        >>> list(inputs), labels.shape
        (['pixel_values'], torch.Size([2]))
    """
    if isinstance(batch, torch.Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        labels = next((batch[name] for name in LABELS if name in batch), None)
        return {key: value for key, value in batch.items() if key not in LABELS}, labels
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and isinstance(batch[0], torch.Tensor):
        return batch[0], (batch[1] if len(batch) == 2 else None)
    raise DataError(
        f"A batch must be a tensor, a pair (inputs, labels) or a mapping of model arguments, got "
        f"{type(batch).__name__}. Wrap your data set so that it yields one of these."
    )


def batch_size(inputs: Any) -> int:
    """Number of samples in the inputs.

    Args:
        inputs: a tensor, or a mapping of arguments of which one at least is a tensor with samples.

    Returns:
        Length of the first dimension of the first tensor.

    Raises:
        DataError: no argument is such a tensor.

    Example:
        >>> batch_size({"return_dict": True, "input_ids": torch.zeros(2, 5)})
        2
    """
    if isinstance(inputs, torch.Tensor):
        return len(inputs)
    values = inputs.values()
    first = next((value for value in values if isinstance(value, torch.Tensor) and value.ndim), None)
    if first is None:
        raise DataError(
            f"A batch of {', '.join(inputs) or 'no arguments'} holds no tensor of samples. Wrap your data set so that "
            "it yields one."
        )
    return len(first)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Run the model on the inputs of a batch.

    Args:
        model: the network.
        inputs: one tensor, passed as the only argument, or keyword arguments.

    Returns:
        Whatever the model returns.
    """
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def to_device(value: Any, device: torch.device) -> Any:
    """Move a batch's inputs or labels.

    Args:
        value: a tensor, a mapping of tensors, or None.
        device: where to.

    Returns:
        The same structure there.
    """
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def dummy_inputs(model: nn.Module, tokens: int = 8) -> dict[str, torch.Tensor]:
    """One sample of the right shape for a network, without meaning.

    Args:
        model: a model of transformers, or one of this package's networks.
        tokens: length of a text.

    Returns:
        Arguments of its ``forward``, for one sample: ``input_ids`` and ``attention_mask``
        ``(1, tokens)``, ``pixel_values`` ``(1, channels, height, width)``, both for a model of texts
        and images, or the images of this package's networks.

    Raises:
        DataError: it takes neither texts nor images.

    Example:
        >>> from mergescope.models import MLP
        >>> dummy_inputs(MLP((784, 100, 10)))["x"].shape
        torch.Size([1, 784])
    """
    settings: Any = getattr(model, "settings", None)
    if isinstance(settings, dict) and "sizes" in settings:
        return {"x": torch.zeros(1, settings["sizes"][0])}
    if isinstance(settings, dict) and "image" in settings:
        return {"x": torch.zeros(1, settings["channels"], settings["image"], settings["image"])}
    taken = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", None)
    inputs = {}
    if main == "input_ids":
        inputs = {"input_ids": torch.ones(1, tokens).long()}
        if "attention_mask" in taken:
            inputs["attention_mask"] = torch.ones(1, tokens).long()
    if "pixel_values" in taken:
        config: Any = model.config
        config = getattr(config, "vision_config", config)
        side = getattr(config, "image_size", 224)
        size = (side, side) if isinstance(side, int) else tuple(side)
        inputs["pixel_values"] = torch.zeros(1, getattr(config, "num_channels", 3), *size)
    if not inputs:
        raise DataError(
            f"{type(model).__name__} takes {main or ', '.join(taken)}, of which no sample can be made up."
        )
    return inputs
