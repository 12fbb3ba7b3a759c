"""Linear mode connectivity: is there a loss or error barrier on the line between two models?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, as_text, figure
from mergescope.errors import PointError
from mergescope.readings import NextTokenLoss, Outputs, bootstrap
from mergescope.tracing import Trace
from mergescope.weights import Point, exact, lerp
from mergescope.weights.point import Number, TensorSource


@dataclass(frozen=True)
class Barrier:
    """Loss and error along a line.

    Attributes:
        alphas: positions, weight of the first model, ascending.
        loss: mean cross-entropy at each.
        error: error rate at each, in [0, 1].
        loss_barrier: largest excess of the loss over the chord between the ends (may be negative).
        error_barrier: the same for the error rate.
        loss_interval: 95 % of the loss barrier over samples, by the bootstrap at every alpha; at the largest of both
            ends.
        error_interval: the same for the error rate.
    """

    alphas: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    loss_barrier: float
    error_barrier: float
    loss_interval: tuple[float, float] = (math.nan, math.nan)
    error_interval: tuple[float, float] = (math.nan, math.nan)

    def rows(self) -> list[dict[str, Any]]:
        """The curves and their barriers as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]: ``line`` at every alpha, and ``barrier``.
        """
        curves = {"loss": self.loss, "error": self.error}
        found = [
            {"kind": "line", "measure": measure, "mean": float(values[place]), "parameter": float(alpha)}
            for place, alpha in enumerate(self.alphas)
            for measure, values in curves.items()
        ]
        ends = {
            "loss": (self.loss_barrier, *self.loss_interval), "error": (self.error_barrier, *self.error_interval),
        }  # fmt: skip
        return found + [
            {"kind": "barrier", "measure": measure, "mean": value, "low": low, "high": high}
            for measure, (value, low, high) in ends.items()
        ]

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        said = ", ".join(
            f"{what} barrier {value:+.4f}" if value > 0 else f"no {what} barrier ({value:+.4f})"
            for what, value in (("loss", self.loss_barrier), ("error", self.error_barrier))
        )
        lines = tuple(
            (f"{alpha:g}", figure(loss), figure(error))
            for alpha, loss, error in zip(self.alphas, self.loss, self.error, strict=True)
        )
        heads = ("alpha", "loss", "error rate")
        return View(f"On the line: {said}", (Table("Along the line between two models", heads, lines),))


def line(a: Point | TensorSource, b: Point | TensorSource, alphas: Sequence[Number]) -> dict[float, Point]:
    """The points ``alpha th_a + (1 - alpha) th_b``.

    Args:
        a: the model at alpha = 1.
        b: the model at alpha = 0.
        alphas: positions; 0 and 1 are added.

    Returns:
        Alpha to point, ascending.
    """
    exacts = sorted({exact(0), exact(1), *(exact(alpha) for alpha in alphas)})
    return {float(alpha): lerp(b, a, alpha) for alpha in exacts}


def barrier(
    traces: Trace | Sequence[Trace],
    a: Point | TensorSource,
    b: Point | TensorSource,
    alphas: Sequence[Number],
    *,
    units: np.ndarray | None = None,
    seed: int = 0,
) -> Barrier:
    """The linear-mode-connectivity barrier (CTL 2).

    ``max_alpha [ L(alpha th_a + (1 - alpha) th_b) - alpha L(th_a) - (1 - alpha) L(th_b) ]`` over
    the interior alphas, for the cross-entropy loss and for the error rate.

    Args:
        traces: one trace, or one a data set to be pooled, with ``Outputs`` or ``NextTokenLoss`` and
            the points of [`line`][].
        a: the model at alpha = 1.
        b: the model at alpha = 0.
        alphas: the interior grid.
        units: as for [`linearity`][mergescope.linearity], for the intervals.
        seed: of the intervals.

    Returns:
        The curve and its barriers.

    Raises:
        PointError: there is no interior alpha, or a trace lacks a point of the line.
    """
    traces = [traces] if isinstance(traces, Trace) else list(traces)
    points = line(a, b, alphas)
    if not any(0 < alpha < 1 for alpha in points):
        raise PointError("A barrier needs at least one alpha strictly between 0 and 1.")
    for trace in traces:
        missing = [str(point) for point in points.values() if point not in trace.points]
        if missing:
            raise PointError(
                f"The trace lacks points of the line: {'; '.join(missing)}. Trace line(a, b, alphas)."
            )
    outputs = [_losses(trace) for trace in traces]
    losses = np.stack([np.concatenate([o.losses(p) for o in outputs]) for p in points.values()])
    errors = np.stack([1 - np.concatenate([o.correct(p) for o in outputs]) for p in points.values()])
    positions = np.array(list(points))
    loss, error = np.nanmean(losses, 1), np.nanmean(errors, 1)
    return Barrier(
        positions, loss, error,
        float(_excess(loss, positions).max()), float(_excess(error, positions).max()),
        _interval(losses, positions, units, seed), _interval(errors, positions, units, seed),
    )  # fmt: skip


def _excess(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    # Above the chord between the ends, inside.
    (first,), (second,) = values[positions == 1], values[positions == 0]
    at = positions.reshape(-1, *[1] * (values.ndim - 1))
    with np.errstate(invalid="ignore"):  # infinite losses
        return np.asarray((values - at * first - (1 - at) * second)[(positions > 0) & (positions < 1)])


def _interval(
    values: np.ndarray, positions: np.ndarray, units: np.ndarray | None, seed: int
) -> tuple[float, float]:
    each = bootstrap(_excess(values, positions).T, units, seed=seed)
    return max(found.low for found in each), max(found.high for found in each)


def _losses(trace: Trace) -> Outputs | NextTokenLoss:
    found = next((reading for reading in trace.readings if isinstance(reading, NextTokenLoss)), None)
    return found or trace.reading(Outputs)
