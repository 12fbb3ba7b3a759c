"""Spherical interpolation: of two models, of several, and the swap of near entries.

Means on the sphere stay in the span of the models, so that one pass gives their inner products,
everything else happens with a few coefficients in float64, and the result is a weighted sum.
"""

from __future__ import annotations

import torch

from mergescope.errors import MergescopeError
from mergescope.merging.methods.linear import normalised, weighted_sum
from mergescope.merging.methods.method import WEIGHT, Parameter, Values, method
from mergescope.merging.streams import Apply, Chunk, Stream

NEARLY_PARALLEL = 0.9995
"""Above this cosine (of either sign), slerp is a straight line."""

SMALLEST_SINE = 1e-6
"""Below this sine of the angle, nuslerp is a straight line."""


@method(
    "slerp",
    parameters=[Parameter("t", None, low=0, high=1, meaning="0 gives the base model, 1 the other")],
    base="required",
    source="Shoemake, SIGGRAPH 1985",
    most=1,
)
def slerp(stream: Stream, values: Values) -> Apply:
    """Along the great circle from the base to the other model, per tensor.

    ``sin((1 - t) phi) / sin(phi) theta_0 + sin(t phi) / sin(phi) theta_1``, where ``phi`` is the
    angle between the flattened tensors; ``(1 - t) theta_0 + t theta_1`` if ``|cos phi| > 0.9995``.
    A zero tensor counts as orthogonal.

    Args:
        stream: the tensor of one model and the base.
        values: ``t``.

    Returns:
        The function that merges a chunk.
    """

    def both(chunk: Chunk) -> list[torch.Tensor]:
        assert chunk.base is not None
        return [chunk.base, *chunk.models]

    gram = stream.gram(both)
    cosine = _cosine(gram[0, 0], gram[1, 1], gram[0, 1])
    first, second = _arc(cosine, values["t"], cosine.abs() > NEARLY_PARALLEL)
    return lambda chunk: weighted_sum(both(chunk), [float(first), float(second)])


def _shares(values: Values) -> list[float]:
    return normalised(values.weights, "Give other weights: only their ratio counts.")


@method(
    "nuslerp",
    parameters=[
        WEIGHT,
        Parameter(
            "nuslerp_flatten", True, kind="flag", meaning="one angle a tensor, instead of one a row or column"
        ),
        Parameter(
            "nuslerp_row_wise", False, kind="flag", meaning="unflattened: vectors along the first dimension"
        ),
    ],
    base="optional",
    source="mergekit",
    least=2,
    most=2,
    check=_shares,
)
def nuslerp(stream: Stream, values: Values) -> Apply:
    """Along the great circle between two models, or between their task vectors if there is a base.

    As ``slerp`` with ``t = w_2 / (w_1 + w_2)``, straight only where the angle has no usable sine.
    Unflattened, every vector along the last dimension has its own angle; with ``nuslerp_row_wise``
    every vector along the first dimension (mergekit's meaning of that name).

    Args:
        stream: the tensor of two models, and the base.
        values: ``weight`` per model, ``nuslerp_flatten``, ``nuslerp_row_wise``.

    Returns:
        The function that merges a chunk.
    """
    share = _shares(values)[1]
    last = stream.shape[-1] if len(stream.shape) > 1 else 0

    def local(chunk: Chunk) -> torch.Tensor:
        first, second = (part.reshape(-1, last) for part in _origin(chunk))
        return _combine(chunk, (first, second), _products((first, second), 1).unbind(0), share)

    if not values["nuslerp_flatten"] and not values["nuslerp_row_wise"] and last:
        return local
    along_first = values["nuslerp_row_wise"] and not values["nuslerp_flatten"]
    products = stream.reduce(lambda chunk: _products(_origin(chunk), 0 if along_first else (0, 1)))
    return lambda chunk: _combine(chunk, _origin(chunk), products.unbind(0), share)


def _products(pair: tuple[torch.Tensor, ...], dim: int | tuple[int, ...]) -> torch.Tensor:
    first, second = (part.double() for part in pair)
    return torch.stack([
        (x * y).sum(dim, keepdim=True) for x, y in ((first, first), (second, second), (first, second))
    ])


def _combine(
    chunk: Chunk, pair: tuple[torch.Tensor, ...], products: tuple[torch.Tensor, ...], share: float
) -> torch.Tensor:
    cosine = _cosine(*products)
    straight = 1 - cosine.square() <= SMALLEST_SINE**2
    weights = [weight.to(pair[0].dtype) for weight in _arc(cosine, share, straight)]
    result = (weights[0] * pair[0] + weights[1] * pair[1]).reshape(chunk.models[0].shape)
    return result if chunk.base is None else result.add_(chunk.base)


def _cosine(first: torch.Tensor, second: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    norm = first.sqrt() * second.sqrt()
    return torch.where(norm > 0, product / norm.where(norm > 0, torch.ones_like(norm)), 0.0).clamp(-1, 1)


def _arc(cosine: torch.Tensor, t: float, straight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    sine = torch.sin(angle)
    return (
        torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine),
        torch.where(straight, t, torch.sin(t * angle) / sine),
    )


def _origin(chunk: Chunk) -> tuple[torch.Tensor, ...]:
    return tuple(chunk.models if chunk.base is None else chunk.deltas)


def _sum_from_origin(coefficients: list[float]) -> Apply:
    def merge(chunk: Chunk) -> torch.Tensor:
        result = weighted_sum(list(_origin(chunk)), coefficients)
        return result if chunk.base is None else result.add_(chunk.base)

    return merge


def _weights(values: Values) -> list[float]:
    if values["normalize_weights"]:
        return normalised(values.weights, "Set normalize_weights: false, or other weights.")
    return values.weights


@method(
    "multislerp",
    parameters=[
        WEIGHT,
        Parameter("normalize_weights", True, kind="flag", meaning="divide by the sum of the weights"),
        Parameter("eps", 1e-8, low=0, meaning="norms below it count as zero"),
    ],
    base="optional",
    source="Goddard 2025 (Multi-SLERP)",
    check=_weights,
)
def multislerp(stream: Stream, values: Values) -> Apply:
    """Weighted mean direction of several models (or task vectors) at their weighted mean length.

    ``(sum_k w_k |x_k|) u / |u|`` with ``u = sum_k w_k x_k / |x_k|``, ``x_k`` the flattened model or
    its task vector. Mergekit adds a step in the tangent space at ``u``, which is zero for this
    ``u`` whatever the models; it is left out. Two models whose directions cancel are averaged.

    Args:
        stream: the tensor of every model, and the base.
        values: ``weight`` per model, ``normalize_weights``, ``eps``.

    Returns:
        The function that merges a chunk.

    Raises:
        MergescopeError: the directions of three models or more cancel.
    """
    weights = torch.tensor(_weights(values), dtype=torch.float64)
    if len(weights) == 1:
        return lambda chunk: chunk.models[0]
    gram = stream.gram(_origin)
    norms = gram.diagonal().clamp(min=0).sqrt()
    if not norms.any():
        return _sum_from_origin([0.0] * len(weights))
    unit = torch.where(norms > 0, weights / (norms + values["eps"]), 0.0)
    length = _norm(unit, gram)
    if length < values["eps"] or length == 0:
        if len(weights) > 2:
            raise MergescopeError(
                "multislerp has no mean direction here: the models' directions cancel with the weights "
                f"{values.weights}. Use other weights, or another method for this tensor."
            )
        return _sum_from_origin(weights.tolist())
    return _sum_from_origin((unit * ((weights @ norms) / length)).tolist())


@method(
    "karcher",
    parameters=[
        Parameter("max_iter", 10, kind="integer", low=1, meaning="most iterations"),
        Parameter("tol", 1e-5, low=0, meaning="stop at steps (radians) below it"),
    ],
    base="none",
    source="Karcher 1977 (Riemannian centre of mass)",
)
def karcher(stream: Stream, values: Values) -> Apply:
    """The Karcher mean of the models' directions on the sphere, at their mean length, per tensor.

    Iterates ``m <- exp_m(1/K sum_k log_m(u_k))`` with ``u_k = theta_k / |theta_k|`` from the
    normalised mean of the ``u_k``; the result is ``m sum_k |theta_k| / K``. Zero tensors have no
    direction and count for the length only.

    Args:
        stream: the tensor of every model.
        values: ``max_iter``, ``tol``.

    Returns:
        The function that merges a chunk.
    """
    if len(stream.models) == 1:
        return lambda chunk: chunk.models[0]
    gram = stream.gram(lambda chunk: chunk.models)
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.where(norms > 0, torch.ones_like(norms)), 0.0)
    mean = _karcher_mean(
        gram * inverse.outer(inverse), (norms > 0).double(), int(values["max_iter"]), values["tol"]
    )
    coefficients = (mean * inverse * norms.mean()).tolist()
    return lambda chunk: weighted_sum(chunk.models, coefficients)


def _karcher_mean(cosines: torch.Tensor, present: torch.Tensor, limit: int, tolerance: float) -> torch.Tensor:
    # Coefficients of the mean of unit vectors, given their inner products.
    count = float(present.sum())
    if not count:
        return present
    share = present / count
    length = _norm(share, cosines)
    if length < max(tolerance, 1e-12):
        mean = torch.zeros_like(present)
        mean[int(present.argmax())] = 1.0
    else:
        mean = share / length
    for _ in range(limit):
        tangent = torch.zeros_like(mean)
        dots = (cosines @ mean).clamp(-1, 1)
        for model, dot in enumerate(dots):
            angle = torch.acos(dot)
            # Opposite to the mean, every direction is as good as any other: none is taken.
            if not present[model] or angle < tolerance or torch.sin(angle) < 1e-6:
                continue
            step = share[model] * angle / torch.sin(angle)
            tangent[model] += step
            tangent -= step * dot * mean
        size = _norm(tangent, cosines)
        if size < max(tolerance, 1e-12):
            break
        mean = torch.cos(size) * mean + torch.sin(size) * tangent / size
        mean = mean / _norm(mean, cosines)
    return mean


def _norm(coefficients: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    return (coefficients @ gram @ coefficients).clamp(min=0).sqrt()


@method(
    "nearswap",
    parameters=[
        Parameter("t", None, low=0, meaning="entries nearer than this are swapped for the other model's")
    ],
    base="required",
    source="alchemonaut 2024 (QuartetAnemoi)",
    most=1,
)
def nearswap(stream: Stream, values: Values) -> Apply:
    """The base, drawn to the other model where the two are near: ``theta_0 + min(1, t / |d|) d``.

    ``d = theta_1 - theta_0``, entry by entry: entries nearer than ``t`` become the other model's,
    all others move by ``t``.

    Args:
        stream: the tensor of one model and the base.
        values: ``t``.

    Returns:
        The function that merges a chunk.
    """
    t = values["t"]

    def merge(chunk: Chunk) -> torch.Tensor:
        assert chunk.base is not None
        base, other = chunk.base, chunk.models[0]
        share = (t / (other - base).abs_().clamp_(min=1e-6)).clamp_(max=1)
        return (share * other).add_((1 - share).mul_(base))

    return merge
