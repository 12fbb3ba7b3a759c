"""check(): before a merge, everything that stands against it, at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.merging.differences import (
    config_findings,
    config_table,
    grouped,
    label_findings,
    shape_findings,
)
from mergescope.merging.findings import Finding, Report
from mergescope.merging.plan import make_plan
from mergescope.merging.recipe import Recipe, read_recipe
from mergescope.merging.relations import relation_findings, verdicts
from mergescope.merging.values import tied_findings, value_findings
from mergescope.merging.vocabulary import TOKENIZER_FILES, tokenizer_directory, vocabulary_problems
from mergescope.weights.geometry import Geometry, measure
from mergescope.weights.kinds import is_derived

_ORDER = ("error", "warning", "note")


def check(
    models: Sequence[Any] = (),
    base: Any = None,
    recipe: Recipe | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    fast: bool = False,
    *,
    threads: int = 2,
    progress: bool = False,
) -> Report:
    """Find whatever stands against merging some models, before it is done.

    Compared are keys, shapes and dtypes, configurations, tied heads, tokenizers; all weights are
    read once for NaN, equal models, and whether the models descend from the base (see
    [`relation`][mergescope.weights.relation]). Nothing is sampled.

    Args:
        models: checkpoints or references ``path_or_id[@revision][+lora[@revision]]``.
        base: the base, as a checkpoint or a reference.
        recipe: take models and base from a recipe, and plan its merge: differences that the recipe
            copes with, such as vocabularies that it aligns, then are notes.
        fast: read headers, configurations and tokenizers only; the report says what was skipped.
        threads: chunks of weights worked on at once.
        progress: show a bar on a terminal.

    Returns:
        The report. A model that can't be opened is a finding in it, not an exception.

    Raises:
        RecipeError: the recipe can't be understood.
        MergescopeError: fewer than two models and no recipe, or models beside a recipe.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> a = Checkpoint({"w": torch.eye(9), "v": torch.ones(2)}, name="a")
        >>> b = Checkpoint({"w": torch.eye(9) + 0.1, "v": torch.tensor([1.0, torch.nan])}, name="b")
        >>> report = check([a, b])
        >>> report.mergeable, report.of("error")[0].message
        (False, 'b has NaN or infinite weights in 1 tensor: v (1 of 2).')
    """  # noqa: DOC502 (raised by what this calls)
    if recipe is not None:
        if models or base is not None:
            raise MergescopeError("A recipe names its models: give a recipe, or models and a base, not both.")
        recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
        base = recipe.base_model
        models = [name for name in recipe.references if name != base]
    named = len(models) + (base is not None)
    if recipe is None and named < 2:
        raise MergescopeError("A check needs two models or more, or a model and --base, or a recipe.")
    opened, findings = _open([*([base] if base is not None else []), *models])
    found = [model for _, model in opened]
    has_base = base is not None and bool(opened) and opened[0][0] is base
    report = Report(tuple(model.name for model in found), found[0].name if has_base else None, findings)
    if base is not None and not has_base:
        report.skipped.append("The base can't be read, so nothing was compared with it.")
    if len(found) < min(named, 2):
        report.skipped.append("Fewer than two models can be read, so nothing was compared.")
    differences = shape_findings(found) if found else []
    report.config = config_table(found)
    differences += config_findings(found, report.config)
    stacked = isinstance(recipe, Recipe) and recipe.method.name == "passthrough"
    if not stacked:
        differences += label_findings(found)
    differences += _tokenizers(found, recipe)
    if isinstance(recipe, Recipe) and len(found) == len(models) + has_base:
        planned, coped = _plan(
            recipe, {name: model for name, model in opened}, [d.message for d in differences]
        )
        findings += planned
        differences = [_copes(finding) for finding in differences] if coped else differences
    findings += differences
    if fast:
        report.skipped.append(
            "The weights were not read (--fast): no search for NaN and infinite weights, no comparison of tied heads, "
            "no test of whether the models descend from the base, no task vectors."
        )
    elif found:
        _weights(report, found, has_base, stacked, threads, progress)
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return report


def open_distinct(models: Sequence[Any]) -> list[Any]:
    """Open models, and give those with equal names the names that the user wrote.

    Args:
        models: references or checkpoints.

    Returns:
        The checkpoints.

    Raises:
        CheckpointError: some can't be opened; all are named.
    """
    opened, findings = _open(models)
    if findings:
        raise CheckpointError("\n".join(finding.message for finding in findings))
    return [model for _, model in opened]


def _open(models: Sequence[Any]) -> tuple[list[tuple[Any, Any]], list[Finding]]:
    from mergescope.weights.references import open_model

    opened: list[tuple[Any, Any]] = []
    findings: list[Finding] = []
    names: set[str] = set()
    for reference in models:
        mine = isinstance(reference, (str, os.PathLike))
        try:
            model = open_model(reference) if mine else reference
        except MergescopeError as error:
            findings.append(Finding("error", "models", f"{reference} can't be opened: {error}"))
            continue
        if model.name in names:
            if not mine:
                raise MergescopeError(
                    f"Two models are called {model.name!r}: name them with Checkpoint(..., name=...)."
                )
            # Directories such as runs/a/checkpoint-500 and runs/b/checkpoint-500.
            text, number = os.fspath(reference), 1
            model.name = text
            while model.name in names:
                number += 1
                model.name = f"{text} ({number})"
        names.add(model.name)
        opened.append((reference, model))
    return opened, findings


def _plan(recipe: Recipe, opened: Mapping[str, Any], known: Sequence[str]) -> tuple[list[Finding], bool]:
    try:
        plan = make_plan(recipe, opened=opened)
    except MismatchError as error:
        count = len(error.problems)
        told = f"{error.problems[0]}{f' and {count - 1} more' if count > 1 else ''}" if count else str(error)
        advice = str(error).splitlines()[-1]
        return [
            Finding(
                "error", "recipe", f"{recipe.name} can't be merged: {told}. {advice}", tuple(error.problems)
            )
        ], False
    except MergescopeError as error:
        return [Finding("error", "recipe", f"{recipe.name} can't be merged: {error}")], False
    said = {message.rstrip(".") for message in known}
    notes = [Finding("note", "recipe", note) for note in plan.notes if note.rstrip(".") not in said]
    return notes, True


def _copes(finding: Finding) -> Finding:
    if finding.severity != "error" or finding.topic not in {"keys", "shapes", "tokenizer"}:
        return finding
    return Finding("note", finding.topic, f"{finding.message} The recipe copes with it.", finding.items)


def _tokenizers(models: Sequence[Any], recipe: Any) -> list[Finding]:
    folders = [tokenizer_directory(model) for model in models]
    if not any(folders) or len({_contents(folder) for folder in folders}) == 1:
        return []
    try:
        problems = vocabulary_problems(models)
    except CheckpointError as error:
        return [Finding("error", "tokenizer", str(error))]
    aligned = isinstance(recipe, Recipe) and recipe.tokenizer is not None
    out = []
    for problem in problems:
        # Rows of different tokens give a wrong model; a token that one lacks may be a spare row there.
        mixed = "Rows of different tokens" in problem or "embedding rows, " in problem
        out.append(Finding("note" if aligned else "error" if mixed else "warning", "tokenizer", problem))
    return out


def _contents(folder: Any) -> tuple[bytes | None, ...]:
    # Only tables of tokens: templates and settings don't change what a row means.
    names = [name for name in TOKENIZER_FILES if "template" not in name and "config" not in name]
    if folder is None:
        return ()
    return tuple((folder / name).read_bytes() if (folder / name).is_file() else None for name in names)


def _weights(
    report: Report, models: Sequence[Any], has_base: bool, stacked: bool, threads: int, progress: bool
) -> None:
    first, *others = models
    keys = [
        key for key, spec in first.spec.items()
        if all(key in model.spec and model.spec[key].shape == spec.shape for model in others)
    ]  # fmt: skip
    measured: Geometry | None = None
    try:
        if others and any(first.spec[key].dtype.is_floating_point for key in keys):
            measured = measure(first, others, keys=keys, threads=threads, progress=progress)
        report.findings += value_findings(models, measured, threads)
        report.findings += tied_findings(models)
    except MergescopeError as error:
        report.findings.append(Finding("error", "values", str(error)))
        return
    every = {key: spec.shape for model in models for key, spec in model.spec.items()}
    left = [key for key, shape in every.items() if key not in keys and not is_derived(key, shape)]
    if others and left:
        report.skipped.append(
            f"Distances, angles and signs of {grouped(left)}: missing or shaped otherwise in some model."
        )
    if measured is None:
        if others:
            report.skipped.append("The models share no weights, so they were not compared.")
        return
    report.geometry = measured
    report.verdicts = verdicts(measured, has_base)
    report.findings += relation_findings(report.verdicts, has_base, stacked)
