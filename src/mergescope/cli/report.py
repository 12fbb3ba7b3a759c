"""``mergescope report``: figures and report again, from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(help="Run directory of a study or a measurement.")],
) -> None:
    """Rebuild the figures and the HTML report from a run directory's results.

    [bold]Example:[/] mergescope report runs/digits-default
    """
    show_report(run_dir)


def show_report(run_dir: Path) -> None:
    """Build the report and print its summary and path.

    Args:
        run_dir: run directory of a study or a measurement.
    """
    from rich.console import Console

    from mergescope.reports import build_report, summary_parts

    path = build_report(run_dir)
    console = Console(highlight=False)
    for part in summary_parts(run_dir):
        console.print(part)
    typer.echo(f"Report: {path}")
