"""What several commands print: plans, and results for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer


def print_json(content: Mapping[str, Any]) -> None:
    """Print for scripts.

    Args:
        content: plain values.
    """
    import json

    typer.echo(json.dumps(content, indent=1, allow_nan=False))


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
