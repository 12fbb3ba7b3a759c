"""``mergescope report``: figures and report again, from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run_dir: Annotated[Path, typer.Argument(help="Run directory of a study.")]) -> None:
    """Rebuild the figures and the HTML report from a run directory's results.

    [bold]Example:[/] mergescope report runs/digits-default
    """
    show_report(run_dir)


def show_report(run_dir: Path) -> None:
    """Build the report and print its summary and path.

    Args:
        run_dir: run directory of a study.
    """
    from rich.console import Console

    from mergescope.reports import build_report, summary_table, verdict_sentences
    from mergescope.studies.rundir import RESULTS, read_rows

    path = build_report(run_dir)
    rows = read_rows(run_dir / RESULTS)
    console = Console()
    console.print(summary_table(rows))
    for sentence in verdict_sentences(rows):
        console.print(f"• {sentence}", highlight=False, markup=False)
    typer.echo(f"Report: {path}")
