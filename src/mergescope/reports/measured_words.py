"""What a measurement says in words: every sentence follows from its numbers by a rule."""

from __future__ import annotations

import math

from mergescope.reports.measured import FINE_TUNES, STATUS, UNKNOWN, WITH_BASE, Measured, badness
from mergescope.reports.tables import number


def headline(found: Measured) -> tuple[str, str]:
    """The verdict on all pairs of fine-tunes (without any, on those with the base) in a sentence.

    Args:
        found: the measurement.

    Returns:
        ``"holds"``, ``"partly"``, ``"fails"`` or ``"unknown"``, and the sentence.
    """
    kind = found.kinds[0]
    pairs = found.of_kind(kind)
    holding = sum(pair.word == "CTL holds" for pair in pairs)
    judged = sum(pair.word != UNKNOWN for pair in pairs)
    status = (
        "unknown" if not judged else "holds" if holding == len(pairs) else "partly" if holding else "fails"
    )
    return status, _counted(found, kind)


def _counted(found: Measured, kind: str) -> str:
    pairs = found.of_kind(kind)
    words = [pair.word for pair in pairs]
    one = {FINE_TUNES: "the pair of fine-tunes", WITH_BASE: "base and fine-tune"}[kind]
    many = {FINE_TUNES: "pairs of fine-tunes", WITH_BASE: "pairs of base and fine-tune"}[kind]
    holding = words.count("CTL holds")
    if words.count(UNKNOWN) == len(words):
        return f"No verdict on {one if len(words) == 1 else f'any of {len(words)} {many}'}: no layer is evidence."
    if len(words) == 1:
        text = f"CTL {'holds' if holding else 'does not hold'} for {one}"
    elif holding == len(words):
        text = f"CTL holds for all {len(words)} {many}"
    else:
        text = f"CTL holds for {holding or 'none'} of {len(words)} {many}"
    details = [f"{word}: {words.count(word)}" for word in STATUS if word != "CTL holds" and word in words]
    passed, tested = found.holding(kind)
    if tested > len(words):
        details.append(f"{passed} of {tested} tests over all α")
    if any(pair.linearized for pair in pairs):
        details.append("in the linearised network, by construction")
    return f"{text} at α = {found.alpha:g}" + (f" ({'; '.join(details)})." if details else ".")


def sentences(found: Measured) -> list[str]:
    """What stands behind the headline, with its numbers.

    Args:
        found: the measurement.

    Returns:
        Sentences.
    """
    kind = found.kinds[0]
    said = [_counted(found, other) for other in found.kinds if other != kind]
    pairs = found.of_kind(kind)
    low, off = (
        max(
            ((pair, row) for pair in pairs if (row := found.worst(pair, measure)) is not None),
            key=lambda entry: badness(entry[1].measure, entry[1].mean),
            default=None,
        )
        for measure in ("cos", "coef")
    )
    if low is not None and off is not None:
        baseline = found.mean(low[0], "baseline", low[1].layer)
        said.append(
            f"Lowest cos {number(low[1].mean)} ({low[0].name}, {low[1].layer}; baseline {number(baseline)}), "
            f"coef furthest from 1: {number(off[1].mean)} ({off[0].name}, {off[1].layer})."
        )
    barriers = [(found.barrier(pair), pair.name) for pair in pairs if math.isfinite(found.barrier(pair))]
    if barriers:
        value, name = max(barriers)
        said.append(
            f"Largest loss barrier {number(value, sign=True)} ({name})."
            if value > 0
            else "No loss barrier on any line between two models."
        )
    return said
