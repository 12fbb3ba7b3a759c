"""``mergescope report``: figures and report again, from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.printing import JSON, print_json


def report(
    run_dir: Annotated[Path, typer.Argument(help="Run directory of a study or a measurement.")],
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Rebuild the figures and the HTML report from a run directory's results.

    [bold]Example:[/] mergescope report runs/digits-default
    """
    if as_json:
        print_json(report_content(run_dir))
    else:
        show_report(run_dir)


def show_report(run_dir: Path, path: Path | None = None) -> None:
    """Build the report and print its summary and path.

    Args:
        run_dir: run directory of a study or a measurement.
        path: of the report, if it is built already.
    """
    from rich.console import Console

    from mergescope.reports import build_report, summary_parts

    path = path or build_report(run_dir)
    console = Console(highlight=False, markup=False, emoji=False)
    for part in summary_parts(run_dir):
        console.print(part)
    typer.echo(f"Report: {path}")


def report_content(run_dir: Path, path: Path | None = None) -> dict[str, Any]:
    """Build the report, for scripts.

    Args:
        run_dir: run directory of a study or a measurement.
        path: of the report, if it is built already.

    Returns:
        Where the report and its figures are, what the results say, and every row of them.
    """
    from mergescope.reports import build_report, summary_content

    path = path or build_report(run_dir)
    figures = sorted(str(file) for file in (run_dir / "figures").glob("*.svg"))
    return {"report": str(path), "figures": figures, **summary_content(run_dir)}
