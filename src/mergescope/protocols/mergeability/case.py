"""A case: models that could be merged, what is known before, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from mergescope.errors import StudyError

OUTCOMES = {
    "average": "uniform average", "task_arithmetic": "task arithmetic, coefficient chosen on validation data",
    "ties": "TIES, coefficient chosen on validation data", "recovered": "share of the gain that the average keeps",
}  # fmt: skip
"""Normalised accuracies on test data; the last is ``(average - base) / (1 - base)``, by normalised accuracies."""


@dataclass(frozen=True)
class Case:
    """Models of one family and regime.

    Attributes:
        family: its name.
        regime: how the models were fine-tuned.
        network: name of the network's class.
        models: names, which are those of their tasks.
        linearized: whether they run in the network linearised around the base.
        predictors: name to figure; NaN or absent where there is none.
        outcomes: name to figure, on test data.
        chosen: method to the scale that was chosen on validation data, in units of the average's.
    """

    family: str
    regime: str
    network: str
    models: tuple[str, ...]
    linearized: bool
    predictors: Mapping[str, float]
    outcomes: Mapping[str, float]
    chosen: Mapping[str, float]

    @property
    def unit(self) -> str:
        """Family and regime: cases of one unit share models."""
        return f"{self.family} {self.regime}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values.

        Returns:
            For JSON; NaN becomes None.
        """
        return {
            name: {key: number if number == number else None for key, number in value.items()}
            if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }  # fmt: skip

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Case:
        """Read what [`to_dict`][] gave.

        Args:
            said: plain values.

        Returns:
            The case.

        Raises:
            StudyError: something is missing.

        Example:
            >>> case = Case("glyphs", "full", "ViT", ("a", "b"), False, {"cosine": 0.1}, {"average": 0.9}, {})
            >>> Case.of(case.to_dict()) == case
            True
        """
        names = [each.name for each in fields(cls)]
        lacking = [name for name in names if name not in said]
        if lacking:
            raise StudyError(
                f"A case lacks {', '.join(lacking)}: another version of mergescope wrote it. Delete the run directory, "
                "and run mergescope mergeability again."
            )
        values = {name: said[name] for name in names}
        for name in ("predictors", "outcomes", "chosen"):
            values[name] = {key: float("nan") if it is None else it for key, it in said[name].items()}
        return cls(**{**values, "models": tuple(said["models"])})


def groups_of(
    names: Sequence[str], sizes: Sequence[int], most: int, pairs: int | None = None, seed: int = 0
) -> list[tuple[str, ...]]:
    """Which models to merge: pairs, and some larger groups.

    Args:
        names: of the models.
        sizes: of groups larger than pairs.
        most: groups of one size; drawn with the seed if there are more.
        pairs: how many; drawn likewise. None for all.
        seed: of the draw.

    Returns:
        Groups, each in the order of the names.

    Raises:
        StudyError: there are fewer than two models, or a size is none.

    Example:
        >>> groups_of("abc", (3, 8), 4)
        [('a', 'b'), ('a', 'c'), ('b', 'c'), ('a', 'b', 'c')]
    """
    wrong = [size for size in sizes if size < 2]
    if wrong or len(names) < 2:
        raise StudyError(
            f"Groups of {', '.join(map(str, wrong)) or len(names)} models can't be merged: give two models or more."
        )
    rng = np.random.default_rng(seed)
    found: list[tuple[str, ...]] = []
    for size in (2, *sorted({size for size in sizes if 2 < size <= len(names)})):
        wanted = most if size > 2 else pairs
        if wanted is None or comb(len(names), size) <= wanted:
            found += combinations(names, size)
            continue
        drawn: set[tuple[int, ...]] = set()
        while len(drawn) < wanted:
            drawn.add(tuple(sorted(rng.permutation(len(names))[:size].tolist())))
        found += [tuple(names[place] for place in places) for places in sorted(drawn)]
    return found
