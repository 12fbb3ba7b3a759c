"""What evaluations, searches and soups of somebody's models need and cost, before anything is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Any

from mergescope.errors import PointError
from mergescope.protocols.coefficients import SearchSettings, planned_points
from mergescope.protocols.compare import Way
from mergescope.protocols.evaluation import Model, planned_passes
from mergescope.protocols.forgetting import CONTROL
from mergescope.protocols.search import addition_line
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.studies.protocol_runs import Opened, cost
from mergescope.weights import Point, mean

RESERVED = {"base": "the pretrained model", "average": "the uniform average of all fine-tunes"}
"""Names of lines that every evaluation has."""

SOME = 7
"""Stands for a coefficient that is not known yet, and that differs from 0 and 1."""


def models_of(opened: Opened, extra: Mapping[str, Point]) -> dict[str, Point]:
    """What is evaluated: base, fine-tunes, their uniform average, and further points.

    Args:
        opened: the models.
        extra: name to further point.

    Returns:
        Name to point.

    Raises:
        PointError: a model or a point has a name that the base or the average has here.
    """
    first = {} if opened.given.base is None else {"base": opened.base}
    last = {"average": mean(opened.models.values())} if len(opened.models) > 1 else {}
    known = first | last
    for option, points in (("--models", opened.models), ("--points", extra)):
        taken = next((name for name, point in points.items() if name in known and point != known[name]), None)
        if taken is not None:
            instead = " in place of --family" if opened.family and option == "--models" else ""
            raise PointError(
                f"{taken!r} is what {RESERVED[taken]} is called here, so none of {option} can have that name. Call it "
                f"otherwise: {option} NAME=path{instead}."
            )
    return first | opened.models | last | dict(extra)


def plan_evaluation(
    opened: Opened, extra: Mapping[str, Point], settings: ArithmeticSettings
) -> dict[str, Any]:
    """What an evaluation will cost.

    Args:
        opened: models and data.
        extra: name to further point.
        settings: of the passes.

    Returns:
        Points, samples, forward passes of a batch, seconds.

    Raises:
        PointError: as for [`models_of`][].
    """  # noqa: DOC502 (raised by what this calls)
    points = models_of(opened, extra)
    return _plan(
        list(points), {"test": opened}, {"test": dict.fromkeys(opened.data, points.values())}, settings
    )


def plan_search(
    parts: Mapping[str, Opened],
    settings: ArithmeticSettings,
    *,
    negate: bool = False,
    ways: Sequence[Way] | None = None,
) -> dict[str, Any]:
    """What a search will cost if the grid's end does not bind; each further point costs a pass a task.

    Args:
        parts: ``validation``, the data to choose by, and ``test``, the data to report of; for negation perhaps
            ``validation control`` and ``test control``.
        settings: of the search.
        negate: negation in place of addition.
        ways: methods to compare in place of both.

    Returns:
        Points, samples, forward passes of a batch, seconds; with methods, at most so much.

    Raises:
        MergescopeError: data and fine-tunes don't belong together one by one.
    """  # noqa: DOC502 (raised by what this calls)
    opened = parts["validation"]
    base, models = opened.base, {task: opened.models[task] for task in opened.tasks}
    grid = settings.parts()[0]
    if ways is not None:
        return _plan_methods(parts, grid, ways, settings)
    if negate:
        lines = {
            task: [base - lam * (model - base) for lam in (0.0, *grid)] for task, model in models.items()
        }
        ends = {
            task: [base, 2 * base - model, base - SOME * (model - base)] for task, model in models.items()
        }
        names = [f"base - {lam:g} * {task}" for task in models for lam in grid]
        passes: dict[str, Mapping[str, Iterable[Model]]] = {}
        for part, each in (("validation", lines), ("test", ends)):
            every = [point for line in each.values() for point in line]
            controlled = parts.get(f"{part} {CONTROL}")
            passes[part] = each if controlled else dict.fromkeys(models, every)
            if controlled:
                passes[f"{part} {CONTROL}"] = dict.fromkeys(controlled.data, every)
        return _plan(names, parts, passes, settings)
    line = addition_line(base, list(models.values()), grid)
    choosing = {task: [*line.values(), model] for task, model in models.items()}
    shared = addition_line(base, list(models.values()), [1, SOME]).values()
    reporting = {task: [base, mean(models.values()), *shared, model] for task, model in models.items()}
    names = [f"base + {lam:g} * sum" for lam in grid]
    return _plan(names, parts, {"validation": choosing, "test": reporting}, settings)


def plan_coefficients(parts: Mapping[str, Opened], settings: SearchSettings) -> dict[str, Any]:
    """What a search for coefficients will cost at most.

    Args:
        parts: ``validation``, the data to choose by, and, if anything is reported, ``test``.
        settings: of the search.

    Returns:
        How many coefficients and points, samples, forward passes of a batch, seconds.

    Raises:
        MergescopeError: data and fine-tunes don't belong together one by one.
    """  # noqa: DOC502 (raised by what this calls)
    tasks = parts["validation"].tasks
    linear = parts["validation"].linear(settings.linearized)[0]
    points = planned_points(len(tasks), settings.groups, settings)
    affine = linear and settings.executor != "resident" and settings.groups == 1
    counts = {
        "validation": dict.fromkeys(tasks, len(tasks) + 1 if affine else points),
        "test": dict.fromkeys(tasks, len(tasks) + 1 if affine else 4 + settings.random),
    }
    counts = {part: counts[part] for part in parts}
    return {
        "coefficients": len(tasks) * settings.groups, "points": [f"up to {points:,} points"],
        **cost(parts, counts, linear=linear),
    }  # fmt: skip


def plan_soup(parts: Mapping[str, Opened], size: int, limit: int | None) -> dict[str, Any]:
    """What soups or subsets will cost at most.

    Args:
        parts: ``test``, and to choose greedy soups, ``validation``.
        size: of subsets; 0 for soups.
        limit: subsets at most.

    Returns:
        Points, samples, forward passes of a batch, seconds.
    """
    test = parts["test"]
    count, data = len(test.models), list(test.data)
    if size:
        averages = min(comb(count, size), limit or comb(count, size))
        names = [*test.models, f"{averages:,} averages of {size}"]
        passes = {"test": count + averages + (test.given.base is not None)}
    else:
        names = [*test.models, "uniform", f"up to {count - 1} steps of the greedy soup"]
        passes = {"validation": 2 * count, "test": count + 2}
    return {"points": names, **cost(parts, {part: dict.fromkeys(data, n) for part, n in passes.items()})}


def _plan_methods(
    parts: Mapping[str, Opened], grid: Sequence[float], ways: Sequence[Way], settings: ArithmeticSettings
) -> dict[str, Any]:
    opened = parts["validation"]
    linear = opened.linear(settings.linearized)[0]
    affine = linear and settings.executor != "resident"
    names, choosing, reporting = [], 1, 2
    for way in ways:
        tried = len(grid) if way.has_scale else 0
        names += [f"{way.label}, lambda {lam:g}" for lam in grid] if tried else [way.label]
        if affine and tried:
            tried = len(opened.models) + 1 if way.method == "task_arithmetic" else 2
        choosing, reporting = choosing + tried, reporting + (2 if way.has_scale else 1)
    counts = {
        part: dict.fromkeys(opened.models, count)
        for part, count in (("validation", choosing), ("test", reporting))
    }
    return {"points": names, **cost(parts, counts, linear=linear)}


def _plan(
    names: list[str], parts: Mapping[str, Opened], points: Mapping[str, Mapping[str, Iterable[Model]]],
    settings: ArithmeticSettings,
) -> dict[str, Any]:  # fmt: skip
    linear = next(iter(parts.values())).linear(settings.linearized)[0]
    affine = linear and settings.executor != "resident"
    passes = {
        part: {
            task: planned_passes({task: models}, {task: 1}, affine=affine) for task, models in wanted.items()
        }
        for part, wanted in points.items()
    }
    return {"points": names, **cost(parts, passes, linear=linear)}
