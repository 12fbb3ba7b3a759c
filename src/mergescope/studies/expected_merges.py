"""What the validated rules say of models that ``check``, ``measure`` or ``predict`` look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from mergescope.merging.findings import Report
from mergescope.models.layers import OUTPUT
from mergescope.protocols.measure import Measurement
from mergescope.protocols.mergeability import Expected, expected
from mergescope.protocols.mergeability.collect import body_name, network_name
from mergescope.protocols.mergeability.known import linearity_figures, more_figures, weight_figures
from mergescope.protocols.mergeability.predictors import over_pairs
from mergescope.protocols.prediction import Prediction
from mergescope.studies.given import Given
from mergescope.studies.mergeable import weight_sums
from mergescope.studies.protocol_runs import Opened

LEAST_MODELS = 2
"""A merge has so many fine-tunes or more."""


def expected_of_check(report: Report, base: Any = None) -> Expected | None:
    """From weights alone.

    Args:
        report: of a check.
        base: the base's checkpoint, for the name of the network; or None.

    Returns:
        What to expect of the average; None if the models can't be merged, don't descend from one base, or have none.
    """
    fine = [verdict.relation.word in ("descends", "identical") for verdict in report.verdicts]
    if report.geometry is None or report.base is None or not report.mergeable or not all(fine):
        return None
    count = len(report.geometry.models)
    if count < LEAST_MODELS:
        return None
    said = (getattr(base, "config", None) or {}).get("architectures")
    named = said[0] if isinstance(said, list) and said and isinstance(said[0], str) else None
    figures = weight_figures(report.geometry.total, range(count))
    return expected("weights", figures, None if named is None else body_name(named))


def expected_of_measurement(given: Given, found: Measurement) -> Expected | None:
    """From weights, and features between every two fine-tunes.

    Args:
        given: what was measured.
        found: the measurement.

    Returns:
        What to expect of the average of all; None without a base, or with fewer than two fine-tunes.
    """
    if given.base is None or len(given.models) < LEAST_MODELS:
        return None
    pairs = [pair.propagated[0.5] for pair in found.pairs if pair.kind == "FT–FT" and 0.5 in pair.propagated]
    figures = _weights(given)
    # In a linearised network gaps are rounding, and no rule was validated on them.
    if not found.linearized:
        figures |= over_pairs({**linearity_figures(it), **more_figures(it)} for it in pairs)
    figures["base"] = _base_of_measurement(given, found)
    return expected("features", figures, network_name(given.held[0].model), linearized=found.linearized)


def expected_of_prediction(opened: Opened, found: Prediction) -> Expected | None:
    """From weights and derivatives.

    Args:
        opened: models and data.
        found: the prediction.

    Returns:
        What to expect of the average of all; None with fewer than two fine-tunes.
    """
    names = list(opened.models)
    if len(names) < LEAST_MODELS:
        return None
    tests = {
        test.name: test.predicted for test in found.tests if test.kind == "ctl" and test.parameter == 0.5
    }
    figures = _weights(opened.given)
    pairs = [f"{one} + {other}" for one, other in combinations(names, 2)]
    if all(pair in tests for pair in pairs):
        figures |= over_pairs(
            {**linearity_figures(tests[pair], "predicted_"), **_interaction(found, pair)} for pair in pairs
        )
        groups = [test.predicted for test in found.tests if test.kind == "eq1"] or [tests[pairs[0]]]
        figures |= linearity_figures(groups[0], "predicted_eq1_")
    base = [outcome.normalised.mean for outcome in found.outcomes if outcome.lam == 0]
    figures["base"] = base[0] if base else math.nan
    return expected("derivatives", figures, network_name(opened.given.held[0].model))


def _base_of_measurement(given: Given, found: Measurement) -> float:
    # On the task of every fine-tune, where the data have labels: the base's accuracy over the fine-tune's own.
    ratios = []
    for held in given.held:
        base, own = (
            found.losses.get((str(model), held.name), {}).get("accuracy")
            for model in (found.base, held.owner)
        )
        if held.owner is None or base is None or own is None or not own.mean:
            return math.nan
        ratios.append(base.mean / own.mean)
    return float(np.mean(ratios)) if len(ratios) == len(given.models) else math.nan


def _interaction(found: Prediction, pair: str) -> Mapping[str, float]:
    live = {
        it.layer: it.relative.mean
        for it in found.interactions
        if f"{it.one} + {it.other}" == pair and not it.trivial and it.relative.n
    }
    blocks = [value for layer, value in live.items() if layer != OUTPUT]
    return {"interaction_output": live.get(OUTPUT, np.nan), "interaction_layer": max(blocks, default=np.nan)}


def _weights(given: Given) -> dict[str, float]:
    return weight_figures(weight_sums(given.base, given.models), range(len(given.models)))
