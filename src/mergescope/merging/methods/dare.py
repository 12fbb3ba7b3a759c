"""DARE: drop random entries of the task vectors and rescale the rest."""

from __future__ import annotations

import torch

from mergescope.merging.methods.linear import divisible
from mergescope.merging.methods.method import Values, method
from mergescope.merging.methods.sparse import Mask, masks_by_density, merge_sparse, sparse_parameters
from mergescope.merging.streams import Apply, Chunk, Stream

SOURCE = "Yu et al., ICML 2024"

MASK_BYTES = 16 << 20
"""Masks of one tensor and model that are kept between two passes, in bytes."""


@method(
    "dare_linear",
    parameters=sparse_parameters(normalized=False, rescaled=True),
    base="required",
    source=SOURCE,
    random=True,
    check=divisible,
)
def dare_linear(stream: Stream, values: Values) -> Apply:
    """DARE, then task arithmetic: ``theta_0 + lambda sum_k w_k s_k m_k tau_k``.

    Each entry of ``m_k`` is 1 with probability ``density``, else 0. With ``rescale``, ``s_k`` is
    what gives the tensor its L1 norm back, as in mergekit; the paper has ``s_k = 1 / density``,
    which is its expectation.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` and ``density`` per model, ``lambda``, ``normalize``, ``rescale``, and the seed.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(values), elect=False)


@method(
    "dare_ties",
    parameters=sparse_parameters(normalized=False, rescaled=True),
    base="required",
    source=SOURCE,
    random=True,
    check=divisible,
)
def dare_ties(stream: Stream, values: Values) -> Apply:
    """DARE, then TIES' sign election: entries that disagree with the weighted sum's sign are left out.

    Masks and scales as in ``dare_linear``, election as in ``ties``.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` and ``density`` per model, ``lambda``, ``normalize``, ``rescale``, and the seed.

    Returns:
        The function that merges a chunk.
    """
    return merge_sparse(stream, values, _masks(values), elect=True)


def _masks(values: Values) -> list[Mask | None]:
    twice = bool(values["rescale"])
    return masks_by_density(values, lambda model, density: _bernoulli(density, values.seed, model, twice))


def _bernoulli(density: float, seed: int, model: int, twice: bool) -> Mask:
    # Drawing costs more than all else. If masks are needed twice, to find the scale and to merge, some are kept.
    kept: dict[int, torch.Tensor] = {}
    room = MASK_BYTES if twice else 0

    def mask(chunk: Chunk, delta: torch.Tensor) -> torch.Tensor:
        nonlocal room
        drawn = kept.pop(chunk.start, None)
        if drawn is None:
            drawn = chunk.bernoulli(density, seed, model)
            if drawn.nbytes <= room:
                kept[chunk.start] = drawn
                room -= drawn.nbytes
        return drawn

    return mask
