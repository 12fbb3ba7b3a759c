"""Predicted merges of a family as a run directory and as JSON."""

from __future__ import annotations

from typing import Any

from mergescope.plain import plain
from mergescope.protocols.prediction.predict import PredictionSettings, plan, predict
from mergescope.protocols.prediction.result import PredictedTest, Prediction
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory, write_table

STUDY = "predict"
"""What ``run.yaml`` calls it."""

SURFACES = "surfaces.parquet"
"""Every cell of every pair's predicted accuracy surface, and what was measured of it."""

DERIVATIVE_COST = 7.0
"""A second derivative takes about as long as so many passes through the network."""


def plan_prediction(opened: Opened, settings: PredictionSettings) -> dict[str, Any]:
    """What predicting will cost.

    Args:
        opened: models and data.
        settings: what to predict.

    Returns:
        Pairs, models that are run, second derivatives of a batch, forward passes (of what takes as long), and an
        estimate of seconds.

    Raises:
        MergescopeError: it can't be predicted so.
    """  # noqa: DOC502 (raised by what this calls)
    found = plan(opened.base, opened.models, opened.data, settings)
    runs, second = found.pop("passes_a_batch"), found.pop("derivatives_a_batch")
    passes = {name: count + DERIVATIVE_COST * second for name, count in runs.items()}
    derivatives = sum(second * count for count in opened.batches.values())
    return {**found, "derivatives": derivatives, **cost({"test": opened}, {"test": passes})}


def run_prediction(opened: Opened, settings: PredictionSettings) -> Prediction:
    """Predict a family's merges.

    Args:
        opened: models and data.
        settings: what to predict.

    Returns:
        What was predicted.

    Raises:
        MergescopeError: it can't be predicted so.
    """  # noqa: DOC502 (raised by what this calls)
    return predict(opened.base, opened.models, opened.data, settings)


def rows(found: Prediction, regime: str) -> list[Row]:
    """Everything as a tidy table.

    Args:
        found: what was predicted.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    return [Row(network=found.network, regime=regime, **row) for row in found.rows()]


def write_prediction(run: RunDirectory, opened: Opened, found: Prediction) -> None:
    """Write results and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: what was predicted.
    """
    cells = [cell for square in found.surfaces for cell in square.cells()]
    (run.path / SURFACES).unlink(missing_ok=True)  # of an earlier run, which had some
    if cells:
        write_table(run.path / SURFACES, {name: [cell[name] for cell in cells] for name in cells[0]})
    write_protocol_run(
        run, STUDY, rows(found, opened.regime), {"test": opened}, found.settings,
        {"cost": _cost(found), "notes": _notes(opened, found), "says": str(found)},
    )  # fmt: skip


def to_dict(opened: Opened, found: Prediction) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: what was predicted.

    Returns:
        Plain values; NaN and infinity become None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "samples": dict(found.samples), "cost": _cost(found),
        "notes": _notes(opened, found), "tests": [_test(test) for test in found.tests],
        "interactions": [
            {
                "models": [it.one, it.other], "layer": it.layer, "trivial": it.trivial, "relative": vars(it.relative),
                "size": vars(it.size),
            }
            for it in found.interactions
        ],
        "agreement": [vars(it) for it in found.agreements],
        "outcomes": [
            {
                "coefficient": it.lam, "accuracy": {task: vars(value) for task, value in it.accuracy.items()},
                "normalised": vars(it.normalised),
                "measured": None if it.measured_normalised is None else vars(it.measured_normalised),
            }
            for it in found.outcomes
        ],
        "surfaces": [
            {
                "tasks": it.tasks, "coefficients": it.coefficients, "accuracy": it.accuracy.tolist(),
                "normalised": it.normalised.tolist(), "best": it.best.coefficients, "worth": vars(it.worth),
                "measured": [vars(spot) for spot in it.measured],
            }
            for it in found.surfaces
        ],
        "best": None if found.best is None else found.best.lam,
    })  # fmt: skip


def _test(test: PredictedTest) -> dict[str, Any]:
    measured = {} if test.measured is None else {entry.layer: entry for entry in test.measured.layers}
    errors = {it.layer: vars(it.error) for it in test.errors}
    return {
        "kind": test.kind, "models": test.name, "coefficient": test.parameter, "data": test.data,
        "layers": [
            {
                "layer": entry.layer, "trivial": entry.trivial,
                "predicted": {name: vars(value) for name, value in entry.measures.items()},
                "measured": {name: vars(value) for name, value in measured[entry.layer].measures.items()}
                if measured else None,
                "gap_error": errors.get(entry.layer),
            }
            for entry in test.predicted.layers
        ],
    }  # fmt: skip


def _cost(found: Prediction) -> dict[str, Any]:
    return {
        "derivatives": found.derivatives,
        "forward_passes": found.forward_passes,
        "seconds": round(found.seconds, 2),
        "peak_bytes": found.peak_bytes,
    }


def _notes(opened: Opened, found: Prediction) -> list[str]:
    return [*found.notes, *opened.given.notes]
