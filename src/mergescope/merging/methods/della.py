"""DELLA: drop random entries of the task vectors, small ones more often than large ones."""

from __future__ import annotations

import torch

from mergescope.errors import MergescopeError
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

SOURCE = "Deep et al., 2024 (arXiv:2406.11617)"
EPSILON = Parameter(
    "epsilon",
    0.15,
    per_model=True,
    low=0,
    high=1,
    meaning="keep small entries with density - epsilon, large with +",
)


def fitting(values: Values) -> None:
    """Refuse probabilities outside 0 to 1, and weights that sum to zero.

    Args:
        values: ``weight``, ``density`` and ``epsilon`` per model, ``normalize``.

    Raises:
        MergescopeError: there are such.
    """
    divisible(values)
    for density, epsilon in zip(values.per_model["density"], values.per_model["epsilon"], strict=True):
        if 0 < density < 1 and not epsilon < min(density, 1 - density):
            raise MergescopeError(
                f"density - epsilon and density + epsilon must both be between 0 and 1, but density is {density:g} and "
                f"epsilon {epsilon:g}. Use an epsilon below {min(density, 1 - density):g}."
            )


@method(
    "della",
    parameters=[*sparse_parameters(normalized=True, rescaled=True), EPSILON],
    base="required",
    source=SOURCE,
    random=True,
    check=fitting,
)
def della(stream: Stream, values: Values) -> Apply:
    """DELLA: drop at random by magnitude, then elect signs as TIES does.

    In a row of ``n`` entries, the one of rank ``i`` (0: smallest) is kept with probability
    ``density - epsilon + 2 epsilon i / (n - 1)``; ``density`` if the row has one entry. Rows are
    those of the matrix; a convolution kernel is flattened to ``(out, rest)``; a vector is one row,
    and is held whole to rank it. ``rescale`` gives the tensor its L1 norm back, as in mergekit;
    the paper divides each entry by its probability. Density 0 keeps nothing of a model.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight``, ``density`` and ``epsilon`` per model, ``lambda``, ``normalize``, ``rescale``, and the seed.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(stream, values), elect=True)


@method(
    "della_linear",
    parameters=[*sparse_parameters(normalized=False, rescaled=True), EPSILON],
    base="required",
    source=SOURCE,
    random=True,
    check=fitting,
)
def della_linear(stream: Stream, values: Values) -> Apply:
    """DELLA's magnitude-aware drop, then task arithmetic: ``theta_0 + lambda sum_k w_k s_k m_k tau_k``.

    Masks and scales as in ``della``.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight``, ``density`` and ``epsilon`` per model, ``lambda``, ``normalize``, ``rescale``, and the seed.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(stream, values), elect=False)


def _masks(stream: Stream, values: Values) -> list[Mask | None]:
    epsilons = values.per_model["epsilon"]
    return masks_by_density(
        values,
        lambda model, density: _by_rank(stream.alone(model), density, epsilons[model], values.seed, model),
    )


def _by_rank(stream: Stream, density: float, epsilon: float, seed: int, model: int) -> Mask:
    vector = None
    if stream.columns == 1 and len(stream.shape) < 2:
        whole = torch.cat([magnitude(chunk).reshape(1, -1) for chunk in stream], dim=1)
        vector = _probabilities(whole, density, epsilon).reshape(-1, 1)

    def mask(chunk: Chunk, delta: torch.Tensor) -> torch.Tensor:
        if vector is None:
            chances = _probabilities(delta.abs(), density, epsilon)
        else:
            chances = vector[chunk.start : chunk.start + len(delta)]
        return torch.bernoulli(chances, generator=chunk.generator(seed, model))

    return mask


def _probabilities(magnitudes: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    count = magnitudes.shape[1]
    if count < 2:
        return torch.full_like(magnitudes, density)
    rising = torch.linspace(density - epsilon, density + epsilon, count, dtype=magnitudes.dtype)
    order = magnitudes.argsort(dim=1, stable=True)
    return torch.empty_like(magnitudes).scatter_(1, order, rising.expand_as(magnitudes))
