"""Merging by singular values: TSV-M and Iso-C, matrix by matrix.

A singular value decomposition needs a matrix as a whole, so these two hold one task vector of one
tensor (and the merged one) at a time. Convolution kernels are flattened to ``(out, rest)``.
Vectors, and matrices that are tables of rows rather than linear maps (embeddings, and the output
heads that are often tied to them), are averaged instead, in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergescope.merging.methods.linear import weighted_sum
from mergescope.merging.methods.method import LAMBDA, Parameter, Values, method
from mergescope.merging.streams import Apply, Chunk, Stream

WEIGHT = Parameter("weight", 1.0, per_model=True, meaning="scale of the model's task vector")

TABLES = ("embed", "wte", "wpe", "shared.weight", "lm_head", "relative_attention_bias")
"""Parts of the names of matrices that are averaged."""

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as zero."""


@method(
    "tsv",
    parameters=[WEIGHT, LAMBDA],
    base="required",
    source="Gargiulo et al., CVPR 2025 (TSV-M)",
    whole=True,
)
def tsv(stream: Stream, values: Values) -> Apply:
    """TSV-M: each task's leading singular vectors, made orthogonal to the other tasks', per matrix.

    ``theta_0 + lambda P(U) S P(V)^T``: ``U``, ``S``, ``V`` join the ``max(1, floor(r / K))`` leading singular
    triplets of each of the ``K`` weighted task matrices, ``r`` the smaller dimension, and ``P(A)``
    is the matrix with orthonormal columns nearest to ``A`` (within the span of ``A`` if its columns
    are dependent, as with equal models). Other tensors: ``theta_0 + lambda sum_k w_k tau_k / K``.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` per model, ``lambda``.

    Returns:
        The function that merges a chunk.
    """
    stream.split()
    if not is_matrix(stream):
        return _mean(stream, values)
    count = len(stream.models)
    share = max(1, min(stream.rows, stream.columns) // count)
    triplets = [
        leading(weight * _task_matrix(stream, model), share) for model, weight in enumerate(values.weights)
    ]
    left, singular, right = (torch.cat(parts, dim=-1) for parts in zip(*triplets, strict=True))
    merged = (orthogonal(left) * singular) @ orthogonal(right).T
    return _add(merged.mul_(values["lambda"]))


@method(
    "iso_c",
    parameters=[WEIGHT, LAMBDA],
    base="required",
    source="Marczak et al., ICML 2025 (Iso-C)",
    whole=True,
)
def iso_c(stream: Stream, values: Values) -> Apply:
    """Iso-C: the summed task matrix with all its singular values replaced by their mean.

    ``theta_0 + lambda mean(S) U V^T`` with ``U S V^T = sum_k w_k tau_k``, over the ``rank`` nonzero
    singular values (directions that nobody moved in stay untouched). Other tensors:
    ``theta_0 + lambda sum_k w_k tau_k / K``.

    Args:
        stream: the tensor of every model and the base.
        values: ``weight`` per model, ``lambda``.

    Returns:
        The function that merges a chunk.
    """
    stream.split()
    if not is_matrix(stream):
        return _mean(stream, values)
    total = values.weights[0] * _task_matrix(stream, 0)
    for model, weight in enumerate(values.weights[1:], start=1):
        total.add_(_task_matrix(stream, model), alpha=weight)
    left, singular, right = leading(total, min(total.shape))
    level = float(singular.mean()) if len(singular) else 0.0
    return _add((left @ right.T).mul_(level * values["lambda"]))


def is_matrix(stream: Stream) -> bool:
    """Whether a tensor is a linear map to be decomposed.

    Args:
        stream: the tensor.

    Returns:
        False for vectors and tables.
    """
    table = len(stream.shape) == 2 and any(part in stream.name.lower() for part in TABLES)
    return min(stream.rows, stream.columns) > 1 and not table


def leading(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading singular triplets, from the eigenvectors of the smaller Gram matrix in float64.

    Args:
        matrix: ``(m, n)``.
        count: how many at most; zero singular values are left out.

    Returns:
        ``U (m, r)``, ``S (r,)`` falling, ``V (n, r)``, in the matrix's dtype.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    singular = squares.clamp(min=0).sqrt().flip(0)[:count]
    singular = singular[singular > RANK_TOLERANCE * singular[:1]]
    vectors = vectors.flip(1)[:, : len(singular)]
    others = (wide @ vectors if tall else wide.T @ vectors) / singular
    left, right = (others, vectors) if tall else (vectors, others)
    return left.to(matrix.dtype), singular.to(matrix.dtype), right.to(matrix.dtype)


def orthogonal(columns: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns: the orthogonal polar factor.

    Args:
        columns: ``(m, r)``; dependent columns give the factor of its range.

    Returns:
        ``(m, r)``.
    """
    wide = columns.double()
    squares, vectors = torch.linalg.eigh(wide.T @ wide)
    kept = squares > RANK_TOLERANCE * squares[-1:]
    vectors = vectors[:, kept]
    return (wide @ (vectors / squares[kept].sqrt()) @ vectors.T).to(columns.dtype)


def _task_matrix(stream: Stream, model: int) -> torch.Tensor:
    return torch.cat([chunk.deltas[0] for chunk in stream.alone(model)])


def _add(merged: torch.Tensor) -> Apply:
    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        return chunk.base + merged[chunk.start : chunk.start + len(chunk.base)]

    return merge


def _mean(stream: Stream, values: Values) -> Apply:
    weights: Sequence[float] = [values["lambda"] * weight / len(values.weights) for weight in values.weights]

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        return weighted_sum(chunk.deltas, list(weights)).add_(chunk.base)

    return merge
