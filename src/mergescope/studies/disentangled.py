"""Weight disentanglement of a family as a run directory and as JSON."""

from __future__ import annotations

from typing import Any

from mergescope.plain import plain
from mergescope.protocols.disentanglement import (
    Disentanglement,
    DisentanglementSettings,
    disentanglement,
    plan,
)
from mergescope.protocols.error_grids import ErrorGrid
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory, write_table

STUDY = "disentangle"
"""What ``run.yaml`` calls it."""

GRIDS = "grids.parquet"
"""Every cell of every grid: a pair, two coefficients, the error and its two terms."""


def plan_disentanglement(opened: Opened, settings: DisentanglementSettings) -> dict[str, Any]:
    """What measuring will cost.

    Args:
        opened: models and data.
        settings: what to measure.

    Returns:
        Pairs, points, forward passes, and an estimate of seconds.

    Raises:
        MergescopeError: it can't be measured so.
    """  # noqa: DOC502 (raised by what this calls)
    found = plan(opened.base, opened.models, opened.data, settings)
    passes = found.pop("passes_a_batch")
    return {**found, **cost({"test": opened}, {"test": passes}, linear=found["linearized"])}


def run_disentanglement(opened: Opened, settings: DisentanglementSettings) -> Disentanglement:
    """Measure a family.

    Args:
        opened: models and data.
        settings: what to measure.

    Returns:
        The errors.

    Raises:
        MergescopeError: it can't be measured so.
    """  # noqa: DOC502 (raised by what this calls)
    return disentanglement(opened.base, opened.models, opened.data, settings)


def rows(found: Disentanglement, regime: str) -> list[Row]:
    """The summaries as a tidy table.

    Args:
        found: the errors.
        regime: how the models were fine-tuned.

    Returns:
        The rows, of kind ``disentanglement``.
    """
    return [Row(network=found.network, regime=regime, **row) for row in found.rows()]


def write_disentanglement(run: RunDirectory, opened: Opened, found: Disentanglement) -> None:
    """Write results, grids and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: the errors.
    """
    cells = [cell for grid in found.grids for cell in grid.cells()]
    write_table(run.path / GRIDS, {name: [cell[name] for cell in cells] for name in cells[0]})
    write_protocol_run(
        run, STUDY, rows(found, opened.regime), {"test": opened}, found.settings,
        {"cost": _cost(found), "linearized": found.linearized, "notes": _notes(opened, found), "says": str(found)},
    )  # fmt: skip


def to_dict(opened: Opened, found: Disentanglement) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: the errors.

    Returns:
        Plain values; NaN becomes None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "linearized": found.linearized,
        "distance": found.settings.distance, "layer": found.settings.layer, "box": found.settings.box,
        "threshold": found.settings.threshold, "cost": _cost(found), "notes": _notes(opened, found),
        "pairs": [_pair(grid) for grid in found.grids],
    })  # fmt: skip


def _pair(grid: ErrorGrid) -> dict[str, Any]:
    return {
        "tasks": grid.tasks,
        "samples": grid.samples,
        "summaries": {name: vars(summary) for name, summary in grid.summaries.items()},
        "coefficients": grid.coefficients,
        "error": grid.error.tolist(),
    }


def _cost(found: Disentanglement) -> dict[str, Any]:
    return {
        "forward_passes": found.forward_passes,
        "seconds": round(found.seconds, 2),
        "peak_bytes": found.peak_bytes,
    }


def _notes(opened: Opened, found: Disentanglement) -> list[str]:
    where = ["measured in the network linearised around the base"] if found.linearized else []
    return [*where, *found.notes, *opened.given.notes]
