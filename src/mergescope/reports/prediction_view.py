"""What a prediction's run directory holds, as its page looks at it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergescope.errors import StudyError
from mergescope.reports.protocol_view import AGAIN, Stored
from mergescope.studies.predicted import SURFACES
from mergescope.studies.rundir import Row, read_table

KINDS = ("ctl", "eq1", "eq2", "eq3")
"""Tests, in the order in which they are shown."""

AGREEMENT = ("slope", "r2", "error", "takes over")
"""What is told of predicted against measured gaps, layer by layer."""

COLUMNS = (
    "pair", "task 1", "task 2", "coefficient 1", "coefficient 2", "accuracy 1", "accuracy 2", "normalised", "measured",
)  # fmt: skip

NAN = float("nan")


@dataclass(frozen=True)
class Predicted:
    """Predicted tests and interactions.

    Attributes:
        layers: in order.
        trivial: layers that are linear in the weights by construction.
        kinds: of tests that there are.
        gaps: kind, models and coefficient to layer to predicted and measured mean gap; NaN if not measured.
        agreement: layer to measure to row; empty if nothing was measured.
        tasks: names of task vectors.
        interaction: two names and a layer to the row of their relative interaction.
    """

    layers: tuple[str, ...]
    trivial: frozenset[str]
    kinds: tuple[str, ...]
    gaps: Mapping[tuple[str, str, float], Mapping[str, tuple[float, float]]]
    agreement: Mapping[str, Mapping[str, Row]]
    tasks: tuple[str, ...]
    interaction: Mapping[tuple[str, str, str], Row]

    @property
    def measured(self) -> bool:
        """Whether merged models were run as well."""
        return bool(self.agreement)

    @property
    def evidence(self) -> list[str]:
        """Layers that are not linear by construction."""
        return [layer for layer in self.layers if layer not in self.trivial]

    def interaction_matrix(self, layer: str) -> np.ndarray:
        """The relative interactions at a layer.

        Args:
            layer: its name.

        Returns:
            ``(tasks, tasks)``, symmetric; NaN where there is none.
        """
        matrix = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for i, one in enumerate(self.tasks):
            for j, other in enumerate(self.tasks):
                row = self.interaction.get((one, other, layer)) or self.interaction.get((other, one, layer))
                if row is not None:
                    matrix[i, j] = row.mean
        return matrix

    def mean_gap(self, kind: str, layer: str, side: int = 0) -> float:
        """The mean gap over tests of a kind.

        Args:
            kind: of test.
            layer: its name.
            side: 0 for predicted, 1 for measured.

        Returns:
            The mean; NaN if there is none.
        """
        values = [said[layer][side] for (of, _, _), said in self.gaps.items() if of == kind and layer in said]
        live = [value for value in values if math.isfinite(value)]
        return float(np.mean(live)) if live else NAN


@dataclass(frozen=True)
class Square:
    """The predicted accuracy of a pair over both coefficients.

    Attributes:
        tasks: both.
        coefficients: of either.
        values: ``(n, n)`` normalised accuracy; the first coefficient is the first axis.
        best: coefficients of the best spot in the search box.
        worth: the predicted normalised accuracy there.
        measured: coefficients to the measured normalised accuracy.
    """

    tasks: tuple[str, str]
    coefficients: tuple[float, ...]
    values: np.ndarray
    best: tuple[float, float]
    worth: Row
    measured: Mapping[tuple[float, float], float]

    @property
    def off(self) -> list[float]:
        """Predicted less measured normalised accuracy, at every spot of the grid that was measured."""
        places = {value: place for place, value in enumerate(self.coefficients)}
        return [
            float(self.values[places[a], places[b]]) - value
            for (a, b), value in self.measured.items()
            if a in places and b in places
        ]


def stored_prediction(stored: Stored) -> Predicted:
    """Tests and interactions of a run.

    Args:
        stored: the run.

    Returns:
        What was predicted.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    gaps: dict[tuple[str, str, float], dict[str, tuple[float, float]]] = {}
    trivial: set[str] = set()
    layers: dict[str, None] = {}
    measured: dict[tuple[tuple[str, str, float], str], float] = {}
    for row in stored.of(measure="gap"):
        how, _, kind = row.kind.partition("-")
        if kind not in KINDS:
            continue
        key = kind, row.points, -1.0 if math.isnan(row.parameter) else row.parameter
        layers[row.layer] = None
        trivial |= {row.layer} if row.trivial else set()
        if how == "predicted":
            gaps.setdefault(key, {})[row.layer] = (row.mean, NAN)
        elif how == "measured":
            measured[key, row.layer] = row.mean
    if not gaps:
        raise stored.lacks("kind 'predicted-ctl', measure 'gap'")
    agreement: dict[str, dict[str, Row]] = {}
    if stored.setting("measured"):
        for key, said in gaps.items():
            for layer, (mean, _) in said.items():
                if (key, layer) not in measured:
                    raise stored.lacks(f"the measured gap of {key[1]!r} ({key[0]}) at {layer!r}")
                said[layer] = (mean, measured[key, layer])
        agreement = {
            layer: {name: stored.one(kind="prediction", layer=layer, measure=name) for name in AGREEMENT}
            for layer in layers
        }
    pairs = stored.of(kind="interaction", measure="interaction")
    tasks = tuple(_alone(row.points) for row in pairs if _alone(row.points) and row.layer == pairs[0].layer)
    if not tasks:
        raise stored.lacks("kind 'interaction', measure 'interaction'")
    both = {f"{one} + {other}": (one, other) for one in tasks for other in tasks}
    found = {(*both[row.points], row.layer): row for row in pairs if row.points in both}
    kinds = tuple(kind for kind in KINDS if any(key[0] == kind for key in gaps))
    return Predicted(tuple(layers), frozenset(trivial), kinds, gaps, agreement, tasks, found)


def stored_squares(stored: Stored) -> list[Square]:
    """The predicted accuracy surfaces of a run.

    Args:
        stored: the run.

    Returns:
        One a pair; empty if accuracy was not predicted.

    Raises:
        StudyError: something is missing or damaged.
    """
    said = stored.of(kind="surface", measure="normalised accuracy")
    if not said:
        if stored.of(kind="surface"):
            raise stored.lacks("kind 'surface', measure 'normalised accuracy'")
        return []
    path = stored.path / SURFACES
    table = read_table(path)
    lacking = [name for name in COLUMNS if not table or name not in table[0]]
    if lacking:
        raise StudyError(
            f"{path} has no column {', '.join(lacking)}: it is damaged, or of another version. {AGAIN}"
        )
    squares = []
    for worth in said:
        cells = [cell for cell in table if cell["pair"] == worth.points]
        grid = [cell for cell in cells if not cell["measured"]]
        values = tuple(dict.fromkeys(cell["coefficient 1"] for cell in grid))
        wanted = [(a, b) for a in values for b in values]
        if not grid or [(cell["coefficient 1"], cell["coefficient 2"]) for cell in grid] != wanted:
            raise StudyError(f"{path}: the surface of {worth.points} is not complete. {AGAIN}")
        best = [
            stored.one(kind="surface", points=worth.points, measure=f"best {name}").mean for name in ("first", "second")
        ]  # fmt: skip
        squares.append(Square(
            (grid[0]["task 1"], grid[0]["task 2"]), values,
            np.array([cell["normalised"] for cell in grid]).reshape(len(values), -1), (best[0], best[1]), worth,
            {(cell["coefficient 1"], cell["coefficient 2"]): cell["normalised"] for cell in cells if cell["measured"]},
        ))  # fmt: skip
    return squares


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest number.

    Args:
        values: some may be NaN.

    Returns:
        Both ends; NaN without numbers.

    Example:
        >>> spread([2.0, float("nan"), 1.0])
        (1.0, 2.0)
    """
    live = [value for value in values if math.isfinite(value)]
    return (min(live), max(live)) if live else (NAN, NAN)


def _alone(points: str) -> str:
    # "a + a" is a task vector's own curvature; names may have a plus in them.
    half = (len(points) - 3) // 2
    return points[:half] if points == f"{points[:half]} + {points[:half]}" else ""
