"""What the report of a study shows: networks fine-tuned in several ways on several tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import StudyError
from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports import curves, figures
from mergescope.reports.cost import costs, learning_rates, recipes
from mergescope.reports.html import Parts
from mergescope.reports.results import ALL_TASKS, Results
from mergescope.reports.tables import accuracy_grid, barrier_grid, equation_grid, null_grid, number, pair_grid
from mergescope.reports.verdicts import (
    RULE,
    headline_of_regimes,
    null_init_sentence,
    null_random_sentence,
    verdicts,
)
from mergescope.studies.rundir import RESULTS, SAMPLES, read_rows, read_table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

KINDS = (
    "ctl",
    "eq1",
    "eq2",
    "eq3",
    "null-init",
    "null-random",
    "line",
    "barrier",
    "accuracy",
    "lambda-search",
)
"""What must have been measured for every network and regime."""

SampleTable = Mapping[tuple[str, str, str], "np.ndarray"]


@dataclass(frozen=True)
class Run:
    """Everything a report is made of.

    Attributes:
        about: content of ``run.yaml``.
        results: of ``results.parquet``.
        coefficients: of ``samples.parquet``: network, regime and layer to ``(samples,)``.
    """

    about: Mapping[str, Any]
    results: Results
    coefficients: SampleTable


def study_parts(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read a run directory, check that it is complete, and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    run = _load(path, about)
    return Parts("report.html.j2", _draw(run), _content(run))


def _load(path: Path, about: Mapping[str, Any]) -> Run:
    rows = read_rows(path / RESULTS)
    if not rows:
        raise StudyError(f"{path / RESULTS} is empty. Delete it and run the study again.")
    present = {(row.network, row.regime, row.kind) for row in rows}
    families = dict.fromkeys((row.network, row.regime) for row in rows)
    config = about["config"]
    families |= dict.fromkeys(
        (n, r) for n in config.get("networks") or () for r in config.get("regimes") or ()
    )
    lacking = [f"{n}, {r}: {kind}" for n, r in families for kind in KINDS if (n, r, kind) not in present]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise StudyError(
            f"{path / RESULTS} is not complete. It lacks {'; '.join(lacking[:5])}{more}. "
            "Run the study again with the same directory; it goes on where it was."
        )
    return Run(about, Results(rows), _coefficients(path / SAMPLES, list(families)))


def _coefficients(path: Path, families: list[tuple[str, str]]) -> SampleTable:
    import numpy as np

    collected: dict[tuple[str, str, str], list[float]] = {}
    try:
        for line in read_table(path):
            if line["measure"] == "coef":
                collected.setdefault((line["network"], line["regime"], line["layer"]), []).append(
                    line["value"]
                )
    except KeyError as error:
        raise StudyError(
            f"{path} lacks the column {error}: another version wrote it. Run the study again."
        ) from error
    table = {key: np.asarray(values, dtype=float) for key, values in collected.items()}
    table = {key: values[np.isfinite(values)] for key, values in table.items()}
    lacking = [f"{n}, {r}" for n, r in families if not any(key[:2] == (n, r) for key in table)]
    if lacking:
        raise StudyError(
            f"{path} has no coef of {'; '.join(lacking)}. Run the study again with the same directory."
        )
    return table


def _draw(run: Run) -> dict[str, Figure]:
    results = run.results
    makers: dict[str, Callable[[], Figure]] = {
        "main": lambda: figures.main(results),
        "coef": lambda: figures.coef_distributions(results, run.coefficients),
        "pairs-cos": lambda: curves.pair_matrices(results, "cos"),
        "pairs-coef": lambda: curves.pair_matrices(results, "coef"),
        "alpha": lambda: figures.alpha_dependence(results),
        "equations": lambda: figures.equations(results),
        "null": lambda: figures.null_baselines(results),
        "lambda": lambda: curves.lambda_search(results),
    }
    drawn = {name: make() for name, make in makers.items()}
    for name, network in _barrier_names(results).items():
        drawn[name] = curves.barrier_curves(results, network)
    return drawn


def _barrier_names(results: Results) -> dict[str, str]:
    names: dict[str, str] = {}
    for network in results.networks:
        name = "barrier-" + (re.sub(r"[^A-Za-z0-9]+", "-", network).strip("-") or "network")
        while name in names:
            name += "-2"
        names[name] = network
    return names


def _content(run: Run) -> dict[str, Any]:
    results, config = run.results, run.about["config"]
    provenance = run.about["provenance"]
    rates = learning_rates(config)
    title, comparison = headline_of_regimes(results, rates)
    tested = {
        row.data: row.n for row in results.rows if row.kind == "accuracy" and row.data != ALL_TASKS and row.n
    }
    return {
        "results": results,
        "tested": tested,
        "recipes": recipes(config),
        "verdicts": verdicts(results),
        "rule": RULE,
        "title": title,
        "comparison": comparison,
        "cos_holds": COS_HOLDS,
        "coef_holds": COEF_HOLDS,
        "clipped": figures.clipped_share(results, run.coefficients),
        "barriers": _barrier_names(results),
        "pair_grids": [pair_grid(results, family) for family in results.families],
        "barrier_grid": barrier_grid(results),
        "equation_grids": [equation_grid(results, family) for family in results.families],
        "null_grids": [null_grid(results, family) for family in results.families],
        "null_pair": next((row.points for row in results.rows if row.kind == "null-init"), ""),
        "nulls": [(f"{n}, {r}", null_init_sentence(results, (n, r)), null_random_sentence(results, (n, r)))
                  for n, r in results.families],
        "accuracy_grids": [accuracy_grid(results, family) for family in results.families],
        "costs": costs(results, config),
        "data": provenance.get("data") or {},
        "checkpoints": provenance.get("checkpoints") or {},
        "number": number,
    }  # fmt: skip
