"""The verdict in words: every sentence follows from the numbers by a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.results import Results
from mergescope.studies.rundir import Row

Family = tuple[str, str]

RULE = (
    f"CTL holds for a pair if the mean cos is at least {COS_HOLDS:g} and the mean coef within {COEF_HOLDS:g} of 1, "
    "at every layer that is not trivial. LLFC asks for the cosines only."
)
"""What "holds" means, for captions."""


@dataclass(frozen=True)
class FamilyVerdict:
    """What one network, fine-tuned in one way, shows.

    Attributes:
        network: architecture.
        regime: how it was fine-tuned.
        status: ``"holds"``, ``"partly"``, ``"fails"`` or ``"unknown"``.
        headline: the verdict and how many pairs it stands on.
        reasons: sentences with the numbers behind it.
    """

    network: str
    regime: str
    status: str
    headline: str
    reasons: tuple[str, ...]


def verdict_sentences(rows: Sequence[Row]) -> list[str]:
    """The verdict on every network and regime, in plain words with its numbers.

    Args:
        rows: the results of a run.

    Returns:
        One string a network and regime, each a few sentences.
    """
    return [
        f"{verdict.network}, {verdict.regime}: {' '.join((verdict.headline, *verdict.reasons))}"
        for verdict in verdicts(Results(rows))
    ]


def verdicts(results: Results) -> list[FamilyVerdict]:
    """The verdict on every network and regime.

    Args:
        results: of a run.

    Returns:
        One verdict a family.
    """
    out = []
    for family in results.families:
        status, headline = _headline(results, family)
        reasons = [_numbers, _barrier, _accuracy, null_init_sentence, null_random_sentence]
        sentences = (rule(results, family) for rule in reasons)
        out.append(FamilyVerdict(*family, status, headline, tuple(text for text in sentences if text)))
    return out


def pairs_holding(results: Results, family: Family, measure: str, at: float | None = None) -> tuple[int, int]:
    """How many CTL tests pass.

    Args:
        results: of a run.
        family: network and regime.
        measure: ``"CTL holds"``, ``"LLFC holds"`` or ``"beats baseline"``.
        at: only this alpha.

    Returns:
        Passed, tested.
    """
    found = [row.mean for row in results.select(family, "ctl", measure, at=at) if math.isfinite(row.mean)]
    return sum(value > 0.5 for value in found), len(found)


def worst_layer(results: Results, family: Family) -> str | None:
    """The layer with the lowest cos, mean over pairs, trivial layers left out.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        Its name; None if no layer has a value.
    """
    found = {
        layer: results.spread(family, "ctl", "cos", at=results.alpha, layer=layer).mean
        for layer in results.evidence(family[0])
    }
    live = {layer: value for layer, value in found.items() if math.isfinite(value)}
    return min(live, key=lambda layer: live[layer]) if live else None


def headline_of_regimes(results: Results, rates: dict[Family, float]) -> tuple[str, list[str]]:
    """Title and sentences that compare the regimes.

    Args:
        results: of a run.
        rates: learning rate of each network and regime, if the regimes of a network differ in
            nothing else; empty otherwise.

    Returns:
        ``"The learning rate decides"`` if for every network the share of CTL tests that hold
        falls by a quarter or more from the lowest to the highest learning rate; a neutral title
        otherwise. Then a sentence a network with the counts.
    """
    counts = {family: pairs_holding(results, family, "CTL holds") for family in results.families}
    parts, falls = [], []
    for network in results.networks:
        families = [family for family in results.families if family[0] == network and counts[family][1]]
        said = []
        for family in families:
            rate = f" (learning rate {rates[family]:g})" if family in rates else ""
            said.append(f"{counts[family][0]} of {counts[family][1]} tests in the regime “{family[1]}”{rate}")
        if said:
            parts.append(f"{network}: CTL holds in {', in '.join(said)}.")
        known = sorted((family for family in families if family in rates), key=lambda family: rates[family])
        if len(known) > 1:
            shares = [counts[family][0] / counts[family][1] for family in (known[0], known[-1])]
            falls.append(shares[0] - shares[1] >= 0.25)
        else:
            falls.append(False)
    title = "The learning rate decides" if falls and all(falls) else "Linearity by layer and regime"
    return title, parts


def _headline(results: Results, family: Family) -> tuple[str, str]:
    holding, pairs = pairs_holding(results, family, "CTL holds", results.alpha)
    if not pairs:
        return "unknown", "No verdict: no pair has one."
    at = f"at α = {results.alpha:g}"
    if holding == pairs:
        status = "holds"
        text = f"CTL holds for {_all(pairs)} {at}"
    elif holding:
        status, text = "partly", f"CTL holds for {holding} of {pairs} pairs {at}"
    else:
        status, text = (
            "fails",
            f"CTL does not hold for {'the pair' if pairs == 1 else f'any of {pairs} pairs'} {at}",
        )
    details = []
    every, tests = pairs_holding(results, family, "CTL holds")
    if tests > pairs:
        details.append(f"{every} of {tests} tests over all α")
    if holding < pairs:
        details.append(
            f"LLFC for {pairs_holding(results, family, 'LLFC holds', results.alpha)[0]} of {pairs}"
        )
    return status, text + (f" ({'; '.join(details)})" if details else "") + "."


def _all(pairs: int) -> str:
    return "the only pair" if pairs == 1 else f"all {pairs} pairs"


def _numbers(results: Results, family: Family) -> str:
    layers = results.evidence(family[0])
    cosines, coefficients = (
        [
            row
            for row in results.select(family, "ctl", measure, at=results.alpha)
            if row.layer in layers and math.isfinite(row.mean)
        ]
        for measure in ("cos", "coef")
    )
    if not cosines or not coefficients:
        return "No layer has live features that are evidence."
    low = min(cosines, key=lambda row: row.mean)
    off = max(coefficients, key=lambda row: abs(row.mean - 1))
    place = {"points": low.points, "layer": low.layer}
    baseline = results.spread(family, "ctl", "baseline", at=results.alpha, **place).mean
    return (
        f"Lowest cos {_number(low.mean)} ({low.layer}, {low.points}; baseline {_number(baseline)}), "
        f"coef furthest from 1: {_number(off.mean)} ({off.layer}, {off.points})."
    )


def _barrier(results: Results, family: Family) -> str:
    found = [row for row in results.select(family, "barrier", "error") if math.isfinite(row.mean)]
    if not found:
        return ""
    worst = max(found, key=lambda row: row.mean)
    if worst.mean <= 0:
        return "No error barrier on any line between two models."
    return f"Largest error barrier {100 * worst.mean:.1f} percentage points ({worst.points})."


def _accuracy(results: Results, family: Family) -> str:
    said = []
    for start in ("average", "task arithmetic", "ensemble"):
        label = results.model(family, start)
        value = (
            math.nan
            if label is None
            else results.value(family, "accuracy", "normalised accuracy", points=label)
        )
        if math.isfinite(value):
            said.append(f"{label} {value:.2f}")
    if not said:
        return ""
    tried = results.select(family, "lambda-search", "normalised accuracy")
    best = min(
        (row for row in tried if math.isfinite(row.mean)),
        key=lambda row: (-row.mean, row.parameter),
        default=None,
    )
    at_end = best is not None and len(tried) > 1 and best.parameter == max(row.parameter for row in tried)
    end = " The λ chosen is the largest tried; a larger one might be better." if at_end else ""
    return f"Normalised accuracy: {', '.join(said)}.{end}"


def null_init_sentence(results: Results, family: Family) -> str:
    """What the pair with another initialisation shows.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        A sentence with the numbers; empty if it was not measured.
    """
    compared = _compare(results, family, "null-init", "cos")
    if not compared:
        return ""
    below = [layer for layer, (null, ours) in compared.items() if null < ours]
    layer = min(compared, key=lambda name: compared[name][0])
    null, ours = compared[layer]
    coef = results.value(family, "null-init", "coef", layer=layer)
    pair = results.select(family, "null-init", "cos")[0].points
    text = (
        f"{pair} with the second model from another initialisation: cos is lower at {len(below)} of "
        f"{len(compared)} layers "
        f"({layer}: {_number(null)} instead of {_number(ours)}, coef {_number(coef)})"
    )
    gaps = _compare(results, family, "null-init", "gap_between")
    smaller = [name for name, (theirs, mine) in gaps.items() if theirs <= mine]
    if smaller and below:
        return (
            f"{text}. Relative to the distance between the models its gap is no larger at {len(smaller)} of "
            f"{len(gaps)} layers, so the two measures disagree on how much the common start matters."
        )
    if len(below) == len(compared):
        return text + ". The common start matters."
    if not below:
        return text + ". The common start makes no difference here."
    return text + ". The common start matters at some layers only."


def null_random_sentence(results: Results, family: Family) -> str:
    """What random directions of the same norm show.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        A sentence with the numbers; empty if they were not measured.
    """
    gaps = _compare(results, family, "null-random", "gap_between")
    if not gaps:
        return ""
    baselines = _compare(results, family, "null-random", "baseline")
    smaller = [layer for layer, (null, ours) in gaps.items() if null <= ours]
    still = [layer for layer, (null, ours) in baselines.items() if null > ours]
    layer = max(gaps, key=lambda name: gaps[name][1])
    text = (
        f"Random directions of the same norm have a smaller gap for the distance they cover at {len(smaller)} of "
        f"{len(gaps)} layers ({layer}: {_number(gaps[layer][0])} against {_number(gaps[layer][1])})"
    )
    if not smaller:
        return text + ": the fine-tuned directions are more linear than random ones."
    if len(smaller) < len(gaps):
        return text + ": neither is more linear throughout."
    if baselines and len(still) == len(baselines):
        least = math.floor(1000 * min(null for null, _ in baselines.values())) / 1000
        return (
            text
            + f"; they also move the features less (baseline at least {_number(least)}), and short steps look "
            "straight. So this run does not show that fine-tuned directions are special."
        )
    return text + ". So this run does not show that fine-tuned directions are special."


def _compare(results: Results, family: Family, kind: str, measure: str) -> dict[str, tuple[float, float]]:
    # Null and fine-tuned value of the same pair at the same alpha, by layer that is evidence.
    out = {}
    for row in results.select(family, kind, measure):
        ours = results.select(family, "ctl", measure, at=row.parameter, points=row.points, layer=row.layer)
        if ours and row.layer in results.evidence(family[0]) and math.isfinite(row.mean + ours[0].mean):
            out[row.layer] = (row.mean, ours[0].mean)
    return out


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "unknown"
