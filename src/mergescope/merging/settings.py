"""Parameter settings of a recipe: scalars, layer gradients and filters, and their precedence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = float | int | bool


@dataclass(frozen=True)
class Setting:
    """One parameter as a recipe gives it.

    Attributes:
        cases: ``(filter, values)`` in order; the first whose filter is a substring of the tensor
            name applies. An empty filter applies always. One value is a scalar, several are a
            gradient over relative depth.
        line: where it stands in the recipe.
    """

    cases: tuple[tuple[str, tuple[Scalar, ...]], ...]
    line: int | None = None

    def at(self, tensor: str, depth: float) -> Scalar | None:
        """The value for a tensor.

        Args:
            tensor: its name.
            depth: relative depth of its layer, from 0 (first) to 1 (last).

        Returns:
            The value, or None if no filter fits.

        Example:
            >>> Setting((("mlp", (1.0,)), ("", (0.0, 1.0, 0.0)))).at("layers.1.attn", 0.25)
            0.5
        """
        for pattern, values in self.cases:
            if pattern in tensor:
                return _gradient(values, depth)
        return None

    @property
    def values(self) -> tuple[Scalar, ...]:
        """Every value that occurs."""
        return tuple(value for _, values in self.cases for value in values)

    @property
    def total(self) -> bool:
        """Whether it gives a value for every tensor."""
        return any(pattern == "" for pattern, _ in self.cases)


def _gradient(values: Sequence[Scalar], depth: float) -> Scalar:
    place = depth * (len(values) - 1)
    below = int(place)
    if any(isinstance(value, bool) for value in values):
        return values[below]
    above = min(below + 1, len(values) - 1)
    share = place - below
    return values[below] if share == 0 else (1 - share) * values[below] + share * values[above]


def resolve(
    name: str, levels: Iterable[Mapping[str, Setting]], tensor: str, depth: float, default: Any
) -> Any:
    """A parameter's value for a tensor: the first level that gives one wins.

    Args:
        name: the parameter.
        levels: settings from the most specific level (source) to the least (recipe).
        tensor: the tensor's name.
        depth: relative depth of its layer.
        default: if no level gives a value.

    Returns:
        The value.
    """
    for level in levels:
        if name in level:
            value = level[name].at(tensor, depth)
            if value is not None:
                return value
    return default
