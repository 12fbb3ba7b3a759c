"""Attention-only fine-tuning: the four paradigms of ATTN section 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mergescope.errors import LayerError, MergescopeError
from mergescope.training.regimes.protocol import Limits, full_state, let_change
from mergescope.training.selectors import attention_stems, linear_stems, with_stems

PARADIGMS = {
    "attention-1": "W_q, W_k, W_v and W_o",
    "attention-2": "W_q, W_k, W_v and W_o with their biases",
    "attention-3": "weights of all linear layers of the attention modules and MLPs",
    "attention-4": "weights and biases of all linear layers of the attention modules and MLPs",
    "attention-3-literal": "weights of all linear layers of the network",
    "attention-4-literal": "weights and biases of all linear layers of the network",
}
"""The paradigms by name. ATTN's (3) and (4) can be read in two ways: both are here."""


@dataclass(frozen=True)
class Attention:
    """Linear layers only; LayerNorms, embeddings, convolutions and the head stay what they are.

    ATTN section 3: paradigm 1 trains 28.31 M parameters of a ViT-B/32 and 100.66 M of a ViT-L/14.
    BatchNorms keep their running statistics.

    Args:
        limits: what is decided outside.
        name: one of [`PARADIGMS`][].
        patterns: for paradigms 1 and 2, the attention matrices of a network of an unknown family,
            as ends of names (``attn.*_proj``).

    Example:
        >>> from mergescope import ViT
        >>> net = Attention(Limits(), "attention-1").prepare(ViT(width=8, depth=1, heads=2))
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['blocks.0.attn.q_proj.weight', 'blocks.0.attn.k_proj.weight', 'blocks.0.attn.v_proj.weight',
         'blocks.0.attn.out_proj.weight']
    """

    limits: Limits
    name: str
    patterns: Sequence[str] = ()

    def __post_init__(self) -> None:
        listed = isinstance(self.patterns, (list, tuple)) and all(
            isinstance(each, str) for each in self.patterns
        )
        if not listed:
            raise MergescopeError(f"patterns must be a list of names, got {self.patterns!r}.")
        if self.patterns and self.paradigm > 2:
            raise MergescopeError(
                f"{self.name} trains linear layers, found by their class, so patterns have no meaning. They are for "
                "attention-1 and attention-2."
            )

    @property
    def paradigm(self) -> int:
        """ATTN's number, 1 to 4."""
        return int(self.name.split("-")[1])

    def prepare(self, model: nn.Module) -> nn.Module:
        """Let the paradigm's parameters change.

        Args:
            model: the network.

        Returns:
            The network.

        Raises:
            LayerError: the paradigm matches nothing, or everything.
        """
        if self.paradigm < 3:
            stems = attention_stems(model, self.patterns)
        else:
            stems = linear_stems(model, literal=self.name.endswith("-literal"))
        chosen = with_stems(model, stems, biases=self.paradigm in (2, 4))
        if chosen == {name for name, _ in model.named_parameters()}:
            raise LayerError(
                f"{self.name} would train every parameter of {type(model).__name__}, which is full fine-tuning. Use "
                "the regime 'full', or patterns that match less."
            )
        let_change(model, self.limits.apply(model, chosen), only=True)
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
        """The regime's name, ATTN's number and its reading.

        Returns:
            Header entries.
        """
        said = {"regime": self.name, "paradigm": str(self.paradigm)}
        if self.paradigm > 2:
            said["reading"] = "literal" if self.name.endswith("-literal") else "attention and MLP"
        if self.patterns:
            said["patterns"] = " ".join(self.patterns)
        return said

    def extra_files(self, trained: nn.Module, folder: Path) -> None:
        """Nothing is written.

        Args:
            trained: the network.
            folder: the checkpoint's directory.
        """
