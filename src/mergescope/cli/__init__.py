"""The command line: one small file a command, heavy imports inside the commands only."""

from __future__ import annotations

import gc
import sys
import time
from importlib import metadata
from typing import Annotated

import typer

from mergescope._version import __version__
from mergescope.cli import (
    check,
    curvature,
    demo,
    disentangle,
    doctor,
    equations,
    evaluate,
    finetune,
    geometry,
    layers,
    measure,
    merge,
    mergeability,
    predict,
    report,
    search,
    soup,
    stitch,
    study,
    theorems,
)
from mergescope.cli.commands import INTERRUPTED, command, last_interruption
from mergescope.cli.data_options import takes_rows
from mergescope.cli.engine_options import takes_engine
from mergescope.errors import MergescopeError, printable
from mergescope.progress import is_first_process, quiet_packages, say

app = typer.Typer(
    name="mergescope",
    help="Will these fine-tuned models merge? Measure it, merge them, and see why.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
command(app, "demo")(demo.demo)
command(app, "check")(check.check)
command(app, "geometry")(geometry.geometry)
command(app, "finetune", *finetune.VARIADIC)(takes_engine(finetune.finetune))
command(app, "measure", *measure.VARIADIC)(takes_engine(takes_rows(measure.measure)))
command(app, "equations", *equations.VARIADIC)(takes_engine(takes_rows(equations.equations)))
command(app, "evaluate", *evaluate.VARIADIC)(takes_engine(takes_rows(evaluate.evaluate)))
command(app, "search", *search.VARIADIC)(takes_engine(takes_rows(search.search)))
command(app, "soup", *soup.VARIADIC)(takes_engine(takes_rows(soup.soup)))
command(app, "disentangle", *disentangle.VARIADIC)(takes_engine(takes_rows(disentangle.disentangle)))
command(app, "stitch", *stitch.VARIADIC)(takes_engine(takes_rows(stitch.stitch)))
command(app, "predict", *predict.VARIADIC)(takes_engine(takes_rows(predict.predict)))
command(app, "mergeability", *mergeability.VARIADIC)(mergeability.mergeability)
command(app, "curvature", *curvature.VARIADIC)(takes_rows(curvature.curvature))
command(app, "theorems", *theorems.VARIADIC)(takes_rows(theorems.theorems))
command(app, "layers")(layers.layers)
command(app, "merge", "--parameter")(merge.merge)
command(app, "report")(report.report)
command(app, "doctor")(doctor.doctor)
app.add_typer(study.app, name="study")


def _version(value: bool) -> None:
    if value:
        try:
            told = metadata.version("mergescope")  # of the git tag, or a commit after it
        except metadata.PackageNotFoundError:
            told = __version__
        typer.echo(f"mergescope {told}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _state["debug"] = debug


_state = {"debug": False}

_GRACE = 30.0
"""Seconds in which a launcher ends the other processes after the first has failed."""


def main() -> None:
    """Run the command line: user errors print their message and exit 2, bugs keep their traceback.

    Raises:
        MergescopeError: a user error under ``--debug``.
        SystemExit: the command ended; its code is in docs/exit-codes.md.
    """
    quiet_packages()
    gc.set_threshold(10_000)  # not 700: looking for garbage is an eighth of heavy imports' time
    try:
        _run()
    except MergescopeError as error:
        if _state["debug"]:
            raise
        from rich.console import Console

        Console(stderr=True).print(
            f"[bold red]Error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say(f"Interrupted. {last_interruption()}")
        raise


def _run() -> None:
    try:
        app()
    except Exception:
        if not is_first_process():  # most likely it failed as the first did, which tells why, and once
            time.sleep(_GRACE)
        raise


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
