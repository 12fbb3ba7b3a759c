"""Why features are linear between two models or not, in words: which layer breaks, and by itself or not."""

from __future__ import annotations

import math

from mergescope.models.layers import OUTPUT
from mergescope.protocols.barrier import Barrier
from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS, LayerLinearity, Linearity


def reason(found: Linearity, local: Linearity | None = None, along: Barrier | None = None) -> str:
    """What decides a verdict.

    Args:
        found: linearity of every layer.
        local: the same with the base's input to every layer, if that was measured.
        along: loss along the line, if there are labels or next tokens.

    Returns:
        One to four sentences with the layers that decide and their figures.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((2, 3, 2))
        >>> a, b = (ms.Checkpoint(net.state_dict(), name=name) for name in "ab")
        >>> traced = ms.trace([a], [torch.ones(4, 2)], net, layers="output")
        >>> reason(ms.linearity(traced, ms.ctl(a, b))).split(". ")[0]
        'Lowest cos 1.000 at output (baseline 1.000), coef furthest from 1: 1.000 at output'
    """
    verdict = found.verdict
    evidence = found.evidence
    if not evidence:
        return f"There is {verdict.reason}."
    sentences = [f"{verdict.reason[0].upper()}{verdict.reason[1:]}."]
    for measure in ("cos", "coef"):
        broken = next((entry for entry in evidence if not _holds(measure, entry)), None)
        if broken is not None:
            sentences.append(_blame(measure, broken, local))
            break
    close = [entry.layer for entry in evidence if not _beats(entry)]
    if close:
        others = f" (and {len(close) - 1} more)" if len(close) > 1 else ""
        sentences.append(
            f"At {close[0]}{others}, cos is not clearly above the baseline, the cos between the two models' own "
            "features."
        )
    if along is not None and math.isfinite(along.loss_barrier):
        sentences.append(
            f"Loss barrier {along.loss_barrier:+.3f} (largest excess above the line between both ends)."
        )
    return " ".join(sentences)


def _off(measure: str, entry: LayerLinearity) -> float:
    return 1 - entry.measures["cos"].mean if measure == "cos" else abs(entry.measures["coef"].mean - 1)


def _holds(measure: str, entry: LayerLinearity) -> bool:
    # As the verdict asks.
    if measure == "cos":
        return entry.measures["cos"].mean >= COS_HOLDS
    return abs(entry.measures["coef"].mean - 1) <= COEF_HOLDS


def _beats(entry: LayerLinearity) -> bool:
    baseline = entry.measures["baseline"]
    return not baseline.n or entry.measures["cos"].low > baseline.high


def _blame(measure: str, broken: LayerLinearity, local: Linearity | None) -> str:
    what = f"below {COS_HOLDS:g}" if measure == "cos" else f"more than {COEF_HOLDS:g} from 1"
    if broken.layer == OUTPUT:  # it is the last, and no layer that could be fed anything
        return f"Only the output's {measure} is {what}."
    first = f"The first layer whose {measure} is {what} is {broken.layer}"
    alone = [] if local is None else local.evidence
    own = next((entry for entry in alone if entry.layer == broken.layer), None)
    if own is None:
        return f"{first}."
    fed = f"fed the base's input, its {measure} is {own.measures[measure].mean:.3f}"
    if not _holds(measure, own):
        return f"{first}, and it breaks by itself: {fed}."
    worst = max(alone, key=lambda entry: _off(measure, entry))
    return (
        f"{first}, though by itself it is linear enough ({fed}): what the layers before it deviate adds up. By itself "
        f"the least linear layer is {worst.layer} ({worst.measures[measure].mean:.3f})."
    )
