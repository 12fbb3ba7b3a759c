"""What the shell offers after Tab: names that options take. Paths are the shell's own business.

Names are written here, or read from small files, since importing what knows them takes seconds; a test compares
them with it.
"""

from __future__ import annotations

import copy
import glob
import inspect
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.models import ParameterInfo

from mergescope.cli.many_values import option_of

Command = TypeVar("Command", bound=Callable[..., None])

Offered = Iterable[str] | Iterable[tuple[str, str]]
"""Names, or names with what they mean."""

METHODS = (
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear", "iso_c",
    "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram", "ramplus_tl", "sce",
    "slerp", "task_arithmetic", "ties", "tsv",
)  # fmt: skip
"""Merge methods."""

REGIMES = (
    "full", "attention", "attention-1", "attention-2", "attention-3", "attention-4", "attention-3-literal",
    "attention-4-literal", "linearized", "lora",
)  # fmt: skip
"""Regimes of fine-tuning."""

TASKS = (
    "cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn", "cifar10", "cifar100", "tiny-imagenet",
    "imdb", "race", "qasc", "multi_news", "squad", "common_gen",
)  # fmt: skip
"""Data sets that are known by name."""

FAMILIES = ("clip8", "t5-six", "llama2-13b")
"""Published families."""

NAMES: dict[str, tuple[str, ...]] = {
    "at": ("midpoint", "base", "line"),
    "batchnorm": ("eval", "batch"),
    "device": ("cpu", "cuda"),
    "distance": ("predictions", "kl"),
    "dtype": ("float32", "bfloat16", "float16"),
    "end": ("largest", "magnitude"),
    "engine": ("local", "ray"),
    "executor": ("auto", "resident", "affine", "batched", "streamed"),
    "features": ("auto", "all", "mean", "last", "cls", "each"),
    "layers": ("blocks", "output"),
    "methods": ("usual", *METHODS),
    "objective": ("auto", "accuracy", "loss", "entropy", "agreement"),
    "split": ("train", "validation", "test"),
    "tasks": ("rotations", "class-pairs"),
    "term": ("base", "midpoint"),
    "tests": ("ctl", "eq1", "eq2", "eq3"),
    "validation_split": ("train", "validation", "test"),
    "demo data": ("embedded",),
    "disentangle preset": ("tangent", "attn"),
    "finetune data": TASKS,
    "finetune device": ("auto", "cpu"),
    "finetune head": ("auto", "trained", "frozen-random", "zero-shot", "none"),
    "finetune keep": ("last", "best"),
    "finetune optimizer": ("sgd", "adamw"),
    "finetune paradigm": ("1", "2", "3", "4", "3-literal", "4-literal"),
    "finetune precision": ("no", "bf16", "fp16"),
    "finetune preset": ("clip", "mc-sgd", "sentence-encoder", "lm"),
    "finetune regime": REGIMES,
    "finetune schedule": ("constant", "linear", "cosine"),
    "merge method": METHODS,
    "predict method": ("jvp", "differences"),
    "run data": ("embedded",),
}
"""An argument of any command, or ``COMMAND ARGUMENT``, to the names that it takes."""


def studies() -> list[tuple[str, str]]:
    """Studies by name.

    Returns:
        Name and title of each.

    Example:
        >>> dict(studies())["ctl-fig7"]
        'Does adding task vectors mix features (Eq. 2)?'
    """
    from mergescope.studies import STUDIES

    found = [(name, study.title) for study in STUDIES for name in (study.name, *study.aliases)]
    specs = files("mergescope.studies.papers") / "specs"
    for file in sorted(specs.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            said = re.findall(r"^name: *(\S+)\n+title: *(.+?) *$", file.read_text("utf-8"), re.M)
            found += [(name, title.strip("'\"")) for name, title in said]
    return found


def presets(ctx: typer.Context) -> Iterable[str]:
    """Presets of the study that is named on the command line.

    Args:
        ctx: of click.

    Returns:
        Their names.
    """
    from mergescope.studies import STUDIES

    # Before an option that still lacks its value, click has not yet told arguments from each other.
    name = ctx.params.get("name") or next(iter(ctx.args), None)
    known = [study for study in STUDIES if name in (study.name, *study.aliases)]
    return known[0].presets if known else ("quick", "cpu", "paper")


def families(incomplete: str) -> list[str]:
    """Published families, and directories of families that are near.

    Args:
        incomplete: what is typed of the word.

    Returns:
        Names and paths.
    """
    here = Path(incomplete)
    folder, start = (here, "") if not incomplete or incomplete.endswith("/") else (here.parent, here.name)
    patterns = (f"{glob.escape(start)}*/{depth}family.yaml" for depth in ("", "*/"))
    near = {str(place.parent) for pattern in patterns for place in folder.glob(pattern)}
    return [*FAMILIES, *sorted(near)]


def regimes(ctx: typer.Context) -> Iterable[str]:
    """Regimes of the family that is named on the command line.

    Args:
        ctx: of click.

    Returns:
        Their labels.
    """
    from mergescope.documents import read_yaml

    named = ctx.params.get("family") or ()
    found = [read_yaml(Path(each) / "family.yaml") for each in ([named] if isinstance(named, str) else named)]
    return dict.fromkeys(model["regime"] for family in found for model in family["models"])


def further(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What the option takes that is still open, for an argument that click takes to be next.

    Args:
        ctx: of click.
        incomplete: what is typed of the word.

    Returns:
        Names with what they mean; none if no option is open.
    """
    option = option_of(ctx)
    found = [] if option is None else option.shell_complete(ctx, incomplete)
    return [(item.value, item.help or "") for item in found]


READ: dict[str, Callable[[typer.Context, str], Offered]] = {
    "family": lambda ctx, incomplete: families(incomplete),
    "finetune family": further,
    "regime": lambda ctx, incomplete: regimes(ctx),
    "run name": lambda ctx, incomplete: studies(),
    "run preset": lambda ctx, incomplete: presets(ctx),
    "show name": lambda ctx, incomplete: studies(),
}
"""The same for names that are read when they are asked for."""


def completed(command: Command) -> Command:
    """Have the shell offer names to those arguments of a command that take some.

    Args:
        command: a function that typer can run; its signature is changed.

    Returns:
        The same.

    Example:
        >>> @completed
        ... def merge(method: Annotated[str, typer.Option()] = "ties") -> None: ...
        >>> info = get_args(inspect.signature(merge).parameters["method"].annotation)[1]
        >>> [name for name, meaning in info.autocompletion(None, "del")]
        ['della', 'della_linear']
    """
    name = command.__name__
    signature = inspect.signature(command, eval_str=True)
    parameters = [_completed(name, parameter) for parameter in signature.parameters.values()]

    every: Any = command
    every.__signature__ = signature.replace(parameters=parameters)
    every.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return every


def _completed(command: str, parameter: inspect.Parameter) -> inspect.Parameter:
    key = next(
        (key for key in (f"{command} {parameter.name}", parameter.name) if key in NAMES or key in READ), None
    )
    if key is None or get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, *about = get_args(parameter.annotation)
    infos = [_with_names(info, key) if isinstance(info, ParameterInfo) else info for info in about]
    annotated: Any = Annotated
    parts = (kind, *infos)
    return parameter.replace(annotation=annotated[parts])


def _with_names(info: ParameterInfo, key: str) -> ParameterInfo:
    def names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        try:
            found: Offered = NAMES[key] if key in NAMES else READ[key](ctx, incomplete)
        except Exception:  # whatever is wrong with the line or a file, the command says it, and not the shell
            return []
        pairs = [each if isinstance(each, tuple) else (each, "") for each in found]
        return [pair for pair in pairs if pair[0].startswith(incomplete)]

    info = copy.copy(info)
    info.autocompletion = names
    return info
