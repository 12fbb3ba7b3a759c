"""Several processes that train one network together, as ``accelerate launch`` starts them.

Each has the whole network and passes its share of a batch through it. Before a step they add up what they found:

    gradient = sum_p sum_{i of p} grad l_i / count,    count = sum_p count_p

where ``i`` are predictions, so that a step is that of one process with the whole batch, however tokens are spread. One
sum for each step does not need as many parts, or parameters with a gradient, in every process, as
``DistributedDataParallel``'s sum for each backward pass does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.errors import MergescopeError
from mergescope.training.runner import Runner

PATIENCE = timedelta(hours=6)
"""How long the others wait while the first process prepares data; a process that fails ends all much sooner."""

PARTED = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
"""What accelerate can be configured for that leaves no process a whole network: in its variables, and in words."""


def processes(device: str | None) -> Any:
    """The processes that work on this together: this one alone, unless a launcher started several.

    Args:
        device: ``"cpu"`` or what accelerate finds.

    Returns:
        ``accelerate.PartialState``.

    Raises:
        MergescopeError: several were started in a way in which they can't train together.
    """
    from accelerate import PartialState

    parted = [said for name, said in PARTED.items() if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if parted:
        raise MergescopeError(
            f"accelerate is configured for {parted[0]}, which splits a network, and fine-tuning keeps a whole one in "
            "each process. Launch with --multi_gpu, or change the configuration by accelerate config."
        )
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    started = os.environ.get("WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
    if state.num_processes == 1 and started != "1":
        raise MergescopeError(
            f"{started} processes were started, and there are no GPUs for them. Give --device cpu, or start one."
        )
    return state


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside, if it is wrapped for several processes: gradients are added up here instead.

    Args:
        model: a network, or what ``accelerator.prepare`` made of it.

    Returns:
        The network.
    """
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def totals(runner: Runner, numbers: Iterable[float]) -> list[float]:
    """Sums of numbers over all processes.

    Args:
        runner: knows them.
        numbers: as many in each.

    Returns:
        The sums, the same in each.
    """
    own = torch.tensor(list(numbers), dtype=torch.float64, device=runner.device)
    return runner.reduce(own, "sum").tolist()


def add_up(
    runner: Runner, parameters: Sequence[nn.Parameter], loss: torch.Tensor, count: int
) -> tuple[torch.Tensor, int]:
    """Make gradients, loss and count of every process the sums over all of them.

    Args:
        runner: knows them.
        parameters: whose gradients; one that has none in any process is left without, as in one process.
        loss: of this process's share.
        count: of its predictions.

    Returns:
        Loss and count of all.
    """
    has = [float(parameter.grad is not None) for parameter in parameters]
    whole, predictions, *have = totals(runner, [float(loss), count, *has])
    for parameter, anywhere in zip(parameters, have, strict=True):
        if anywhere:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = runner.reduce(own, "sum")
    return loss.new_tensor(whole), int(predictions)


def average_statistics(runner: Runner, model: nn.Module) -> None:
    """Make the running statistics of BatchNorm layers that train the same in all processes: their mean.

    Args:
        runner: knows them.
        model: the network.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    statistic.copy_(runner.reduce(statistic, "mean"))
