"""What checkpoints and views of them share: arithmetic, and the digest of their tensors."""

from __future__ import annotations

from typing import Any, Protocol

from mergescope.weights.point import Number, Point, TensorSource
from mergescope.weights.stores import bytes_digest, content_digest


class _Digested(TensorSource, Protocol):
    _digest: str | None


class Source:
    """Named tensors that add, subtract and scale like the [`Point`][mergescope.Point] that they are.

    Whoever derives from it gives what a [`TensorSource`][mergescope.weights.point.TensorSource] has.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> a, b = (Checkpoint({"w": torch.full((2,), v)}, name=n) for n, v in (("a", 1.0), ("b", 3.0)))
        >>> ((a + b) / 2).tensor("w"), (-a).tensor("w")
        (tensor([2., 2.]), tensor([-1., -1.]))
    """

    _digest: str | None = None

    @property
    def digest(self: _Digested) -> str:
        """XXH3-128 (hex) over names, dtypes, shapes and bytes, whatever the sharding. Reads all, once."""
        if self._digest is None:
            self._digest = content_digest({
                key: (spec, bytes_digest(self.tensor(key))) for key, spec in self.spec.items()
            })
        return self._digest

    def __add__(self: TensorSource, other: Point | TensorSource) -> Point:
        return Point.of(self) + other

    def __radd__(self: TensorSource, other: Any) -> Point:
        return other + Point.of(self)

    def __sub__(self: TensorSource, other: Point | TensorSource) -> Point:
        return Point.of(self) - other

    def __rsub__(self: TensorSource, other: Any) -> Point:
        return other - Point.of(self)

    def __mul__(self: TensorSource, factor: Number) -> Point:
        return Point.of(self) * factor

    __rmul__ = __mul__

    def __truediv__(self: TensorSource, divisor: Number) -> Point:
        return Point.of(self) / divisor

    def __neg__(self: TensorSource) -> Point:
        return -Point.of(self)
