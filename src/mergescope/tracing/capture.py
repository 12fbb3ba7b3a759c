"""Catching the features of chosen layers during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError
from mergescope.models.calling import call_model
from mergescope.models.layers import OUTPUT, feature_of

LINEAR_IN_WEIGHTS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)

HIDDEN = "hidden_states"
"""What transformers calls a block's input where it is passed by name."""


def flat(layer: str, value: torch.Tensor) -> torch.Tensor:
    """A feature as one vector a sample, however many dimensions it has.

    Args:
        layer: not used.
        value: ``(batch, ...)``.

    Returns:
        ``(batch, dim)``.
    """
    return value.flatten(1)


@contextmanager
def capture(
    model: nn.Module, layers: Sequence[str], reduce: Callable[[str, torch.Tensor], torch.Tensor] = flat
) -> Iterator[dict[str, torch.Tensor]]:
    """Record what layers return, as one vector a sample.

    Args:
        model: the network.
        layers: module names.
        reduce: layer name and output to ``(rows, dim)``.

    Yields:
        A dictionary that each forward fills anew: layer to ``(rows, dim)``.

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
            value = feature_of(output, name).detach()
            rows = reduce(name, value)
            # A copy: later layers may work in place (ReLU, residual sums) on what this one returned.
            caught[name] = rows.clone() if _may_share_memory(rows, value) else rows

        return record

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in layers if name != OUTPUT]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _may_share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except NotImplementedError:  # under vmap, tensors have no storage of their own
        return True


@dataclass(frozen=True)
class Call:
    """How a layer was called.

    Attributes:
        args: positional arguments; the first is usually the hidden state.
        kwargs: the others: masks, position embeddings.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def repeat(self, module: nn.Module) -> Any:
        """Call a layer so again.

        Args:
            module: the layer.

        Returns:
            What it returns. It gets copies of the positional tensors, since it may work in place.
        """
        copies = (value.clone() if isinstance(value, torch.Tensor) else value for value in self.args)
        return module(*copies, **self.kwargs)

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden state that it was given.

        Raises:
            LayerError: nothing says which argument that is.
        """
        if not self.args and HIDDEN not in self.kwargs:
            raise LayerError(
                f"A block is called with {', '.join(self.kwargs) or 'nothing'}; to run block by block, its hidden "
                f"state must be the first argument or be called {HIDDEN}. Use the resident executor."
            )
        return self.args[0] if self.args else self.kwargs[HIDDEN]

    def with_hidden(self, hidden: torch.Tensor | None) -> Call:
        """The same call with another hidden state.

        Args:
            hidden: the state, or None for a call without any.

        Returns:
            The new call.
        """
        if self.args:
            return Call((hidden, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, HIDDEN: hidden})

    @property
    def others(self) -> dict[str, Any]:
        """All arguments but the hidden state, by name or place."""
        placed = {f"argument {place}": value for place, value in enumerate(self.args) if place}
        return {**placed, **{name: value for name, value in self.kwargs.items() if name != HIDDEN}}


@contextmanager
def record_calls(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Call]]:
    """Record what layers are called with.

    Args:
        model: the network.
        layers: module names.

    Yields:
        A dictionary that each forward fills anew: layer to its call.
    """
    calls: dict[str, Call] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept = (value.detach().clone() if isinstance(value, torch.Tensor) else value for value in args)
            calls[name] = Call(tuple(kept), dict(kwargs))

        return record

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in layers
        if name != OUTPUT
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trivially_linear(
    model: nn.Module,
    inputs: Any,
    layers: Sequence[str],
    call: Callable[[nn.Module, Any], Any] = call_model,
) -> set[str]:
    """Layers whose output is exactly linear in the weights, whatever the models: no evidence of CTL.

    Those are linear, convolution and embedding modules that are fed the network's input itself:
    no earlier weight stands between. Their cos and coef are 1 by construction, never evidence.

    Args:
        model: the network.
        inputs: the inputs of one batch.
        layers: module names.
        call: runs the model on inputs.

    Returns:
        The trivial ones among them.

    Raises:
        LayerError: a layer does not run in a forward pass.
    """
    # A network of half precision casts what it is fed: then its first layer sees another tensor.
    dtype = next((entry.dtype for entry in model.parameters() if entry.is_floating_point()), torch.float32)
    inputs = _cast(inputs, dtype)
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
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in layers if name != OUTPUT and name not in ran]
    if idle:
        raise LayerError(
            f"These layers do not run in a forward pass of {type(model).__name__}: {', '.join(idle)}."
        )
    return trivial


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(item, dtype) for name, item in value.items()}
    # Arguments may be flags and None as well.
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
