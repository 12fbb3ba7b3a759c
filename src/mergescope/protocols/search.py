"""Choosing the scaling coefficient of task arithmetic on validation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """The points ``th_0 + lam * sum_k tau_k`` (TA; equations.md 3).

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
