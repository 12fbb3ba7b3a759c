"""A model whose tensors come from different points: coefficients that change from layer to layer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch

from mergescope.errors import PointError
from mergescope.weights.point import Point, TensorSource, TensorSpec
from mergescope.weights.sources import Source


class Layered(Source):
    """Some tensors of one point, others of another: a view, nothing is copied.

    With ``th_0 + sum_k c_kg tau_k`` for the tensors of every group g of layers, it is what partial task
    vectors make.

    Args:
        parts: points, and the names of the tensors that each gives; every tensor of the models is in one part.
        name: of the view.

    Raises:
        PointError: there are no parts, or a tensor is in none, in two, or unknown.
        MismatchError: the points are of different architectures.

    Example:
        >>> from mergescope import Checkpoint
        >>> base, a = (Checkpoint({"v": torch.full((1,), v), "w": torch.full((1,), v)}, name=n)
        ...            for n, v in (("base", 1.0), ("a", 3.0)))
        >>> Point.of(Layered([(Point.of(base), ["v"]), ((a + base) / 2, ["w"])], "half")).state_dict()
        {'v': tensor([1.]), 'w': tensor([2.])}
    """  # noqa: DOC502 (raised by what this calls)

    def __init__(self, parts: Collection[tuple[Point | TensorSource, Collection[str]]], name: str) -> None:
        if not parts:
            raise PointError("A layered model needs at least one point.")
        listed = [(Point.of(point), frozenset(keys)) for point, keys in parts]
        Point([term for point, _ in listed for term in point.terms])  # refuses different architectures
        self.name, self._like = name, listed[0][0]
        self._of = {key: point for point, keys in listed for key in keys}
        wrong = sorted(set(self.spec) ^ set(self._of))
        if wrong or sum(len(keys) for _, keys in listed) > len(self._of):
            named = f"{wrong[0]!r} is in no part or in no model" if wrong else "a tensor is in two parts"
            raise PointError(f"The parts of {name} must be disjoint and cover the models' tensors: {named}.")
        said = [
            ([(source.identity, str(value)) for source, value in point.terms], sorted(keys))
            for point, keys in listed
        ]
        self.identity: str = f"layered {hashlib.sha256(repr(said).encode()).hexdigest()}"

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Key to shape and dtype, as all parts have them."""
        return self._like.spec

    def tensor(self, key: str) -> torch.Tensor:
        """Make one tensor.

        Args:
            key: its name.

        Returns:
            The tensor of the point that gives it; treat it as read-only.
        """
        return self._of[key].tensor(key)

    def __repr__(self) -> str:
        return f"Layered({self.name!r}, {len(set(self._of.values()))} points)"
