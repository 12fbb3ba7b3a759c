"""Kernels that have a forward-mode derivative, in place of those that have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergescope.errors import LayerError, MergescopeError
from mergescope.training.selectors import attention_stems

CALLED: frozenset[str | None] = frozenset({"eager", "sdpa", None})
"""Attention implementations of transformers that can be differentiated, the second with another kernel."""

EXPERTS: frozenset[str | None] = frozenset({"eager", None})
"""Likewise, of mixtures of experts."""


IN_CONFIG = "Choose another implementation of it in the network's configuration."
"""What to do about an operation without a derivative, where nothing better is known."""


@contextmanager
def differentiable_kernels(name: str, advice: str = IN_CONFIG) -> Iterator[None]:
    """Have attention computed by operations that have a forward-mode derivative.

    torch's fused kernels behind ``F.scaled_dot_product_attention``, and the fast path of
    ``nn.MultiheadAttention``, have none.

    Args:
        name: of the network, for the error.
        advice: what the error says to do.

    Yields:
        Nothing.

    Raises:
        MergescopeError: another operation has no forward-mode derivative.
        RuntimeError: what the network itself raises.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not isinstance(error, NotImplementedError) and "autograd.Function" not in str(error):
            raise
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise MergescopeError(
            f"{name} can't be linearised, since one of its operations has no forward-mode derivative: {reason}. "
            f"{advice}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def make_differentiable(network: nn.Module) -> list[str]:
    """Replace what a network computes by kernels without a forward-mode derivative.

    Args:
        network: the network; the implementations of a transformers network are changed in place.

    Returns:
        What was, or is at each forward pass, replaced, and why.

    Raises:
        MergescopeError: something can't be replaced.

    Example:
        >>> from mergescope import MLP
        >>> make_differentiable(MLP())
        []
    """  # noqa: DOC502 (raised by what this calls)
    attention, experts = _implementations(network, "attn"), _implementations(network, "experts")
    notes = []
    replaced = ", ".join(map(repr, attention - CALLED))
    if replaced:
        _replace(network, "attn", CALLED)
        notes.append(
            f"attention runs as 'eager', not {replaced}, whose kernel has no forward-mode derivative"
        )
    if "sdpa" in attention or (attention == {None} and _attends(network)):
        notes.append(
            "attention runs torch's MATH kernel: the fused kernels of scaled_dot_product_attention have no "
            "forward-mode derivative"
        )
    replaced = ", ".join(map(repr, experts - EXPERTS))
    if replaced:
        _replace(network, "experts", EXPERTS)
        notes.append(f"experts run as 'eager', not {replaced}, whose kernel has no forward-mode derivative")
    return notes


def _replace(network: nn.Module, kind: str, allowed: frozenset[str | None]) -> None:
    for module in network.modules():
        if hasattr(module, f"set_{kind}_implementation"):
            getattr(module, f"set_{kind}_implementation")("eager")
    left = _implementations(network, kind) - allowed
    if left:  # networks of transformers 4 may have kernels that can only be chosen on loading
        raise MergescopeError(
            f"{type(network).__name__} runs {kind}_implementation={next(iter(left))!r}, which has no forward-mode "
            f"derivative and can't be replaced any more. Load the network with {kind}_implementation='eager'."
        )


def _implementations(network: nn.Module, kind: str) -> set[str | None]:
    configs = [getattr(module, "config", None) for module in network.modules()]
    return {getattr(config, f"_{kind}_implementation", None) for config in configs}


def _attends(network: nn.Module) -> bool:
    try:
        return bool(attention_stems(network))
    except LayerError:
        return False
