"""Taking parts of a network out and putting others in, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from mergescope.tracing.passes import Pass

Slot: TypeAlias = tuple[nn.Module, str, nn.Parameter]


def parameters_of(module: nn.Module) -> list[Slot]:
    """Where a module's parameters are.

    Args:
        module: the module.

    Returns:
        The module that each belongs to, its name there, and the parameter.
    """
    return [
        (inner, name, entry)
        for inner in module.modules()
        for name, entry in inner._parameters.items()
        if entry is not None
    ]


@contextmanager
def materialised(slots: Iterable[Slot], device: torch.device) -> Iterator[None]:
    """Give parameters that are on the meta device memory, and take it back.

    Args:
        slots: of the parameters; those that have memory are left alone.
        device: where the memory is.

    Example:
        >>> layer = nn.Linear(2, 1, device="meta")
        >>> with materialised(parameters_of(layer), torch.device("cpu")):
        ...     layer.weight.device
        device(type='cpu')
        >>> layer.weight.device
        device(type='meta')
    """
    empty = [(module, name, entry) for module, name, entry in slots if entry.is_meta]
    # Tied parameters are one object, and stay one.
    real = {id(entry): nn.Parameter(torch.empty_like(entry, device=device), False) for _, _, entry in empty}
    try:
        for module, name, entry in empty:
            module._parameters[name] = real[id(entry)]
        yield
    finally:
        for module, name, entry in empty:
            module._parameters[name] = entry


@contextmanager
def forwards(
    replacements: Mapping[str, Callable[..., Any]], modules: Mapping[str, nn.Module]
) -> Iterator[None]:
    """Let modules compute something else.

    Args:
        replacements: name to what is called in place of ``forward``.
        modules: name to module.
    """
    # A module may have a forward of its own already (accelerate's hooks).
    before = {name: modules[name].__dict__.get("forward") for name in replacements}
    for name, forward in replacements.items():
        modules[name].__dict__["forward"] = forward
    try:
        yield
    finally:
        for name, own in before.items():
            if own is None:
                del modules[name].__dict__["forward"]
            else:
                modules[name].__dict__["forward"] = own


def load_part(job: Pass, index: int, module: nn.Module, prefix: str, without: Iterable[str] = ()) -> None:
    """Put a point's weights into a part of the network.

    Args:
        job: the pass.
        index: the point's position.
        module: the part.
        prefix: of its names in the network.
        without: prefixes of names that are left alone.
    """
    entries = module.state_dict(keep_vars=True)
    left = tuple(without)
    for name, key in job.mappings[index].items():
        if name.startswith(prefix) and not name.startswith(left):
            job.points[index].into(key, entries[name.removeprefix(prefix)])
