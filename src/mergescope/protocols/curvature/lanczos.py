"""Eigenvalues at an end of a spectrum, of a symmetric matrix that is known by its products only (Lanczos 1950)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergescope.errors import MergescopeError, did_you_mean

ENDS = {
    "largest": "the largest",
    "smallest": "the smallest: the most negative, if any is negative",
    "magnitude": "the largest in absolute value; the first of them is the operator norm",
}
"""Which eigenvalues are looked for."""

STEPS = 60
"""Products at most, unless told otherwise."""

TOLERANCE = 1e-3
"""A residual this small, relative to its eigenvalue, ends the search."""

SMALL = 1e-3
"""Eigenvalues below this share of the largest in absolute value are as exact as one of this size."""


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenvalues.

    Attributes:
        values: the wanted end first; fewer than asked for if the matrix has fewer distinct ones.
        residuals: one each: ``|A v - value v|``. An eigenvalue is no farther from the value than that, and no
            value is above the largest eigenvalue or below the smallest.
        steps: products that it took.
        converged: whether all residuals are small.

    Example:
        >>> Ritz((2.0,), (1e-4,), 5, True).values
        (2.0,)
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    steps: int
    converged: bool


def lanczos(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    *,
    count: int = 1,
    end: str = "largest",
    tolerance: float = TOLERANCE,
    max_steps: int = STEPS,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Ritz:
    """Eigenvalues by the Lanczos iteration, with full reorthogonalisation.

    From a random unit vector, ``A q_j = b_{j-1} q_{j-1} + a_j q_j + b_j q_{j+1}``; the eigenvalues of the tridiagonal
    matrix of ``a`` and ``b`` approach those of A from its ends, and ``b_m |s_m|`` (``s_m`` the last entry of its
    eigenvector) is the residual. An eigenvalue that A has several times is found once.

    Args:
        product: ``v -> A v``, ``(size,)`` to ``(size,)``.
        size: of the matrix.
        count: how many eigenvalues.
        end: one of [`ENDS`][].
        tolerance: of the residuals, relative to their eigenvalues. Relative to the whole spectrum would not do:
            most of it is near zero, and near some of that any number is, before the end is found.
        max_steps: products at most. All vectors are kept.
        seed: of the first vector.
        dtype: of the vectors.

    Returns:
        The eigenvalues.

    Raises:
        MergescopeError: there is no such end, or a number makes no sense.

    Example:
        >>> A = np.diag([5.0, 2.0, 1.0, -3.0])
        >>> found = lanczos(A.dot, 4, count=2)
        >>> [round(value, 6) for value in found.values], found.steps
        ([5.0, 2.0], 4)
    """  # noqa: DOC502 (raised by what this calls)
    require_search(count, end, tolerance, max_steps)
    eps = np.finfo(dtype).eps
    start = np.random.default_rng(seed).standard_normal(size).astype(dtype)
    vectors = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        found = np.asarray(product(vectors[-1]), dtype=dtype)
        diagonal.append(float(found @ vectors[-1]))
        for _ in range(2):  # twice is enough (Parlett 1980)
            for vector in vectors:
                found = found - (found @ vector) * vector
        beside.append(float(np.linalg.norm(found)))
        values, ends = _tridiagonal(diagonal, beside[:-1])
        scale = float(np.abs(values).max())
        exhausted = len(diagonal) == size or beside[-1] <= 10 * eps * scale
        residuals = np.zeros(len(values)) if exhausted else beside[-1] * ends
        chosen = _order(values, end)[:count]
        sizes = np.maximum(np.abs(values[chosen]), SMALL * scale)
        converged = exhausted or (
            len(chosen) == count and bool((residuals[chosen] <= tolerance * sizes).all())
        )
        if converged or len(diagonal) == max_steps:
            said = [tuple(float(each) for each in array[chosen]) for array in (values, residuals)]
            return Ritz(said[0], said[1], len(diagonal), converged)
        vectors.append(found / beside[-1])


def require_search(count: int, end: str, tolerance: float, max_steps: int) -> None:
    """Refuse a search that makes no sense.

    Args:
        count: of eigenvalues.
        end: of the spectrum.
        tolerance: of residuals.
        max_steps: products at most.

    Raises:
        MergescopeError: it does not.
    """
    if end not in ENDS:
        raise MergescopeError(
            f"A spectrum has no end {end!r}.{did_you_mean(end, ENDS)} Choose one of: "
            f"{'; '.join(f'{name} ({meaning})' for name, meaning in ENDS.items())}."
        )
    if count < 1 or max_steps < count or not tolerance >= 0:
        raise MergescopeError(
            f"{count} eigenvalue(s) in {max_steps} step(s) to a tolerance of {tolerance:g} can't be found. Ask for one "
            "or more, in as many steps or more, with a tolerance of 0 or above."
        )


def _tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return values, np.abs(vectors[-1])


def _order(values: np.ndarray, end: str) -> np.ndarray:
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    return np.argsort(keys[end], kind="stable")
