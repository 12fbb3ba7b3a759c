"""Progress bars for anything over a second, on a terminal only; and none of other packages'."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
}
"""Variables by which other packages show no bars and no messages below errors."""

DOWNLOADS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""The same for downloads from a hub, which have no bars of ours."""


def quiet_packages() -> None:
    """Keep bars, messages and warnings of other packages off standard error: for a process that is a command.

    They read these variables when they are imported, so that this costs nothing, comes first, and holds for worker
    processes as well. What the user set stays. On a terminal, downloads keep their bars.
    """
    chosen = QUIET if shows_bars() else {**QUIET, **DOWNLOADS}
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # neither -W nor PYTHONWARNINGS asks for some
        os.environ["PYTHONWARNINGS"] = "ignore"
        warnings.simplefilter("ignore")


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that ``accelerate launch`` or ``torchrun`` started.

    Returns:
        True as well where there is one process only.
    """
    return os.environ.get("RANK", "0") == "0"


def shows_bars() -> bool:
    """Whether standard error is a terminal that can draw bars.

    Returns:
        False for files and pipes, for a terminal that only prints line after line (``TERM=dumb``), and for all but the
        first of several processes that train together.
    """
    draws = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return draws and is_first_process()


def say(text: str) -> None:
    """Tell what the user would wonder at, in a line on standard error.

    Args:
        text: the line.

    Example:
        >>> say("No worker has started for 60 s.")
    """
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


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
    if not enabled or not shows_bars():
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
