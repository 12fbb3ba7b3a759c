"""Catching the features of chosen layers during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError
from mergescope.models.calling import call_model
from mergescope.models.layers import OUTPUT, feature_of

LINEAR_IN_WEIGHTS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what layers return, flattened to one vector a sample.

    Args:
        model: the network.
        layers: module names.

    Yields:
        A dictionary that each forward fills anew: layer to ``(batch, dim)``.

    Raises:
        LayerError: a layer ran more than once in a forward (its feature would be ambiguous).
    """  # noqa: DOC502 (raised in a hook)
    caught: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if name in caught:
                raise LayerError(
                    f"The layer {name!r} runs more than once in a forward pass, so it has no single feature. "
                    "Choose layers that run once."
                )
            # A copy: later layers may work in place (ReLU, residual sums) on what this one returned.
            caught[name] = feature_of(output, name).detach().flatten(1).clone()

        return record

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in layers if name != OUTPUT]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trivially_linear(model: nn.Module, inputs: Any, layers: Sequence[str]) -> set[str]:
    """Layers whose output is exactly linear in the weights, whatever the models (equations.md 2).

    Those are linear, convolution and embedding modules that are fed the network's input itself:
    no earlier weight stands between. Their cos and coef are 1 by construction, never evidence.

    Args:
        model: the network.
        inputs: the inputs of one batch.
        layers: module names.

    Returns:
        The trivial ones among them.

    Raises:
        LayerError: a layer does not run in a forward pass.
    """
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())
    sources = {tensor.data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor)}
    trivial: set[str] = set()
    ran: set[str] = set()

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            ran.add(name)
            fed = [value.data_ptr() for value in args if isinstance(value, torch.Tensor)]
            if isinstance(module, LINEAR_IN_WEIGHTS) and fed and fed[0] in sources:
                trivial.add(name)

        return look

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in layers if name != OUTPUT]
    try:
        call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in layers if name != OUTPUT and name not in ran]
    if idle:
        raise LayerError(
            f"These layers do not run in a forward pass of {type(model).__name__}: {', '.join(idle)}."
        )
    return trivial
