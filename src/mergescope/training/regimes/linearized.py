"""Linearised fine-tuning: the tangent model at the pretrained weights (TANGENT)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mergescope.errors import MergescopeError
from mergescope.models.with_head import WithHead
from mergescope.training.linearized import linearize
from mergescope.training.regimes.protocol import Limits, full_state, let_change, require_type
from mergescope.weights import Checkpoint


@dataclass
class LinearizedRegime:
    """Train theta in ``f(x; th_0) + J(x; th_0) (theta - th_0)`` (TANGENT; ATTN, section 3).

    th_0 is what the network holds when it is prepared, throughout. The checkpoint is an ordinary one
    of theta, whose header says ``linearized: true`` and around which base.

    Args:
        limits: what is decided outside.
        checkpointing: recompute blocks in the backward pass in place of keeping their activations.

    Example:
        >>> from mergescope import MLP
        >>> trained = LinearizedRegime(Limits(frozen=("head",))).prepare(MLP((4, 3, 2)))
        >>> trained.affine, [name for name, p in trained.named_parameters() if p.requires_grad]
        (True, ['blocks.0.0.weight', 'blocks.0.0.bias'])
    """

    limits: Limits
    checkpointing: bool = False
    name: str = "linearized"
    _digest: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._digest = self.limits.base_digest
        require_type("checkpointing", self.checkpointing, bool, "True or False")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Linearise the network; all parameters but the frozen ones may change.

        Args:
            model: the network, at the pretrained weights.

        Returns:
            The linearised network; of a backbone with a head, that with its backbone linearised.
        """
        let_change(
            model, self.limits.apply(model, [name for name, _ in model.named_parameters()]), only=False
        )
        empty = any(parameter.is_meta for parameter in model.parameters())
        if self.limits.base_digest is None and not empty:
            body = model.backbone if isinstance(model, WithHead) else model
            self._digest = Checkpoint(body.state_dict(), name="th_0").digest
        return linearize(model, checkpointing=self.checkpointing)

    def state(self, trained: nn.Module) -> dict[str, torch.Tensor]:
        """Theta, as an ordinary checkpoint of the network.

        Args:
            trained: the linearised network.

        Returns:
            The network's state dict.
        """
        return full_state(trained)

    def metadata(self) -> dict[str, str]:
        """That the model is linearised, and around which base.

        Returns:
            Header entries. The digest is that of the base's checkpoint if it was given, else of the
            network's state dict when it was prepared.

        Raises:
            MergescopeError: nothing has been prepared, and no digest was given.
        """
        if self._digest is None:
            raise MergescopeError(
                "A linearised checkpoint names the base that it is linearised around, which is not known yet. "
                "Call prepare(model) first, or pass base_digest= (Checkpoint.digest of the base)."
            )
        return {"regime": self.name, "linearized": "true", "base_digest": self._digest}

    def extra_files(self, trained: nn.Module, folder: Path) -> None:
        """Nothing is written: th_0 is the base's checkpoint.

        Args:
            trained: the linearised network.
            folder: the checkpoint's directory.
        """
