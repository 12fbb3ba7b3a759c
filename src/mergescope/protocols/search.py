"""Choosing scaling coefficients of task arithmetic by validation figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mergescope.errors import PointError
from mergescope.weights import Point, exact, task_vector
from mergescope.weights.point import Number, TensorSource

GRID: tuple[float, ...] = tuple(i / 20 for i in range(21))
"""``linspace(0, 1, 21)``: the coefficients that TA and ATTN search."""


@dataclass(frozen=True)
class Choice:
    """A chosen coefficient.

    Attributes:
        lam: the coefficient.
        score: its mean normalised accuracy on validation data.
        scores: every coefficient to its score.
        at_end: whether it is the largest of the grid, so that a larger one might be better.
    """

    lam: float
    score: float
    scores: dict[float, float]
    at_end: bool


def addition_line(
    base: Point | TensorSource, models: Sequence[Point | TensorSource], grid: Sequence[Number] = GRID
) -> dict[float, Point]:
    """The points ``th_0 + lam * sum_k tau_k`` (TA).

    Args:
        base: the pretrained model.
        models: the fine-tuned models.
        grid: scaling coefficients.

    Returns:
        Coefficient to point.

    Raises:
        PointError: there are no models.
    """
    if not models:
        raise PointError("Task arithmetic needs at least one fine-tuned model.")
    vectors = [task_vector(model, base) for model in models]
    total = sum(vectors[1:], vectors[0])
    return {float(exact(lam)): Point.of(base) + exact(lam) * total for lam in grid}


def normalised_accuracy(accuracies: Mapping[str, float], single: Mapping[str, float]) -> float:
    """``mean_t acc_t(merged) / acc_t(theta_t)`` (ATTN Eq. 5).

    Args:
        accuracies: task to the merged model's accuracy.
        single: task to the accuracy of the model fine-tuned on it, in the same regime.

    Returns:
        The normalised accuracy; 1 means as good as the single-task models.

    Raises:
        PointError: a single-task accuracy is zero or missing.

    Example:
        >>> normalised_accuracy({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9})
        0.75
    """
    lacking = [task for task in accuracies if not single.get(task)]
    if lacking:
        raise PointError(
            f"No normalised accuracy: the single-task accuracy is zero or missing for {lacking}."
        )
    return float(np.mean([value / single[task] for task, value in accuracies.items()]))


def choose(scores: Mapping[float, float]) -> Choice:
    """The coefficient with the highest score; among equals the smallest, which edits least.

    Args:
        scores: coefficient to mean normalised validation accuracy.

    Returns:
        The choice.

    Raises:
        PointError: there are no scores.

    Example:
        >>> choose({0.0: 0.5, 0.5: 0.9, 1.0: 0.9}).lam
        0.5
    """
    if not scores:
        raise PointError("There are no coefficients to choose from.")
    best = min(scores, key=lambda lam: (-scores[lam], lam))
    return Choice(best, scores[best], dict(scores), at_end=best == max(scores))


@dataclass(frozen=True)
class ConstrainedChoice:
    """A coefficient that makes one accuracy low and keeps another one up.

    Attributes:
        lam: the coefficient; 0 if nothing is feasible, which is the pretrained model.
        target: its accuracy on the task that is to be forgotten.
        control: its accuracy on the control data.
        floor: what the control accuracy must reach.
        feasible: whether any coefficient above 0 keeps the control accuracy up.
        at_end: whether it is the largest of the grid, so that a larger one might be better.
        control_binds: whether one that the control rule forbids has a lower target accuracy.
    """

    lam: float
    target: float
    control: float
    floor: float
    feasible: bool
    at_end: bool
    control_binds: bool

    @property
    def binds(self) -> str:
        """``"no feasible coefficient"``, ``"grid's end"``, ``"control rule"``, both, ``"no gain"`` or ``"neither"``."""
        if not self.feasible:
            return "no feasible coefficient"
        limits = [
            said
            for said, is_so in (("grid's end", self.at_end), ("control rule", self.control_binds))
            if is_so
        ]
        return " and ".join(limits) or ("neither" if self.lam else "no gain")


def choose_negation(
    target: Mapping[float, float], control: Mapping[float, float], floor: float
) -> ConstrainedChoice:
    """The lowest target accuracy that the control rule allows (TA); among equals the smallest edit.

    Args:
        target: coefficient to accuracy on the task that is to be forgotten; 0 must be among them.
        control: the same coefficients to accuracy on control data.
        floor: least control accuracy, which that at 0 has.

    Returns:
        The choice: coefficient 0 with ``feasible`` False if all others fall below the floor.

    Raises:
        PointError: coefficient 0 is missing.

    Example:
        >>> found = choose_negation({0: 0.9, 0.5: 0.4, 1: 0.2}, {0: 0.8, 0.5: 0.77, 1: 0.5}, floor=0.76)
        >>> found.lam, found.binds
        (0.5, 'control rule')
    """
    if 0 not in target:
        raise PointError("Negation is compared with the pretrained model: coefficient 0 must be evaluated.")
    allowed = [lam for lam in target if lam == 0 or control[lam] >= floor - 1e-9]
    best = min(allowed, key=lambda lam: (target[lam], lam))
    forbidden = [lam for lam in target if lam not in allowed]
    return ConstrainedChoice(
        best, target[best], control[best], floor, feasible=len(allowed) > 1, at_end=best > 0 and best == max(target),
        control_binds=any(target[lam] < target[best] for lam in forbidden),
    )  # fmt: skip


def grid_parts(grid: Sequence[Number], limit: float | None = None) -> list[tuple[float, ...]]:
    """A grid, and what follows it while its end is the best: a quarter of its length at a time.

    Args:
        grid: coefficients, ascending, from 0 on.
        limit: the largest coefficient to go to, in steps of the grid's last one; None: the grid alone.

    Returns:
        The grid, then its continuations.

    Raises:
        PointError: the grid is empty, negative or not ascending.

    Example:
        >>> grid_parts((0, 0.5, 1), limit=2.2)
        [(0.0, 0.5, 1.0), (1.5,), (2.0,)]
    """
    steps = [exact(value) for value in grid]
    if not steps or steps[0] < 0 or any(b <= a for a, b in pairwise(steps)):
        said = ", ".join(f"{float(value):g}" for value in steps) or "empty"
        raise PointError(
            f"The grid of coefficients is {said}. Give numbers from 0 on, each larger than the last."
        )
    parts = [tuple(float(value) for value in steps)]
    if limit is None or len(steps) < 2:
        return parts
    step, count = steps[-1] - steps[-2], max(1, (len(steps) - 1) // 4)
    further = [
        float(steps[-1] + step * number) for number in range(1, int((exact(limit) - steps[-1]) / step) + 1)
    ]
    return [*parts, *(tuple(further[start : start + count]) for start in range(0, len(further), count))]
