"""For how many cases the premises of a theorem hold, and its conclusion, by stated thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS

GAP_HOLDS = round(math.sqrt(COS_HOLDS**-2 - 1), 3)
"""A gap as small as this counts as none: that of features with coef 1 whose cosine is just high enough for CTL."""

LOSS_HOLDS = 0.1
"""Losses that differ by no more than this, in nats, count as equal, and a barrier no higher as none."""


@dataclass(frozen=True)
class Case:
    """Premise and conclusion of a theorem, for models, data and a layer.

    Attributes:
        theorem: its number, or name.
        points: which models.
        data: name of the data.
        layer: its name.
        premise: whether the premises hold.
        conclusion: whether the conclusion holds.
        supposed: how large that is which is supposed to be small.
        concluded: how large that is which is concluded to be small.
        proved: whether an inequality that holds without any premise does; None if there is none.
    """

    theorem: str
    points: str
    data: str
    layer: str
    premise: bool
    conclusion: bool
    supposed: float
    concluded: float
    proved: bool | None = None


@dataclass(frozen=True)
class Tally:
    """Cases of one theorem, counted.

    Attributes:
        theorem: its number, or name.
        cases: how many.
        premises: of which the premises hold.
        conclusions: of which the conclusion holds.
        both: of which both hold.
        proved: of which the inequality holds that needs no premise.
        provable: that have such an inequality.
    """

    theorem: str
    cases: int
    premises: int
    conclusions: int
    both: int
    proved: int
    provable: int

    def __str__(self) -> str:
        rest, lucky = self.cases - self.premises, self.conclusions - self.both
        said = (
            f"{self.theorem}: the premises hold in {self.premises} of {self.cases} cases, and the conclusion in "
            f"{self.both} of these; without the premises, it holds in {lucky} of {rest}"
        )
        return said + (
            f"; the proved inequality in {self.proved} of {self.provable}" if self.provable else ""
        )


def tally(cases: Sequence[Case]) -> tuple[Tally, ...]:
    """Count cases, theorem by theorem.

    Args:
        cases: any.

    Returns:
        One entry a theorem, in the order in which they come.

    Example:
        >>> (count,) = tally([Case("4.2", "a + b", "data", "output", False, True, 0.4, 0.1)])
        >>> count.premises, count.conclusions, count.both
        (0, 1, 0)
    """
    found = []
    for theorem in dict.fromkeys(case.theorem for case in cases):
        here = [case for case in cases if case.theorem == theorem]
        provable = [case for case in here if case.proved is not None]
        found.append(
            Tally(
                theorem, len(here), _count(case.premise for case in here), _count(case.conclusion for case in here),
                _count(case.premise and case.conclusion for case in here),
                _count(bool(case.proved) for case in provable), len(provable),
            )
        )  # fmt: skip
    return tuple(found)


def llfc_and_length(cos: float, coef: float) -> bool:
    """Whether LLFC holds with lengths that agree, by the thresholds of CTL.

    Args:
        cos: mean cosine.
        coef: mean coefficient.

    Returns:
        True if both do.

    Example:
        >>> llfc_and_length(0.96, 1.05), llfc_and_length(0.96, 1.2)
        (True, False)
    """
    return cos >= COS_HOLDS and abs(coef - 1) <= COEF_HOLDS


def _count(flags: Iterable[bool]) -> int:
    return sum(1 for flag in flags if flag)
