"""Arcee Fusion: take from the other model only the entries that matter most."""

from __future__ import annotations

import torch

from mergescope.merging.methods.method import Values, method
from mergescope.merging.streams import Apply, Chunk, Stream

FLOOR = 1e-8
"""Added to probabilities before their logarithm, as in mergekit."""


@method("arcee_fusion", parameters=[], base="required", source="Arcee AI 2024 (Arcee Fusion)", most=1)
def arcee_fusion(stream: Stream, values: Values) -> Apply:
    """Arcee Fusion: ``theta_0 + [i >= q] (theta_1 - theta_0)``, entry by entry.

    The importance ``i = |theta_1 - theta_0| KL(softmax theta_1, softmax theta_0)`` has the
    divergence of the entry's vector along the tensor's last dimension, and
    ``q = median + 1.5 (upper - lower quartile)`` of the tensor's importances, exactly. (Mergekit
    estimates the quartiles of tensors above a million entries from an unseeded sample, and takes
    the divergence in float32, where that of a small change drowns in rounding.)

    Args:
        stream: the tensor of one model and the base.
        values: no parameters.

    Returns:
        The function that merges a chunk.
    """
    if not stream.numel:
        return lambda chunk: chunk.models[0]
    if len(stream.shape) < 2:
        divergences = _vector_divergence(stream)
    else:
        divergences = torch.cat([_divergences(chunk, stream.shape[-1]) for chunk in stream])

    def importance(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        distance = (chunk.models[0] - chunk.base).abs_().double()
        if len(divergences) == 1:
            return distance * divergences[0].repeat_interleave(stream.columns // divergences.shape[1])
        here = divergences[chunk.start : chunk.start + len(distance)]
        groups = distance.view(len(distance), here.shape[1], -1)
        return (groups * here[:, :, None]).view(distance.shape)

    lower, median, upper = (
        stream.kth_largest(importance, stream.numel - int(share * (stream.numel - 1)))[0]
        for share in (0.25, 0.5, 0.75)
    )
    threshold = median + 1.5 * (upper - lower)

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        return (chunk.models[0] - chunk.base).mul_(importance(chunk) >= threshold).add_(chunk.base)

    return merge


def _divergences(chunk: Chunk, last: int) -> torch.Tensor:
    # (rows, vectors of a row)
    assert chunk.base is not None
    rows = len(chunk.base)
    p, q = (part.double().view(rows, -1, last).softmax(-1) + FLOOR for part in (chunk.models[0], chunk.base))
    return (p * (p / q).log()).sum(-1)


def _vector_divergence(stream: Stream) -> torch.Tensor:
    # A tensor of one dimension is one vector, which may span several chunks: (1, 1)
    def both(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        return torch.stack([chunk.models[0], chunk.base]).double()

    peaks = torch.stack([both(chunk).amax((1, 2), keepdim=True) for chunk in stream]).amax(0)

    def exponentials(chunk: Chunk) -> torch.Tensor:
        return (both(chunk) - peaks).exp()

    sums = stream.reduce(lambda chunk: exponentials(chunk).sum((1, 2))).view(2, 1, 1)

    def terms(chunk: Chunk) -> torch.Tensor:
        p, q = exponentials(chunk) / sums + FLOOR
        return (p * (p / q).log()).sum()

    return stream.reduce(terms).view(1, 1)
