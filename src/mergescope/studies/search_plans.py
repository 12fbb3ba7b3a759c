"""What evaluations and searches of somebody's models need and cost, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergescope.errors import MergescopeError, StudyError
from mergescope.protocols.compare import Way
from mergescope.protocols.evaluation import Model, planned_passes
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut, Settings
from mergescope.protocols.search import addition_line
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.studies.given import DataOptions, Given, Options, prepare
from mergescope.studies.given_family import prepare_family
from mergescope.weights import Point, mean

SOME = 7
"""Stands for a coefficient that is not known yet, and that differs from 0 and 1."""


def models_of(given: Given, extra: Mapping[str, Point]) -> dict[str, Point]:
    """What is evaluated: base, fine-tunes, their uniform average, and further points.

    Args:
        given: the models.
        extra: name to further point.

    Returns:
        Name to point.
    """
    named = {} if given.base is None else {"base": Point.of(given.base)}
    named |= {name: Point.of(model) for name, model in given.models.items()}
    if len(given.models) > 1:
        named["average"] = mean(given.models.values())
    return named | dict(extra)


def plan_evaluation(given: Given, extra: Mapping[str, Point], settings: ArithmeticSettings) -> dict[str, Any]:
    """What [`evaluate_given`][] will cost.

    Args:
        given: models and data.
        extra: name to further point.
        settings: of the passes.

    Returns:
        Points, samples, forward passes of a batch.
    """
    points = models_of(given, extra)
    wanted = {data.name: points.values() for data in given.held}
    return _plan(
        list(points), [(given, wanted)], is_linear(given, settings)[0] and settings.executor != "resident"
    )


def plan_search(
    validation: Given,
    test: Given,
    settings: ArithmeticSettings,
    *,
    negate: bool = False,
    ways: Sequence[Way] | None = None,
) -> dict[str, Any]:
    """What a search will cost if the grid's end does not bind; each further point costs a pass a task.

    Args:
        validation: models, and the data to choose by.
        test: the same models, and the data to report of.
        settings: of the search.
        negate: negation in place of addition.
        ways: methods to compare in place of both.

    Returns:
        Points, samples, forward passes of a batch; with methods, at most so many.
    """
    base, models = (
        Point.of(validation.base),
        {name: Point.of(model) for name, model in validation.models.items()},
    )
    affine = is_linear(validation, settings)[0] and settings.executor != "resident"
    grid = settings.parts()[0]
    choosing: dict[str, list[Model]]
    reporting: dict[str, list[Model]]
    if ways is not None:
        return _plan_methods(validation, test, base, models, grid, ways, affine)
    if negate:
        lines = {
            task: [base - lam * (model - base) for lam in (0.0, *grid)] for task, model in models.items()
        }
        choosing = {task: [point for line in lines.values() for point in line] for task in models}
        ends = [base, *(2 * base - model for model in models.values())]
        reporting = {
            task: [*ends, *(base - SOME * (model - base) for model in models.values())] for task in models
        }
        names = [f"base - {lam:g} * {task}" for task in models for lam in grid]
    else:
        line = addition_line(base, list(models.values()), grid)
        choosing = {task: [*line.values(), model] for task, model in models.items()}
        shared = addition_line(base, list(models.values()), [1, SOME]).values()
        reporting = {task: [base, mean(models.values()), *shared, model] for task, model in models.items()}
        names = [f"base + {lam:g} * sum" for lam in grid]
    return _plan(names, [(validation, choosing), (test, reporting)], affine)


def _plan_methods(
    validation: Given, test: Given, base: Point, models: Mapping[str, Point], grid: Sequence[float],
    ways: Sequence[Way], affine: bool,
) -> dict[str, Any]:  # fmt: skip
    batches = [{name: len(data) for name, data in part.batches.items()} for part in (validation, test)]
    names, passes = [], sum(batches[0].values()) + 2 * sum(batches[1].values())
    for way in ways:
        tried = len(grid) if way.has_scale else 0
        names += [f"{way.label}, lambda {lam:g}" for lam in grid] if tried else [way.label]
        if affine and tried:
            tried = len(models) + 1 if way.method == "task_arithmetic" else 2
        passes += tried * sum(batches[0].values()) + (2 if way.has_scale else 1) * sum(batches[1].values())
    return {"points": names, "samples": _samples(validation, test), "forward_passes": passes}


def _plan(names: list[str], parts: Sequence[tuple[Given, Mapping[str, Any]]], affine: bool) -> dict[str, Any]:
    passes = 0
    for given, points in parts:
        batches = {name: len(data) for name, data in given.batches.items()}
        passes += planned_passes(points, batches, affine=affine)
    samples = _samples(*(given for given, _ in parts))
    return {"points": names, "samples": samples, "forward_passes": passes}


def _samples(*parts: Given) -> dict[str, Any]:
    names = ("test",) if len(parts) == 1 else ("validation", "test")
    return {
        name: {task: data.samples for task, data in part.batches.items()}
        for name, part in zip(names, parts, strict=True)
    }


def is_linear(given: Given, settings: ArithmeticSettings) -> tuple[bool, list[str]]:
    """Whether models are run in the network linearised around their base.

    Args:
        given: models and data.
        settings: what the user says of it.

    Returns:
        Whether, and what the user should know.
    """
    base = None if given.base is None else Point.of(given.base)
    return in_linear_model(
        base, {name: Point.of(model) for name, model in given.models.items()}, settings.linearized
    )


def tasks_of(given: Given) -> dict[str, HeldOut]:
    """The data of each fine-tune's own task.

    Args:
        given: models and data.

    Returns:
        Name of the fine-tune to its data.

    Raises:
        MergescopeError: there is no base, or data and fine-tunes don't belong together one by one.
    """
    if given.base is None:
        raise MergescopeError("Task vectors are differences from the base. Give a base: --base.")
    owned = {data.owner: data for data in given.held if data.owner is not None}
    if len(owned) < len(given.held) or set(owned) != set(given.models):
        raise MergescopeError(
            "A search needs the data of every fine-tune's task: name data like models (--data NAME=...), one for each "
            f"of {', '.join(given.models)}."
        )
    return {name: owned[name] for name in given.models}


def require_apart(validation: Given, test: Given) -> None:
    """Refuse to choose by the samples that figures are reported of.

    Args:
        validation: the data to choose by.
        test: the data to report of.

    Raises:
        StudyError: data of a task are the same.
    """
    same = [
        name
        for name, data in validation.batches.items()
        if name in test.batches and data.fingerprint == test.batches[name].fingerprint
    ]
    if same:
        raise StudyError(
            f"Validation and test data are the same for {', '.join(same)}: coefficients would be chosen on what they "
            "are judged by. Give the data a test split, or choose other splits (--validation-split, --split)."
        )


def open_given(
    family: str | None,
    regime: str | None,
    base: str | None,
    models: tuple[str, ...],
    data: DataOptions,
    settings: ArithmeticSettings,
    dtype: str = "float32",
) -> Given:
    """Open a family, or models that are named one by one, with their data.

    Args:
        family: a family directory, or a published family.
        regime: of the family.
        base: reference of the base.
        models: references of the fine-tunes.
        data: which data.
        settings: of the passes.
        dtype: what networks compute in.

    Returns:
        Models and data.
    """
    own = Settings(
        linearized=settings.linearized, executor=settings.executor, device=settings.device, seed=settings.seed
    )  # fmt: skip
    options = Options(base, models, data, own, dtype)
    return prepare(options) if family is None else prepare_family(family, regime, options)
