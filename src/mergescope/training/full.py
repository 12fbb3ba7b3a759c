"""Full fine-tuning: every weight may change."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mergescope.errors import LayerError, did_you_mean


def full(model: nn.Module, frozen: Sequence[str] = ()) -> list[nn.Parameter]:
    """The parameters that full fine-tuning changes (ATTN, section 3).

    Args:
        model: the network.
        frozen: names of submodules to leave alone, such as a task head.

    Returns:
        The trainable parameters.

    Raises:
        LayerError: a frozen name is no submodule.

    Example:
        >>> from mergescope import MLP
        >>> net = MLP((4, 3, 2))
        >>> len(full(net)), len(full(net, frozen=["head"]))
        (4, 2)
    """
    modules = dict(model.named_modules())
    for name in frozen:
        if name not in modules:
            raise LayerError(
                f"{type(model).__name__} has no module {name!r} to freeze.{did_you_mean(name, modules)}"
            )
    held = {id(parameter) for name in frozen for parameter in modules[name].parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in held]
