"""Sums over entries from which every measure of task-vector geometry follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Sums:
    """Inner products and counts over the entries of one tensor, or of many: they add.

    With K models ``theta_k``, a base ``theta_0`` and task vectors ``tau_k = theta_k - theta_0``.
    A cosine over the parameters that training changed (ATTN, Fig. 5) is the cosine over all of
    them: entries where the task vectors are zero add nothing to it.

    Attributes:
        entries: how many entries.
        products: ``(K + 1, K + 1)`` float64, inner products of ``theta_0, tau_1 ... tau_K``.
        changed: ``(K, K)`` int64, entries where both task vectors are non-zero; the diagonal counts
            the changed entries of each.
        opposed: ``(K, K)`` int64, entries where both are non-zero and their signs differ.
        differing: ``(K, K)`` int64, non-zero if two models differ in some entry (a count of the
            chunks in which they do).
        bad: ``(K + 1,)`` int64, NaN and infinite entries of the base and of each model.
    """

    entries: int
    products: torch.Tensor
    changed: torch.Tensor
    opposed: torch.Tensor
    differing: torch.Tensor
    bad: torch.Tensor

    @classmethod
    def of(cls, base: torch.Tensor, models: Sequence[torch.Tensor]) -> Sums:
        """The sums over some entries.

        Args:
            base: entries of the base, any shape; float32 or float64.
            models: the same entries of each model.

        Returns:
            The sums.

        Example:
            >>> sums = Sums.of(torch.tensor([1.0, 1.0]), [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])])
            >>> sums.norms, sums.opposed.tolist()
            ([1.0, 2.23606797749979], [[0, 1], [1, 0]])
        """
        rows = torch.stack([base.reshape(-1), *(model.reshape(-1) for model in models)])
        differing = torch.zeros(len(models), len(models), dtype=torch.int64)
        for i in range(1, len(rows)):
            for j in range(1, i):
                differing[i - 1, j - 1] = differing[j - 1, i - 1] = int(not torch.equal(rows[i], rows[j]))
        rows[1:] -= rows[0]
        signs = rows[1:].sign()
        # Sums of -1, 0 and 1 are exact in float32 up to 2^24 entries; a chunk has fewer.
        agreement = signs @ signs.T
        both = (support := signs.abs_()) @ support.T
        wide = rows.double()
        products = wide @ wide.T
        bad = torch.zeros(len(rows), dtype=torch.int64)
        if not torch.isfinite(products.diagonal()).all():  # only then are entries counted
            bad = torch.tensor([int((~torch.isfinite(row)).sum()) for row in (base, *models)])
        return cls(
            rows.shape[1],
            products,
            both.nan_to_num(0).long(),
            ((both - agreement) / 2).nan_to_num(0).long(),
            differing,
            bad,
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.entries + other.entries,
            self.products + other.products,
            self.changed + other.changed,
            self.opposed + other.opposed,
            self.differing + other.differing,
            self.bad + other.bad,
        )

    @property
    def base_norm(self) -> float:
        """``|theta_0|``."""
        return float(self.products[0, 0]) ** 0.5

    @property
    def norms(self) -> list[float]:
        """``|tau_k|`` of each model."""
        return [
            math.sqrt(squared) for squared in self.products.diagonal()[1:].tolist()
        ]  # torch rounds otherwise

    @property
    def distances(self) -> list[float]:
        """Relative distances ``|tau_k| / |theta_0|``; 0 for ``tau_k = 0``, infinite from ``theta_0 = 0``."""
        return [_ratio(norm, self.base_norm) for norm in self.norms]

    @property
    def unchanged(self) -> list[float]:
        """Share of the entries in which each model equals the base."""
        return [
            1 - count / self.entries if self.entries else 1.0 for count in self.changed.diagonal().tolist()
        ]

    @property
    def cosines(self) -> torch.Tensor:
        """``(K, K)``: ``<tau_i, tau_j> / (|tau_i| |tau_j|)``; 0 if one of them is zero."""
        return _cosines(self.products[1:, 1:])

    @property
    def conflicts(self) -> torch.Tensor:
        """``(K, K)``: share of opposite signs among the entries that both changed; 0 if there are none."""
        return self.opposed.double() / self.changed.clamp(min=1).double()

    @property
    def model_products(self) -> torch.Tensor:
        """``(K + 1, K + 1)``: inner products of the weights ``theta_0, theta_1 ... theta_K`` themselves."""
        to_models = torch.eye(len(self.products), dtype=torch.float64)
        to_models[1:, 0] = 1.0
        return to_models @ self.products @ to_models.T

    @property
    def model_cosines(self) -> torch.Tensor:
        """``(K + 1, K + 1)``: cosines of the weights themselves, the base first; 0 for zero weights."""
        return _cosines(self.model_products)

    def model_distance(self, i: int, j: int) -> float:
        """``|theta_i - theta_j|`` over the root mean square of their norms.

        It is sqrt(2 - 2 cos) for equal norms: 0 for equal weights, sqrt(2) for orthogonal ones.

        Args:
            i: index of a model; 0 is the base.
            j: index of another.

        Returns:
            The relative distance.
        """
        deltas = self.products.clone()
        deltas[0] = deltas[:, 0] = 0.0
        squared = float(deltas[i, i] + deltas[j, j] - 2 * deltas[i, j])
        if i and j and not self.differing[i - 1, j - 1]:
            squared = 0.0
        models = self.model_products
        scale = float(models[i, i] + models[j, j]) / 2
        # max() with NaN first keeps it.
        return _ratio(max(squared, 0.0) ** 0.5, max(scale, 0.0) ** 0.5)

    def moved(self, i: int, j: int) -> bool:
        """Whether two models differ from the base: only then do their task vectors have an angle.

        Args:
            i: index of a model, the first is 0.
            j: index of another.

        Returns:
            True if both do.
        """
        return bool(self.changed[i, i] and self.changed[j, j])

    def same(self, i: int, j: int) -> bool:
        """Whether two models are equal in every entry, NaN never.

        Args:
            i: index of a model; 0 is the base.
            j: index of another.

        Returns:
            True if they are.
        """
        if i and j:
            return not self.differing[i - 1, j - 1]
        k = max(i, j)
        return not int(self.bad[[0, k]].sum()) and (k == 0 or not int(self.changed[k - 1, k - 1]))


def _ratio(above: float, below: float) -> float:
    if above == 0:
        return 0.0
    return above / below if below else float("inf")


def _cosines(products: torch.Tensor) -> torch.Tensor:
    norms = products.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    cosines = torch.where(scale == 0, torch.zeros_like(scale), products / torch.where(scale == 0, 1.0, scale))
    return cosines.clamp(-1.0, 1.0)  # rounding; NaN stays
