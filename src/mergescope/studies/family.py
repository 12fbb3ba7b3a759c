"""Measuring one family: a base, models fine-tuned from it on tasks, and null baselines.

Every data set is passed once through every point that is needed on it; all tests, barriers and
accuracies are then read off the same traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from mergescope.data import Task, batches
from mergescope.protocols import (
    Linearity,
    LinearityTest,
    addition,
    addition_line,
    averaging,
    barrier,
    choose,
    ctl,
    line,
    linearity,
    negation,
    normalised_accuracy,
)
from mergescope.readings import InnerProducts, Outputs, Reading, bootstrap
from mergescope.studies.rundir import Row
from mergescope.tracing import Trace, trace
from mergescope.weights import Checkpoint, Point, mean, random_neighbour

Model = Point | Checkpoint

SAMPLE_COLUMNS = ("network", "regime", "points", "layer", "measure", "value")
SAMPLE_MEASURES = ("cos", "coef")


@dataclass(frozen=True)
class Family:
    """What is measured together.

    Attributes:
        network: name of the architecture.
        regime: name of the fine-tuning regime.
        model: the architecture itself; its weights don't matter.
        base: the pretrained checkpoint.
        models: fine-tuned checkpoints by task name, in the tasks' order.
        tasks: the tasks.
        stranger: a model pretrained from another initialisation and fine-tuned on the second task.
    """

    network: str
    regime: str
    model: nn.Module
    base: Checkpoint
    models: Mapping[str, Checkpoint]
    tasks: Sequence[Task]
    stranger: Checkpoint


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        alphas: interpolation weights of CTL.
        line_alphas: interior grid of the barrier curves.
        lam: coefficient of Eq. 2 and 3.
        grid: coefficients that task arithmetic may choose from.
        test_limit: at most this many test samples a task; 0 for all.
        batch: samples a batch.
        seed: of null baselines and bootstrap.
    """

    alphas: tuple[float, ...] = (0.25, 0.5, 0.75)
    line_alphas: tuple[float, ...] = tuple(i / 8 for i in range(1, 8))
    lam: float = 0.4
    grid: tuple[float, ...] = tuple(i / 20 for i in range(21))
    test_limit: int = 0
    batch: int = 250
    seed: int = 0


@dataclass
class Measured:
    """Rows for ``results.parquet`` and single samples for distributions."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list] = field(default_factory=lambda: {name: [] for name in SAMPLE_COLUMNS})


@dataclass(frozen=True)
class _Planned:
    kind: str
    points: str
    test: LinearityTest
    tasks: tuple[str, ...]


def measure_family(family: Family, settings: Settings) -> Measured:
    """Trace a family on all its tasks and compute every result of the digits study.

    Args:
        family: base, models, tasks.
        settings: what to measure.

    Returns:
        Results and samples.
    """
    measured = Measured()
    names = [task.name for task in family.tasks]
    merged = _merged_models(family, settings, measured)
    planned = list(_tests(family, settings))
    traces = {}
    for task in family.tasks:
        tests = [plan.test for plan in planned if task.name in plan.tasks]
        pairs = [pair for pair in combinations(names, 2) if task.name in pair]
        points: list[Model] = [family.base, *family.models.values(), *merged.values()]
        for a, b in pairs:
            points += line(family.models[a], family.models[b], settings.line_alphas).values()
        members = [Point.of(model) for model in family.models.values()]
        readings: list[Reading] = [
            InnerProducts(groups=[test.points for test in tests]),
            Outputs(classes=task.classes, ensembles={"ensemble": members}),
        ]
        test = task.test.select(np.arange(min(settings.test_limit or len(task.test), len(task.test))))
        data = batches(test, settings.batch)
        points += [point for test in tests for point in test.points]
        traces[task.name] = (trace(points, data, family.model, readings=readings), test.units)
    for plan in planned:
        parts = [traces[name] for name in plan.tasks]
        result = linearity(
            [part for part, _ in parts],
            plan.test,
            units=np.concatenate([units for _, units in parts]),
            seed=settings.seed,
        )
        _add_linearity(measured, family, plan, result, [part for part, _ in parts])
    _add_barriers(measured, family, settings, traces)
    _add_accuracies(measured, family, merged, traces, settings)
    return measured


def _tests(family: Family, settings: Settings) -> Iterable[_Planned]:
    names = [task.name for task in family.tasks]
    models, base = family.models, family.base
    for a, b in combinations(names, 2):
        for alpha in settings.alphas:
            yield _Planned("ctl", f"{a} + {b}", ctl(models[a], models[b], alpha, base), (a, b))
        yield _Planned("eq2", f"{a} + {b}", addition(base, models[a], models[b], settings.lam), (a, b))
    yield _Planned("eq1", "average of all", averaging(models.values(), base), tuple(names))
    for name in names:
        yield _Planned("eq3", f"− {name}", negation(base, models[name], settings.lam), (name,))
    a, b = names[:2]
    yield _Planned("null-init", f"{a} + {b}", ctl(models[a], family.stranger, 0.5, base), (a, b))
    noise = [
        random_neighbour(base, models[name], settings.seed + i, f"random like {name}")
        for i, name in enumerate((a, b))
    ]
    yield _Planned("null-random", f"{a} + {b}", ctl(noise[0], noise[1], 0.5, base), (a, b))


def _merged_models(family: Family, settings: Settings, measured: Measured) -> dict[str, Point]:
    # Average and task arithmetic; lambda is chosen on validation data only.
    models = list(family.models.values())
    candidates = addition_line(family.base, models, settings.grid)
    per_task: dict[str, dict[Point, float]] = {}
    passes: list[Trace] = []
    for task in family.tasks:
        outputs = Outputs(classes=task.classes)
        points: list[Model] = [*candidates.values(), *models]
        data = batches(task.validation, settings.batch)
        passes.append(trace(points, data, family.model, layers="output", readings=[outputs]))
        per_task[task.name] = {point: float(outputs.correct(point).mean()) for point in passes[-1].points}
    single = {name: per_task[name][Point.of(model)] for name, model in family.models.items()}
    scores = {
        lam: normalised_accuracy({name: values[point] for name, values in per_task.items()}, single)
        for lam, point in candidates.items()
    }
    chosen = choose(scores)
    cost = _cost(passes)
    for lam, score in scores.items():
        measured.rows.append(
            Row(family.network, family.regime, "lambda-search", "task arithmetic", "validation of all",
                "normalised accuracy", score, lam, **cost)
        )  # fmt: skip
    return {
        "average": mean(models),
        f"task arithmetic (λ = {chosen.lam:g})": candidates[chosen.lam],
    }


def _add_linearity(
    measured: Measured, family: Family, plan: _Planned, result: Linearity, passes: Sequence[Trace]
) -> None:
    parameter = float("nan") if plan.test.parameter is None else plan.test.parameter
    data = " ∪ ".join(plan.tasks)
    cost = _cost(passes)
    common = (family.network, family.regime, plan.kind, plan.points, data)
    for layer in result.layers:
        for name, summary in layer.measures.items():
            measured.rows.append(
                Row(*common, name, summary.mean, parameter, layer.layer, layer.trivial, summary.std, summary.low,
                    summary.high, summary.n, summary.dead, **cost)
            )  # fmt: skip
        if plan.kind == "ctl" and parameter == 0.5:
            for name in SAMPLE_MEASURES:
                values = layer.values[name]
                values = values[~np.isnan(values)].astype(np.float32)
                columns = (family.network, family.regime, plan.points, layer.layer, name)
                for column, value in zip(SAMPLE_COLUMNS, columns, strict=False):
                    measured.samples[column] += [value] * len(values)
                measured.samples["value"] += values.tolist()
    verdict = result.verdict
    for name, holds in (("CTL holds", verdict.ctl), ("LLFC holds", verdict.llfc),
                        ("beats baseline", verdict.beats_baseline)):  # fmt: skip
        measured.rows.append(Row(*common, name, float(holds), parameter, **cost))


def _add_barriers(
    measured: Measured,
    family: Family,
    settings: Settings,
    traces: Mapping[str, tuple[Trace, np.ndarray]],
) -> None:
    for a, b in combinations(family.models, 2):
        passes = [traces[name][0] for name in (a, b)]
        curve = barrier(
            passes,
            family.models[a],
            family.models[b],
            settings.line_alphas,
            units=np.concatenate([traces[name][1] for name in (a, b)]),
            seed=settings.seed,
        )
        common = (family.network, family.regime)
        place = (f"{a} + {b}", f"{a} ∪ {b}")
        cost = _cost(passes)
        n = sum(part.samples for part in passes)
        for alpha, loss, error in zip(curve.alphas, curve.loss, curve.error, strict=True):
            measured.rows.append(Row(*common, "line", *place, "loss", float(loss), float(alpha), n=n, **cost))
            measured.rows.append(
                Row(*common, "line", *place, "error", float(error), float(alpha), n=n, **cost)
            )
        for measure, value, (low, high) in (
            ("loss", curve.loss_barrier, curve.loss_interval), ("error", curve.error_barrier, curve.error_interval),
        ):  # fmt: skip
            measured.rows.append(
                Row(*common, "barrier", *place, measure, value, low=low, high=high, n=n, **cost)
            )


def _add_accuracies(
    measured: Measured,
    family: Family,
    merged: Mapping[str, Point],
    traces: Mapping[str, tuple[Trace, np.ndarray]],
    settings: Settings,
) -> None:
    shown: dict[str, Point | str] = {
        "pretrained": Point.of(family.base),
        **{f"fine-tuned on {name}": Point.of(model) for name, model in family.models.items()},
        **merged,
        "ensemble of logits": "ensemble",
    }
    single: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {label: {} for label in shown}
    for label, point in shown.items():
        for task in family.tasks:
            part, units = traces[task.name]
            outputs = part.reading(Outputs)
            values = np.stack([outputs.correct(point), outputs.losses(point)], axis=1)
            for name, summary in zip(
                ("accuracy", "loss"), bootstrap(values, units, seed=settings.seed), strict=True
            ):
                spread = {"std": summary.std, "low": summary.low, "high": summary.high, "n": summary.n}
                place = (family.network, family.regime, "accuracy", label, task.name, name)
                measured.rows.append(Row(*place, summary.mean, **(_cost([part]) | spread)))
            found[label][task.name] = float(values[:, 0].mean())
            if label == f"fine-tuned on {task.name}":
                single[task.name] = found[label][task.name]
    for label, accuracies in found.items():
        common = (family.network, family.regime, "accuracy", label, "all tasks")
        plain = float(np.mean(list(accuracies.values())))
        measured.rows.append(Row(*common, "accuracy", plain))
        measured.rows.append(Row(*common, "normalised accuracy", normalised_accuracy(accuracies, single)))


def _cost(passes: Sequence[Trace]) -> dict[str, Any]:
    return {
        "seconds": round(sum(part.seconds for part in passes), 3),
        "forward_passes": sum(part.forward_passes for part in passes),
        "peak_bytes": max(part.peak_bytes for part in passes),
    }
