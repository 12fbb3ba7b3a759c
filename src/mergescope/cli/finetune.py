"""``mergescope finetune``: a base to a family of fine-tuned models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.printing import JSON, print_json

VARIADIC = ("--data", "--regime", "--patterns", "--lora-targets")

of_recipe, of_regime, of_data, of_run = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Recipe", "Regimes", "Data", "Run")
)


def finetune(
    family: Annotated[Path | None, typer.Argument(help="YAML file that says all this, and more.")] = None,
    base: Annotated[str | None, typer.Option(help="The pretrained model: path or hub id.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]known task, hub id or path; several.")] = None,
    regime: Annotated[list[str] | None, typer.Option(help="[LABEL=]full, attention, linearized, lora ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the family, new or to go on with.")] = None,
    preset: Annotated[str | None, of_recipe(help="clip, mc-sgd, sentence-encoder, lm (by kind).")] = None,
    optimizer: Annotated[str | None, of_recipe(help="sgd or adamw.")] = None,
    lr: Annotated[float | None, of_recipe(help="Highest learning rate.")] = None,
    epochs: Annotated[int | None, of_recipe(help="Passes over the data.")] = None,
    steps: Annotated[int | None, of_recipe(help="Optimizer steps, in place of epochs.")] = None,
    batch: Annotated[int | None, of_recipe(help="Samples a step.")] = None,
    accumulate: Annotated[int | None, of_recipe(help="Parts that a step is passed in.")] = None,
    momentum: Annotated[float | None, of_recipe(help="Of SGD.")] = None,
    weight_decay: Annotated[float | None, of_recipe(help="Decoupled in AdamW.")] = None,
    warmup: Annotated[float | None, of_recipe(help="Steps, or a share below 1.")] = None,
    schedule: Annotated[str | None, of_recipe(help="constant, linear or cosine.")] = None,
    clip: Annotated[float | None, of_recipe(help="Largest norm of the gradient; 0 leaves it.")] = None,
    label_smoothing: Annotated[float | None, of_recipe(help="Of the cross-entropy.")] = None,
    precision: Annotated[str | None, of_recipe(help="no, bf16 or fp16 autocast.")] = None,
    evaluate_every: Annotated[int | None, of_recipe(help="Steps (default: every epoch).")] = None,
    save_every: Annotated[int | None, of_recipe(help="Steps between states to go on from.")] = None,
    paradigm: Annotated[str | None, of_regime(help="Of attention: 1, 2, 3, 4, 3-literal, 4-literal.")] = None,
    patterns: Annotated[list[str] | None, of_regime(help="Of attention: ends of names of its matrices.")] = None,
    checkpointing: Annotated[bool, of_regime("--checkpointing", help="Of linearized: recompute activations.")] = False,
    lora_rank: Annotated[int | None, of_regime(help="Of the factors (16).")] = None,
    lora_alpha: Annotated[float | None, of_regime(help="Twice the rank by default.")] = None,
    lora_dropout: Annotated[float | None, of_regime(help="On the inputs of the factors.")] = None,
    lora_targets: Annotated[list[str] | None, of_regime(help="Ends of names of layers.")] = None,
    rslora: Annotated[bool, of_regime("--rslora", help="Scale by the root of the rank.")] = False,
    text_column: Annotated[str | None, of_data(help="Column of texts, or two with a comma.")] = None,
    image_column: Annotated[str | None, of_data(help="Column of images.")] = None,
    label_column: Annotated[str | None, of_data(help="Column of labels.")] = None,
    answer_column: Annotated[str | None, of_data(help="Column of what is to be written.")] = None,
    template: Annotated[str | None, of_data(help='Text from columns: "premise: {premise} ..."')] = None,
    prompt: Annotated[str | None, of_data("--prompt-column", help="Prompt, not learned.")] = None,
    limit: Annotated[int | None, of_data(min=0, help="Training samples of each task; 0 for all.")] = None,
    max_length: Annotated[int | None, of_data(min=1, help="Cut texts at so many tokens.")] = None,
    head: Annotated[str | None, of_data(help="auto, trained, frozen-random, zero-shot, none or DIR.")] = None,
    keep: Annotated[str | None, of_run(help="last or best weights.")] = None,
    seed: Annotated[int | None, of_run(min=0, help="Of order, dropout, heads and factors.")] = None,
    tensorboard: Annotated[Path | None, of_run(help="Directory of TensorBoard logs.")] = None,
    device: Annotated[str, of_run(help="auto or cpu.")] = "auto",
    workers: Annotated[int | None, of_run(min=1, help="Models trained at a time, in processes (1).")] = None,
    dry_run: Annotated[bool, of_run("--dry-run", help="Check everything, print what trains and stop.")] = False,
    as_json: Annotated[bool, of_run("--json", help=JSON)] = False,
) -> None:  # fmt: skip
    """Fine-tune a base on every task in every regime, into one directory.

    The other commands take the directory as --family. Running the same command
    again goes on where it was interrupted, and adds tasks and regimes; nothing
    is overwritten.

    [bold]Example:[/] mergescope finetune --base org/base --data mnist pets=org/pets --regime full --out family/
    """  # noqa: DOC501 (typer shows this text to users)
    given = dict(locals())
    from mergescope.errors import MergescopeError, did_you_mean
    from mergescope.studies.family_file import read_family_config

    if out is None:
        raise MergescopeError("There is no place for the models. Give --out DIR.")
    if device not in ("auto", "cpu"):
        raise MergescopeError(
            f"There is no device {device!r} to train on.{did_you_mean(device, ('auto', 'cpu'))} Choose auto or cpu."
        )
    said = _said(given)
    if family is not None and said:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
        raise MergescopeError(f"{family} says what to train: put {options} there, or leave the file out.")
    config = read_family_config(_mapping(said) if family is None else family)

    from mergescope.studies.family_run import plan_family
    from mergescope.training.processes import processes

    where = None if device == "auto" else device
    state = processes(where)
    with state.main_process_first():  # which prepares data for all, and tells what is wrong
        plan = plan_family(config, out)
    if dry_run:
        if state.is_main_process:
            _print(plan.to_dict(), lambda: _plan_parts(plan), as_json)
        return
    from mergescope.tracing.engines import chosen_engine, engine_or_processes

    if chosen_engine() is None and (workers or 1) == 1:
        made = plan.run(tensorboard=tensorboard, device=where)
    else:
        with engine_or_processes(workers) as engine:
            made = plan.run(tensorboard=tensorboard, device=where, engine=engine)
    if state.is_main_process:
        _print(made.to_dict(), lambda: _family_parts(made), as_json)


_ELSEWHERE = ("family", "out", "tensorboard", "device", "workers", "dry_run", "as_json")


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in given.items()
        if name not in _ELSEWHERE and value is not None and value is not False and value != []
    }


_OPTIONS = {
    "attention": {"paradigm": "paradigm", "patterns": "patterns"},
    "linearized": {"checkpointing": "checkpointing"},
    "lora": {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_targets": "targets",
             "rslora": "rslora"},
}  # fmt: skip
"""Of each regime: the command line's name to its own."""


def _mapping(said: Mapping[str, Any]) -> dict[str, Any]:
    # What the command line says, as a file would.
    import dataclasses

    from mergescope.errors import MergescopeError
    from mergescope.training.recipe import Recipe

    missing = [f"--{name}" for name in ("base", "data", "regime") if name not in said]
    if missing:
        raise MergescopeError(
            f"{', '.join(missing)} missing. Give them, or a YAML file that describes the family."
        )
    recipe = {each.name: said[each.name] for each in dataclasses.fields(Recipe) if each.name in said}
    if recipe.get("clip") == 0:
        recipe["clip"] = None
    options = {kind: {own: said[name] for name, own in names.items() if name in said}
               for kind, names in _OPTIONS.items()}  # fmt: skip
    regimes: dict[str, Any] = {}
    for text in said["regime"]:
        label, equals, kind = text.partition("=")
        kind = kind if equals else label
        if label in regimes:
            raise MergescopeError(
                f"Two regimes are called {label!r}. Name one of them: --regime LABEL={kind}."
            )
        regimes[label] = {"regime": kind, "options": options.get(kind.partition("-")[0], {})}
    kinds = {each["regime"].partition("-")[0] for each in regimes.values()}
    idle = [f"--{name.replace('_', '-')}" for kind, names in _OPTIONS.items() for name in names
            if name in said and kind not in kinds]  # fmt: skip
    if idle:
        raise MergescopeError(
            f"{', '.join(idle)}: none of the regimes {', '.join(regimes)} takes it. Leave it out, or add its regime."
        )
    known = {*recipe, "data", "regime", *(name for names in _OPTIONS.values() for name in names)}
    rest = {name: value for name, value in said.items() if name not in known}
    return {**rest, "tasks": said["data"], "regimes": regimes, "recipe": recipe}


def _plan_parts(plan: Any) -> Any:
    from mergescope.reports.family_tables import plan_parts

    return plan_parts(plan)


def _family_parts(family: Any) -> Any:
    from mergescope.reports.family_tables import family_parts

    return family_parts(family)


def _print(content: dict[str, Any], parts: Any, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts():
        console.print(part)
