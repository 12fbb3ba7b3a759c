"""Full fine-tuning: every weight may change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mergescope.training.regimes.protocol import Limits, full_state, let_change


@dataclass(frozen=True)
class Full:
    """Every weight of the representation, the task head frozen (ATTN, section 3).

    Args:
        limits: what is decided outside.

    Example:
        >>> from mergescope import MLP
        >>> net = Full(Limits(frozen=("head",))).prepare(MLP((4, 3, 2)))
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['blocks.0.0.weight', 'blocks.0.0.bias']
    """

    limits: Limits
    name: str = "full"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Let all parameters change.

        Args:
            model: the network.

        Returns:
            The network.
        """
        let_change(
            model, self.limits.apply(model, [name for name, _ in model.named_parameters()]), only=False
        )
        return model

    def state(self, trained: nn.Module) -> dict[str, torch.Tensor]:
        """Theta.

        Args:
            trained: the network.

        Returns:
            Its state dict.
        """
        return full_state(trained)

    def metadata(self) -> dict[str, str]:
        """The regime's name.

        Returns:
            Header entries.
        """
        return {"regime": self.name}

    def extra_files(self, trained: nn.Module, folder: Path) -> None:
        """Nothing is written.

        Args:
            trained: the network.
            folder: the checkpoint's directory.
        """
