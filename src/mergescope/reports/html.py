"""The report of a run directory: one HTML file that needs no network, and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergescope.errors import StudyError
from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports import curves, figures
from mergescope.reports.cost import costs, learning_rates, recipes
from mergescope.reports.results import ALL_TASKS, Results
from mergescope.reports.style import render
from mergescope.reports.tables import accuracy_grid, barrier_grid, equation_grid, null_grid, number, pair_grid
from mergescope.reports.verdicts import (
    RULE,
    headline_of_regimes,
    null_init_sentence,
    null_random_sentence,
    verdicts,
)
from mergescope.studies.rundir import RESULTS, SAMPLES, RunDirectory, read_rows, read_table
from mergescope.weights.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

REPORT = "report.html"

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
        path: the run directory.
        about: content of ``run.yaml``.
        results: of ``results.parquet``.
        coefficients: of ``samples.parquet``: network, regime and layer to ``(samples,)``.
    """

    path: Path
    about: dict[str, Any]
    results: Results
    coefficients: SampleTable


def build_report(run_dir: str | Path) -> Path:
    """Write ``figures/*.svg``, ``figures/*.png`` and ``report.html`` of a finished run.

    Args:
        run_dir: run directory of the digits study.

    Returns:
        Path of the report.

    Raises:
        StudyError: the directory, a file or a part of the results is missing or damaged; then
            nothing is written.
    """  # noqa: DOC502 (raised by what this calls)
    run = load_run(run_dir)
    drawn = draw(run)
    vectors = {name: render(figure, "svg") for name, figure in drawn.items()}
    page = _page(run, {name: inline_svg(content.decode(), name) for name, content in vectors.items()})
    for name, figure in drawn.items():
        for suffix, content in (("svg", vectors[name]), ("png", render(figure, "png"))):
            with atomic_file(run.path / "figures" / f"{name}.{suffix}") as temporary:
                temporary.write_bytes(content)
    report = run.path / REPORT
    with atomic_file(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return report


def load_run(run_dir: str | Path) -> Run:
    """Read a run directory and check that it is complete.

    Args:
        run_dir: the directory.

    Returns:
        What it holds.

    Raises:
        StudyError: something is missing or damaged.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise StudyError(f"There is no run directory {path}. Make one with: mergescope demo --out {path}")
    about = RunDirectory(path).read_run()
    for key in ("config", "provenance"):
        if not isinstance(about.get(key), dict):
            raise StudyError(
                f"{path / 'run.yaml'} lacks {key!r}. Run the study again; it goes on where it was."
            )
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
    return Run(path, about, Results(rows), _coefficients(path / SAMPLES, list(families)))


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


def draw(run: Run) -> dict[str, Figure]:
    """Every figure of a report.

    Args:
        run: what to draw.

    Returns:
        File name without suffix to figure.
    """
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


def inline_svg(svg: str, name: str) -> str:
    """An SVG file as an element of a page: own ids, no prolog, no fixed size.

    Args:
        svg: content of the file.
        name: prefix of its ids, so that figures on one page don't share any.

    Returns:
        The ``<svg>`` element.

    Example:
        >>> inline_svg('<?xml version="1.0"?><svg width="9pt" viewBox="0 0 9 9"><g id="a"/></svg>', "f")
        '<svg viewBox="0 0 9 9" role="img"><g id="f-a"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head) + ' role="img"'
    svg = f"{head}>{rest}"
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return re.sub(r"\n\s*", "\n", svg)


def _page(run: Run, vectors: Mapping[str, str]) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mergescope.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results, config = run.results, run.about["config"]
    provenance = run.about["provenance"]
    rates = learning_rates(config)
    title, comparison = headline_of_regimes(results, rates)
    tested = {
        row.data: row.n for row in results.rows if row.kind == "accuracy" and row.data != ALL_TASKS and row.n
    }
    content = {
        "study": run.about["study"],
        "preset": run.about.get("preset", ""),
        "config": config,
        "results": results,
        "tested": tested,
        "recipes": recipes(config),
        "verdicts": verdicts(results),
        "rule": RULE,
        "title": title,
        "comparison": comparison,
        "cos_holds": COS_HOLDS,
        "coef_holds": COEF_HOLDS,
        "figure": {name: Markup(svg) for name, svg in vectors.items()},
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
        "versions": provenance.get("versions") or {},
        "yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "number": number,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(content)
