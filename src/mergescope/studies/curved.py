"""Curvature of a family as a run directory and as JSON."""

from __future__ import annotations

from typing import Any

from mergescope.plain import plain
from mergescope.protocols.family_curvature import (
    LIKELY_STEPS,
    FamilyCurvatureSettings,
    family_curvature,
    plan,
)
from mergescope.protocols.family_curvature_result import FamilyCurvature
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory

STUDY = "curvature"
"""What ``run.yaml`` calls it."""

PRODUCT_COST = 10.0
"""A Hessian-vector product takes about as long as so many passes through the network."""


def plan_curvature(opened: Opened, settings: FamilyCurvatureSettings) -> dict[str, Any]:
    """What measuring will cost.

    Args:
        opened: models and data.
        settings: what is measured.

    Returns:
        Pairs, eigenvalues, Hessian-vector products of a batch (as many as eigenvalues usually take), forward passes
        (of what takes as long), and an estimate of seconds.

    Raises:
        MergescopeError: it can't be measured so.
    """  # noqa: DOC502 (raised by what this calls)
    found = plan(opened.base, opened.models, opened.data, settings)
    runs, products = found.pop("runs_a_batch"), found.pop("products_a_batch")
    passes = {name: runs[name] + PRODUCT_COST * count for name, count in products.items()}
    batches = opened.batches
    return {
        **found,
        "steps_an_eigenvalue": min(LIKELY_STEPS, settings.max_steps),
        "products": sum(count * batches[name] for name, count in products.items()),
        **cost({"test": opened}, {"test": passes}),
    }


def run_curvature(opened: Opened, settings: FamilyCurvatureSettings) -> FamilyCurvature:
    """Measure a family's curvature.

    Args:
        opened: models and data.
        settings: what is measured.

    Returns:
        What was measured.

    Raises:
        MergescopeError: it can't be measured so.
    """  # noqa: DOC502 (raised by what this calls)
    return family_curvature(opened.base, opened.models, opened.data, settings)


def rows(found: FamilyCurvature, regime: str) -> list[Row]:
    """Everything as a tidy table.

    Args:
        found: what was measured.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    return [Row(network=found.network, regime=regime, **row) for row in found.rows()]


def write_curvature(run: RunDirectory, opened: Opened, found: FamilyCurvature) -> None:
    """Write results and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: what was measured.
    """
    write_protocol_run(
        run, STUDY, rows(found, opened.regime), {"test": opened}, found.settings,
        {"cost": _cost(found), "notes": _notes(opened, found), "says": str(found)},
    )  # fmt: skip


def to_dict(opened: Opened, found: FamilyCurvature) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: what was measured.

    Returns:
        Plain values; NaN becomes None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "samples": opened.samples, "cost": _cost(found),
        "notes": _notes(opened, found), "held": found.held, "cases": len(found.pairs), "looseness": found.looseness,
        "eigenvalues": [
            {
                "kind": peak.kind, "at": peak.name, "data": peak.data, "value": peak.found.value,
                "residual": peak.found.found.residuals[0], "products": peak.found.found.steps,
                "converged": peak.found.found.converged,
            }
            for peak in found.peaks
        ],
        "along": [{**vars(entry), "share": entry.share} for entry in found.along],
        "pairs": [
            {
                "data": data, **vars(pair), "gap": vars(pair.gap), "losses": list(pair.losses), "holds": pair.holds,
            }
            for data, pair in found.pairs
        ],
        "regressions": [
            {"response": response, "regressor": regressor, **vars(line)}
            for (response, regressor), line in found.regressions.items()
        ],
    })  # fmt: skip


def _cost(found: FamilyCurvature) -> dict[str, Any]:
    return {
        "products": found.products,
        "forward_passes": found.forward_passes,
        "seconds": round(found.seconds, 2),
        "peak_bytes": found.peak_bytes,
    }


def _notes(opened: Opened, found: FamilyCurvature) -> list[str]:
    return [*found.notes, *opened.given.notes]
