"""Cases of merging and what they say, as a run directory and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError
from mergescope.plain import plain
from mergescope.protocols.mergeability import (
    PREDICTORS,
    Analysis,
    Case,
    MergeabilitySettings,
    content,
    write_rules,
)
from mergescope.protocols.mergeability.told import findings, headline, table_lines
from mergescope.studies.given import DataOptions
from mergescope.studies.mergeable import STUDY, Unit
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows
from mergescope.weights.files import atomic_file

RULES = "rule.json"
"""What the cases say, as commands read it."""

CASES = "cases.json"
"""Everything collected: a list of [`Case`][mergescope.protocols.mergeability.Case] as plain values."""


def write_mergeability(
    run: RunDirectory,
    units: Sequence[Unit],
    cases: Sequence[Case],
    found: Analysis,
    data: DataOptions,
    settings: MergeabilitySettings,
    notes: Sequence[str],
) -> None:
    """Write cases, rules, ``results.parquet`` and ``run.yaml``.

    Args:
        run: the run directory.
        units: families and regimes.
        cases: collected.
        found: what they say.
        data: how many samples.
        settings: what was collected.
        notes: what the user should know.
    """
    with atomic_file(run.path / CASES) as temporary:
        temporary.write_text(json.dumps([case.to_dict() for case in cases], allow_nan=False))
    write_rules(content(found), run.path / RULES)
    write_rows(run.path / RESULTS, rows(cases, found))
    families = {unit.family.path.resolve().name: unit.family for unit in units}
    regimes = {name: [unit.regime for unit in units if unit.name[0] == name] for name in families}
    said = {name: value for name, value in asdict(settings).items() if name != "progress"}
    config = {"families": regimes, "limit": data.limit, "batch_size": data.batch_size, "settings": said}
    provenance = {
        "families": {
            name: {
                "base": {"from": family.base.reference, "digest": family.base.digest},
                "models": {f"{it.regime}/{it.task}": it.digest for it in family.members},
            }
            for name, family in families.items()
        },
        "notes": list(notes), "says": "\n".join(table_lines(found)),
    }  # fmt: skip
    run.write_run(STUDY, "", plain(config), plain(provenance))


def rows(cases: Sequence[Case], found: Analysis) -> list[Row]:
    """Cases, correlations and scores as a tidy table.

    Args:
        cases: collected.
        found: what they say.

    Returns:
        One row a number. Cases are of kind ``predictor`` and ``outcome``, their regime is family and regime;
        correlations and errors have the predictor as points.
    """
    table = [
        Row(case.network, case.unit, kind, " + ".join(case.models), " ∪ ".join(case.models), name, value)
        for case in cases
        for kind, said in (
            ("predictor", case.predictors),
            ("outcome", case.outcomes),
            ("chosen", case.chosen),
        )
        for name, value in said.items()
    ]
    return table + [Row("", "", **line) for line in found.rows()]


def read_cases(path: Path) -> list[Case]:
    """Read the cases of a run.

    Args:
        path: the run directory.

    Returns:
        The cases.

    Raises:
        StudyError: they are absent or damaged.
    """
    file = path / CASES
    again = "Run mergescope mergeability again into the same directory; it goes on where it was."
    if not file.is_file():
        raise StudyError(f"{path} has no {CASES}. {again}")
    try:
        return [Case.of(said) for said in json.loads(file.read_text())]
    except (ValueError, TypeError, AttributeError) as error:
        raise StudyError(f"{file} can't be read ({type(error).__name__}: {error}). {again}") from error


def to_dict(found: Analysis, notes: Sequence[str]) -> dict[str, Any]:
    """The results for scripts.

    Args:
        found: what the cases say.
        notes: what the user should know.

    Returns:
        Plain values; NaN and infinity become None.
    """
    return dict(plain({
        **content(found), "headline": headline(found), "findings": findings(found),
        "predictors": [
            {
                "predictor": it.predictor, "title": PREDICTORS[it.predictor].title, "outcome": it.outcome,
                "spearman": vars(it.spearman), "pearson": vars(it.pearson), "pairs": vars(it.pairs),
                "within": vars(it.within), "error": vars(it.left_tasks.mae), "r2": vars(it.left_tasks.r2),
                "rank": it.left_tasks.rank,
                "networks_error": None if it.left_networks is None else vars(it.left_networks.mae),
            }
            for it in found.related
        ],
        "notes": list(notes),
    }))  # fmt: skip
