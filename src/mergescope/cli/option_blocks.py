"""Blocks of options that many commands take: written once, and added to each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Command = TypeVar("Command", bound=Callable[..., None])

Block = Mapping[str, tuple[Any, Any]]
"""Name of an option to its annotation and default."""


def parameters(command: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """What a command takes.

    Args:
        command: a function that typer can run.

    Returns:
        Name to parameter, with annotations that are evaluated.
    """
    return dict(inspect.signature(command, eval_str=True).parameters)


def with_options(run: Command, own: Mapping[str, inspect.Parameter], block: Block) -> Command:
    """Say which options a wrapper of a command takes.

    Args:
        run: the wrapper.
        own: options of the command itself; of two with one name they stay.
        block: the options that are added.

    Returns:
        The wrapper, which typer then reads so.

    Example:
        >>> def hello(name: str = "you") -> None: ...
        >>> def wrapper(**given: Any) -> None: ...
        >>> list(parameters(with_options(wrapper, parameters(hello), {"loud": (bool, False)})))
        ['name', 'loud']
    """
    added = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in block.items()
        if name not in own
    }
    every: Any = run
    every.__signature__ = inspect.Signature([*own.values(), *added.values()])
    every.__annotations__ = {name: it.annotation for name, it in {**own, **added}.items()}
    return every
