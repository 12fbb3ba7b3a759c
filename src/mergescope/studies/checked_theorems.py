"""CTL's theorems on a family as a run directory and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mergescope.plain import plain
from mergescope.protocols.family_theorems import TheoremsSettings, check_family, plan
from mergescope.protocols.family_theorems_result import FamilyTheorems
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import Row, RunDirectory

STUDY = "theorems"
"""What ``run.yaml`` calls it."""


def plan_theorems(opened: Opened, settings: TheoremsSettings) -> dict[str, Any]:
    """What checking will cost.

    Args:
        opened: models and data.
        settings: what is checked.

    Returns:
        Pairs, coefficients, forward passes, and an estimate of seconds.

    Raises:
        MergescopeError: it can't be checked so.
    """  # noqa: DOC502 (raised by what this calls)
    found = plan(opened.base, opened.models, opened.data, settings)
    passes = found.pop("passes_a_batch")
    return {**found, **cost({"test": opened}, {"test": passes}, linear=found["linearized"])}


def run_theorems(opened: Opened, settings: TheoremsSettings) -> FamilyTheorems:
    """Check a family.

    Args:
        opened: models and data.
        settings: what is checked.

    Returns:
        Premises and conclusions.

    Raises:
        MergescopeError: it can't be checked so.
    """  # noqa: DOC502 (raised by what this calls)
    return check_family(opened.base, opened.models, opened.data, settings)


def rows(found: FamilyTheorems, regime: str) -> list[Row]:
    """Everything as a tidy table.

    Args:
        found: premises and conclusions.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    return [Row(network=found.network, regime=regime, **row) for row in found.rows()]


def write_theorems(run: RunDirectory, opened: Opened, found: FamilyTheorems) -> None:
    """Write results and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: premises and conclusions.
    """
    about = {
        "cost": _cost(found), "linearized": found.linearized, "notes": _notes(opened, found), "says": str(found),
    }  # fmt: skip
    write_protocol_run(run, STUDY, rows(found, opened.regime), {"test": opened}, found.settings, about)


def to_dict(opened: Opened, found: FamilyTheorems) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: premises and conclusions.

    Returns:
        Plain values; NaN becomes None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "samples": opened.samples, "linearized": found.linearized,
        "gap": found.settings.gap, "loss": found.settings.loss, "cost": _cost(found), "notes": _notes(opened, found),
        "counts": [vars(count) for count in found.tallies],
        "theorems": [
            {"theorem": theorem.theorem, "says": theorem.says, "coefficient": value, "checked": [
                asdict(line) for line in theorem.checked
            ]}
            for value, theorem in found.found
        ],
        "gaps": [asdict(entry) for entry in found.gaps],
    })  # fmt: skip


def _cost(found: FamilyTheorems) -> dict[str, Any]:
    return {
        "forward_passes": found.forward_passes,
        "seconds": round(found.seconds, 2),
        "peak_bytes": found.peak_bytes,
    }


def _notes(opened: Opened, found: FamilyTheorems) -> list[str]:
    return [*found.notes, *opened.given.notes]
