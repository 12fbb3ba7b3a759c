"""SCE: select entries that vary, calculate weights from energies, erase minority signs."""

from __future__ import annotations

import torch

from mergescope.merging.methods.method import INT8_MASK, Parameter, Values, method
from mergescope.merging.streams import Apply, Chunk, Stream


@method(
    "sce",
    parameters=[
        Parameter(
            "select_topk", 1.0, low=0, high=1, meaning="share of the entries kept, by variance over models"
        ),
        INT8_MASK,
    ],
    base="required",
    source="Wan et al., 2024 (FuseChat, arXiv:2408.07990)",
)
def sce(stream: Stream, values: Values) -> Apply:
    """SCE: ``theta_0 + sum_k a_k w_k tau_k / sum_k a_k w_k``, entry by entry.

    With ``select_topk < 1`` only the ``floor(select_topk v)`` entries of largest variance over the
    models are merged, ``v`` the number with any variance; of equal ones the first in the tensor.
    ``w_k = |tau_k|^2 / sum_j |tau_j|^2`` over those, and ``a_k`` is 1 where ``tau_k`` has the sign
    of ``sum_j tau_j`` (positive if that is 0), else 0. The base stays where nobody moved.

    Args:
        stream: the tensor of every model and the base.
        values: ``select_topk``.

    Returns:
        The function that merges a chunk.
    """
    share = values["select_topk"]
    top = None
    if share < 1:
        varying = int(stream.reduce(lambda chunk: _variance(chunk).count_nonzero()))
        top = stream.top(_variance, int(varying * share))

    def selected(chunk: Chunk) -> torch.Tensor:
        deltas = torch.stack(chunk.deltas)
        return deltas if top is None else deltas * top.mask(chunk, _variance(chunk))

    energy = stream.reduce(lambda chunk: selected(chunk).double().square().sum((1, 2)))
    weights = energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(energy))

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        deltas = selected(chunk)
        positive = deltas.sum(0) >= 0
        shares = weights.to(deltas.dtype).view(-1, 1, 1) * torch.where(positive, deltas > 0, deltas < 0)
        total = shares.sum(0)
        return (deltas * shares).sum(0).div_(torch.where(total > 0, total, 1.0)).add_(chunk.base)

    return merge


def _variance(chunk: Chunk) -> torch.Tensor:
    # Times the number of models. From the first model on, so that equal models have exactly none.
    apart = [model - chunk.models[0] for model in chunk.models[1:]]
    mean = torch.zeros_like(chunk.models[0])
    for distance in apart:
        mean.add_(distance)
    mean.div_(len(chunk.models))
    variance = mean.square()
    for distance in apart:
        variance.add_(distance.sub_(mean).square_())
    return variance
