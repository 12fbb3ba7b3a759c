"""A verdict on each pair of models, in words and with the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergescope.merging.differences import grouped
from mergescope.merging.findings import Finding, Verdict
from mergescope.weights.geometry import Geometry
from mergescope.weights.relation import DESCENDS, UNRELATED, Relation, relation


def verdicts(found: Geometry, has_base: bool) -> list[Verdict]:
    """Judge every pair.

    Args:
        found: what was measured, against the base or, without one, against the first model.
        has_base: whether the first is a base.

    Returns:
        A verdict for each model and the base, then one for each pair of models.
    """
    names = (found.base, *found.models)
    count = len(names)
    out = []
    if has_base:
        for k in range(1, count):
            how = relation(found, 0, k)
            out.append(Verdict(names[k], names[0], how, _of_base(names[k], names[0], how)))
    cosines, conflicts = found.total.cosines, found.total.conflicts
    first = 1 if has_base else 0
    for i in range(first, count):
        for j in range(i + 1, count):
            how = relation(found, i, j)
            # Without a base there are no task vectors; that of a model that equals it has no direction.
            if not has_base or not found.total.moved(i - 1, j - 1):
                out.append(Verdict(names[i], names[j], how, _of_pair(how)))
                continue
            cosine, conflict = float(cosines[i - 1, j - 1]), float(conflicts[i - 1, j - 1])
            reason = _of_pair(how)
            if math.isfinite(cosine) and how.word not in {"unrelated", "unknown"}:
                reason += (
                    f" Task vectors: cosine {cosine:.3f}; opposite signs in {conflict:.1%} of the entries that both "
                    "changed."
                )
            out.append(Verdict(names[i], names[j], how, reason, cosine, conflict))
    return out


def _numbers(how: Relation) -> str:
    matrices = "one matrix" if how.matrices == 1 else f"{how.matrices} matrices"
    return f"median cosine of {matrices} {how.cosine:.4f}, relative distance {how.distance:.3g}"


def _of_base(model: str, base: str, how: Relation) -> str:
    if how.word == "identical":
        return f"Every weight of {model} equals {base}'s: its task vector is zero."
    if how.word == "unknown":
        return _unknown(how)
    return {
        "descends": f"{model} is a fine-tune of {base}, or both are close kin: {_numbers(how)} (at least {DESCENDS}).",
        "related": f"{model} shares an origin with {base} but went far: {_numbers(how)} (below {DESCENDS}).",
        "unrelated": f"{model} does not descend from {base}: {_numbers(how)}; matrices initialised apart have cosines "
        f"around 0 (below {UNRELATED}).",
    }[how.word]


def _of_pair(how: Relation) -> str:
    if how.word == "identical":
        return "Every weight is equal."
    if how.word == "unknown":
        return _unknown(how)
    return {
        "descends": f"One origin: {_numbers(how)} (at least {DESCENDS}).",
        "related": f"One origin, but far from one another: {_numbers(how)} (below {DESCENDS}).",
        "unrelated": f"No common origin: {_numbers(how)} (below {UNRELATED}, as for networks initialised apart).",
    }[how.word]


def _unknown(how: Relation) -> str:
    if math.isnan(how.distance):
        return "Not judged: there are NaN or infinite weights."
    return f"Not judged: no weight matrix is large enough. Relative distance {how.distance:.3g}."


def relation_findings(found: Sequence[Verdict], has_base: bool, stacked: bool = False) -> list[Finding]:
    """What the verdicts mean for a merge.

    Args:
        found: from [`verdicts`][mergescope.merging.relations.verdicts].
        has_base: whether there is a base.
        stacked: the recipe stacks layers and averages nothing, so models need no common origin.

    Returns:
        The findings; pairs are passed over where their verdict follows from that on the base.
    """
    out = []
    strangers: set[str] = set()
    base = found[0].other if has_base and found else None
    for verdict in found:
        how, to_base = verdict.relation, verdict.other == base and verdict.model != base
        pair = f"{verdict.model} and {verdict.other}"
        if how.word == "unrelated":
            if to_base:
                strangers.add(verdict.model)
            elif strangers & {verdict.model, verdict.other}:
                continue
            told = verdict.reason if to_base else f"{pair}: {verdict.reason}"
            told += "" if stacked else " Adding or averaging such weights destroys both models."
            out.append(Finding("note" if stacked else "error", "relation", told))
        elif how.word == "identical":
            told = verdict.reason if to_base else f"{pair} are the same model: in a merge it counts twice."
            out.append(Finding("warning", "relation", told))
        elif how.word == "related" and (to_base or not has_base):
            told = verdict.reason if to_base else f"{pair}: {verdict.reason}"
            out.append(Finding("warning", "relation", told))
        elif how.word == "unknown" and not math.isnan(how.distance) and (to_base or not has_base):
            out.append(Finding("warning", "relation", f"{pair}: {verdict.reason}"))
        elif not to_base and strangers >= {verdict.model, verdict.other}:
            out.append(Finding(
                "note", "relation", f"{pair} share an origin, but it is not {base}: name the base that they come from.",
            ))  # fmt: skip
        if how.apart and (to_base or not has_base):
            out.append(Finding(
                "warning", "relation", f"{pair} are related, but not in {grouped(how.apart)}: replaced or trained "
                "anew, as heads are. Such tensors can't be averaged with sense.", how.apart,
            ))  # fmt: skip
    return out
