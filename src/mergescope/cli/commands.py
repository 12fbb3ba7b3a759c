"""How a function becomes a command: what all commands have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from mergescope.cli.completion import completed
from mergescope.cli.many_values import many_values
from mergescope.cli.printing import results_alone

Command = TypeVar("Command", bound=Callable[..., None])

INTERRUPTED = 130
"""What a command exits with after Ctrl-C."""


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
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None

        app.command(name, cls=many_values(*many))(completed(run))
        return function

    return add
