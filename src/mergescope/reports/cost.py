"""What a run cost, and what it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.reports.results import ALL_TASKS, ENSEMBLE, Results
from mergescope.reports.verdicts import Family


@dataclass(frozen=True)
class Cost:
    """Of measuring one network and regime; training is not in it.

    Attributes:
        network: architecture.
        regime: how it was fine-tuned.
        seconds: of the passes over test data.
        passes: forward passes of a batch in them.
        apart: forward passes if every test, line and model were run by itself; None if unknown.
        search_seconds: of choosing lambda on validation data.
        search_passes: forward passes of that.
        peak: largest resident memory in bytes.
    """

    network: str
    regime: str
    seconds: float
    passes: int
    apart: int | None
    search_seconds: float
    search_passes: int
    peak: int


def costs(results: Results, config: Mapping[str, Any]) -> list[Cost]:
    """What measuring cost.

    Args:
        results: of a run.
        config: its configuration, for the batch size.

    Returns:
        One entry a network and regime.
    """
    out = []
    for family in results.families:
        tests = {
            row.data: row for row in results.select(family, "accuracy", "accuracy") if row.data != ALL_TASKS
        }
        search = next(iter(results.select(family, "lambda-search", "normalised accuracy")), None)
        everything = [row.peak_bytes for row in results.rows if (row.network, row.regime) == family]
        out.append(
            Cost(
                *family,
                seconds=sum(row.seconds for row in tests.values()),
                passes=sum(row.forward_passes for row in tests.values()),
                apart=_apart(results, family, {data: row.n for data, row in tests.items()}, config),
                search_seconds=search.seconds if search else 0.0,
                search_passes=search.forward_passes if search else 0,
                peak=max(everything, default=0),
            )
        )
    return out


def _apart(
    results: Results, family: Family, samples: Mapping[str, int], config: Mapping[str, Any]
) -> int | None:
    # Forward passes of a batch if nothing were shared between tests.
    batch = (config.get("settings") or {}).get("batch")
    if not isinstance(batch, int) or batch < 1 or not samples:
        return None
    batches = {task: math.ceil(n / batch) for task, n in samples.items()}
    models = len(results.tasks)
    # Points of a test: left, right ones, and the base that changes are relative to (in Eq. 3 it is the left one).
    points = {"ctl": 4, "null-init": 4, "null-random": 4, "eq2": 4, "eq3": 3, "eq1": models + 2}
    runs: list[tuple[str, int]] = []
    for kind, size in points.items():
        tests = {(row.points, row.parameter if row.parameter == row.parameter else None, row.data)
                 for row in results.select(family, kind, "cos")}  # fmt: skip
        runs += [(data, size) for _, _, data in tests]
    runs += [(row.data, 1) for row in results.select(family, "line", "loss")]
    for row in results.select(family, "accuracy", "accuracy"):
        if row.data != ALL_TASKS:
            runs.append((row.data, models if row.points.startswith(ENSEMBLE) else 1))
    total = 0
    for data, size in runs:
        tasks = [data] if data in batches else data.split(" ∪ ")
        if any(task not in batches for task in tasks):
            return None
        total += size * sum(batches[task] for task in tasks)
    return total


def learning_rates(config: Mapping[str, Any]) -> dict[Family, float]:
    """Learning rates, where a network's regimes differ in nothing else.

    Args:
        config: of a run.

    Returns:
        Network and regime to learning rate; without the networks whose regimes differ otherwise.

    Example:
        >>> learning_rates({"regimes": {"low": {"mlp": {"lr": 0.01}}, "high": {"mlp": {"lr": 0.1}}}})
        {('mlp', 'low'): 0.01, ('mlp', 'high'): 0.1}
    """
    regimes = config.get("regimes")
    if not isinstance(regimes, Mapping):
        return {}
    recipes: dict[str, dict[str, Mapping[str, Any]]] = {}
    for regime, networks in regimes.items():
        for network, recipe in (networks if isinstance(networks, Mapping) else {}).items():
            if isinstance(recipe, Mapping) and isinstance(recipe.get("lr"), (int, float)):
                recipes.setdefault(network, {})[regime] = recipe
    out = {}
    for network, found in recipes.items():
        others = [{key: value for key, value in recipe.items() if key != "lr"} for recipe in found.values()]
        if all(other == others[0] for other in others):
            out.update({(network, regime): float(recipe["lr"]) for regime, recipe in found.items()})
    return out


def recipes(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """How the networks were trained.

    Args:
        config: of a run.

    Returns:
        ``"pretraining"`` or a regime to settings in words, one line a network.

    Example:
        >>> recipes({"networks": ["mlp"], "regimes": {"low": {"mlp": {"optimizer": "sgd", "lr": 0.01}}}})
        {'fine-tuning, low': ['mlp: sgd, learning rate 0.01']}
    """
    groups = {"pretraining": config.get("pretraining")}
    groups |= {f"fine-tuning, {regime}": found for regime, found in (config.get("regimes") or {}).items()}
    networks = config.get("networks") or []
    lines = {
        what: [
            f"{network}: {_words(recipe)}"
            for network, recipe in found.items()
            if isinstance(recipe, Mapping) and network in networks
        ]
        for what, found in groups.items()
        if isinstance(found, Mapping)
    }
    return {what: said for what, said in lines.items() if said}


def _words(recipe: Mapping[str, Any]) -> str:
    names = {"lr": "learning rate", "weight_decay": "weight decay"}
    momentum = recipe.get("optimizer") == "sgd"
    parts = []
    for key, value in recipe.items():
        if key == "optimizer":
            parts.append(str(value))
        elif value not in (None, 0.0) and (key != "momentum" or momentum):
            parts.append(
                f"{names.get(key, key)} {value:g}" if isinstance(value, (int, float)) else f"{key} {value}"
            )
    return ", ".join(parts)
