"""Whether one model descends from another, judged by the angles between their weight matrices.

Weights of networks that were initialised apart are orthogonal as far as chance allows: the cosine of
two independent matrices of n entries has mean 0 and standard deviation ``1 / sqrt(n)``. Weights that
came from one another by training stay close. So the criterion is the median, over weight matrices, of
``cos(theta, theta_0)``:

| pair (one run each; digits are scikit-learn's) | median cos | relative distance |
|---|---|---|
| all-MiniLM-L6-v2 and a published fine-tune of it | 0.9999 | 0.010 |
| MLP on digits, fine-tuned with AdamW at 1e-4 ... 1e-3 ... 1e-2 | 0.999 ... 0.99 ... 0.92 | 0.04 ... 0.16 ... 0.54 |
| the same at 3e-2 (a rate that nobody would choose) | 0.60 | 1.31 |
| the same, trained from random weights: those and the result | 0.71 | 1.28 |
| two MLPs on digits, initialised apart and trained | 0.03 | 1.39 |
| all-MiniLM-L6-v2 with shuffled rows and columns | 0.000 | 1.39 |
| two random BERTs | 0.000 | 1.14 |

The gap between 0.04 and 0.6 holds the limit [`UNRELATED`][mergescope.weights.relation.UNRELATED] = 0.2.
Distances alone don't tell: 1.28 is a descendant, 1.14 two strangers, because norm layers (near 1 in every
network) and scales count. For the same reason the cosine over all weights is 0.36 between two random
BERTs, and the median over matrices is used instead; it also overlooks a head that was replaced.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from mergescope.weights.geometry import Geometry
from mergescope.weights.sums import Sums

DESCENDS = 0.8
"""Least median cosine of a model said to descend from another."""

UNRELATED = 0.2
"""Median cosines below this are those of networks that were initialised apart."""

SMALLEST = 64
"""Matrices with fewer entries are left out: chance alone gives them cosines of 0.1 and more."""


@dataclass(frozen=True)
class Relation:
    """How two models' weights lie to each other.

    Attributes:
        word: ``"identical"``, ``"descends"`` (close; of two fine-tunes: one origin), ``"related"`` (far,
            but not by chance), ``"unrelated"`` or ``"unknown"`` (NaN, or no matrix to judge by).
        cosine: median cosine over weight matrices.
        distance: relative distance: from the base in units of its norm, between two models in units of
            the root mean square of their norms.
        matrices: how many matrices the median is over.
        apart: tensors that are unrelated in models that otherwise are not, as a new head is.
    """

    word: str
    cosine: float
    distance: float
    matrices: int
    apart: tuple[str, ...] = ()


def relation(found: Geometry, i: int, j: int) -> Relation:
    """Judge the relation of two models.

    Args:
        found: from [`measure`][mergescope.weights.geometry.measure].
        i: index of a model, 0 for the base.
        j: index of another.

    Returns:
        The relation.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> from mergescope.weights.geometry import geometry
        >>> theta, noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
        >>> models = [Checkpoint(dict(zip("abc", values)), name=name)
        ...           for name, values in (("base", theta), ("tuned", theta + 0.1 * noise), ("other", noise))]
        >>> found = geometry(models[0], models[1:])
        >>> relation(found, 0, 1).word, relation(found, 0, 2).word
        ('descends', 'unrelated')
    """
    total = found.total
    distance = total.distances[max(i, j) - 1] if 0 in {i, j} else total.model_distance(i, j)
    usable = {
        name: sums
        for name, sums in found.tensors.items()
        if name in found.matrices and sums.entries >= SMALLEST and not int(sums.bad[[i, j]].sum())
    }
    cosines = {name: _cosine(sums, i, j) for name, sums in usable.items()}
    cosine = statistics.median(cosines.values()) if cosines else float("nan")
    if int(total.bad[[i, j]].sum()):
        return Relation("unknown", cosine, float("nan"), len(cosines))
    if total.same(i, j):
        return Relation("identical", 1.0, 0.0, len(cosines))
    if not cosines:
        return Relation("unknown", cosine, distance, 0)
    if cosine < UNRELATED:
        return Relation("unrelated", cosine, distance, len(cosines))
    apart = tuple(name for name, value in cosines.items() if value < UNRELATED)
    return Relation("descends" if cosine >= DESCENDS else "related", cosine, distance, len(cosines), apart)


def _cosine(sums: Sums, i: int, j: int) -> float:
    products = sums.model_products
    if float(products[i, i]) == 0 or float(products[j, j]) == 0:
        return 1.0 if sums.same(i, j) else 0.0  # two zero matrices are the same matrix
    return float(sums.model_cosines[i, j])
