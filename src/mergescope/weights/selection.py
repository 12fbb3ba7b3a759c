"""Some of a checkpoint's tensors under other names: the body that models with different heads share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from mergescope.errors import CheckpointError, did_you_mean
from mergescope.weights.point import TensorSpec
from mergescope.weights.sources import Source


class Selection(Source):
    """A view of a checkpoint with chosen tensors, renamed.

    Args:
        source: the checkpoint.
        names: new name to the source's key.
        name: of the view; the source's by default.

    Raises:
        CheckpointError: the source lacks a tensor.

    Example:
        >>> from mergescope import Checkpoint
        >>> tuned = Checkpoint({"bert.w": torch.ones(2), "classifier.w": torch.ones(3)}, name="tuned")
        >>> list(Selection(tuned, {"w": "bert.w"}).spec)
        ['w']
    """

    def __init__(self, source: Any, names: Mapping[str, str], name: str | None = None) -> None:
        missing = [key for key in names.values() if key not in source.spec]
        if missing:
            raise CheckpointError(
                f"{source.name} has no tensor {missing[0]!r}.{did_you_mean(missing[0], source.spec)}"
            )
        self.source = source
        self.names = dict(names)
        self.name: str = name or source.name
        self.spec: Mapping[str, TensorSpec] = MappingProxyType({
            new: source.spec[key] for new, key in names.items()
        })
        # Points compare identities often, and the list of names is long.
        self._names = hashlib.sha256(repr(sorted(self.names.items())).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Equal for the same tensors of the same source under the same names."""
        return f"{self.source.identity} of {self._names}"

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            key: its new name.

        Returns:
            The tensor; treat it as read-only.
        """
        return self.source.tensor(self.names[key])

    def require_finite(self) -> None:
        """Refuse NaN and infinite weights, as the source does."""
        check = getattr(self.source, "require_finite", None)
        if check is not None:
            check()

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        return Selection, (self.source, self.names, self.name)  # a mapping proxy can't be pickled

    def __repr__(self) -> str:
        return f"Selection({self.name!r}, {len(self.names)} tensors)"
