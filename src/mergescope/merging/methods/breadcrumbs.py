"""Breadcrumbs: leave out both the largest and the smallest entries of the task vectors."""

from __future__ import annotations

import torch

from mergescope.merging.methods.linear import divisible
from mergescope.merging.methods.method import Parameter, Values, method
from mergescope.merging.methods.sparse import (
    Mask,
    magnitude,
    masks_by_density,
    merge_sparse,
    sparse_parameters,
)
from mergescope.merging.streams import Apply, Chunk, Stream

SOURCE = "Davari and Belilovsky, ECCV 2024"
GAMMA = Parameter(
    "gamma", 0.01, per_model=True, low=0, high=1, meaning="share of the largest entries left out"
)


@method(
    "breadcrumbs",
    parameters=[*sparse_parameters(normalized=False, rescaled=False), GAMMA],
    base="required",
    source=SOURCE,
    check=divisible,
)
def breadcrumbs(stream: Stream, values: Values) -> Apply:
    """Breadcrumbs: task arithmetic without the outliers and without the small entries.

    ``theta_0 + lambda sum_k w_k m_k tau_k``, where ``m_k`` drops the ``floor(gamma n)`` largest of
    the tensor's ``n`` entries and keeps the ``max(1, floor(density n))`` next ones. If both don't
    fit, fewer of the largest are dropped, so that ``density`` holds. Of equal entries, the first in
    the tensor count as larger. Density 0 keeps nothing of a model.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight``, ``density`` and ``gamma`` per model, ``lambda``, ``normalize``, ``rescale``.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(stream, values), elect=False)


@method(
    "breadcrumbs_ties",
    parameters=[*sparse_parameters(normalized=False, rescaled=False), GAMMA],
    base="required",
    source=SOURCE,
    check=divisible,
)
def breadcrumbs_ties(stream: Stream, values: Values) -> Apply:
    """Breadcrumbs, then TIES' sign election: entries that disagree with the weighted sum's sign are left out.

    Masks as in ``breadcrumbs``, election as in ``ties``.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight``, ``density`` and ``gamma`` per model, ``lambda``, ``normalize``, ``rescale``.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(stream, values), elect=True)


def _masks(stream: Stream, values: Values) -> list[Mask | None]:
    gammas = values.per_model["gamma"]
    return masks_by_density(
        values, lambda model, density: _middle(stream.alone(model), density, gammas[model])
    )


def _middle(stream: Stream, density: float, gamma: float) -> Mask:
    size = stream.numel
    count = max(1, int(density * size))
    outliers = min(int(gamma * size), size - count)
    upto = stream.top(magnitude, outliers + count)
    above = stream.top(magnitude, outliers)

    def mask(chunk: Chunk, delta: torch.Tensor) -> torch.Tensor:
        values = delta.abs()
        return upto.mask(chunk, values) - above.mask(chunk, values)

    return mask
