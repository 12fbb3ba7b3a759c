"""What shape a network's layers return, found without weights and without computing anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mergescope.errors import DataError
from mergescope.models.architecture import Architecture
from mergescope.models.calling import dummy_inputs
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, feature_of

BLIND: dict[str, Any] = {"_attn_implementation": "eager", "_experts_implementation": "batched_mm"}
"""Settings of transformers whose forward passes don't look at values."""

TOKENS = 13
"""Length of the made-up text; a dimension of a text model that follows it is shown as None."""

Shape = tuple[int | None, ...]


def skeleton(architecture: Architecture) -> nn.Module:
    """Build a network that has shapes and nothing else, whatever its size.

    Args:
        architecture: what to build.

    Returns:
        The network in eval mode, all of it on the meta device.

    Raises:
        CheckpointError: transformers can't build it.

    Example:
        >>> config = {"model_type": "mergescope-mlp", "sizes": [10**6, 10**6, 2]}
        >>> skeleton(Architecture("large", None, config)).blocks[0][0].weight.shape
        torch.Size([1000000, 1000000])
    """  # noqa: DOC502 (raised by what this calls)
    with torch.device("meta"):
        return architecture.build(**BLIND).eval()


@torch.no_grad()
def layer_shapes(model: nn.Module, layers: Sequence[str]) -> dict[str, Shape | None]:
    """The shape of each layer's output for one sample.

    One forward pass runs on fake tensors, which have shapes and no memory, so it takes a moment
    whatever the size of the model. Where a network looks at values on the way (some mixtures of
    experts), the layers after that place remain unknown.

    Args:
        model: best a [`skeleton`][]. It is of no other use afterwards: its parameters are fake.
        layers: module names, and ``"output"``.

    Returns:
        Layer to shape without the sample's dimension, None in it for the number of tokens; or None if
        unknown.

    Example:
        >>> from mergescope.models import MLP
        >>> layer_shapes(MLP((784, 100, 10)), ["blocks.0", "output"])
        {'blocks.0': (100,), 'output': (10,)}
    """
    shapes: dict[str, Shape | None] = dict.fromkeys(layers)
    modules = dict(model.named_modules())

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            shapes[name] = _shape(feature_of(output, name), text)

        return look

    try:
        inputs = dummy_inputs(model, TOKENS)
    except DataError:
        return shapes
    text = "input_ids" in inputs
    attempts = [inputs]
    if text and "pixel_values" in inputs:  # images inside a text need marks in it, which no two models share
        attempts.append({name: value for name, value in inputs.items() if name != "pixel_values"})
    handles = [modules[name].register_forward_hook(hook(name)) for name in shapes if name != OUTPUT]
    try:
        with _no_logs(), FakeTensorMode(allow_non_fake_inputs=True):
            _fake(model)
            for attempt in attempts:
                fakes = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in attempt.items()}
                # A network may raise anything where it finds no values: what ran before has its shapes.
                with suppress(Exception):
                    found = feature_of(Features.of(model).call(model, fakes), OUTPUT)
                    if OUTPUT in shapes:
                        shapes[OUTPUT] = _shape(found, text)
                    break
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _fake(model: nn.Module) -> None:
    def fake(value: torch.Tensor) -> torch.Tensor:
        return torch.empty(value.shape, dtype=value.dtype)

    for module in model.modules():
        # Put there by hand: old versions of torch would keep the parameter and change what is in it.
        module._parameters.update({
            name: nn.Parameter(fake(value), requires_grad=False)
            for name, value in module._parameters.items()
            if value is not None
        })
        module._buffers.update({
            name: fake(value) for name, value in module._buffers.items() if value is not None
        })
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):  # a table that the network did not register
                setattr(module, name, fake(value))


def _shape(value: torch.Tensor, text: bool) -> Shape:
    sizes: list[int | None] = list(value.shape[1:])
    if text and len(sizes) == 2 and sizes[0] == TOKENS:
        sizes[0] = None
    return tuple(sizes)


@contextmanager
def _no_logs() -> Iterator[None]:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
