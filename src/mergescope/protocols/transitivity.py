"""Is Cross-Task Linearity transitive? If i and j, and j and k, are linear to each other, are i and k?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mergescope.errors import PointError
from mergescope.protocols.linearity import ctl, linearity
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import as_fields
from mergescope.readings import InnerProducts, Summary
from mergescope.tracing import trace
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class PairGap:
    """CTL of two models at one layer, at alpha = 1/2.

    Attributes:
        one: name of a model.
        other: of the other one.
        data: name of the data.
        layer: its name.
        trivial: whether it is linear in the weights by construction.
        gap: ``|f(middle) - mean f| / |mean f|``, over samples.
    """

    one: str
    other: str
    data: str
    layer: str
    trivial: bool
    gap: Summary

    def row(self) -> dict[str, Any]:
        """The gap as a line of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        return {
            "kind": "transitivity", "points": f"{self.one} + {self.other}", "data": self.data, "layer": self.layer,
            "trivial": self.trivial, "measure": "gap", **as_fields(self.gap),
        }  # fmt: skip


@dataclass(frozen=True)
class Triple:
    """Three models: i and j, j and k are the premise; i and k the conclusion.

    Attributes:
        ends: names of i and k.
        middle: name of j.
        premise: the larger mean gap of both pairs with j.
        conclusion: the mean gap of i and k.
    """

    ends: tuple[str, str]
    middle: str
    premise: float
    conclusion: float


def pair_gaps(
    models: Mapping[str, Model],
    held: HeldOut,
    *,
    layers: str | Sequence[str] = "blocks",
    seed: int = 0,
    progress: bool = True,
) -> tuple[PairGap, ...]:
    """CTL of all pairs on one data set, in one pass (CTL 4.1).

    Args:
        models: name to model, two or more.
        held: data, with the network.
        layers: as for [`trace`][mergescope.trace].
        seed: of the intervals.
        progress: show a bar on a terminal.

    Returns:
        One entry a pair and layer.

    Raises:
        PointError: there are fewer than two models.
        LayerError: a layer does not exist.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.5, seed=i) for i, name in enumerate("abc")}
        >>> found = pair_gaps(models, HeldOut("noise", [torch.randn(6, 4)], net))
        >>> [(entry.one, entry.other, entry.layer) for entry in found][:2]
        [('a', 'b', 'blocks.0'), ('a', 'b', 'output')]
    """  # noqa: DOC502 (raised by what this calls)
    if len(models) < 2:
        raise PointError("This takes two models or more, of which pairs can be made.")
    tests = {(a, b): ctl(models[a], models[b]) for a, b in combinations(models, 2)}
    traced = trace(
        [point for test in tests.values() for point in test.points], held.batches, held.model, layers=layers,
        readings=[InnerProducts([test.points for test in tests.values()])], fixed=held.fixed, progress=progress,
    )  # fmt: skip
    return tuple(
        PairGap(a, b, held.name, entry.layer, entry.trivial, entry.measures["gap"])
        for (a, b), test in tests.items()
        for entry in linearity(traced, test, seed=seed).layers
    )


def triples(gaps: Sequence[PairGap]) -> Iterator[Triple]:
    """All ways to conclude from two pairs on a third.

    Args:
        gaps: of all pairs, at one layer and on one data set.

    Yields:
        Three for every three models.

    Example:
        >>> said = {"ab": 0.1, "ac": 0.3, "bc": 0.2}
        >>> some = [PairGap(*pair, "", "", False, Summary(gap, 0, gap, gap, 1, 0)) for pair, gap in said.items()]
        >>> [(it.ends, it.middle, it.premise, it.conclusion) for it in triples(some)][0]
        (('a', 'b'), 'c', 0.3, 0.1)
    """
    known = {frozenset((entry.one, entry.other)): entry.gap.mean for entry in gaps}
    names = list(dict.fromkeys(name for entry in gaps for name in (entry.one, entry.other)))
    for one, other in combinations(names, 2):
        for middle in names:
            if middle not in (one, other):
                first, second = (known[frozenset((end, middle))] for end in (one, other))
                yield Triple((one, other), middle, max(first, second), known[frozenset((one, other))])
