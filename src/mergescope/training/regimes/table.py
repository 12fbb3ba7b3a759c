"""The table of what a regime trains, before anything is trained."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import nn

from mergescope.training.regimes.protocol import Regime


@dataclass(frozen=True)
class TrainableRow:
    """Parameters of one shape at one place of every block.

    Attributes:
        pattern: their names, with ``*`` for numbers; ``total`` in the last row.
        shape: of each; empty in the last row.
        tensors: how many.
        parameters: how many weights they hold together.
        trained: how many of those train: all or none, but in the last row.
    """

    pattern: str
    shape: tuple[int, ...]
    tensors: int
    parameters: int
    trained: int

    @property
    def trains(self) -> bool:
        """Whether they change."""
        return self.trained > 0


def trainable_table(model: nn.Module, regime: Regime) -> list[TrainableRow]:
    """What a regime would train of a network, which is left as it is.

    Args:
        model: the network; on any device, also meta.
        regime: the regime.

    Returns:
        One row for each place and shape, in the network's order, and the total as the last.

    Raises:
        LayerError: the regime does not fit the network.

    Example:
        >>> from mergescope import ViT
        >>> from mergescope.training import regime
        >>> rows = trainable_table(ViT(width=8, depth=2, heads=2), regime("attention-1"))
        >>> [(row.pattern, row.shape, row.trained) for row in rows if row.trains][:2]
        [('blocks.*.attn.q_proj.weight', (8, 8), 128), ('blocks.*.attn.k_proj.weight', (8, 8), 128)]
        >>> rows[-1].trained, rows[-1].parameters
        (512, 2394)
    """  # noqa: DOC502 (raised by what this calls)
    rows: dict[tuple[str, tuple[int, ...], bool], list[int]] = {}
    for name, parameter in regime.prepare(_without_memory(model)).named_parameters():
        pattern = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)
        rows.setdefault((pattern, tuple(parameter.shape), parameter.requires_grad), []).append(
            parameter.numel()
        )
    table = [
        TrainableRow(pattern, shape, len(sizes), sum(sizes), sum(sizes) if trains else 0)
        for (pattern, shape, trains), sizes in rows.items()
    ]
    total = TrainableRow(
        "total", (), sum(row.tensors for row in table), sum(row.parameters for row in table),
        sum(row.trained for row in table),
    )  # fmt: skip
    return [*table, total]


def _without_memory(model: nn.Module) -> nn.Module:
    # deepcopy asks the memo first: tensors are swapped for empty ones before their data are copied.
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
