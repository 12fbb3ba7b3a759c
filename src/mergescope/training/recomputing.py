"""Gradient checkpointing of a network that runs on dual tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from mergescope.training.tangents import called_with


@contextmanager
def recomputed(network: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Keep the inputs of blocks only, and run them again in the backward pass.

    The second run is an ordinary forward pass at th_0, without tangents.

    Args:
        network: the network.
        blocks: names of its blocks.

    Yields:
        Nothing.
    """
    modules = [network.get_submodule(name) for name in blocks]
    for module in modules:
        module.__dict__["forward"] = _Block(module)
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


class _Block:
    """A block's forward in a training step, as a function of values and tangents."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if _is_float(leaf)]
        parameters = dict(self.module.named_parameters())
        pairs = [
            forward_ad.unpack_dual(value) for value in (*(leaves[i] for i in places), *parameters.values())
        ]
        run = _Run(self.module, leaves, structure, places, list(parameters))
        moving = [index for index, pair in enumerate(pairs) if pair.tangent is not None]
        tangents = [pairs[index].tangent for index in moving]
        found = _Recomputed.apply(run, moving, *(pair.primal for pair in pairs), *tangents)
        count = len(found) // 2
        return run.rebuilt([
            forward_ad.make_dual(value, tangent)
            for value, tangent in zip(found[:count], found[count:], strict=True)
        ])


class _Run:
    """A block with everything that its second run needs, and no dual tensor."""

    def __init__(
        self,
        module: nn.Module,
        leaves: Sequence[Any],
        structure: Any,
        places: list[int],
        names: list[str],
    ) -> None:
        self.module = module
        self.rest = [None if place in places else leaf for place, leaf in enumerate(leaves)]
        self.structure, self.places, self.names = structure, places, names
        self.buffers = {name: value for name, value in module.named_buffers() if value.is_floating_point()}
        kind = next((leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)), "cpu")
        self.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        self.outputs: list[Any] = []
        self.shape: Any = None

    def __call__(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filled = list(self.rest)
        for place, value in zip(self.places, values, strict=False):
            filled[place] = value
        own = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        held = {**self.buffers, **dict(zip(self.names, values[len(self.places) :], strict=True))}
        swaps = {id(own[name]): value for name, value in held.items()}
        replaced = self.module.__dict__.pop("forward", None)  # this very function, in the first run
        try:
            args, kwargs = tree_unflatten(filled, self.structure)
            result = called_with(self.module, swaps, args, kwargs)
        finally:
            if replaced is not None:
                self.module.__dict__["forward"] = replaced
        leaves, self.shape = tree_flatten(result)
        self.outputs = [_FLOAT if _is_float(leaf) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if _is_float(leaf))

    def rebuilt(self, values: Sequence[torch.Tensor]) -> Any:
        floats = iter(values)
        return tree_unflatten([next(floats) if leaf is _FLOAT else leaf for leaf in self.outputs], self.shape)


class _Recomputed(torch.autograd.Function):
    # Values and tangents in, values and tangents out; only values have gradients.

    @staticmethod
    def forward(run: _Run, moving: list[int], *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(values) - len(moving)
        primals, tangents = list(values[:count]), values[count:]

        def along(*parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
            whole = list(primals)
            for index, part in zip(moving, parts, strict=True):
                whole[index] = part
            return run(*whole)

        both: Any = torch.func.jvp(along, tuple(primals[index] for index in moving), tangents)
        found, moved = both
        return (*(value.clone() for value in found), *moved)  # an output may be an input, unchanged

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        run, moving, *values = inputs
        ctx.run = run
        ctx.count = len(values) - len(moving)
        ctx.save_for_backward(*values[: ctx.count])
        ctx.mark_non_differentiable(*output[len(output) // 2 :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[2 : 2 + ctx.count]
        values = [
            value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad(), torch.autocast(**ctx.run.autocast):
            outputs = ctx.run(*values)
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=False)
            if output.requires_grad and gradient is not None
        ]
        wanted = [value for value in values if value.requires_grad]
        found: Iterator[torch.Tensor | None] = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        )
        own = [next(found) if need else None for need in needed]
        return (None, None, *own, *[None] * (len(ctx.needs_input_grad) - 2 - ctx.count))


_FLOAT = object()  # where a tensor was


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
