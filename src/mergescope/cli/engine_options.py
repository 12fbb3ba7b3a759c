"""``--engine`` and what goes with it: one block of options for all commands whose work can be split."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from mergescope.cli.option_blocks import Command, parameters, with_options
from mergescope.errors import MergescopeError, did_you_mean

ENGINES = ("local", "ray")

_of_engine = functools.partial(typer.Option, rich_help_panel="Engine")

OPTIONS: dict[str, tuple[Any, Any]] = {
    "engine": (Annotated[str, _of_engine(help="local (this process), or ray (workers of a cluster).")], "local"),
    "address": (
        Annotated[str | None, _of_engine(help="Of a Ray cluster, or auto (default: one is started here).")], None,
    ),
    "workers": (Annotated[int | None, _of_engine(min=1, help="How many (default: all there is room for).")], None),
    "num_cpus": (Annotated[int | None, _of_engine(min=1, help="CPUs of each worker (1).")], None),
    "num_gpus": (Annotated[float | None, _of_engine(min=0, help="GPUs of each worker, which then computes there (0).")],
                 None),
}  # fmt: skip
"""Name to annotation and default."""


def takes_engine(command: Command) -> Command:
    """Give a command the options, and run it on the engine that they choose.

    All its passes of data are split over the workers, whoever makes them. Nothing is started for a command that
    makes none, such as a dry run.

    Args:
        command: a function that typer can run. Options that it has itself, such as ``workers``, stay its own; what
            they say is the engine's as well.

    Returns:
        The function that takes the options as well.

    Example:
        >>> @takes_engine
        ... def hello(name: str = "you") -> None:
        ...     print(f"hello {name}")
        >>> hello(engine="local", name="me")
        hello me
        >>> list(parameters(hello))
        ['name', 'engine', 'address', 'workers', 'num_cpus', 'num_gpus']
    """
    own = parameters(command)
    added = {name: default for name, (_, default) in OPTIONS.items() if name not in own}

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> None:
        said = {name: given.pop(name, default) for name, default in added.items()}
        if "workers" in own and said["engine"] == "ray":
            said["workers"], given["workers"] = given.pop("workers", None), None
        _require(given.get("device"), shared="workers" not in own, **said)
        with ExitStack() as stack:
            if said["engine"] == "ray":
                _begin(stack, **said)
            command(*args, **given)

    every: Any = run
    return with_options(every, own, OPTIONS)


def _require(
    device: str | None, shared: bool, engine: str, address: str | None, num_cpus: int | None,
    num_gpus: float | None, workers: int | None = None,
) -> None:  # fmt: skip
    if engine not in ENGINES:
        raise MergescopeError(
            f"There is no engine {engine!r}.{did_you_mean(engine, ENGINES)} Choose one of {', '.join(ENGINES)}."
        )
    given = {"--address": address, "--num-cpus": num_cpus, "--num-gpus": num_gpus, "--workers": workers}
    idle = [name for name, value in given.items() if value is not None]
    if engine == "local" and idle:
        raise MergescopeError(f"{', '.join(idle)}: of a Ray cluster only. Add --engine ray, or leave it out.")
    if engine == "ray" and shared and device not in (None, "cpu"):
        raise MergescopeError(
            f"--device {device} is where this process computes, and with --engine ray the workers do: on GPUs with "
            "--num-gpus 1. Leave --device out."
        )


def _begin(
    stack: ExitStack, engine: str, address: str | None, num_cpus: int | None, num_gpus: float | None,
    workers: int | None,
) -> None:  # fmt: skip
    from mergescope.tracing.engines import running_on
    from mergescope.tracing.ray_engine import RayEngine

    made = stack.enter_context(RayEngine(address, workers, num_cpus or 1, num_gpus or 0))
    stack.enter_context(running_on(made))
