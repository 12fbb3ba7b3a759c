"""Weighted averages and task arithmetic: the methods that are linear in the checkpoints."""

from __future__ import annotations

import torch

from mergescope.errors import MergescopeError
from mergescope.merging.methods.method import INT8_MASK, LAMBDA, WEIGHT, Parameter, Values, method, normalize
from mergescope.merging.streams import Apply, Chunk, Stream


def divisible(values: Values) -> list[float]:
    """The weights of task vectors, divided by their sum if that is asked for.

    Args:
        values: ``weight`` per model, ``normalize``.

    Returns:
        The weights; zeros stay zeros if all are, and the base remains.

    Raises:
        MergescopeError: weights cancel that are to be divided by their sum.
    """  # noqa: DOC502 (raised by what this calls)
    return normalised(values.weights) if values["normalize"] and any(values.weights) else values.weights


def _average(values: Values) -> list[float]:
    return normalised(values.weights) if values["normalize"] else values.weights


@method(
    "linear",
    parameters=[WEIGHT, normalize(True)],
    base="none",
    source="Wortsman et al., ICML 2022 (model soups)",
    check=_average,
)
def linear(stream: Stream, values: Values) -> Apply:
    """Weighted average: ``sum_k w_k theta_k / sum_k w_k`` (undivided without ``normalize``).

    Args:
        stream: the tensor of every model.
        values: ``weight`` per model, ``normalize``.

    Returns:
        The function that merges a chunk.
    """
    weights = _average(values)
    return lambda chunk: weighted_sum(chunk.models, weights)


@method(
    "task_arithmetic",
    parameters=[
        WEIGHT, LAMBDA, normalize(False), INT8_MASK,
        Parameter("density", 1.0, per_model=True, low=1, high=1, meaning="accepted for mergekit's sake, must be 1"),
    ],
    base="required",
    source="Ilharco et al., ICLR 2023",
    check=divisible,
)  # fmt: skip
def task_arithmetic(stream: Stream, values: Values) -> Apply:
    """Task arithmetic: ``theta_0 + lambda sum_k w_k (theta_k - theta_0)``; a negative weight negates.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` per model, ``lambda``, ``normalize``.

    Returns:
        The function that merges a chunk.
    """
    scaled = [values["lambda"] * weight for weight in divisible(values)]

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        result = chunk.base * (1 - sum(scaled))
        for model, weight in zip(chunk.models, scaled, strict=True):
            result.add_(model, alpha=weight)
        return result

    return merge


@method(
    "passthrough",
    parameters=[Parameter("scale", 1.0, per_model=True, meaning="factor of every entry")],
    base="none",
    source="layer stacking",
    most=1,
)
def passthrough(stream: Stream, values: Values) -> Apply:
    """One model's tensor, times ``scale``: how layers of different models are stacked.

    Args:
        stream: the tensor of one model.
        values: ``scale``.

    Returns:
        The function that copies a chunk.
    """
    scale = values.per_model["scale"][0]
    return lambda chunk: chunk.models[0] if scale == 1 else chunk.models[0] * scale


def normalised(weights: list[float], advice: str = "Set normalize: false, or other weights.") -> list[float]:
    """Weights divided by their sum.

    Args:
        weights: any numbers.
        advice: what to do if they sum to zero.

    Returns:
        Weights that sum to 1.

    Raises:
        MergescopeError: they sum to zero.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        raise MergescopeError(f"The weights {weights} sum to zero and can't be normalised. {advice}")
    return [weight / total for weight in weights]


def weighted_sum(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """``sum_k w_k x_k``.

    Args:
        tensors: of one shape.
        weights: one each.

    Returns:
        A new tensor.
    """
    result = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        result.add_(tensor, alpha=weight)
    return result
