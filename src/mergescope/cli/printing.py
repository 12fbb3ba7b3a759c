"""What several commands print: plans, and results for scripts, which have standard output to themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import typer

from mergescope.plain import plain

JSON = "Print everything as JSON."
"""Help of ``--json``."""

_kept: list[TextIO] = []
"""Standard output, while all but JSON goes elsewhere."""


@contextmanager
def results_alone(wanted: bool) -> Iterator[None]:
    """Keep standard output for [`print_json`][], so that it is one JSON document, or empty after an error.

    Whatever else is printed meanwhile, by other commands, packages and worker processes too, goes to standard error.

    Args:
        wanted: do that.

    Yields:
        Nothing.

    Example:
        >>> with results_alone(True):
        ...     print("this goes to standard error")
        ...     print_json({"hello": float("nan")})
        {
         "hello": null
        }
    """
    if not wanted or _kept:
        yield
        return
    with _original(sys.stdout) as original, redirect_stdout(sys.stderr):
        _kept.append(original)
        try:
            yield
        finally:
            _kept.pop()


@contextmanager
def _original(stdout: TextIO) -> Iterator[TextIO]:
    # Worker processes write to the descriptor, whatever sys.stdout is here.
    stdout.flush()
    try:
        number, error = stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # no files, as in a notebook or a test: there are no other writers either
        yield stdout
        return
    with os.fdopen(os.dup(number), "w", encoding="utf-8") as original:
        os.dup2(error, number)
        try:
            yield original
        finally:
            os.dup2(original.fileno(), number)


def print_json(content: Mapping[str, Any] | list[Any]) -> None:
    """Print for scripts.

    Args:
        content: plain values; numbers that are not finite become null.
    """
    import json

    print(json.dumps(plain(content), indent=1, allow_nan=False), file=_kept[-1] if _kept else sys.stdout)


def print_found(
    found: object,
    content: Mapping[str, Any],
    as_json: bool,
    report: Path | None = None,
    notes: Iterable[str] = (),
) -> None:
    """Print what a command found.

    Args:
        found: its text is for people.
        content: for scripts.
        as_json: for scripts.
        report: where it is written, if it is.
        notes: what to know about it.
    """
    if as_json:
        print_json(content)
        return
    typer.echo(str(found))
    for note in notes:
        typer.echo(f"Note: {note}")
    if report is not None:
        typer.echo(f"Report: {report}")


def print_plan(plan: Mapping[str, Any], as_json: bool, first: str | None = None) -> None:
    """Print what a command will do.

    Args:
        plan: points, samples, forward passes, seconds.
        as_json: for scripts.
        first: what is to be done; by default, the points.
    """
    if as_json:
        print_json(plan)
        return
    if first is None:
        names = plan["points"]
        shown = names if len(names) <= 8 else [*names[:4], "...", *names[-2:]]
        first = f"{len(names):,} points: {'; '.join(shown)}"
    typer.echo(first)
    for part, samples in plan["samples"].items():
        typer.echo(f"Samples, {part}: {', '.join(f'{count:,} of {name}' for name, count in samples.items())}")
    rests = plan.get("rest_passes")
    more = "" if rests is None else f" and {rests:,} of what follows a block"
    typer.echo(
        f"{plan['forward_passes']:,} forward passes of a batch{more}{_about(plan['estimated_seconds'])}"
    )


def _about(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {seconds:,.1f} s here" if seconds < 10 else f", about {seconds:,.0f} s here"
    return (
        f", about {seconds / 60:,.0f} min here" if seconds < 5400 else f", about {seconds / 3600:,.1f} h here"
    )
