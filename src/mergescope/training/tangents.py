"""Running a network on dual tensors: a value at th_0 with its derivative along a task vector.

A dual tensor is ``(f, df)``. Only ``f`` carries a graph for the backward pass: the gradient of
``f + df`` with respect to theta is ``J(x; th_0)^T``, the ordinary gradient of ``f``, so the graph
that torch would record for ``df`` is cut off after every module, and ``df`` is freed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_map

from mergescope.errors import LayerError

PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
"""What may stand beside tensors in an output."""


class Anchored(torch.autograd.Function):
    """th_0 in value, theta for the gradient: ``d(f + J tau) / d theta = J = df / d th_0``."""

    @staticmethod
    def forward(theta: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        """Take the value of th_0.

        Args:
            theta: the parameter that is trained.
            origin: its value at th_0.

        Returns:
            ``origin``.
        """
        return origin.view_as(origin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep nothing.

        Args:
            ctx: not used.
            inputs: not used.
            output: not used.
        """

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

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> called_with(layer, {id(layer.weight): torch.tensor([[2.0]])}, (torch.tensor([3.0]),), {})
        tensor([6.])
    """
    places = {
        f"{prefix}.{name}".lstrip("."): values[id(entry)]
        for prefix, part in module.named_modules()
        for table in (part._parameters, part._buffers)
        for name, entry in table.items()
        if id(entry) in values
    }
    return functional_call(module, places, args, dict(kwargs), tie_weights=False)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor was.

    Attributes:
        index: which one.
        moves: whether it depends on the weights.
    """

    index: int
    moves: bool


class Collected:
    """Structures of tensors on their way out of ``torch.func.jvp(..., has_aux=True)``.

    Attributes:
        duals: tensors that depend on the weights.
        constants: tensors that don't.

    Example:
        >>> found = Collected()
        >>> def square(x):
        ...     kept = found.take({"y": x * x, "n": 1}); return found.duals, found.constants
        >>> found.finish(*torch.func.jvp(square, (torch.tensor(3.0),), (torch.tensor(1.0),), has_aux=True))
        >>> found.put({"y": Place(0, True), "n": 1})
        {'y': tensor(15.), 'n': 1}
    """

    def __init__(self) -> None:
        self.duals: list[torch.Tensor] = []
        self.constants: list[torch.Tensor] = []

    def take(self, value: Any, *, strict: str = "", copy: bool = False) -> Any:
        """Collect the tensors of a structure.

        Args:
            value: a tensor, or tuples, lists, mappings, ModelOutputs, dataclasses of them.
            strict: if given, what returned the value; then nothing is let pass that might hide a tensor.
            copy: copy what depends on the weights: later layers may work in place on it.

        Returns:
            The structure with a [`Place`][] for each tensor.

        Raises:
            LayerError: there is an object that can't be looked into, and ``strict``.
        """  # noqa: DOC502 (raised by what this calls)

        def place(leaf: torch.Tensor) -> Place:
            moves = forward_ad.unpack_dual(leaf).tangent is not None
            held = self.duals if moves else self.constants
            held.append(leaf.clone() if copy and moves else leaf)
            return Place(len(held) - 1, moves)

        return mapped(value, place, strict)

    def finish(
        self, values: list[torch.Tensor], tangents: list[torch.Tensor], constants: list[torch.Tensor]
    ) -> None:
        """Replace what was collected by what came out: ``f + df``, with the graph of ``f``.

        Args:
            values: ``f``.
            tangents: ``df``.
            constants: tensors that don't depend on the weights.
        """
        self.duals = [value + tangent.detach() for value, tangent in zip(values, tangents, strict=True)]
        self.constants = list(constants)

    def put(self, kept: Any) -> Any:
        """Fill a structure.

        Args:
            kept: with places.

        Returns:
            The structure with tensors.
        """

        def fill(leaf: Any) -> Any:
            if not isinstance(leaf, Place):
                return leaf
            return (self.duals if leaf.moves else self.constants)[leaf.index]

        return mapped(kept, fill)


def mapped(value: Any, change: Callable[[Any], Any], strict: str = "") -> Any:
    """A structure with its leaves changed.

    Args:
        value: a leaf, or tuples, lists, mappings, ModelOutputs, dataclasses, namespaces of them.
        change: what becomes of each tensor and place.
        strict: if given, what returned the value.

    Returns:
        The same structure.

    Raises:
        LayerError: there is an object that can't be looked into, and ``strict``.
    """  # noqa: DOC502 (raised within)

    def each(leaf: Any) -> Any:
        if isinstance(leaf, (torch.Tensor, Place)):
            return change(leaf)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            held = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf) if field.init}
            return dataclasses.replace(
                leaf, **{name: mapped(item, change, strict) for name, item in held.items()}
            )
        if isinstance(leaf, SimpleNamespace):
            return SimpleNamespace(**{
                name: mapped(item, change, strict) for name, item in vars(leaf).items()
            })
        if strict and not isinstance(leaf, PLAIN):
            raise LayerError(
                f"{strict} returns a {type(leaf).__name__}, whose tensors can't be linearised. Return tensors in "
                "tuples, mappings, dataclasses or ModelOutputs."
            )
        return leaf

    return tree_map(each, value)


class HookCalls:
    """The calls of hooks that others put on modules, made later with ``f + df``.

    Hooks that transformers uses to collect hidden states are not among them: it may compute with
    those.

    Args:
        network: the network.
        collected: where tensors go.
    """

    def __init__(self, network: nn.Module, collected: Collected) -> None:
        tables = [
            table
            for module in network.modules()
            for table in (module._forward_pre_hooks, module._forward_hooks)
        ]
        self.hooks = [
            (table, key, hook) for table in tables for key, hook in table.items() if not _inside(hook)
        ]
        self.collected = collected
        self.calls: list[tuple[Callable[..., Any], nn.Module, Any]] = []

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Record calls in place of making them.

        Yields:
            Nothing.
        """
        try:
            for (
                table,
                key,
                hook,
            ) in self.hooks:  # in the tables themselves, which may get more hooks meanwhile
                table[key] = self._recorder(hook)
            yield
        finally:
            for table, key, hook in self.hooks:
                table[key] = hook

    def make(self) -> None:
        """Make the calls, in the order in which they would have been made.

        Raises:
            LayerError: a hook wants to change what it is given.
        """
        for hook, module, kept in self.calls:
            if hook(module, *self.collected.put(kept)) is not None:
                raise LayerError(
                    f"A hook on {type(module).__name__} changes what it is given, which a linearised network does "
                    "not allow: its layers are linearised together. Remove the hook, or return None from it."
                )

    def _recorder(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def record(module: nn.Module, *values: Any) -> None:
            self.calls.append((hook, module, self.collected.take(values, copy=True)))

        return record


def _inside(hook: Callable[..., Any]) -> bool:
    return getattr(hook, "__module__", "").startswith("transformers.")


@contextmanager
def tangents_kept_plain() -> Iterator[None]:
    """Take the graph off the tangents in what every module returns, and give them their value's dtype.

    Under autocast some derivatives come out in float32 beside a value in bfloat16, which the next
    layer can't take.

    Yields:
        Nothing.
    """

    def each(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        primal, tangent = forward_ad.unpack_dual(value)
        return value if tangent is None else forward_ad.make_dual(primal, tangent.detach().to(primal.dtype))

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(each, output)

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
