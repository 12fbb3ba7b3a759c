"""Progress bars for anything over a second, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int | None, enabled: bool = True) -> Iterator[Callable[..., None]]:
    """Show progress on standard error, if that is a terminal.

    Args:
        label: what is being done.
        total: number of steps, None if not known.
        enabled: show it at all.

    Yields:
        A function that advances the bar by a number of steps. Its second argument, if there is one, is
        shown behind the label.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda steps, said="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}{task.fields[said]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, said="")

        def advance(steps: int, said: str = "") -> None:
            bar.update(task, advance=steps, said=f" ({said})" if said else "")

        yield advance
