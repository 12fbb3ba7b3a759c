"""BatchNorm running statistics of combined networks.

The running mean and variance stored in a checkpoint describe *its own* activations. Averaging
them does not give the statistics of the averaged network, whose activations can collapse
(REPAIR, Jordan et al. 2023). Re-estimation passes data through it once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.errors import DataError
from mergescope.models.calling import batch_size, call_model, split_batch, to_device

ONE_VALUE = "more than 1 value per channel"
"""What torch says where a batch leaves a BatchNorm nothing to take a variance of."""


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any BatchNorm of the model keeps running statistics.

    Args:
        model: the network.

    Returns:
        True if there are statistics to re-estimate.

    Example:
        >>> has_running_statistics(nn.BatchNorm1d(3)), has_running_statistics(nn.LayerNorm(3))
        (True, False)
    """
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def hold_statistics(module: nn.Module, held: bool) -> None:
    """Keep a BatchNorm in evaluation mode, whoever calls ``train()`` on the whole network; or let it go.

    Args:
        module: the BatchNorm.
        held: keep it, or let it go.
    """
    known = [key for key, hook in module._forward_pre_hooks.items() if hook is _stay_in_eval]
    if held and not known:
        module.register_forward_pre_hook(_stay_in_eval)
    for key in [] if held else known:
        del module._forward_pre_hooks[key]


def _stay_in_eval(module: nn.Module, args: tuple[Any, ...]) -> None:
    module.eval()


@contextmanager
def released(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Let go for a while those that [`hold_statistics`][] keeps in evaluation mode.

    Args:
        norms: any.

    Yields:
        Nothing.
    """
    held = [norm for norm in norms if _stay_in_eval in norm._forward_pre_hooks.values()]
    for norm in held:
        hold_statistics(norm, False)
    try:
        yield
    finally:
        for norm in held:
            hold_statistics(norm, True)


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any]) -> dict[str, torch.Tensor]:
    """Replace running statistics by cumulative averages over data.

    Every BatchNorm is reset and averages the batch statistics with equal weight
    (``momentum=None``); everything else stays in evaluation mode.

    Args:
        model: the network, changed in place.
        batches: calibration data, batches as for [`trace`][mergescope.tracing.trace].

    Returns:
        The new statistics by state-dict key.

    Raises:
        DataError: there are no batches, or one leaves a BatchNorm a single value a channel.
    """
    norms = {
        n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    }
    was_training = {module: module.training for module in model.modules()}
    momenta = {module: module.momentum for module in norms.values()}
    model.eval()
    try:
        for module in norms.values():
            module.reset_running_stats()
            module.momentum = None
            module.train()
        count = 0
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with released(norms.values()):
            for batch in batches:
                _pass(model, to_device(split_batch(batch)[0], device), count)
                count += 1
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
        for part, mode in was_training.items():
            part.training = mode
    if not count:
        raise DataError("BatchNorm statistics can't be re-estimated: the calibration data hold no batches.")
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {
        f"{prefix}.{name}" if prefix else name: getattr(module, name).clone()
        for prefix, module in norms.items()
        for name in names
    }


def _pass(model: nn.Module, inputs: Any, number: int) -> None:
    try:
        call_model(model, inputs)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise DataError(
            f"BatchNorm statistics can't be re-estimated on batch {number}, of size {batch_size(inputs)}: a channel "
            "has one value there, and no variance. Choose another batch size."
        ) from error
