"""CTL and Eq. 1 to 3 of a family as a run directory and as JSON."""

from __future__ import annotations

from typing import Any

from mergescope.plain import plain
from mergescope.protocols.equations import Equations, EquationSettings, check_equations, points_of
from mergescope.studies.protocol_runs import Opened, cost, write_protocol_run
from mergescope.studies.rundir import DISTRIBUTIONS, Row, RunDirectory, write_table

STUDY = "equations"
"""What ``run.yaml`` calls it."""

BIN = ("kind", "points", "parameter", "layer", "trivial", "measure", "low", "high", "count")
"""Columns of the table of distributions."""


def plan_equations(opened: Opened, settings: EquationSettings) -> dict[str, Any]:
    """What testing will cost.

    Args:
        opened: models and data.
        settings: what to test.

    Returns:
        Points of each data set, forward passes of a batch, and an estimate of seconds.

    Raises:
        MergescopeError: it can't be tested so.
    """  # noqa: DOC502 (raised by what this calls)
    points = points_of(_base(opened), opened.models, opened.data, settings)
    linear, _ = opened.linear(settings.linearized)
    return {"points": points, **cost({"test": opened}, {"test": points}, linear=linear)}


def run_equations(opened: Opened, settings: EquationSettings) -> Equations:
    """Test a family.

    Args:
        opened: models and data.
        settings: what to test.

    Returns:
        Every test.

    Raises:
        MergescopeError: it can't be tested so.
    """  # noqa: DOC502 (raised by what this calls)
    return check_equations(_base(opened), opened.models, opened.data, settings)


def _base(opened: Opened) -> Any:
    return None if opened.given.base is None else opened.base


def rows(found: Equations, regime: str) -> list[Row]:
    """The tests as a tidy table.

    Args:
        found: the tests.
        regime: how the models were fine-tuned.

    Returns:
        The rows.
    """
    network = next(iter(found.passes.values())).network
    return [Row(network=network, regime=regime, **row) for row in found.rows()]


def write_equations(run: RunDirectory, opened: Opened, found: Equations, settings: EquationSettings) -> None:
    """Write results, distributions over samples, and ``run.yaml``.

    Args:
        run: the run directory.
        opened: models and data.
        found: the tests.
        settings: how they were made.
    """
    lines = found.distributions()
    write_table(run.path / DISTRIBUTIONS, {name: [line[name] for line in lines] for name in BIN})
    write_protocol_run(
        run, STUDY, rows(found, opened.regime), {"test": opened}, settings,
        {
            "linearized": found.linearized, "cost": _cost(found), "notes": [*found.notes, *opened.given.notes],
            "says": str(found),
        },
    )  # fmt: skip


def to_dict(opened: Opened, found: Equations) -> dict[str, Any]:
    """The results for scripts.

    Args:
        opened: models and data.
        found: the tests.

    Returns:
        Plain values; NaN becomes None.
    """
    return plain({
        "family": opened.family, "regime": opened.regime, "linearized": found.linearized, "cost": _cost(found),
        "notes": [*found.notes, *opened.given.notes],
        "tests": [
            {
                "kind": test.kind, "models": test.name, "data": list(test.data), "parameter": test.parameter,
                "ctl": test.found.verdict.ctl, "llfc": test.found.verdict.llfc,
                "layers": [
                    {
                        "layer": entry.layer, "trivial": entry.trivial,
                        **{name: vars(summary) for name, summary in entry.measures.items()},
                    }
                    for entry in test.found.layers
                ],
            }
            for test in found.tests
        ],
    })  # fmt: skip


def _cost(found: Equations) -> dict[str, Any]:
    passes = found.passes.values()
    return {
        "forward_passes": sum(part.forward_passes for part in passes),
        "samples": {name: part.samples for name, part in found.passes.items()},
        "seconds": round(sum(part.seconds for part in passes), 2),
        "peak_bytes": max(part.peak_bytes for part in passes),
    }
