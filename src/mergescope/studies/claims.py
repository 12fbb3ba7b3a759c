"""Claims of a study and their verdicts, which follow from intervals and never from a hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergescope.studies.rundir import Row

HOLDS, FAILS, OPEN = "holds", "does not hold", "inconclusive"
"""Verdicts."""

KIND = "claim"
"""Of the rows of claims."""


@dataclass(frozen=True)
class Claim:
    """Something that should be above 0.

    Attributes:
        says: the claim, in words.
        value: what should be above 0.
        low: lower end of its 95 % interval.
        high: upper end.
        n: how many independent values it is the mean of.
        source: paper and figure.
        reference: what the source found, in words.
        here: what was found here in the same words; the results table leaves it out.
    """

    says: str
    value: float
    low: float
    high: float
    n: int
    source: str = ""
    reference: str = ""
    here: str = ""

    @property
    def verdict(self) -> str:
        """``holds`` if the whole interval is above 0, ``does not hold`` if it is below, else ``inconclusive``."""
        return HOLDS if self.low > 0 else FAILS if self.high < 0 else OPEN

    def row(self, network: str, regime: str = "") -> Row:
        """The claim as a line of a results table.

        Args:
            network: of the study.
            regime: what is varied.

        Returns:
            The row; its points are the claim's words, its data the source.
        """
        return Row(
            network, regime, KIND, self.says, self.source, self.verdict, self.value, low=self.low, high=self.high,
            n=self.n, layer=self.reference,
        )  # fmt: skip


def claim_of(row: Row) -> Claim:
    """Read a claim from its row.

    Args:
        row: as [`Claim.row`][] made it.

    Returns:
        The claim.

    Example:
        >>> claim = over_seeds("cos exceeds its baseline", [0.1, 0.2, 0.3], source="CTL Fig. 2")
        >>> claim_of(claim.row("net")) == claim
        True
    """
    return Claim(row.points, row.mean, row.low, row.high, row.n, row.data, row.layer)


def half_width(error: float, freedom: float) -> float:
    """Half of Student's t interval of 95 %.

    Args:
        error: standard error of a mean, or of a difference of two.
        freedom: its degrees of freedom, which need not be whole.

    Returns:
        The half width; infinite without a degree of freedom, since then no spread is known.

    Example:
        >>> round(half_width(1.0, 2), 4), half_width(1.0, 0)
        (4.3027, inf)
    """
    from scipy.stats import t

    return float(t.ppf(0.975, freedom) * error) if freedom > 0 else float("inf")


def over_seeds(says: str, values: Sequence[float], *, source: str = "", reference: str = "") -> Claim:
    """A claim about a mean over independent repetitions: Student's t interval.

    Args:
        says: the claim, in words.
        values: one a repetition, such as a seed; what should be above 0.
        source: paper and figure.
        reference: what the source found.

    Returns:
        The claim. With fewer than two values its interval is unbounded, so it is inconclusive.

    Example:
        >>> over_seeds("it grows", [0.9, 1.0, 1.1]).verdict, over_seeds("it grows", [1.0]).verdict
        ('holds', 'inconclusive')
    """
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    if len(found) < 2:
        value = float(found.mean()) if len(found) else float("nan")
        return Claim(says, value, float("-inf"), float("inf"), len(found), source, reference)
    half = half_width(float(found.std(ddof=1)) / len(found) ** 0.5, len(found) - 1)
    mean = float(found.mean())
    return Claim(says, mean, mean - half, mean + half, len(found), source, reference)


def said(rows: Sequence[Row]) -> str:
    """The claims of a study as the terminal shows them.

    Args:
        rows: of a results table; others are passed over.

    Returns:
        A line a claim: verdict, words, what should be above 0 with its interval.

    Example:
        >>> print(said([over_seeds("it grows", [0.9, 1.0, 1.1]).row("net", "epochs")]))
        epochs
          holds          it grows: 1 [0.752, 1.25]
    """
    lines: list[str] = []
    regime = None
    for row in rows:
        if row.kind == KIND:
            if row.regime != regime:
                lines.append(row.regime)
                regime = row.regime
            claim = claim_of(row)
            lines.append(
                f"  {claim.verdict:<14} {claim.says}: {claim.value:.3g} [{claim.low:.3g}, {claim.high:.3g}]"
            )
    return "\n".join(lines)
