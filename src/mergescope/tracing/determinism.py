"""Every point of a trace, and every later trace, must see the same batches (after curvlinops)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from mergescope.errors import DataError
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features

CHECKED_BATCHES = 2
"""How many leading batches are compared between two passes."""

CHECKED_SAMPLES = 8
"""How many samples a network is tried on: whole batches would cost as much as tracing a few points."""


def require_repeatable(data: Iterable[Any], what: str) -> None:
    """Refuse data that can be passed over only once, or not at all.

    Args:
        data: an iterable of batches.
        what: what they are, for the error.

    Raises:
        DataError: the data are a one-shot iterator or no iterable.
    """
    if isinstance(data, Iterator):
        raise DataError(
            f"The {what} are a one-shot iterator ({type(data).__name__}), which can't be checked or passed "
            "over again. Pass a list of batches, a DataLoader, or any object whose __iter__ starts anew."
        )
    if not isinstance(data, Iterable):
        raise DataError(
            f"The {what} are a {type(data).__name__}, which gives no batches. Pass a list of batches or a "
            "DataLoader; batches(split) cuts a split."
        )


def require_deterministic_data(data: Iterable[Any]) -> None:
    """Refuse data that differ from one pass to the next, naming the cause.

    A ``DataLoader`` with a random sampler is refused by its sampler. Otherwise the first batches
    of two passes are compared bit by bit, which catches shuffling and random augmentation.

    Args:
        data: an iterable of batches that can be passed over again.

    Raises:
        DataError: the data are a one-shot iterator, shuffled, augmented or empty.
    """
    require_repeatable(data, "data")
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
        raise DataError(
            "The DataLoader shuffles (its sampler is a RandomSampler), so two passes see different batches. "
            "Make it with shuffle=False."
        )
    first, second = (list(islice(iter(data), CHECKED_BATCHES)) for _ in range(2))
    if not first:
        raise DataError(
            "The data set is empty: there is not one batch to trace. Check the split and any filter."
        )
    if len(first) != len(second):
        raise DataError(
            f"Two passes over the data ({type(data).__name__}) give different numbers of batches: its "
            "__iter__ does not start anew. Pass a list of batches or a DataLoader."
        )
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        if not _equal(one, two):
            raise DataError(
                f"Two passes over the data differ in batch {number}: the data set is shuffled or augmented "
                "at random. Turn that off, or seed it by the sample's index."
            )


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return one == two


def few_samples(inputs: Any) -> Any:
    """The first samples of a batch, to try a network on.

    Args:
        inputs: a tensor, or a mapping of arguments.

    Returns:
        Inputs of at most [`CHECKED_SAMPLES`][] samples; the whole batch if its tensors differ in
        length, so that it is not known how they belong together.

    Example:
        >>> few_samples({"x": torch.zeros(32, 3), "y": torch.zeros(32)})["x"].shape
        torch.Size([8, 3])
    """
    if isinstance(inputs, torch.Tensor):
        return inputs[:CHECKED_SAMPLES]
    sizes = {
        len(value) if isinstance(value, torch.Tensor) and value.ndim else None for value in inputs.values()
    }
    if len(sizes) != 1 or None in sizes:
        return inputs
    return {name: value[:CHECKED_SAMPLES] for name, value in inputs.items()}


@torch.no_grad()
def require_deterministic_model(
    model: nn.Module, batch: Any, device: torch.device, features: Features
) -> None:
    """Refuse a network whose output differs between two calls on one batch.

    Args:
        model: the network, in eval mode.
        batch: any batch.
        device: where the network is.
        features: how it is called.

    Raises:
        DataError: the two outputs differ.
    """
    inputs = to_device(few_samples(split_batch(batch)[0]), device)
    one, two = (features.output_rows(features.call(model, inputs), inputs) for _ in range(2))
    if not torch.equal(torch.nan_to_num(one), torch.nan_to_num(two)):
        raise DataError(
            f"{type(model).__name__} gives different outputs for the same batch in eval mode: it draws "
            "random numbers in forward (dropout called as a function?). Remove that for measuring."
        )
