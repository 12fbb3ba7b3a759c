"""Model Stock: how far to go from the base to the mean, from the angle between the models."""

from __future__ import annotations

import torch

from mergescope.merging.methods.method import Parameter, Values, method
from mergescope.merging.streams import Apply, Chunk, Stream


@method(
    "model_stock",
    parameters=[
        Parameter("filter_wise", False, kind="flag", meaning="one ratio an output row, not one a tensor")
    ],
    base="required",
    source="Jang et al., ECCV 2024",
    least=2,
)
def model_stock(stream: Stream, values: Values) -> Apply:
    """Model Stock: ``t mean_k theta_k + (1 - t) theta_0`` with ``t = K c / (1 + (K - 1) c)``.

    ``c`` is the mean cosine between pairs of task vectors: of the flattened tensor, or with
    ``filter_wise`` of each output row (a convolution kernel flattened to ``(out, rest)``; a vector
    is one row). Where the denominator vanishes, the base stays.

    Args:
        stream: the tensor of every model and the base.
        values: ``filter_wise``.

    Returns:
        The function that merges a chunk.
    """
    count = len(stream.models)
    by_row = bool(values["filter_wise"]) and len(stream.shape) > 1
    shared = None if by_row else _ratio(stream.gram(lambda chunk: chunk.deltas).reshape(count, count, 1))

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        ratio = _ratio(_row_products(chunk.deltas)) if shared is None else shared
        ratio = ratio.reshape(-1, 1).to(chunk.base.dtype)
        mean = chunk.models[0].clone()
        for model in chunk.models[1:]:
            mean.add_(model)
        return mean.div_(count).mul_(ratio).add_((1 - ratio) * chunk.base)

    return merge


def _row_products(deltas: list[torch.Tensor]) -> torch.Tensor:
    parts = [delta.double() for delta in deltas]
    return torch.stack([torch.stack([(x * y).sum(1) for y in parts]) for x in parts])


def _ratio(gram: torch.Tensor) -> torch.Tensor:
    # (models, models, rows) to (rows,)
    count = len(gram)
    norms = gram.diagonal().T.clamp(min=0).sqrt()
    products = norms[:, None] * norms[None, :]
    cosines = gram / products.where(products > 0, torch.ones_like(products))
    first, second = torch.triu_indices(count, count, 1)
    cosine = cosines.clamp(-1, 1)[first, second].mean(0)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < 1e-6
    return torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator))
