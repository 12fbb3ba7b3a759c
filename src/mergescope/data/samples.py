"""One row of a table as a model takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sample:
    """One row as a model takes it, before padding.

    Attributes:
        values: argument to its tensor, without the batch dimension.
        truncated: whether its end was cut off.
    """

    values: dict[str, torch.Tensor]
    truncated: bool = False
