"""How a function becomes a command: what all commands have in common."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from mergescope.cli.completion import completed
from mergescope.cli.many_values import many_values
from mergescope.cli.printing import results_alone

Command = TypeVar("Command", bound=Callable[..., None])

INTERRUPTED = 130
"""What a command exits with after Ctrl-C."""

GO_ON = ("demo", "finetune", "run")
"""Commands that go on where they were; ``run`` is that of studies."""

GO_ON_IN_OUT = (
    "evaluate", "search", "stitch", "disentangle", "predict", "curvature", "theorems", "mergeability", "measure",
    "equations", "soup",
)  # fmt: skip
"""Commands that go on if they have a run directory, which keeps what is finished."""

BY_BATCHES = ("measure", "equations", "soup")
"""Of these, those that keep batches of passes, and not finished passes."""

_last = {"words": ""}


class InnerInterrupt(KeyboardInterrupt):
    """Ctrl-C in a command that another one ran: that one goes on as far as the inner one does.

    Args:
        words: what the inner one says of that.
    """

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def after_interruption(name: str, given: Mapping[str, Any]) -> str:
    """What to do after Ctrl-C, which depends on what the command has kept.

    Args:
        name: of the command.
        given: its options.

    Returns:
        One or two sentences.

    Example:
        >>> after_interruption("merge", {})
        'What is finished is kept: run the same command again with --resume.'
        >>> after_interruption("geometry", {"out": "run"})
        'Nothing was kept: run the same command again, and it begins anew.'
        >>> after_interruption("search", {"out": None})
        'Nothing was kept: run the same command again, and it begins anew. With --out it would go on.'
    """
    kept = "What is finished is kept: run the same command again"
    anew = "run the same command again, and it begins anew."
    nothing = f"Nothing was kept: {anew}"
    if given.get("dry_run"):
        return nothing
    if name == "merge":
        return f"{kept} with --resume."
    if name in GO_ON:
        return f"{kept}."
    if name not in GO_ON_IN_OUT:
        return nothing
    if name in BY_BATCHES and given.get("executor") == "streamed" and given.get("engine") != "ray":
        return f"{name} keeps nothing with --executor streamed: {anew}"
    if given.get("out") is None:
        return f"{nothing} With --out it would go on."
    # Until there is something, the promise would be empty; some families are streamed without an option.
    if name in BY_BATCHES and not any((given["out"] / "passes").rglob("*.npz")):
        return nothing
    return f"{kept}."


def last_interruption() -> str:
    """What the command that was interrupted last said of going on.

    Returns:
        Its words.
    """
    return _last["words"]


def command(app: typer.Typer, name: str, *many: str) -> Callable[[Command], Command]:
    """Make a function a command.

    The shell completes names that it takes, ``--json`` has standard output to itself, and Ctrl-C has a code of its own.

    Args:
        app: of which it is a command.
        name: as it is typed.
        *many: options that take several values.

    Returns:
        A decorator; the function stays as it is.

    Example:
        >>> from typer.testing import CliRunner
        >>> app = typer.Typer()
        >>> @command(app, "hello", "--names")
        ... def hello(names: list[str], as_json: bool = False) -> None:
        ...     print(" and ".join(names))
        >>> print(CliRunner().invoke(app, ["me", "you"]).stdout)
        me and you
    """

    def add(function: Command) -> Command:
        @functools.wraps(function)
        def run(*args: Any, **given: Any) -> None:
            try:
                with results_alone(given.get("as_json", False)):
                    function(*args, **given)
            except KeyboardInterrupt as stop:
                known = stop.words if isinstance(stop, InnerInterrupt) else None
                _last["words"] = known or after_interruption(name, given)
                raise typer.Exit(INTERRUPTED) from None

        # Rich would keep the ends of lines that a docstring has: paragraphs are as wide as the terminal.
        words = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
        app.command(name, cls=many_values(*many), help=words)(completed(run))
        return function

    return add
