"""The predicted accuracy of two task vectors together, over both coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mergescope.protocols.prediction.expansion import Expansion, coefficients_of
from mergescope.protocols.prediction.surface import measured_logits, scored
from mergescope.protocols.scores import as_fields, over_tasks
from mergescope.protocols.which_data import alike
from mergescope.readings import Summary
from mergescope.tracing.second_order import taylor_weights

SQUARE = tuple(float(value) for value in np.linspace(-0.5, 1.5, 21).round(6))
"""Coefficients of either task, unless told otherwise."""

BOX = (0.0, 1.0)
"""Where the best point is looked for: what task arithmetic searches."""


@dataclass(frozen=True)
class Spot:
    """Accuracy at two coefficients.

    Attributes:
        coefficients: of both tasks.
        accuracy: on both tasks' data.
        normalised: the mean of both, each over its own fine-tune's.
    """

    coefficients: tuple[float, float]
    accuracy: tuple[float, float]
    normalised: float


@dataclass(frozen=True)
class Surface:
    """Predicted accuracy of ``th_0 + c_1 tau_1 + c_2 tau_2`` on both tasks.

    Attributes:
        tasks: both.
        coefficients: of the grid, for either task.
        accuracy: ``(2, n, n)``, on each task's data; the first coefficient is the first of both axes.
        normalised: ``(n, n)``: the mean over both of the accuracy over their fine-tunes' own (ATTN Eq. 5).
        best: the spot of the search box with the highest predicted normalised accuracy; among equals the nearest to
            the base.
        worth: the predicted normalised accuracy there, with its interval.
        measured: spots of models that were run, as they are.
    """

    tasks: tuple[str, str]
    coefficients: tuple[float, ...]
    accuracy: np.ndarray
    normalised: np.ndarray
    best: Spot
    worth: Summary
    measured: tuple[Spot, ...]

    @property
    def name(self) -> str:
        """``"a + b"``."""
        return " + ".join(self.tasks)

    def cells(self) -> list[dict[str, Any]]:
        """The grid, and what was measured, as lines of a table.

        Returns:
            Pair, tasks, coefficients, accuracies and whether it was measured.
        """
        grid = [
            Spot((a, b), (float(self.accuracy[0, i, j]), float(self.accuracy[1, i, j])), float(self.normalised[i, j]))
            for i, a in enumerate(self.coefficients)
            for j, b in enumerate(self.coefficients)
        ]  # fmt: skip
        return [
            {
                "pair": self.name, "task 1": self.tasks[0], "task 2": self.tasks[1],
                "coefficient 1": spot.coefficients[0], "coefficient 2": spot.coefficients[1],
                "accuracy 1": spot.accuracy[0], "accuracy 2": spot.accuracy[1], "normalised": spot.normalised,
                "measured": measured,
            }
            for measured, spots in ((False, grid), (True, self.measured))
            for spot in spots
        ]  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The best spot as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "surface", "points": self.name, "data": " ∪ ".join(self.tasks)}
        return [
            {**common, "measure": "best first", "mean": self.best.coefficients[0]},
            {**common, "measure": "best second", "mean": self.best.coefficients[1]},
            {**common, "measure": "normalised accuracy", **as_fields(self.worth)},
        ]


def pair_surface(
    expansions: Mapping[str, Expansion],
    tasks: tuple[str, str],
    coefficients: Sequence[float] = SQUARE,
    *,
    seed: int = 0,
) -> Surface:
    """Predict accuracy over two coefficients, without running any model but both fine-tunes.

    Args:
        expansions: task to the expansion on its data, in which its own fine-tune was run.
        tasks: two of them.
        coefficients: of the grid, with one at least in [`BOX`][].
        seed: of the interval.

    Returns:
        The surface.

    Raises:
        MergescopeError: a network predicts nothing, data have no labels, or a fine-tune is never right.

    Example:
        >>> import mergescope as ms
        >>> from mergescope.protocols.prediction.expansion import expand
        >>> _ = torch.manual_seed(0)
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Point.of(ms.Checkpoint(net.state_dict(), name="base"))
        >>> models = {name: ms.Point.of(ms.random_neighbour(base, base * 1.1, seed=i)) for i, name in enumerate("ab")}
        >>> batches = [(torch.randn(8, 4), torch.tensor([0, 1] * 4))]
        >>> data = {name: ms.protocols.HeldOut(name, batches, net, name) for name in models}
        >>> passed = {name: expand(base, models, data[name], [models[name]]) for name in models}
        >>> found = pair_surface(passed, ("a", "b"))
        >>> found.name, found.normalised.shape
        ('a + b', (21, 21))
    """  # noqa: DOC502 (raised by what this calls)
    data, values = [expansions[task] for task in tasks], np.array(coefficients)
    own = [
        scored(each, measured_logits(each, each.models[task]))[0]
        for each, task in zip(data, tasks, strict=True)
    ]
    grid = [dict(zip(tasks, (a, b), strict=True)) for a in values.tolist() for b in values.tolist()]
    hits = [_hits(each, grid) for each in data]
    accuracy = np.stack([part.mean(1).reshape(len(values), -1) for part in hits])
    shares = np.array([part.mean() for part in own])
    # The same mean as over_tasks(), which refuses a fine-tune that is never right.
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = (accuracy / shares[:, None, None]).mean(0)
    inside = [
        place
        for place, point in enumerate(grid)
        if all(BOX[0] <= value <= BOX[1] for value in point.values())
    ]
    best = min(inside, key=lambda place: (-normalised.flat[place], sum(grid[place].values()), place))
    shared = alike(each.fingerprint for each in data)
    worth = over_tasks([part[best] for part in hits], own, alike=shared, seed=seed)
    where = grid[best][tasks[0]], grid[best][tasks[1]]
    spot = Spot(where, _two(accuracy.reshape(2, -1)[:, best]), float(normalised.flat[best]))
    return Surface(
        tasks,
        tuple(values.tolist()),
        accuracy,
        normalised,
        spot,
        worth,
        tuple(_measured(data, tasks, shares)),
    )


def _hits(data: Expansion, grid: Sequence[Mapping[str, float]]) -> np.ndarray:
    # (cells, samples): only terms of both tasks have weights, and logits are small.
    weights = np.stack([taylor_weights(data.terms, point) for point in grid])
    used = np.flatnonzero(weights.any(0))
    assert data.logits is not None and data.labels is not None  # as the fine-tune's score has shown
    logits = data.logits[torch.from_numpy(used)]
    labels = torch.from_numpy(data.labels)
    found = []
    for part in np.array_split(weights[:, used], max(1, len(grid) // 64)):
        said = torch.tensordot(torch.from_numpy(part).to(logits.dtype), logits, dims=1)
        found.append((said.argmax(2) == labels).double().numpy())
    return np.concatenate(found)


def _measured(data: Sequence[Expansion], tasks: tuple[str, str], own: np.ndarray) -> list[Spot]:
    one, other = data
    found = {}
    for point in one.points:
        said = coefficients_of(point, one.base, one.models)
        if point not in other.points or not said.keys() <= set(tasks):
            continue
        accuracy = np.array([scored(each, measured_logits(each, point))[0].mean() for each in data])
        at = (said.get(tasks[0], 0.0), said.get(tasks[1], 0.0))
        found[at] = Spot(at, _two(accuracy), float((accuracy / own).mean()))
    return [found[at] for at in sorted(found)]


def _two(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])
