"""What is known of a group before it is merged: from weights, features, derivatives and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from mergescope.models.layers import OUTPUT
from mergescope.protocols.barrier import barrier
from mergescope.protocols.linearity import Linearity, averaging, ctl, linearity
from mergescope.protocols.mergeability.predictors import over_pairs
from mergescope.protocols.prediction import Expansion, interaction, predicted_linearity
from mergescope.tracing import Trace
from mergescope.weights import Point
from mergescope.weights.sums import Sums

NAN = float("nan")


def weight_figures(sums: Sums, places: Sequence[int]) -> dict[str, float]:
    """Figures of a group from sums over the weights alone.

    Args:
        sums: of base and models.
        places: positions of the group's models among them, from 0.

    Returns:
        Name of a predictor to its value.

    Example:
        >>> import torch
        >>> base, a, b = torch.tensor([[3.0, 4.0], [4.0, 4.0], [3.0, 5.0]])
        >>> found = weight_figures(Sums.of(base, [a, b]), [0, 1])
        >>> found["kept"], found["cosine"], round(found["apart"], 4)
        (0.5, 0.0, 0.2828)
    """
    of = [place + 1 for place in places]
    products = sums.products[of][:, of].numpy()
    lengths, base = np.sqrt(np.diagonal(products)), sums.base_norm or NAN
    cosines, conflicts = sums.cosines.numpy(), sums.conflicts.numpy()
    # <tau_i, average> and |tau_i - average|^2, of the average of the group's task vectors.
    along, whole = products.mean(1), float(products.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = along / lengths**2
    spread = np.clip(lengths**2 - 2 * along + whole, 0, None)
    single = {
        "models": float(len(of)), "length": float(lengths.mean()) / base, "kept": float(kept.mean()),
        "lost": float(np.sqrt(spread.mean())) / base,
    }  # fmt: skip
    pairs = []
    for i, j in combinations(range(len(of)), 2):
        squared = products[i, i] + products[j, j] - 2 * products[i, j]
        pairs.append({
            "cosine": float(cosines[places[i], places[j]]), "conflict": float(conflicts[places[i], places[j]]),
            "apart": math.sqrt(max(float(squared), 0.0)) / base,
        })  # fmt: skip
    return {**single, **over_pairs(pairs)}


def linearity_figures(found: Linearity, prefix: str = "") -> dict[str, float]:
    """Gaps of one linearity test: at the output, and at the block where they are largest.

    Args:
        found: measured or predicted.
        prefix: of the names.

    Returns:
        Name to mean over samples; NaN where no layer is evidence.
    """
    layers = {entry.layer: entry.measures for entry in found.evidence}

    def at_both(measure: str) -> tuple[float, float]:
        means = [
            said[measure].mean
            for layer, said in layers.items()
            if layer != OUTPUT and measure in said and said[measure].n
        ]
        output = layers[OUTPUT][measure].mean if OUTPUT in layers and measure in layers[OUTPUT] else NAN
        return output, max(means, default=NAN)

    gap, moved = at_both("gap"), at_both("gap_rel")
    return {
        f"{prefix}gap_output": gap[0], f"{prefix}gap_layer": gap[1], f"{prefix}moved_output": moved[0],
        f"{prefix}moved_layer": moved[1],
    }  # fmt: skip


def more_figures(found: Linearity) -> dict[str, float]:
    """Cosines, coefficients and the baseline of one linearity test, as distances from what is linear.

    Args:
        found: measured.

    Returns:
        Name to figure; NaN where no layer is evidence.
    """
    layers = {entry.layer: entry.measures for entry in found.evidence}
    output, blocks = layers.get(OUTPUT), [said for layer, said in layers.items() if layer != OUTPUT]
    return {
        "cos_output": NAN if output is None else 1 - output["cos"].mean,
        "cos_layer": max((1 - said["cos"].mean for said in blocks), default=NAN),
        "coef_layer": max((abs(said["coef"].mean - 1) for said in blocks), default=NAN),
        "baseline_output": NAN if output is None else 1 - output["baseline"].mean,
    }


def pair_features(traces: Sequence[Trace], base: Point, a: Point, b: Point) -> dict[str, float]:
    """Measured linearity of a pair.

    Args:
        traces: of the data of both, with the pair, its midpoint and the base.
        base: th_0.
        a: a model.
        b: another.

    Returns:
        Name to figure.
    """
    found = linearity(traces, ctl(a, b, 0.5, base), resamples=1)
    return {**linearity_figures(found), **more_figures(found)}


def pair_barriers(traces: Sequence[Trace], a: Point, b: Point) -> dict[str, float]:
    """Barriers of a pair at its midpoint, on labelled data.

    Args:
        traces: of the data of both, with losses.
        a: a model.
        b: another.

    Returns:
        Name to figure.
    """
    found = barrier(traces, a, b, [0.5])
    return {"loss_barrier": found.loss_barrier, "error_barrier": found.error_barrier}


def group_features(traces: Sequence[Trace], base: Point, models: Sequence[Point]) -> dict[str, float]:
    """Measured Eq. 1 gap of a group's average.

    Args:
        traces: of the data of all.
        base: th_0.
        models: the group's.

    Returns:
        Name to figure.
    """
    return linearity_figures(linearity(traces, averaging(models, base), resamples=1), "eq1_")


def pair_derivatives(expansions: Sequence[Expansion], models: Mapping[str, Point]) -> dict[str, float]:
    """Predicted linearity of a pair, and how its task vectors interact.

    Args:
        expansions: of the data of both.
        models: name to model, two of them.

    Returns:
        Name to figure.
    """
    (one, a), (other, b) = models.items()
    found = predicted_linearity(expansions, ctl(a, b, 0.5, expansions[0].base))
    live = {
        it.layer: it.relative.mean
        for it in interaction(expansions, one, other)
        if not it.trivial and it.relative.n
    }
    return {
        **linearity_figures(found, "predicted_"), "interaction_output": live.get(OUTPUT, NAN),
        "interaction_layer": max((value for layer, value in live.items() if layer != OUTPUT), default=NAN),
    }  # fmt: skip


def group_derivatives(expansions: Sequence[Expansion], models: Sequence[Point]) -> dict[str, float]:
    """Predicted Eq. 1 gap of a group's average.

    Args:
        expansions: of the data of all.
        models: the group's.

    Returns:
        Name to figure.
    """
    test = averaging(models, expansions[0].base)
    return linearity_figures(predicted_linearity(expansions, test), "predicted_eq1_")
