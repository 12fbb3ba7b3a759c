"""Stitching of a family as a run directory and as JSON."""

from __future__ import annotations

from typing import Any

from mergescope.plain import plain
from mergescope.protocols.stitching import (
    StitchingSettings,
    plan,
    stitch_addition,
    stitch_negation,
)
from mergescope.protocols.stitching_result import Score, Stitching
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory

STUDY = "stitch"
"""What ``run.yaml`` calls it."""


def plan_stitching(opened: Opened, protocol: str, settings: StitchingSettings) -> dict[str, Any]:
    """What stitching will cost.

    Args:
        opened: models and data.
        protocol: ``addition`` or ``negation``.
        settings: how to stitch.

    Returns:
        Points, passes of whole networks and of rests, and an estimate of seconds.

    Raises:
        MergescopeError: it can't be stitched so.
    """  # noqa: DOC502 (raised by what this calls)
    found = plan(protocol, opened.base, opened.models, opened.data, settings)
    rests, equivalent = found.pop("rest_passes_a_batch"), found.pop("equivalent_passes_a_batch")
    counts = cost({"test": opened}, {"test": equivalent})
    batches = opened.batches
    return {
        **found,
        **counts,
        "equivalent_passes": counts["forward_passes"],
        "forward_passes": sum(points * batches[task] for task, points in found["points"].items()),
        "rest_passes": sum(count * batches[task] for task, count in rests.items()),
    }


def run_stitching(opened: Opened, protocol: str, settings: StitchingSettings) -> Stitching:
    """Stitch a family.

    Args:
        opened: models and data.
        protocol: ``addition`` or ``negation``.
        settings: how to stitch.

    Returns:
        Accuracy and loss.

    Raises:
        MergescopeError: it can't be stitched so.
    """  # noqa: DOC502 (raised by what this calls)
    run = stitch_negation if protocol == "negation" else stitch_addition
    return run(opened.base, opened.models, opened.data, settings)


def rows(found: Stitching, regime: str) -> list[Row]:
    """The scores as a tidy table.

    Args:
        found: the scores.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    return [
        Row(network=found.passes[row["data"]].network, regime=regime, **row) for row in found.rows()
    ]  # fmt: skip


def write_stitching(run: RunDirectory, opened: Opened, found: Stitching, settings: StitchingSettings) -> None:
    """Write results and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: the scores.
        settings: how they were made.
    """
    write_protocol_run(
        run, STUDY, rows(found, opened.regime), {"test": opened}, settings,
        {
            "protocol": found.protocol, "cost": _cost(found), "notes": [*found.notes, *opened.given.notes],
            "says": str(found),
        },
    )  # fmt: skip


def to_dict(opened: Opened, found: Stitching) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: the scores.

    Returns:
        Plain values; NaN becomes None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "protocol": found.protocol, "lams": found.lams,
        "layers": found.layers, "cost": _cost(found), "notes": [*found.notes, *opened.given.notes],
        "base": {data: _score(score) for data, score in found.base.items()},
        "scores": [_score(score) for score in found.scores],
    })  # fmt: skip


def _score(score: Score) -> dict[str, Any]:
    return {**vars(score), "accuracy": vars(score.accuracy), "loss": vars(score.loss)}


def _cost(found: Stitching) -> dict[str, Any]:
    passes = found.passes.values()
    return {
        "forward_passes": found.forward_passes,
        "rest_passes": found.rest_passes,
        "samples": {data: some.samples for data, some in found.passes.items()},
        "seconds": round(sum(some.seconds for some in passes), 2),
        "peak_bytes": max(some.peak_bytes for some in passes),
    }
