"""What TIES, DARE, DELLA and Breadcrumbs share: sparse task vectors, an elected sign, a weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mergescope.merging.methods.method import DENSITY, INT8_MASK, LAMBDA, WEIGHT, Parameter, Values, normalize
from mergescope.merging.streams import Apply, Chunk, Stream

Mask = Callable[[Chunk, torch.Tensor], torch.Tensor]
"""A chunk and one model's task vector there to 1 where it is kept and 0 where it is dropped, uint8 or float."""


def sparse_parameters(normalized: bool, rescaled: bool) -> list[Parameter]:
    """The parameters that all of these methods have.

    Args:
        normalized: default of ``normalize``.
        rescaled: default of ``rescale``.

    Returns:
        The parameters.
    """
    rescale = Parameter(
        "rescale",
        rescaled,
        kind="flag",
        meaning="give the sparse task vector the L1 norm of the whole one, per tensor",
    )
    return [WEIGHT, DENSITY, LAMBDA, normalize(normalized), rescale, INT8_MASK]


def masks_by_density(values: Values, partial: Callable[[int, float], Mask]) -> list[Mask | None]:
    """What each model keeps: everything at density 1, nothing at 0, else what the method chooses.

    Args:
        values: ``density`` per model.
        partial: model and density to its mask.

    Returns:
        One mask a model; None keeps everything.
    """
    return [
        None if density >= 1 else partial(model, density) if density > 0 else _nothing
        for model, density in enumerate(values.per_model["density"])
    ]


def _nothing(chunk: Chunk, delta: torch.Tensor) -> torch.Tensor:
    return torch.zeros(delta.shape, dtype=torch.uint8)


def merge_sparse(stream: Stream, values: Values, masks: Sequence[Mask | None], elect: bool) -> Apply:
    """``theta_0 + lambda sum_k w_k s_k (m_k * tau_k)``, of every entry or of those with the elected sign.

    ``s_k = |tau_k|_1 / |m_k tau_k|_1`` with ``rescale``, else 1. With ``elect``, an entry's sign is
    the sign of the weighted sum (positive if that is 0), other signs are left out, and
    ``normalize`` divides by the weights of those who remain.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` per model, ``lambda``, ``normalize``, ``rescale``.
        masks: what each model keeps; None keeps everything.
        elect: elect a sign for each entry.

    Returns:
        The function that merges a chunk.
    """
    weights = values.weights
    total = sum(weights)
    scales = [
        _rescaling(stream.alone(model), mask) if mask is not None and values["rescale"] else 1.0
        for model, mask in enumerate(masks)
    ]

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        parts = torch.empty((len(weights), *chunk.base.shape), dtype=chunk.base.dtype)
        for part, model, mask, scale, weight in zip(parts, chunk.models, masks, scales, weights, strict=True):
            torch.sub(model, chunk.base, out=part)
            if mask is not None:
                part.mul_(
                    mask(chunk, part).to(part.dtype)
                )  # by product: a NaN that is dropped must not vanish
            if scale != 1:
                part.mul_(scale)
            part.mul_(weight)
        merged = elected_sum(parts, weights, bool(values["normalize"])) if elect else parts.sum(0)
        if values["normalize"] and not elect and any(weights):
            merged /= total
        if values["lambda"] != 1:
            merged *= values["lambda"]
        return merged.add_(chunk.base)

    return merge


def elected_sum(parts: torch.Tensor, weights: Sequence[float], divide: bool) -> torch.Tensor:
    """Sum of the entries that have the sign of the sum.

    Args:
        parts: ``(models, rows, columns)``, weighted; overwritten.
        weights: what each was weighted with.
        divide: by the weights of the entries summed. Where these cancel (possible with negative
            weights only), the sum is left undivided.

    Returns:
        ``(rows, columns)``.
    """
    # Products with +-1, relu and sign are vectorised; torch.where and boolean sums are ten times slower.
    total = parts.sum(0).add_(0.0)  # a sum of negative zeros becomes a positive one
    elected = torch.copysign(torch.ones((), dtype=parts.dtype), total)
    merged = torch.zeros_like(total)
    divisor = torch.zeros_like(total) if divide else None
    for part, weight in zip(parts, weights, strict=True):
        agreeing = part.mul_(elected).relu_()
        merged.add_(agreeing)
        if divisor is not None:
            divisor.add_(agreeing.sign_(), alpha=weight)
    merged.mul_(elected)
    if divisor is not None:
        if min(weights) > 1e-8:
            merged.div_(divisor.clamp_(min=1e-8))  # 0 only where nothing was summed
        else:
            merged.div_(divisor.masked_fill_(divisor.abs() < 1e-8, 1.0))
    return merged


def _rescaling(stream: Stream, mask: Mask) -> float:
    def norms(chunk: Chunk) -> torch.Tensor:
        delta = chunk.deltas[0]
        kept = mask(chunk, delta).to(delta.dtype)
        return torch.stack([delta.abs_().sum(), delta.mul_(kept).sum()])

    before, after = stream.reduce(norms).tolist()
    return before / after if after > 0 else 1.0


def magnitude(chunk: Chunk) -> torch.Tensor:
    """Absolute task vector of a stream's only model.

    Args:
        chunk: of a stream of one model and the base.

    Returns:
        ``|theta - theta_0|``.
    """
    return chunk.deltas[0].abs_()
