"""Coefficients of task vectors, one a task or one a task and group of layers, and the points they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mergescope.errors import MergescopeError, PointError
from mergescope.merging.blocks import comes_before_blocks, place_of, stacks
from mergescope.weights import Point, exact, task_vector
from mergescope.weights.layered import Layered


def layer_groups(names: Iterable[str], groups: int) -> dict[str, tuple[str, ...]]:
    """Split a network's tensors by depth: its blocks into groups of equal size, what is around them to the ends.

    Args:
        names: tensor names.
        groups: how many.

    Returns:
        ``"1/2"``, ``"2/2"`` ... to names, from the input's side on. Embeddings are in the first group, the
        final norm and the head in the last. An encoder's blocks and a decoder's are split alike.

    Raises:
        MergescopeError: there are fewer blocks than groups.

    Example:
        >>> layer_groups(["embed.w", "h.0.w", "h.1.w", "head.w"], 2)
        {'1/2': ('embed.w', 'h.0.w'), '2/2': ('h.1.w', 'head.w')}
    """
    listed = list(names)
    counts = stacks(listed)
    most = max(counts.values(), default=1)
    if not 1 <= groups <= most:
        raise MergescopeError(
            f"Layers can't be split into {groups} groups: the network has {most} blocks. Choose 1 to {most} groups."
        )
    found: dict[int, list[str]] = {number: [] for number in range(groups)}
    for name in listed:
        place = place_of(name)
        if place.stack:
            found[place.index * groups // counts[place.stack]].append(name)
        else:
            found[0 if comes_before_blocks(name) else groups - 1].append(name)
    return {f"{number + 1}/{groups}": tuple(keys) for number, keys in found.items()}


@dataclass(frozen=True)
class CoefficientSpace:
    """``th_0 + sum_k c_k tau_k``, or with a coefficient for each group of layers: ``c_kg``.

    Args:
        base: the pretrained model ``th_0``.
        models: task to fine-tuned model.
        groups: how many groups of layers have coefficients of their own.

    Example:
        >>> import torch, mergescope as ms
        >>> base, a, b = (ms.Checkpoint({"w": torch.full((1,), v)}, name=n)
        ...               for n, v in (("base", 1.0), ("a", 2.0), ("b", 4.0)))
        >>> space = CoefficientSpace(ms.Point.of(base), {"a": ms.Point.of(a), "b": ms.Point.of(b)})
        >>> space.axes
        (('a', '1/1'), ('b', '1/1'))
        >>> space.point([0.5, 0.25])
        Point(0.5*a + 0.25*b + 0.25*base)
    """

    base: Point
    models: Mapping[str, Point]
    groups: int = 1

    @cached_property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """Group to names of tensors."""
        if self.groups == 1:
            return {"1/1": tuple(self.base.keys())}
        return layer_groups(self.base.keys(), self.groups)

    @cached_property
    def axes(self) -> tuple[tuple[str, str], ...]:
        """Task and group of each coefficient, in order."""
        return tuple((task, group) for task in self.models for group in self.keys)

    @cached_property
    def _vectors(self) -> dict[str, Point]:
        return {task: task_vector(model, self.base) for task, model in self.models.items()}

    def uniform(self, lam: float) -> np.ndarray:
        """The coefficients of task arithmetic, the same for all.

        Args:
            lam: the scaling coefficient.

        Returns:
            ``(axes,)``.
        """
        return np.full(len(self.axes), float(lam))

    def single(self, task: str, scale: float = 1.0) -> np.ndarray:
        """The coefficients of one model by itself.

        Args:
            task: which.
            scale: of its task vector; 1 is the model.

        Returns:
            ``(axes,)``.
        """
        return np.array([scale if of == task else 0.0 for of, _ in self.axes])

    def point(self, coefficients: Sequence[float] | np.ndarray) -> Point:
        """The point at some coefficients.

        Args:
            coefficients: ``(axes,)``.

        Returns:
            A combination of the models; one of [`Layered`][mergescope.weights.layered.Layered] views if
            coefficients differ between groups.

        Raises:
            PointError: there are too few or too many coefficients.
        """
        if len(coefficients) != len(self.axes):
            raise PointError(
                f"{len(self.models)} tasks and {len(self.keys)} groups of layers take {len(self.axes)} coefficients, "
                f"got {len(coefficients)}."
            )
        table = np.asarray(coefficients, dtype=float).reshape(len(self.models), len(self.keys))
        if (table == table[:, :1]).all():
            return self._sum(table[:, 0])
        parts = [(self._sum(column), keys) for column, keys in zip(table.T, self.keys.values(), strict=True)]
        said = "; ".join(" ".join(f"{value:.4g}" for value in row) for row in table)
        return Point.of(Layered(parts, f"layer groups of {' + '.join(self.models)} ({said})"))

    def _sum(self, coefficients: np.ndarray) -> Point:
        point = self.base
        for value, vector in zip(coefficients, self._vectors.values(), strict=True):
            point += exact(float(value)) * vector
        return point
