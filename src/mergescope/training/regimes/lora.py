"""LoRA fine-tuning: low-rank additions to the attention matrices (Hu et al. 2021)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mergescope.errors import LayerError, MergescopeError
from mergescope.models.with_head import BACKBONE, WithHead
from mergescope.training.lora import adapted_modules, base_name, merged_state, with_lora
from mergescope.training.regimes.protocol import Limits, let_change, require_type
from mergescope.training.selectors import named

FOLDER = "adapter"
"""Where the adapter itself goes, beside the merged checkpoint."""


@dataclass(frozen=True)
class Lora:
    """``W + s B A`` on W_q, W_k, W_v and W_o, everything else frozen.

    The checkpoint holds the merged weights; the adapter lies in the folder ``adapter`` beside them.

    Args:
        limits: what is decided outside. ``frozen`` must be no target, since its weights would change.
        rank: of the factors A ``(rank, in)`` and B ``(out, rank)``.
        alpha: ``s = alpha / rank``; twice the rank by default.
        rslora: ``s = alpha / sqrt(rank)`` (Kalajdzievski 2023).
        dropout: on the inputs of A while training.
        targets: ends of names of linear layers to adapt instead.
        seed: of A's random start.

    Example:
        >>> from mergescope import ViT
        >>> net = Lora(Limits(), rank=2).prepare(ViT(width=8, depth=1, heads=2))
        >>> sum(p.numel() for p in net.parameters() if p.requires_grad)
        128
    """

    limits: Limits
    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    targets: Sequence[str] = ()
    seed: int = 0
    name: str = "lora"

    def __post_init__(self) -> None:
        require_type("rank", self.rank, int, "a whole number")
        require_type("alpha", 1.0 if self.alpha is None else self.alpha, (int, float), "a number")
        require_type("rslora", self.rslora, bool, "True or False")
        require_type("dropout", self.dropout, (int, float), "a number")
        require_type("seed", self.seed, int, "a whole number")
        require_type("targets", self.targets, (list, tuple), "a list of names")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise MergescopeError(
                f"LoRA needs rank >= 1 and 0 <= dropout < 1, got {self.rank} and {self.dropout}."
            )

    @property
    def scale(self) -> float:
        """Alpha, with its default."""
        return 2.0 * self.rank if self.alpha is None else float(self.alpha)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Put the factors in; they may change, and what ``also`` names.

        Args:
            model: the network.

        Returns:
            PEFT's wrapper.

        Raises:
            LayerError: a target is frozen, nothing matches, or a name is unknown.
        """
        found = adapted_modules(model, self.targets)
        chosen = {f"{name}.weight" for name in found}
        frozen = sorted(chosen & named(model, self.limits.frozen, "frozen"))
        if frozen:
            raise LayerError(
                f"LoRA would change {', '.join(frozen)} of {type(model).__name__}, which is frozen. Give targets= "
                "without it."
            )
        self.limits.apply(model, chosen)
        always = named(model, self.limits.also, "also")
        let_change(model, (), only=True)
        trained = with_lora(
            model,
            found,
            rank=self.rank,
            alpha=self.scale,
            rslora=self.rslora,
            dropout=self.dropout,
            seed=self.seed,
        )
        for name, parameter in trained.named_parameters():
            if base_name(name) in always:
                parameter.requires_grad_(True)
        return trained

    def state(self, trained: nn.Module) -> dict[str, torch.Tensor]:
        """Theta: the merged weights.

        Args:
            trained: PEFT's wrapper.

        Returns:
            Every weight and buffer under the network's own names.
        """
        return merged_state(trained)

    def metadata(self) -> dict[str, str]:
        """Rank, alpha and the kind of scaling.

        Returns:
            Header entries.
        """
        return {
            "regime": self.name,
            "lora_rank": str(self.rank),
            "lora_alpha": f"{self.scale:g}",
            "lora_rslora": str(self.rslora).lower(),
        }

    def extra_files(self, trained: Any, folder: Path) -> None:
        """Write the adapter as PEFT does.

        Args:
            trained: PEFT's wrapper.
            folder: the checkpoint's directory; the adapter goes into ``adapter`` in it.
        """
        trained.save_pretrained(str(folder / FOLDER), save_embedding_layers=False)
        if isinstance(trained.get_base_model(), WithHead):
            _without_head(folder / FOLDER)


def _without_head(adapter: Path) -> None:
    # PEFT names what it wrapped, a network as its backbone; people put the adapter on the base itself.
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    state = {key.replace(f".{BACKBONE}.", ".", 1): value for key, value in load_file(weights).items()}
    save_file(state, weights, {"format": "pt"})
    said = json.loads(config.read_text(encoding="utf-8"))
    names = said["target_modules"]
    if not isinstance(names, str):
        said["target_modules"] = [name.removeprefix(f"{BACKBONE}.") for name in names]
    config.write_text(json.dumps(said, indent=2) + "\n")
