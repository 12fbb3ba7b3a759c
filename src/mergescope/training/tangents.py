"""Running a network on dual tensors: a value at th_0 with its derivative along a task vector.

A dual tensor of [`torch.autograd.forward_ad`][] is ``(f, df)``. Only ``f`` carries a graph for the
backward pass: the gradient of ``f + df`` with respect to theta is ``J(x; th_0)^T``, the ordinary
gradient of ``f``, so the graph that torch would record for ``df`` is cut off after every module.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mergescope.errors import LayerError

PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
"""What may stand beside tensors in an output."""


class Anchored(torch.autograd.Function):
    """th_0 in value, theta for the gradient: ``d(f + J tau) / d theta = J = df / d th_0``."""

    @staticmethod
    def forward(ctx: Any, theta: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        """Take the value of th_0.

        Args:
            ctx: not used.
            theta: the parameter that is trained.
            origin: its value at th_0.

        Returns:
            ``origin``.
        """
        return origin.view_as(origin)

    @staticmethod
    @once_differentiable  # the second derivative of a linear model is zero, not that of f at th_0
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Give theta the gradient.

        Args:
            ctx: not used.
            gradient: of the loss.

        Returns:
            It, for theta; nothing for th_0.
        """
        return gradient, None


def called_with(
    module: nn.Module, values: Mapping[int, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Call a module with other tensors in the place of its parameters and buffers.

    ``torch.func.functional_call`` with names of its own choice leaves wrong tensors behind where one
    module has two names (T5's embedding in transformers 4), so every place is named once here.

    Args:
        module: the module.
        values: ``id`` of a parameter or buffer to what is there during the call.
        args: of the call.
        kwargs: of the call.

    Returns:
        What the module returns.
    """
    places = {
        f"{prefix}.{name}".lstrip("."): values[id(entry)]
        for prefix, part in module.named_modules()
        for table in (part._parameters, part._buffers)
        for name, entry in table.items()
        if id(entry) in values
    }
    return functional_call(module, places, args, dict(kwargs), tie_weights=False)


def sum_of(value: torch.Tensor) -> torch.Tensor:
    """``f + df`` of a dual tensor; any other is returned as it is.

    Args:
        value: a tensor.

    Returns:
        A plain tensor, with the graph of ``f``.
    """
    primal, tangent = forward_ad.unpack_dual(value)
    return value if tangent is None else primal + tangent.detach()


def sums_of(values: Any, strict: str = "") -> Any:
    """``f + df`` of all tensors in a structure.

    Args:
        values: a tensor, or tuples, lists, mappings, ModelOutputs, dataclasses of them.
        strict: if given, what returned the values; then nothing is left that might hide a dual tensor.

    Returns:
        The same structure.

    Raises:
        LayerError: there is an object that can't be looked into, and ``strict``.
    """

    def each(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return sum_of(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            return dataclasses.replace(value, **{name: sums_of(item, strict) for name, item in held.items()})
        if isinstance(value, SimpleNamespace):
            return SimpleNamespace(**{name: sums_of(item, strict) for name, item in vars(value).items()})
        if strict and not isinstance(value, PLAIN):
            raise LayerError(
                f"{strict} returns a {type(value).__name__}, whose tensors can't be linearised. Return tensors in "
                "tuples, mappings, dataclasses or ModelOutputs."
            )
        return value

    return tree_map(each, values)


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Have attention computed by operations that have a forward-mode derivative.

    torch's fused kernels behind ``F.scaled_dot_product_attention``, and the fast path of
    ``nn.MultiheadAttention``, have none.

    Yields:
        Nothing.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def tangents_cut() -> Iterator[None]:
    """Take the graph off the tangents in what every module returns, so that they are freed at once.

    Yields:
        Nothing.
    """

    def each(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        primal, tangent = forward_ad.unpack_dual(value)
        return value if tangent is None else forward_ad.make_dual(primal, tangent.detach())

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(each, output)

    handle = register_module_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def hooks_see_sums(network: nn.Module) -> Iterator[None]:
    """Give the hooks that others put on modules ``f + df`` in place of dual tensors.

    Hooks that transformers uses to collect hidden states stay inside: it may compute with those.

    Args:
        network: the network.

    Yields:
        Nothing.
    """
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    kept = [(module, kind, getattr(module, kind)) for module in network.modules() for kind in kinds]
    kept = [(module, kind, hooks) for module, kind, hooks in kept if hooks]
    try:
        for module, kind, hooks in kept:
            setattr(module, kind, OrderedDict((key, _outside(hook)) for key, hook in hooks.items()))
        yield
    finally:
        for module, kind, hooks in kept:
            setattr(module, kind, hooks)


def _outside(hook: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(hook, "__module__", "").startswith("transformers."):
        return hook

    def seen(module: nn.Module, *values: Any) -> None:
        if hook(module, *sums_of(values)) is not None:
            raise LayerError(
                f"A hook on {type(module).__name__} changes what it is given, which a linearised network does not "
                "allow: its layers are linearised together. Remove the hook, or return None from it."
            )

    return seen


@contextmanager
def recomputed(network: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Gradient checkpointing: keep the inputs of blocks, and run them again in the backward pass.

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
    def __init__(self, module: nn.Module) -> None:
        self.module, self.inner = module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        places = [
            place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        ]
        parameters = list(self.module.parameters())  # dual tensors now, those of theta in the backward pass
        names = [name for name, _ in self.module.named_parameters()]
        duals = [*(leaves[place] for place in places), *parameters]
        # Dead tensors once the level ends: only values are kept.
        rest = [None if place in places else leaf for place, leaf in enumerate(leaves)]

        def again(values: Sequence[torch.Tensor]) -> list[Any]:
            filled = list(rest)
            for place, value in zip(places, values, strict=False):
                filled[place] = value
            inputs, named = tree_unflatten(filled, structure)
            own = dict(self.module.named_parameters())
            weights = {id(own[name]): value for name, value in zip(names, values[len(places) :], strict=True)}
            return tree_flatten(called_with(self.module, weights, inputs, named))[0]

        run = _Run(lambda: self.inner(*args, **kwargs), again)
        outputs = _Recomputed.apply(run, *(forward_ad.unpack_dual(dual).primal for dual in duals))
        values = [
            forward_ad.make_dual(output, tangent) if tangent is not None else output
            for output, tangent in zip(outputs, run.tangents, strict=True)
        ]
        return tree_unflatten([values.pop(0) if there else leaf for leaf, there in run.leaves], run.structure)


class _Run:
    def __init__(self, first: Callable[[], Any], again: Callable[[Sequence[torch.Tensor]], list[Any]]) -> None:
        self.again = again
        self.first: Callable[[], Any] | None = first
        self.tangents: list[torch.Tensor | None] = []
        self.leaves: list[tuple[Any, bool]] = []
        self.structure: Any = None

    def primals(self) -> tuple[torch.Tensor, ...]:
        assert self.first is not None
        leaves, self.structure = tree_flatten(self.first())
        self.first = None  # it holds the dual tensors
        there = [isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves]
        self.leaves = [(None if is_value else leaf, is_value) for leaf, is_value in zip(leaves, there, strict=True)]
        pairs = [forward_ad.unpack_dual(leaf) for leaf, is_value in zip(leaves, there, strict=True) if is_value]
        self.tangents = [pair.tangent for pair in pairs]
        return tuple(pair.primal.clone() for pair in pairs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(*values)
        kind = values[0].device.type
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        return run.primals()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        values = [value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            leaves = ctx.run.again(values)
        outputs = [leaf for leaf, (_, there) in zip(leaves, ctx.run.leaves, strict=True) if there]
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if output.requires_grad and gradient is not None
        ]
        wanted = [value for value in values if value.requires_grad]
        found = iter(
            torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
            if pairs
            else [None] * len(wanted)
        )
        return (None, *(next(found) if need else None for need in needed))
