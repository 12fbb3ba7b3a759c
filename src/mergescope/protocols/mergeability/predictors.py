"""What may be known of models before they are merged, and how it is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Level = Literal["control", "weights", "features", "derivatives", "labels", "average"]

FLOOR = 1e-6
"""What is smaller counts as this on a logarithmic scale: it is rounding."""

WORST = "_worst_pair"
"""Ends the name of a figure that is that of a group's worst pair, not the mean over its pairs."""


@dataclass(frozen=True)
class Predictor:
    """A figure that is known before a merge.

    Attributes:
        name: in files.
        title: in tables.
        level: what it takes to know it.
        scale: on which a rule is a line; chosen beforehand, by what values it can take.
        pairs: whether it is of pairs, so that a group has the mean of it and that of its worst pair.
    """

    name: str
    title: str
    level: Level
    scale: Literal["log", "linear"] = "log"
    pairs: bool = True

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values on the scale of the rule.

        Args:
            values: ``(n,)``.

        Returns:
            ``(n,)``: themselves, or their logarithms to base 10.

        Example:
            >>> PREDICTORS["gap_output"].scaled(np.array([0.01, 0.0])).tolist()
            [-2.0, -6.0]
        """
        values = np.asarray(values, dtype=float)
        return np.log10(np.maximum(values, FLOOR)) if self.scale == "log" else values


def _linearity(prefix: str, said: str, level: Level, pairs: bool) -> list[Predictor]:
    return [
        Predictor(f"{prefix}gap_output", f"{said}, output", level, pairs=pairs),
        Predictor(f"{prefix}gap_layer", f"{said}, worst block", level, pairs=pairs),
        Predictor(f"{prefix}moved_output", f"{said} of what fine-tuning moved, output", level, pairs=pairs),
        Predictor(
            f"{prefix}moved_layer", f"{said} of what fine-tuning moved, worst block", level, pairs=pairs
        ),
    ]


_SINGLE = (
    Predictor("models", "number of models", "control", pairs=False),
    Predictor("base", "base's own normalised accuracy", "control", "linear", pairs=False),
    Predictor("length", "task vectors' length over the base's", "weights", pairs=False),
    Predictor("kept", "share of a task vector that the average keeps", "weights", "linear", pairs=False),
    Predictor("lost", "distance from the models to their average over the base's length", "weights", pairs=False),
    Predictor("cosine", "cosine of task vectors", "weights", "linear"),
    Predictor("conflict", "sign conflict", "weights", "linear"),
    Predictor("apart", "distance between models over the base's length", "weights"),
    *_linearity("", "CTL gap", "features", True),
    Predictor("cos_output", "1 - cos, output", "features"),
    Predictor("cos_layer", "1 - cos, worst block", "features"),
    Predictor("coef_layer", "|coef - 1|, worst block", "features"),
    Predictor("baseline_output", "1 - cos between models' features, output", "features"),
    *_linearity("eq1_", "Eq. 1 gap of the group", "average", False),
    *_linearity("predicted_", "predicted CTL gap", "derivatives", True),
    *_linearity("predicted_eq1_", "predicted Eq. 1 gap of the group", "derivatives", False),
    Predictor("interaction_output", "relative interaction, output", "derivatives"),
    Predictor("interaction_layer", "relative interaction, worst block", "derivatives"),
    Predictor("loss_barrier", "loss barrier at the midpoint", "labels", "linear"),
    Predictor("error_barrier", "error barrier at the midpoint", "labels", "linear"),
)  # fmt: skip

PREDICTORS: Mapping[str, Predictor] = {
    it.name: it
    for one in _SINGLE
    for it in (
        one,
        *(
            [Predictor(f"{one.name}{WORST}", f"{one.title}, worst pair", one.level, one.scale)]
            if one.pairs else []
        ),
    )
}  # fmt: skip
"""Name to predictor, the simpler ones first."""

CONTROLS: Mapping[str, str] = {
    "constant": "the same of all", "models": "the number of models", "base": "the base's own normalised accuracy",
}  # fmt: skip
"""What any rule must beat."""

KNOWN: Mapping[str, tuple[Level, ...]] = {
    "weights": ("weights",), "features": ("weights", "features"), "derivatives": ("weights", "derivatives"),
}  # fmt: skip
"""What a command knows: ``check`` weights, ``measure`` features too, ``predict`` derivatives. No rule may use labels,
or the group's average itself, which is the merge."""

ASCENDING = ("cosine",)
"""Of these the worst pair is the one with the smallest value."""


def candidates(level: str) -> list[str]:
    """The predictors that a rule may use.

    Args:
        level: one of [`KNOWN`][].

    Returns:
        Names, the simpler ones first.

    Example:
        >>> candidates("weights")[:4]
        ['length', 'kept', 'lost', 'cosine']
    """
    found = [it for it in PREDICTORS.values() if it.level in KNOWN[level]]
    return [it.name for it in sorted(found, key=lambda it: it.level != "weights")]


def over_pairs(pairs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of a group from those of its pairs.

    Args:
        pairs: one mapping a pair, with the same names.

    Returns:
        Name to mean, and name with [`WORST`][] to that of the worst pair. NaN where a pair has none.

    Example:
        >>> over_pairs([{"conflict": 0.25}, {"conflict": 0.75}])
        {'conflict': 0.5, 'conflict_worst_pair': 0.75}
    """
    table = list(pairs)
    found: dict[str, float] = {}
    for name in table[0] if table else ():
        values = np.array([pair[name] for pair in table])
        worst = values.min() if name in ASCENDING else values.max()
        found |= {name: float(values.mean()), f"{name}{WORST}": float(worst)}
    return found
