"""Linearity of merges that were not made: every measure of a test, from derivatives at the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mergescope.protocols.linearity import LayerLinearity, Linearity, LinearityTest
from mergescope.protocols.prediction.expansion import Expansion
from mergescope.protocols.which_data import alike
from mergescope.readings import MEASURES, RELATIVE, Summary, bootstrap, linearity_measures
from mergescope.weights import Point, exact, task_vector
from mergescope.weights.point import Number

Weighing = Callable[[Expansion, Point], np.ndarray]


def predicted_linearity(expansions: Sequence[Expansion], test: LinearityTest, *, seed: int = 0) -> Linearity:
    """Evaluate a linearity test without running any of its points.

    Both sides of ``f(sum_k a_k p_k) ~ sum_k a_k f(p_k)`` are taken from the expansion at th_0. What is constant or
    linear in the coefficients cancels, and the gap is the leading term of CTL, Theorem 5.1:
    ``-a(1-a)/2 f''[tau_i - tau_j, tau_i - tau_j]`` for two models,
    ``-1/2 sum_{i<j} a_i a_j f''[tau_i - tau_j, tau_i - tau_j]`` for more, and so on for Eq. 2 and Eq. 3.

    Args:
        expansions: of the data sets, which are pooled.
        test: its points are combinations of base and fine-tunes.
        seed: of the intervals.

    Returns:
        What [`linearity`][mergescope.linearity] reports of traces.

    Raises:
        PointError: a point is made of other checkpoints.

    Example:
        >>> import torch, mergescope as ms
        >>> from mergescope.protocols.prediction.expansion import expand
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: Point.of(ms.random_neighbour(base, base * 1.1, seed=i)) for i, name in enumerate("ab")}
        >>> found = expand(Point.of(base), models, ms.protocols.HeldOut("noise", [torch.randn(6, 4)], net))
        >>> said = predicted_linearity([found], ms.ctl(models["a"], models["b"]))
        >>> said["blocks.0"].measures["gap"].mean < 0.1
        True
    """  # noqa: DOC502 (raised by what this calls)
    return _linearity(expansions, test, Expansion.predicted, seed)


def measured_linearity(expansions: Sequence[Expansion], test: LinearityTest, *, seed: int = 0) -> Linearity:
    """Evaluate a linearity test of points that were run in the same passes.

    Args:
        expansions: as for [`predicted_linearity`][].
        test: its points were run.
        seed: of the intervals.

    Returns:
        What [`linearity`][mergescope.linearity] reports of traces.

    Raises:
        PointError: a point was not run.
    """  # noqa: DOC502 (raised by what this calls)
    return _linearity(expansions, test, Expansion.measured, seed)


@dataclass(frozen=True)
class GapErrors:
    """How far the predicted gap is from the measured one, as vectors, at one layer.

    Attributes:
        layer: its name.
        error: ``|measured - predicted| / |measured|``, over samples.
    """

    layer: str
    error: Summary


def gap_errors(
    expansions: Sequence[Expansion], test: LinearityTest, *, seed: int = 0
) -> tuple[GapErrors, ...]:
    """Compare the gap's vectors, whose lengths alone may agree by accident.

    Args:
        expansions: with the test's points among those that were run.
        test: the test.
        seed: of the intervals.

    Returns:
        One entry a layer.

    Raises:
        PointError: a point was not run, or is made of other checkpoints.
    """  # noqa: DOC502 (raised by what this calls)
    found = []
    for layer in expansions[0].layers:
        parts = []
        for data in expansions:
            measured, predicted = (
                _gap(data, test, weigh) for weigh in (Expansion.measured, Expansion.predicted)
            )
            parts.append(np.stack([data.norms(layer, side) for side in (measured - predicted, measured)]))
        apart, whole = np.concatenate(parts, axis=1)
        error = bootstrap(ratio(apart, whole)[:, None], row_units(expansions, layer), seed=seed)[0]
        found.append(GapErrors(layer, error))
    return tuple(found)


def remainders(data: Expansion, model: str, lam: float) -> dict[str, np.ndarray]:
    """What follows the second order, relative to it, at ``th_0 + lam tau_k``.

    Args:
        data: with that point among those that were run.
        model: name of the fine-tune.
        lam: the coefficient.

    Returns:
        Layer to ``|f - f_0 - lam J tau - lam^2/2 f''[tau, tau]| / |lam^2/2 f''[tau, tau]|`` by row; NaN where
        nothing is predicted.

    Raises:
        PointError: the point was not run.
    """  # noqa: DOC502 (raised by what this calls)
    point = along(data.base, data.models[model], lam)
    apart, second = data.measured(point) - data.predicted(point), lam**2 / 2 * data.term(model, model)
    return {layer: ratio(data.norms(layer, apart), data.norms(layer, second)) for layer in data.layers}


def along(base: Point, model: Point, lam: Number) -> Point:
    """The point ``th_0 + lam tau``.

    Args:
        base: th_0.
        model: the fine-tune.
        lam: the coefficient.

    Returns:
        The point.
    """
    return base + exact(lam) * task_vector(model, base)


def _linearity(expansions: Sequence[Expansion], test: LinearityTest, weigh: Weighing, seed: int) -> Linearity:
    names = MEASURES + (RELATIVE if test.reference is not None else ())
    shares = [float(value) for _, value in test.right]
    entries = []
    for layer in expansions[0].layers:
        grams, apart = [], []
        for data in expansions:
            weights = np.stack([weigh(data, point) for point in test.points])
            grams.append(data.gram(layer, weights))
            apart.append(data.gram(layer, weights - weights[0]))
        values = linearity_measures(
            np.concatenate(grams), shares, test.reference is not None, np.concatenate(apart)
        )
        stacked = np.stack([values[name] for name in names], axis=1)
        summaries = bootstrap(stacked, row_units(expansions, layer), seed=seed)
        trivial = any(layer in data.trivial for data in expansions)
        entries.append(LayerLinearity(layer, trivial, dict(zip(names, summaries, strict=True)), values))
    return Linearity(test, tuple(entries), sum(data.samples for data in expansions))


def _gap(data: Expansion, test: LinearityTest, weigh: Weighing) -> np.ndarray:
    right = sum((float(share) * weigh(data, point) for point, share in test.right), np.zeros(data.size))
    return weigh(data, test.left) - right


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """A quotient of lengths.

    Args:
        numerator: ``(rows,)``.
        denominator: ``(rows,)``.

    Returns:
        ``(rows,)``, NaN where the denominator is zero.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0]))
        array([0.5, nan])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def row_units(expansions: Sequence[Expansion], layer: str) -> np.ndarray | None:
    """The sample of each row, counted over all data: rows may be tokens, which stand or fall together.

    So do the rows of a sample that several data sets share.

    Args:
        expansions: of the data sets, which are pooled.
        layer: one of their layers.

    Returns:
        ``(rows,)``, or None where every row is a sample of its own.
    """
    first = alike(data.fingerprint for data in expansions)
    if all(layer not in data.units for data in expansions) and first == list(range(len(first))):
        return None
    starts = np.cumsum([0, *(data.samples for data in expansions)])
    return np.concatenate([
        data.units.get(layer, np.arange(data.samples)) + starts[place]
        for data, place in zip(expansions, first, strict=True)
    ])
