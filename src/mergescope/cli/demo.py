"""``mergescope demo``: the main job on real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.printing import JSON, print_json
from mergescope.cli.study import describe_plan, run_study
from mergescope.errors import StudyError


def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/digits-PRESET).")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute: small networks, little training.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Long training, all test digits.")] = False,
    data: Annotated[
        str, typer.Option(help="'embedded', a hub id (ylecun/mnist) or a directory with full MNIST.")
    ] = "embedded",
    tasks: Annotated[str, typer.Option(help="'rotations' or 'class-pairs'.")] = "rotations",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: one a core, 8 at most).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Pretrain, fine-tune a family, measure its linearity, merge, evaluate, report.

    A run that was interrupted goes on where it was; a finished one is only read.

    [bold]Example:[/] mergescope demo --quick --out runs/first-look
    """
    preset = _preset(quick, full)
    if dry_run:
        told = describe_plan("digits", preset, out, data, tasks)
    else:
        told = run_study("digits", preset, out, data, tasks, workers, as_json=as_json)
    if as_json:
        print_json(told)


def _preset(quick: bool, full: bool) -> str:
    if quick and full:
        raise StudyError("--quick and --full exclude each other: choose one, or neither.")
    return "quick" if quick else "full" if full else "default"
