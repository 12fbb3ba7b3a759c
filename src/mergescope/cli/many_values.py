"""Options that take several values after one name."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

OPEN = "mergescope.open"
"""Where a context keeps the name of the option that a further value would be of."""


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
            ctx.meta[OPEN] = open_option(args, options)
            return super().parse_args(ctx, repeated(args, options))

        def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
            """Complete one more value of an option that takes several, or a name.

            Args:
                ctx: of click.
                incomplete: what is typed of the word.

            Returns:
                Click's items.
            """
            option = None if incomplete.startswith("-") else option_of(ctx)
            found = super().shell_complete if option is None else option.shell_complete
            return list(found(ctx, incomplete))

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


def open_option(args: list[str], options: tuple[str, ...]) -> str:
    """The option that a further value would be of.

    Args:
        args: a command line.
        options: those that take several values.

    Returns:
        Its name; empty if there is none.

    Example:
        >>> open_option(["--alphas", "-1", "2"], ("--alphas",)), open_option(["--alphas", "1", "--json"], ("--alphas",))
        ('--alphas', '')
    """
    last = next((arg for arg in reversed(args) if arg.startswith("-") and not _number(arg)), "")
    return last if last in options else ""


def option_of(ctx: Any) -> Any:
    """The same of a command line that is being completed.

    Args:
        ctx: of click.

    Returns:
        The option, or None.
    """
    name = ctx.meta.get(OPEN)
    return next((param for param in ctx.command.get_params(ctx) if name and name in param.opts), None)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
