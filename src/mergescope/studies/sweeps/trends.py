"""Trends of the root-cause sweeps, tested against what CTL found (Figs 11, 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergescope.studies.claims import Claim, over_seeds
from mergescope.studies.rundir import Row
from mergescope.studies.sweeps.root_causes import (
    FINE_TUNING,
    KIND,
    PRETRAINING,
    TO_EACH_OTHER,
    TO_PRETRAINING,
)

Series = dict[float, float]
"""Value of what varies to a measure's mean over pairs, in one repetition."""

DEVIATION, BASELINE, SCALE = "1 - cos", "1 - cos_ij", "|coef - 1|"
"""Measures that trends are of: deviation from linearity, that of the models' own features, and of the length."""

REFERENCE: Mapping[tuple[str, str, int], Mapping[float, float]] = {
    (PRETRAINING, BASELINE, 0): {0: 0.56, 5: 0.43, 10: 0.35, 20: 0.34},
    (PRETRAINING, DEVIATION, 0): {0: 0.19, 5: 0.09, 10: 0.05, 20: 0.045},
    (PRETRAINING, "coef", 0): {0: 0.93, 5: 1.00, 10: 1.035, 20: 1.04},
    (PRETRAINING, BASELINE, 1): {0: 0.58, 5: 0.53, 10: 0.49, 20: 0.46},
    (PRETRAINING, DEVIATION, 1): {0: 0.27, 5: 0.165, 10: 0.11, 20: 0.10},
    (PRETRAINING, "coef", 1): {0: 0.87, 5: 0.93, 10: 1.00, 20: 1.00},
    (TO_PRETRAINING, DEVIATION, 0): {0: 0.30, 0.5: 0.07, 0.9: 0.03, 1: 0.01},
    (TO_PRETRAINING, "coef", 0): {0: 0.60, 0.5: 0.94, 0.9: 0.99, 1: 1.00},
    (TO_PRETRAINING, DEVIATION, 1): {0: 0.53, 0.5: 0.21, 0.9: 0.12, 1: 0.02},
    (TO_PRETRAINING, "coef", 1): {0: 0.165, 0.5: 0.70, 0.9: 0.79, 1: 1.02},
}
"""CTL's figures, digitised to +-0.01: sweep, measure, first or second shown layer. Fig. 11 is of
Split CIFAR-100, Fig. 12 of Split ImageNet."""


def series(rows: Sequence[Row], sweep: str, layer: str, measure: str) -> list[Series]:
    """A measure along a sweep, in every repetition.

    Args:
        rows: of the study.
        sweep: what varies.
        layer: its name.
        measure: ``coef``, ``1 - cos``, ``1 - cos_ij``, ``|coef - 1|`` or a name in the rows.

    Returns:
        One series a repetition.
    """
    stored = {DEVIATION: "cos", BASELINE: "baseline", SCALE: "coef"}.get(measure, measure)
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if (row.kind, row.regime, row.layer, row.measure) == (KIND, sweep, layer, stored):
            seed = row.points.rpartition(", seed ")[2]
            found.setdefault(seed, {}).setdefault(row.parameter, []).append(_as(measure, row.mean))
    return [
        {value: float(np.mean(each)) for value, each in sorted(values.items())} for values in found.values()
    ]


def _as(measure: str, value: float) -> float:
    if measure in (DEVIATION, BASELINE):
        return 1 - value
    return abs(value - 1) if measure == SCALE else value


def trends(rows: Sequence[Row], layers: Sequence[str]) -> list[Row]:
    """Test CTL's trends: each claim's verdict follows from an interval over repetitions.

    Args:
        rows: of the study.
        layers: the two that CTL shows.

    Returns:
        Rows of claims.
    """
    network = next(row.network for row in rows)
    return [
        claim.row(network, sweep) for layer in layers for sweep, claim in _claims(rows, layer, layers.index(layer))
    ]  # fmt: skip


def _claims(rows: Sequence[Row], layer: str, place: int) -> list[tuple[str, Claim]]:
    def drops(sweep: str, measure: str) -> list[float]:
        return [values[min(values)] - values[max(values)] for values in series(rows, sweep, layer, measure)]

    def said(sweep: str, measure: str) -> str:
        found = REFERENCE.get((sweep, measure, place))
        return "" if found is None else ", ".join(f"{at:g}: {value:g}" for at, value in found.items())

    found = []
    for sweep, figure, measures in (
        (PRETRAINING, "CTL Fig. 11", (DEVIATION, SCALE, BASELINE)),
        (TO_PRETRAINING, "CTL Fig. 12", (DEVIATION, SCALE)),
    ):
        for measure in measures:
            text = f"{layer}: {measure} falls from the smallest to the largest {sweep}"
            shown = said(sweep, "coef" if measure == SCALE else measure)
            found.append((sweep, over_seeds(text, drops(sweep, measure), source=figure, reference=shown)))
        along = series(rows, sweep, layer, DEVIATION)
        if len(along[0]) > 2:  # of two values, the rank correlation is the sign of what is above
            text = f"{layer}: {DEVIATION} falls all along the {sweep} (minus Spearman's correlation)"
            found.append((sweep, over_seeds(text, [-_spearman(values) for values in along], source=figure)))
    for sweep, other, figure in (
        (FINE_TUNING, PRETRAINING, "CTL Fig. 11"),
        (TO_EACH_OTHER, TO_PRETRAINING, "CTL Fig. 12"),
    ):
        changes = zip(drops(other, DEVIATION), drops(sweep, DEVIATION), strict=True)
        values = [abs(large) - abs(small) for large, small in changes]
        text = f"{layer}: varying the {sweep} changes {DEVIATION} less than varying the {other}"
        shown = "0.15, 0.13, 0.15, 0.155 at 1 to 20" if (sweep, place) == (FINE_TUNING, 1) else "nearly flat"
        found.append((sweep, over_seeds(text, values, source=figure, reference=shown)))
    return found


def _spearman(values: Series) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(list(values), list(values.values())).statistic)
