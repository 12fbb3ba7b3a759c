"""Where training runs: what accelerate does for the loop, and the plain case without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn


class Runner(Protocol):
    """What accelerate does for the loop: devices, precision, several processes."""

    device: torch.device
    process_index: int
    num_processes: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer as the precision needs it.

        Args:
            optimizer: a plain one.
        """

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Any:
        """Scale gradients down to a norm.

        Args:
            parameters: whose gradients.
            max_norm: the limit.
        """

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagate.

        Args:
            loss: a scalar.
        """

    def reduce(self, tensor: torch.Tensor, reduction: str) -> Any:
        """A tensor's sum or mean over all processes.

        Args:
            tensor: of one shape in all.
            reduction: ``"sum"`` or ``"mean"``.
        """


class OneProcess:
    """The plain case, without importing accelerate: one process, float32, where the model is.

    Args:
        device: where that is.
    """

    process_index = 0
    num_processes = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def autocast(self) -> AbstractContextManager[Any]:
        """No autocast.

        Returns:
            An empty context.
        """
        return nullcontext()

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Leave the optimizer as it is.

        Args:
            optimizer: the optimizer.

        Returns:
            The same.
        """
        return optimizer

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> torch.Tensor:
        """Scale gradients down to a norm.

        Args:
            parameters: whose gradients.
            max_norm: the limit.

        Returns:
            The norm that they had.
        """
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagate.

        Args:
            loss: a scalar.
        """
        loss.backward()

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        """There is nothing to add.

        Args:
            tensor: the tensor.
            reduction: not used.

        Returns:
            The same.
        """
        return tensor
