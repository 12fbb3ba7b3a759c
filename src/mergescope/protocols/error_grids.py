"""Weight disentanglement errors over a square of coefficients: grids, search box, summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mergescope.errors import MergescopeError, did_you_mean
from mergescope.readings import Summary
from mergescope.weights import exact
from mergescope.weights.point import Number

PRESETS: Mapping[str, tuple[int, float]] = {"tangent": (20, 3.0), "attn": (15, 2.0)}
"""Points a side, and how far the square reaches: TANGENT's 20 x 20 on [-3, 3]^2, ATTN's 15 x 15 on [-2, 2]^2."""

BOX = (0.0, 1.0)
"""Coefficients that task arithmetic searches: the square that TANGENT draws into its heat maps."""

THRESHOLD = 0.1
"""Below this an error counts as small: both tasks together lose a prediction in ten (or 0.1 nats).

The papers show heat maps and give no number. This choice is ours; give another with the settings.
"""

RESAMPLES = 1000


def preset_grid(name: str) -> tuple[int, float]:
    """Points a side and reach of a preset.

    Args:
        name: one of [`PRESETS`][].

    Returns:
        Both.

    Raises:
        MergescopeError: there is no such preset.

    Example:
        >>> preset_grid("attn")
        (15, 2.0)
    """
    if name not in PRESETS:
        known = "; ".join(
            f"{key} ({points} x {points} on [-{reach:g}, {reach:g}]^2)"
            for key, (points, reach) in PRESETS.items()
        )
        raise MergescopeError(
            f"There is no preset {name!r}.{did_you_mean(name, PRESETS)} Choose one of: {known}."
        )
    return PRESETS[name]


def coefficients(points: int, reach: Number) -> tuple[Fraction, ...]:
    """``linspace(-reach, reach, points)``, exactly: the same points written twice are the same.

    Args:
        points: how many, at least 2.
        reach: the largest coefficient, above 0.

    Returns:
        The coefficients; 0 is among them if their number is odd.

    Raises:
        MergescopeError: there are too few points, or the reach is not positive.

    Example:
        >>> [float(value) for value in coefficients(5, 2)]
        [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    if points < 2 or not reach > 0:
        raise MergescopeError(
            f"A grid takes at least 2 points a side and a reach above 0, got {points} and {reach:g}."
        )
    return tuple(exact(reach) * (2 * Fraction(place, points - 1) - 1) for place in range(points))


@dataclass(frozen=True)
class ErrorGrid:
    """``xi(a1, a2)`` of two tasks (TANGENT; ATTN Property 4).

    Attributes:
        tasks: both.
        coefficients: of either task vector, ascending.
        parts: ``(2, n, n)``: a task's own term, at ``[task, a1, a2]``; the error is their sum.
        samples: of each task.
        distance: between outputs.
        layer: whose features are compared; empty for outputs.
        summaries: ``mean error`` and ``share below`` the threshold, each ``of the square`` and ``of the
            box``; NaN where no point of the grid is in the box.
        threshold: of the shares.
        box: the ends of the search box, on both axes.
    """

    tasks: tuple[str, str]
    coefficients: tuple[float, ...]
    parts: np.ndarray
    samples: tuple[int, int]
    distance: str
    layer: str
    summaries: Mapping[str, Summary]
    threshold: float
    box: tuple[float, float]

    @property
    def name(self) -> str:
        """``"a + b"``."""
        return " + ".join(self.tasks)

    @property
    def error(self) -> np.ndarray:
        """``xi``, ``(n, n)``, at ``[a1, a2]``; up to 2 for predictions."""
        return self.parts.sum(0)

    def rows(self) -> list[dict[str, Any]]:
        """The summaries as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]; the parameter is the threshold of shares.
        """
        return [
            {
                "kind": "disentanglement", "points": self.name, "data": " ∪ ".join(self.tasks),
                "measure": f"{measure} ({self.distance})", "layer": self.layer,
                "parameter": self.threshold if measure.startswith("share") else float("nan"), **vars(summary),
            }
            for measure, summary in self.summaries.items()
        ]  # fmt: skip

    def cells(self) -> list[dict[str, Any]]:
        """Every cell of the grid.

        Returns:
            Pair, coefficients, error and its two terms.
        """
        return [
            {
                "pair": self.name, "task 1": self.tasks[0], "task 2": self.tasks[1], "alpha 1": one, "alpha 2": two,
                "error": float(self.error[i, j]), "term 1": float(self.parts[0, i, j]),
                "term 2": float(self.parts[1, i, j]),
            }
            for i, one in enumerate(self.coefficients)
            for j, two in enumerate(self.coefficients)
        ]  # fmt: skip


def inside(grid: tuple[float, ...], box: tuple[float, float]) -> np.ndarray:
    """Which cells of a grid are in a box.

    Args:
        grid: coefficients of both axes.
        box: its ends on both axes; they belong to it.

    Returns:
        ``(n, n)`` booleans.

    Example:
        >>> inside((-1.0, 0.0, 1.0), (0.0, 1.0)).tolist()
        [[False, False, False], [False, True, True], [False, True, True]]
    """
    values = np.array(grid)
    along = (values >= box[0] - 1e-12) & (values <= box[1] + 1e-12)
    return along[:, None] & along


def summarised(
    values: tuple[np.ndarray, np.ndarray],
    cells: np.ndarray,
    threshold: float,
    seed: int = 0,
) -> dict[str, Summary]:
    """Mean error, and share of cells below a threshold, of a square and of a box in it, with intervals.

    Percentile bootstrap: the samples of each task are drawn anew, once for all cells.

    Args:
        values: of each task ``(n, n, samples)``; NaN marks a sample without a value.
        cells: ``(n, n)`` booleans: the box.
        threshold: of the share.
        seed: of the resampling.

    Returns:
        Measure to its summary, without a standard deviation: cells are no samples.
    """
    rng = np.random.default_rng(seed)
    point, drawn = np.zeros(cells.size), np.zeros((RESAMPLES, cells.size))
    count, dead = 0, 0
    for part in values:
        flat = part.reshape(cells.size, -1)
        kept = flat[:, ~np.isnan(flat).any(0)].astype(np.float64)
        samples = kept.shape[1]
        count, dead = count + samples, dead + flat.shape[1] - samples
        if not samples:
            nothing = Summary(*4 * (np.nan,), 0, dead)
            return {f"{what} of the {where}": nothing for what in _WHAT for where in ("square", "box")}
        weights = rng.multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES) / samples
        point += kept.mean(1)
        drawn += weights @ kept.T
    found = {}
    for where, chosen in (("square", np.ones(cells.size, bool)), ("box", cells.ravel())):
        for what, reduce in (
            (_WHAT[0], lambda errors: errors.mean(-1)),
            (_WHAT[1], lambda errors: (errors < threshold).mean(-1)),
        ):
            if not chosen.any():
                found[f"{what} of the {where}"] = Summary(*4 * (np.nan,), 0, dead)
                continue
            low, high = np.quantile(reduce(drawn[:, chosen]), [0.025, 0.975])
            found[f"{what} of the {where}"] = Summary(
                float(reduce(point[chosen])), np.nan, float(low), float(high), count, dead
            )
    return found


_WHAT = ("mean error", "share below")
