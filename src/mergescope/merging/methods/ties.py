"""TIES: trim task vectors to their largest entries, elect signs, merge those who agree."""

from __future__ import annotations

import torch

from mergescope.merging.methods.linear import divisible
from mergescope.merging.methods.method import Values, method
from mergescope.merging.methods.sparse import (
    Mask,
    magnitude,
    masks_by_density,
    merge_sparse,
    sparse_parameters,
)
from mergescope.merging.streams import Apply, Chunk, Stream


@method(
    "ties",
    parameters=sparse_parameters(normalized=True, rescaled=False),
    base="required",
    source="Yadav et al., NeurIPS 2023",
    check=divisible,
)
def ties(stream: Stream, values: Values) -> Apply:
    """TIES: keep the largest entries of each task vector, and of those the ones with the elected sign.

    ``theta_0 + lambda sum_k w_k [sgn tau'_k = s] tau'_k / sum_k w_k [sgn tau'_k = s]``, where
    ``tau'_k`` has the ``max(1, floor(density n))`` largest of the ``n`` entries of the tensor and
    ``s = sgn sum_k w_k tau'_k``. Density 0 keeps nothing of a model.

    Of entries equal to the threshold the first in the tensor are kept, so that exactly as many
    stay as density says; mergekit keeps arbitrary ones of them.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` and ``density`` per model, ``lambda``, ``normalize``, ``rescale``.

    Returns:
        The function that merges a chunk.
    """
    masks = masks_by_density(values, lambda model, density: largest(stream.alone(model), density))
    return merge_sparse(stream, values, masks, elect=True)


def largest(stream: Stream, density: float) -> Mask:
    """The mask of a task vector's largest entries.

    Args:
        stream: the tensor of one model and the base.
        density: share to keep, in (0, 1).

    Returns:
        The mask.
    """
    top = stream.top(magnitude, max(1, int(density * stream.numel)))

    def mask(chunk: Chunk, delta: torch.Tensor) -> torch.Tensor:
        return top.mask(chunk, delta.abs())

    return mask
