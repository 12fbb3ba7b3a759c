"""Evaluation, addition, negation and compared methods of somebody's models: tables, rows, run directories."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mergescope.errors import StudyError
from mergescope.protocols.scores import ModelScores, score_table, scores_of
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.studies.given import Given
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows
from mergescope.studies.search_plans import is_linear, models_of
from mergescope.weights import Point

EVALUATE, SEARCH = "evaluate", "search"
"""What ``run.yaml`` calls them."""


class Result(Protocol):
    """What every protocol here returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""

    @property
    def network(self) -> str:
        """Name of the network's class."""

    @property
    def linearized(self) -> bool:
        """Whether figures are of the network linearised around the base."""

    @property
    def forward_passes(self) -> int:
        """Forward passes of a batch."""

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""

    def rows(self) -> list[dict[str, Any]]:
        """Fields of rows."""


@dataclass(frozen=True)
class Evaluated:
    """Models on all data; it prints as a table.

    Attributes:
        models: the scores, one a line.
        linearized: whether all figures are of the network linearised around the base.
        notes: what the user should know.
        network: name of its class.
        forward_passes: of a batch.
        seconds: of all passes.
    """

    models: tuple[ModelScores, ...]
    linearized: bool
    notes: tuple[str, ...]
    network: str
    forward_passes: int
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """The result as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        return [row for scores in self.models for row in scores.rows("accuracy")]

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.models) + 2
        losses = [
            f"{line.name:<{width}}" + "  ".join(f"{task} {loss.mean:.4f}" for task, loss in line.loss.items())
            for line in self.models
        ]
        cost = f"{self.forward_passes:,} forward passes, {self.seconds:.1f} s"
        notes = [f"Note: {note}." for note in self.notes]
        return "\n".join(["Accuracy", *score_table(self.models), "Loss", *losses, cost, *notes])


def evaluate_given(given: Given, extra: Mapping[str, Point], settings: ArithmeticSettings) -> Evaluated:
    """Accuracy and loss of models on all data.

    Args:
        given: models and data.
        extra: name to further point.
        settings: of the passes.

    Returns:
        The scores; normalised where every data set has a model of its own.
    """
    points, held = models_of(given, extra), {data.name: data for data in given.held}
    linear, notes = is_linear(given, settings)
    around = Point.of(given.base) if linear else None
    found = settings.run(dict.fromkeys(held, list(points.values())), held, around)
    single = {name: points[data.owner] for name, data in held.items() if data.owner is not None}
    own = single if len(single) == len(held) else None
    lines = [scores_of(name, found, point, own, seed=settings.seed) for name, point in points.items()]
    network = type(given.held[0].model).__name__
    told = (*given.notes, *notes)
    return Evaluated(tuple(lines), linear, told, network, found.forward_passes, found.seconds)


def open_run(path: str | os.PathLike[str], study: str) -> RunDirectory:
    """A run directory: a new one, or that of an earlier run of the same kind, whose results are replaced.

    Args:
        path: the directory.
        study: what ``run.yaml`` calls it.

    Returns:
        The run directory.

    Raises:
        StudyError: it holds another study, or can't be used.
    """
    run = RunDirectory(path)
    if (run.path / "run.yaml").is_file() and (found := run.read_run()["study"]) != study:
        raise StudyError(
            f"{run.path} holds the results of the study {found!r}, which would be lost. Choose another --out."
        )
    return run


def rows(result: Result, regime: str) -> list[Row]:
    """A result as a tidy table.

    Args:
        result: of a protocol.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    cost = {"seconds": result.seconds, "forward_passes": result.forward_passes}
    return [Row(**{"network": result.network, "regime": regime, **cost, **row}) for row in result.rows()]


def write_result(
    run: RunDirectory,
    study: str,
    result: Result,
    regime: str,
    settings: ArithmeticSettings,
    given: Mapping[str, Given],
) -> None:
    """Write ``results.parquet`` and ``run.yaml``.

    Args:
        run: the run directory.
        study: what ``run.yaml`` calls it.
        result: of a protocol.
        regime: how the models were fine-tuned.
        settings: of the search.
        given: part of the data to models and data.
    """
    write_rows(run.path / RESULTS, rows(result, regime))
    config = {"search": {**asdict(settings), "grid": list(settings.grid)}}
    provenance = {name: part.provenance() for name, part in given.items()}
    cost = {"forward_passes": result.forward_passes, "seconds": round(result.seconds, 2)}
    run.write_run(
        study, "", {**config, **{name: part.config() for name, part in given.items()}},
        {**provenance, "cost": cost, "linearized": result.linearized, "notes": list(result.notes), "says": str(result)},
    )  # fmt: skip


def to_dict(result: Result, regime: str) -> dict[str, Any]:
    """A result for scripts.

    Args:
        result: of a protocol.
        regime: how the models were fine-tuned.

    Returns:
        Plain values; NaN becomes None.
    """
    fields = ("kind", "points", "parameter", "data", "measure", "mean", "std", "low", "high", "n")
    return {
        "network": result.network,
        "linearized": result.linearized,
        "notes": list(result.notes),
        "cost": {"forward_passes": result.forward_passes, "seconds": round(result.seconds, 3)},
        "results": [{name: _finite(getattr(row, name)) for name in fields} for row in rows(result, regime)],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
