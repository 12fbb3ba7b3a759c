"""cos, coef and gap of one linearity test, from inner products (CTL 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEASURES = ("cos", "coef", "gap", "gap_between", "baseline")
RELATIVE = ("cos_rel", "coef_rel", "gap_rel")


def linearity_measures(
    gram: np.ndarray,
    coefficients: Sequence[float],
    reference: bool = False,
    differences: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """cos, coef and gap (CTL 4.1 and its footnote 5) and their relatives, per sample.

    The points of the Gram matrix are, in order: the left point ``m``, the right points ``f_k``
    with coefficients ``a_k``, and the reference ``f_0`` if there is one. With
    ``r = sum_k a_k f_k``:

    - ``cos = <m, r> / (|m| |r|)``, signed (CTL 3, LLFC);
    - ``coef = <m, r> / |r|^2`` (CTL, footnote 5);
    - ``gap = |m - r| / |r|``; ``gap^2 = coef^2 / cos^2 - 2 coef + 1``;
    - ``gap_between``: ``|m - r|`` over the root mean square of ``|f_i - f_j|``, ``i < j``;
    - ``baseline``: mean over pairs of ``cos(f_i, f_j)``;
    - ``cos_rel``, ``coef_rel``, ``gap_rel``: the first three on ``f - f_0``, what fine-tuning
      changed. Undefined (NaN) where ``m`` is the reference itself, as in Eq. 3.

    Args:
        gram: ``(samples, points, points)``, float64.
        coefficients: the ``a_k``; they sum to 1.
        reference: whether the last point is the reference.
        differences: the same of features less a common one, for gaps without cancellation
            ([`InnerProducts.differences`][mergescope.InnerProducts.differences]); by default ``gram``.

    Returns:
        Measure to ``(samples,)``; NaN where a norm is zero (dead features).

    Example:
        >>> m, f1, f2 = np.array([1.0, 1.0]), np.array([2.0, 0.0]), np.array([0.0, 2.0])
        >>> features = np.stack([m, f1, f2])
        >>> out = linearity_measures((features @ features.T)[None], [0.5, 0.5])
        >>> [round(float(out[k][0]), 6) for k in ("cos", "coef", "gap", "baseline")]
        [1.0, 1.0, 0.0, 0.0]
    """
    weights = np.asarray(coefficients, dtype=float)
    apart = gram if differences is None else differences
    sides, right = slice(1 + len(weights)), slice(1, 1 + len(weights))
    result = _three(gram[:, sides, sides], apart[:, sides, sides], weights)
    cross = gram[:, right, right]
    norms = np.sqrt(np.einsum("npp->np", cross))
    upper = np.triu_indices(len(weights), 1)
    if len(upper[0]):
        lengths = np.einsum("npp->np", apart[:, right, right])
        squares = lengths[:, :, None] + lengths[:, None, :] - 2 * apart[:, right, right]
        spread = np.sqrt(np.clip(squares[:, upper[0], upper[1]], 0, None).mean(1))
        result["gap_between"] = _ratio(result.pop("_distance"), spread)
        cosines = _ratio(cross, norms[:, :, None] * norms[:, None, :])
        result["baseline"] = cosines[:, upper[0], upper[1]].mean(1)
    else:
        result.pop("_distance")
        result["gap_between"] = result["baseline"] = np.full(len(gram), np.nan)
    if reference:
        size = 1 + len(weights)
        zero = apart[:, :size, size]
        shifted = apart[:, sides, sides] - zero[:, :, None] - zero[:, None, :]
        shifted += apart[:, size, size, None, None]
        relative = _three(shifted, shifted, weights)
        # After subtraction, squared norms below rounding of the raw ones are noise: no change at all.
        noise = np.abs(gram[:, sides, sides]).max((1, 2)) * 1e-13
        right_norm = np.einsum("p,npq,q->n", weights, shifted[:, 1:, 1:], weights)
        dead = (shifted[:, 0, 0] <= noise) | (right_norm <= noise)
        result |= {f"{name}_rel": np.where(dead, np.nan, relative[name]) for name in ("cos", "coef", "gap")}
    return result


def _three(gram: np.ndarray, apart: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """cos, coef, gap and the distance |m - r| for Gram matrices of (m, f_1, ..., f_k).

    Args:
        gram: of features.
        apart: of features less any common one; the distance is the same from these.
        weights: the coefficients.

    Returns:
        Measure to ``(samples,)``.
    """
    mixed = np.concatenate([[1.0], -weights])
    mm = gram[:, 0, 0]
    mr = gram[:, 0, 1:] @ weights
    rr = np.einsum("p,npq,q->n", weights, gram[:, 1:, 1:], weights)
    distance = np.sqrt(np.clip(np.einsum("p,npq,q->n", mixed, apart, mixed), 0, None))
    length_m, length_r = np.sqrt(np.clip(mm, 0, None)), np.sqrt(np.clip(rr, 0, None))
    alive = (length_m > 0) & (length_r > 0)
    return {
        "cos": np.where(alive, _ratio(mr, length_m * length_r), np.nan),
        "coef": np.where(alive, _ratio(mr, rr), np.nan),
        "gap": np.where(alive, _ratio(distance, length_r), np.nan),
        "_distance": np.where(alive, distance, np.nan),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)
