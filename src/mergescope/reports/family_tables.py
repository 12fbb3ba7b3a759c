"""Families on the terminal: the plan of a fine-tuning, and what came out."""

from __future__ import annotations

import re
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mergescope.studies.families import FamilyDirectory, Member
from mergescope.studies.family_run import FamilyPlan, Planned
from mergescope.training.regimes import TrainableRow

_STATUS = {"new": "to be trained", "interrupted": "goes on", "finished": "finished"}


def plan_parts(plan: FamilyPlan) -> list[Any]:
    """What fine-tuning a family would do.

    Args:
        plan: the plan.

    Returns:
        For rich: the models, their recipes, and what trains in each regime.
    """
    table = _table("regime", "task")
    for name in ("train", "held out", "classes", "steps"):
        table.add_column(name, justify="right")
    table.add_column("")
    for model in plan.models:
        held = " + ".join(f"{count:,}" for split, count in model.samples.items() if split != "train")
        classes = "-" if model.classes is None else str(len(model.classes))
        status = _STATUS.get(model.status.found, model.status.found)
        table.add_row(
            model.regime, model.task, f"{model.samples['train']:,}", held, classes, f"{model.steps:,}", status
        )
    left = sum(not model.finished for model in plan.models)
    head = ", ".join(sorted({model.head or "none" for model in plan.models}))
    parts: list[Any] = [
        Text(f"{plan.family.path}: {left} of {len(plan.models)} models to train from {plan.base.name}", style="bold"),
        table, Text(f"Head: {head}."),
    ]  # fmt: skip
    parts += [Text(f"{who}: {recipe}.") for recipe, who in _recipes(plan.models).items()]
    for label, rows in plan.tables.items():
        parts += _trains(label, rows)
    return parts


def _recipes(models: list[Planned]) -> dict[str, str]:
    found: dict[str, list[Planned]] = {}
    for model in models:
        found.setdefault(str(model.tune.recipe), []).append(model)
    if len(found) == 1:
        return {next(iter(found)): "Recipe"}
    return {
        recipe: ", ".join(f"{model.regime}/{model.task}" for model in those)
        for recipe, those in found.items()
    }


def _trains(label: str, rows: list[TrainableRow]) -> list[Any]:
    *places, total = rows
    share = total.trained / max(total.parameters, 1)
    table = _table("parameter", "shape")
    for name in ("tensors", "weights"):
        table.add_column(name, justify="right")
    for row in places:
        if row.trains:
            shape = " x ".join(map(str, row.shape))
            table.add_row(_name(row.pattern), shape, f"{row.tensors:,}", f"{row.parameters:,}")
    title = f"\n{label} trains {total.trained:,} of {total.parameters:,} weights ({share:.1%})"
    return [Text(title, style="bold"), table]


def _name(pattern: str) -> str:
    # Without what only says how networks are wrapped to be trained.
    plain = pattern.removeprefix("base_model.model.").removeprefix("backbone.")
    return re.sub(r"(lora_[AB])\.default\.", r"\1.", plain)


def family_parts(family: FamilyDirectory) -> list[Any]:
    """What came out of fine-tuning a family.

    Args:
        family: the family.

    Returns:
        For rich: accuracy of every task and regime, what it cost, and what to do next.
    """
    table = _table("accuracy")
    for label in family.regimes:
        table.add_column(label, justify="right")
    found = {(member.regime, member.task): member for member in family.members}
    for task in family.tasks:
        table.add_row(task, *(_accuracy(found.get((label, task))) for label in family.regimes))
    table.add_section()
    of = {label: [m for m in family.members if m.regime == label] for label in family.regimes}
    trained = (max(member.trained_parameters for member in members) for members in of.values())
    table.add_row("trained weights", *(f"{count:,}" for count in trained))
    table.add_row(
        "seconds", *(f"{sum(member.seconds for member in members):,.1f}" for members in of.values())
    )
    told = "test samples" if any("test" in member.results for member in family.members) else "held-out texts"
    return [table, Text(f"Accuracy on {told}. Models: {family.path}"), *_next(family)]


def _accuracy(member: Member | None) -> str:
    if member is None:
        return "-"
    results = member.results.get("test") or member.results.get("validation") or {}
    return f"{results['accuracy']:.3f}" if "accuracy" in results else "?"


def _next(family: FamilyDirectory) -> list[Any]:
    if len(family.tasks) < 2 and len(family.regimes) < 2:
        return []
    chosen = f" --regime {family.regimes[0]}" if len(family.regimes) > 1 else ""
    return [Text(f"Next: mergescope measure --family {family.path}{chosen}")]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
