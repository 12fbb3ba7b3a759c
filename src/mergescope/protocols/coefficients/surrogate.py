"""A surrogate of outputs as a polynomial in the coefficients of task vectors, from few evaluated points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from mergescope.errors import MergescopeError


def design(
    axes: int, order: int = 2, limit: int | None = None, scale: float = 0.8, seed: int = 0
) -> np.ndarray:
    """Coefficients to evaluate before a surrogate is fitted.

    The base, every single task vector (at 1, and for the second order at ``scale`` too), and pairs of them
    at ``scale``: ``1 + 2 m + m (m - 1) / 2`` points determine a polynomial of second order exactly.

    Args:
        axes: how many coefficients there are (m).
        order: of the polynomial, 1 or 2.
        limit: how many points at most; pairs are left out by chance first, then single task vectors at 1.
        scale: of pairs and of the second single one; where several coefficients are added up later, the region of
            interest is about as far from the base as a pair at 0.8.
        seed: of the choice of pairs.

    Returns:
        ``(points, axes)``; the first is the base.

    Raises:
        MergescopeError: the limit is too small for the base and one point an axis.

    Example:
        >>> len(design(6)), len(design(6, order=1))
        (28, 7)
    """
    unit = np.eye(axes)
    base = np.zeros((1, axes))
    limit = limit or 1 + 2 * axes + axes * (axes - 1) // 2
    if limit < 1 + axes:
        raise MergescopeError(
            f"A surrogate of {axes} coefficients takes at least {1 + axes} points, and {limit} are allowed. Allow "
            "more, or choose fewer groups of layers."
        )
    if order == 1:
        return np.concatenate([base, unit])
    if limit < 1 + 2 * axes:
        return np.concatenate([base, scale * unit])
    pairs = list(combinations(range(axes), 2))
    room = limit - 1 - 2 * axes
    if room < len(pairs):
        chosen = np.random.default_rng(seed).choice(len(pairs), room, replace=False)
        pairs = [pairs[place] for place in sorted(chosen)]
    both = [scale * (unit[i] + unit[j]) for i, j in pairs]
    return np.concatenate([base, unit, scale * unit, np.array(both).reshape(-1, axes)])


class Surrogate:
    """``values(c) ~ sum_p w_p(c) values(c_p)``: a polynomial in c by least squares.

    Features and outputs are nearly polynomial in the coefficients:
    ``f(th_0 + sum c_k tau_k) ~ f_0 + sum c_k J tau_k + 1/2 sum c_k c_l f''[tau_k, tau_l]``. All samples and
    outputs share the design matrix ``Phi``, so the fit is a vector of weights of the evaluated points,
    ``w(c) = phi(c) Phi^+``, and nothing is fitted sample by sample. Where points are too few for all
    terms, the pseudo-inverse takes the smallest coefficients that fit.

    Args:
        positions: ``(points, axes)`` coefficients that were evaluated.
        order: 1, exact for linearised networks, or 2.

    Raises:
        MergescopeError: there is no such order.

    Example:
        >>> surrogate = Surrogate(np.array([[0.0], [0.5], [1.0]]))
        >>> squares = torch.tensor([0.0, 0.25, 1.0])
        >>> round(float(surrogate.predict([3.0], squares)), 6)
        9.0
    """

    def __init__(self, positions: np.ndarray, order: int = 2) -> None:
        if order not in (1, 2):
            raise MergescopeError(f"A surrogate is of first or second order, not {order}. Choose 1 or 2.")
        self.positions = torch.as_tensor(np.asarray(positions, dtype=float))
        self.order = order
        self._products = torch.triu_indices(self.positions.shape[1], self.positions.shape[1])
        self._inverse = torch.linalg.pinv(self._terms(self.positions), rtol=1e-8)

    @property
    def terms(self) -> int:
        """How many terms the polynomial has."""
        return self._inverse.shape[0]

    def _terms(self, positions: torch.Tensor) -> torch.Tensor:
        parts = [torch.ones_like(positions[:, :1]), positions]
        if self.order == 2:
            parts.append(positions[:, self._products[0]] * positions[:, self._products[1]])
        return torch.cat(parts, dim=1)

    def weights(self, coefficients: Sequence[float] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The weights of the evaluated points, differentiable in the coefficients.

        Args:
            coefficients: ``(axes,)``.

        Returns:
            ``(points,)``, float64; they sum to 1.
        """
        at = torch.as_tensor(coefficients, dtype=torch.float64)
        return (self._terms(at[None]) @ self._inverse)[0]

    def predict(self, coefficients: Sequence[float] | np.ndarray | torch.Tensor, values: torch.Tensor) -> Any:
        """Predict what was evaluated at other coefficients.

        Args:
            coefficients: ``(axes,)``.
            values: ``(points, ...)`` of the evaluated points, in order.

        Returns:
            ``(...)``, in the type of the values.
        """
        return torch.tensordot(self.weights(coefficients).to(values.dtype), values, dims=1)
