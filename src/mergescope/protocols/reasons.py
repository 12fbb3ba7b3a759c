"""Why features are linear between two models or not, in words: which layer breaks, and by itself or not."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> a, b = (ms.Checkpoint({"0.weight": w * torch.eye(2), "0.bias": torch.zeros(2)}, name=n)
        ...         for n, w in (("a", 1.0), ("b", -1.0)))
        >>> test = ms.ctl(a, b)
        >>> traced = ms.trace(test.points, [torch.tensor([[2.0, -3.0]])], net, layers=["0", "1"])
        >>> reason(ms.linearity(traced, test))
        'There is no layer with live, non-trivial features.'
    """
    verdict = found.verdict
    evidence = _evidence(found)
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
            f"Loss barrier (largest excess of the loss above the line between both ends): {along.loss_barrier:+.3f}."
        )
    return " ".join(sentences)


def _evidence(found: Linearity) -> list[LayerLinearity]:
    return [entry for entry in found.layers if not entry.trivial and entry.measures["cos"].n]


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
    first = f"The first layer whose {measure} is {what} is {broken.layer}"
    alone = [] if local is None else _evidence(local)
    own = next((entry for entry in alone if entry.layer == broken.layer), None)
    if own is None:  # nothing was fed the base's input, or the output, which is no layer that could be
        return f"{first}."
    fed = f"fed the base's input, its {measure} is {own.measures[measure].mean:.3f}"
    if not _holds(measure, own):
        return f"{first}, and it breaks by itself: {fed}."
    worst = _worst(measure, alone)
    least = "this is also the least linear one by itself" if worst is own else (
        f"by itself the least linear layer is {worst.layer} ({worst.measures[measure].mean:.3f})"
    )  # fmt: skip
    return f"{first}, though by itself it is linear enough ({fed}): what the layers before it deviate adds up; {least}."


def _worst(measure: str, entries: Sequence[LayerLinearity]) -> LayerLinearity:
    return max(entries, key=lambda entry: _off(measure, entry))
