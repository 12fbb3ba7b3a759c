"""Options that take several values after one name."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


def many_values(*options: str) -> type[TyperCommand]:
    """The class of a command some of whose options take several values.

    Args:
        options: their names: ``--models A B C`` then means ``--models A --models B --models C``.

    Returns:
        For ``cls=`` of typer's ``command``.
    """

    class ManyValues(TyperCommand):
        """A command with such options."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Repeat the options that take several values.

            Args:
                ctx: of click.
                args: the command line.

            Returns:
                What is left of it.
            """
            return super().parse_args(ctx, repeated(args, options))

    return ManyValues


def repeated(args: list[str], options: tuple[str, ...]) -> list[str]:
    """Put the name of an option before each of its values.

    Args:
        args: a command line.
        options: which options.

    Returns:
        The command line, as click understands it.

    Example:
        >>> repeated(["--alphas", "-1", "2", "--out", "x"], ("--alphas",))
        ['--alphas', '-1', '--alphas', '2', '--out', 'x']
    """
    out: list[str] = []
    current = ""
    for arg in args:
        if arg.startswith("-") and not _number(arg):
            name = arg.partition("=")[0]
            current = name if name in options else ""
        elif current and out[-1] != current:
            out.append(current)
        out.append(arg)
    return out


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
