"""The affine executor: a linearised network runs once a checkpoint, whatever the number of points.

Features and outputs of a linearised network are affine in the weights (TANGENT), so
``f(sum_k c_k theta_k) = sum_k c_k f(theta_k)`` where ``sum_k c_k = 1``: a pass through the checkpoints
gives all their combinations, by sums. Losses and heads that normalise are not affine: they are taken
of combined logits and embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from mergescope.models.features import NextTokens
from mergescope.models.layers import OUTPUT, feature_of
from mergescope.models.with_head import Classified, WithHead
from mergescope.tracing.capture import capture
from mergescope.tracing.passes import Pass
from mergescope.tracing.swapping import load_part
from mergescope.weights import Point

EXACT = (torch.float32, torch.float64)
"""Types of stored weights that a merged model is not noticeably rounded to."""


def affine_part(model: nn.Module) -> nn.Module | None:
    """The part of a network whose features and output are affine in the weights.

    Args:
        model: the network.

    Returns:
        The network itself if it says that it is ``affine``, the backbone under a head if that does, else
        None.

    Example:
        >>> from mergescope import MLP
        >>> affine_part(MLP((4, 3, 2))) is None
        True
    """
    part = model.backbone if isinstance(model, WithHead) else model
    return part if getattr(part, "affine", False) is True else None


@dataclass(frozen=True)
class Mixtures:
    """Which points get a forward pass, and what the others are made of.

    Attributes:
        points: the points of a trace, then further checkpoints that they are combinations of.
        runs: positions of the points that get a pass of their own.
        mixed: position of every other point to its coefficients, by position.

    Example:
        >>> from mergescope import Checkpoint
        >>> a, b = (Checkpoint({"w": torch.full((2,), v)}, name=name) for name, v in (("a", 1.0), ("b", 2.0)))
        >>> Mixtures.of([Point.of(a), Point.of(b), (a + b) / 2, 3 * a - 2 * b]).runs
        (0, 1)
    """

    points: tuple[Point, ...]
    runs: tuple[int, ...]
    mixed: Mapping[int, Mapping[int, float]]

    @classmethod
    def of(cls, points: Iterable[Point]) -> Mixtures:
        """Plan the passes: one a checkpoint, and none for what is made of them.

        A checkpoint that is no point itself is passed only if that saves passes. Combinations of weights
        stored in half precision are rounded to it when they are merged: they get a pass of their own,
        through the weights that the merged model has.

        Args:
            points: distinct models.

        Returns:
            The plan.
        """
        found = list(points)
        places = {point: place for place, point in enumerate(found)}
        parts = {
            place: [(Point.of(source), float(value)) for source, value in point.terms]
            for place, point in enumerate(found)
            if not point.is_checkpoint and _exact(point)
        }
        absent = {source: None for terms in parts.values() for source, _ in terms if source not in places}
        lacking = [place for place, terms in parts.items() if any(source in absent for source, _ in terms)]
        if len(absent) < len(lacking):
            places |= {source: len(found) + number for number, source in enumerate(absent)}
            found += absent
        else:
            parts = {place: terms for place, terms in parts.items() if place not in lacking}
        return cls(
            tuple(found),
            tuple(place for place in range(len(found)) if place not in parts),
            {place: {places[source]: value for source, value in terms} for place, terms in parts.items()},
        )


def _exact(point: Point) -> bool:
    return all(spec.dtype in EXACT for spec in point.spec.values() if spec.dtype.is_floating_point)


@torch.no_grad()
def run_affine(job: Pass) -> None:
    """For each batch, run every checkpoint once, and combine features and outputs for all other points.

    Args:
        job: the pass, of a network with an [`affine_part`][].
    """
    plan = Mixtures.of(job.points)
    whole = _with_checkpoints(job, plan)
    for index in plan.mixed:  # tables of integers are no weights: they must agree, as for any combination
        for key in job.mappings[index].values():
            if not job.points[index].spec[key].dtype.is_floating_point:
                job.points[index].tensor(key)
    sources = {place for weights in plan.mixed.values() for place in weights}
    inputs: Any = None
    result: Any = None
    index = 0
    features: dict[str, torch.Tensor] = {}
    units: dict[str, np.ndarray] = {}

    def keep(layer: str, rows: torch.Tensor) -> None:
        if layer not in features:
            features[layer] = rows.new_empty((len(plan.points), *rows.shape))
        features[layer][index].copy_(rows)

    def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
        keep(layer, job.reduce(layer, value, inputs, units))
        return features[layer][index]

    with capture(job.model, job.captured, reduce) as caught:
        for inputs, labels in job.batches():
            features.clear()
            units.clear()
            outputs: dict[int, torch.Tensor | NextTokens] = {}
            parts: dict[int, torch.Tensor] = {}  # what is affine of the outputs
            for index in (*plan.runs, *plan.mixed):
                caught.clear()
                if index in plan.mixed:
                    for name in job.captured:  # a head's own is caught again, when it is called
                        features[name][index].copy_(combined(features[name], plan.mixed[index]))
                    result = _result(job, index, combined(parts, plan.mixed[index]), result)
                else:
                    whole.load(index)
                    result = job.features.call(job.model, inputs)
                    job.forward_passes += 1
                    if index in sources:
                        headed = isinstance(result, Classified)
                        parts[index] = result.embedding if headed else feature_of(result, OUTPUT)
                if job.wants_output_features:
                    keep(OUTPUT, job.centred(OUTPUT, job.features.output_rows(result, inputs)))
                outputs[index] = job.features.output(result, inputs, labels)
            count = len(job.points)
            job.finish(
                inputs, labels, {name: list(features[name][:count]) for name in job.layers if name in features},
                [outputs[place] for place in range(count)], {}, dict(units),
            )  # fmt: skip


def combined(values: torch.Tensor | Mapping[int, torch.Tensor], weights: Mapping[int, float]) -> torch.Tensor:
    """A combination of tensors, summed in float64.

    Args:
        values: tensors of one shape, by position.
        weights: position to coefficient.

    Returns:
        ``sum_k c_k v_k``, in the tensors' type.

    Example:
        >>> combined(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), {0: 0.5, 1: 0.5})
        tensor([2., 4.])
    """
    first = values[next(iter(weights))]
    total = torch.zeros_like(first, dtype=torch.float64)
    for place, weight in weights.items():
        total.add_(values[place], alpha=weight)
    return total.to(first.dtype)


def _with_checkpoints(job: Pass, plan: Mixtures) -> Pass:
    # Checkpoints have the keys of what is made of them.
    further = range(len(job.points), len(plan.points))
    users = [next(user for user, weights in plan.mixed.items() if place in weights) for place in further]
    return replace(
        job, points=plan.points, mappings=[*job.mappings, *(job.mappings[user] for user in users)],
        statistics=[*job.statistics, *({} for _ in further)],
    )  # fmt: skip


def _result(job: Pass, index: int, value: torch.Tensor, like: Any) -> Any:
    """What a network returns of which the affine part is known.

    Returns:
        A head's logits, for which it is called as it is at the point, so that hooks on it see that; else
        something with the value where the network has it.
    """
    if isinstance(job.model, WithHead):
        load_part(job, index, job.model.head, "head.")
        return Classified(job.model.head(value), value)
    return SimpleNamespace(logits=value) if hasattr(like, "logits") else value
