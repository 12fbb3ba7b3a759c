"""How strongly task vectors interact: what weight disentanglement asks to vanish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergescope.protocols.prediction.expansion import Expansion
from mergescope.protocols.prediction.gaps import ratio, row_units
from mergescope.readings import Summary, bootstrap


@dataclass(frozen=True)
class Interaction:
    """Two task vectors at one layer.

    Attributes:
        one: name of a task vector.
        other: of another one, or the same: then it is its own curvature.
        layer: the layer.
        trivial: whether that is linear in the weights by construction.
        data: names of the data.
        relative: ``|f''[tau_k, tau_l]| / sqrt(|J tau_k| |J tau_l|)``, over samples.
        size: ``|f''[tau_k, tau_l]|``, over samples.
    """

    one: str
    other: str
    layer: str
    trivial: bool
    data: tuple[str, ...]
    relative: Summary
    size: Summary


def interaction(
    expansions: Sequence[Expansion], one: str, other: str, *, seed: int = 0
) -> tuple[Interaction, ...]:
    """How much two task vectors interact, at every layer.

    ``f(th_0 + u + v) - f(th_0 + u) - f(th_0 + v) + f(th_0) = f''[u, v] + O(3)`` is what weight
    disentanglement asks to vanish (TANGENT; ATTN Property 4). It is told relative to what the two change by
    themselves, to first order, ``J tau``: a unit that has no unit.

    Args:
        expansions: of the data sets, which are pooled.
        one: name of a task vector.
        other: of another one, or the same.
        seed: of the intervals.

    Returns:
        One entry a layer.

    Example:
        >>> import torch, mergescope as ms
        >>> from mergescope.protocols.prediction.expansion import expand
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.Point.of(ms.random_neighbour(base, base * 1.1, seed=i)) for i, name in enumerate("ab")}
        >>> found = expand(ms.Point.of(base), models, ms.protocols.HeldOut("noise", [torch.randn(6, 4)], net))
        >>> [entry.layer for entry in interaction([found], "a", "b")]
        ['blocks.0', 'output']
    """
    found = []
    for layer in expansions[0].layers:
        parts = [
            np.stack([data.norms(layer, data.term(*names)) for names in ((one, other), (one,), (other,))])
            for data in expansions
        ]
        mixed, first, second = np.concatenate(parts, axis=1)
        table = np.stack([ratio(mixed, np.sqrt(first * second)), mixed], axis=1)
        relative, size = bootstrap(table, row_units(expansions, layer), seed=seed)
        trivial = any(layer in data.trivial for data in expansions)
        names = tuple(data.name for data in expansions)
        found.append(Interaction(one, other, layer, trivial, names, relative, size))
    return tuple(found)


def interaction_matrix(entries: Sequence[Interaction], layer: str) -> tuple[list[str], np.ndarray]:
    """The mean relative interactions of a layer as a matrix.

    Args:
        entries: of all pairs.
        layer: which layer.

    Returns:
        Names, and ``(K, K)``, symmetric; NaN where a pair is not among the entries.
    """
    here = [entry for entry in entries if entry.layer == layer]
    names = list(dict.fromkeys(name for entry in here for name in (entry.one, entry.other)))
    matrix = np.full((len(names), len(names)), np.nan)
    for entry in here:
        i, j = names.index(entry.one), names.index(entry.other)
        matrix[i, j] = matrix[j, i] = entry.relative.mean
    return names, matrix
