"""What the rules of a file say of models that are to be merged, and how much that is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError, did_you_mean
from mergescope.plain import plain
from mergescope.protocols.mergeability.predictors import CONTROLS, KNOWN, PREDICTORS
from mergescope.protocols.mergeability.rule_file import FILE, read_rules
from mergescope.protocols.mergeability.rules import Rule

PAGE = "docs/results/mergeability.md"
"""Where the validation is told."""

_OF = {
    "average": "normalised accuracy of the average",
    "task_arithmetic": "normalised accuracy of tuned task arithmetic",
    "ties": "normalised accuracy of tuned TIES",
    "recovered": "share of the gain that the average keeps",
}


@dataclass(frozen=True)
class Expected:
    """What a rule says of models that are to be merged.

    Attributes:
        outcome: what is told.
        value: expected outcome.
        error: mean absolute error of such predictions on left-out tasks; on left-out networks if the network is none of
            those that were validated.
        predictor: the figure that it is read off; None for the number of models alone.
        helps: whether the figure tells more than the number of models does.
        inside: whether models, figure and network are within what was validated.
        text: all of it in words.
    """

    outcome: str
    value: float
    error: float
    predictor: str | None
    helps: bool
    inside: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON.

        Returns:
            Plain values.
        """
        return dict(plain(asdict(self)))


def expected(
    level: str,
    figures: Mapping[str, float],
    network: str | None = None,
    *,
    linearized: bool = False,
    outcome: str = "average",
    path: Path = FILE,
) -> Expected | None:
    """What to expect of a merge.

    The rule of the level's figure is used if it reliably tells more than the number of models, and the figure is known;
    for a network that is none of those that were validated, also only if it told more on left-out networks. Then comes
    the base's own normalised accuracy on the same terms, where ``figures`` have it (``base``); it goes first where the
    figure was not better than it. Else the number of models is left.

    Args:
        level: what is known: ``"weights"``, ``"features"`` or ``"derivatives"``.
        figures: name of a predictor to its value, with ``models``, how many there are.
        network: name of the network; None if it is not known.
        linearized: whether the models run in a linearised network, where no rule was validated.
        outcome: what is to be told.
        path: the rule file.

    Returns:
        The expectation; None if the file has no rule of that kind.

    Raises:
        StudyError: there is no such level, or the file can't be read.

    Example:
        >>> expected("features", {"models": 2.0}).outcome
        'average'
    """
    if level not in KNOWN:
        raise StudyError(
            f"There are no rules from {level!r}.{did_you_mean(level, KNOWN)} Choose one of {', '.join(KNOWN)}."
        )
    file = read_rules(path)
    said = next((it for it in file["rules"] if (it["level"], it["outcome"]) == (level, outcome)), None)
    if said is None:
        return None
    models = round(figures["models"])
    foreign = network is not None and network not in file["networks"] and said["networks_mae"] is not None
    used = _used(said, figures, foreign)
    rule = Rule(**used["rule"])
    name = rule.predictor
    value = rule(models, 0.0 if name is None else figures[name])
    error = used["networks_mae"] if foreign else used["mae"][0]
    outside = _outside(file, rule, models, None if name is None else figures[name], network, linearized)
    text = f"Expected {_OF[outcome]}: {value:.2f} ± {error:.2f} (rule: {_told(file, said, rule, figures)})."
    if name not in (None, "base") and not said["beats_all_controls"]:
        text += " It is not reliably better than all of these."
    if name is not None and used["networks_mae"] is not None and not foreign:
        text += (
            f" On networks left out it errs by {used['networks_mae']:.2f}, the number of models alone by "
            f"{said['networks_models_mae']:.2f}."
        )
    if name is None:
        text += " Better measure the merge itself: mergescope evaluate."
    if outside:
        text += f" Outside of what was validated: {'; '.join(outside)}."
    return Expected(outcome, value, error, name, name is not None, not outside, f"{text} See {PAGE}.")


def _used(said: Mapping[str, Any], figures: Mapping[str, float], foreign: bool) -> Mapping[str, Any]:
    # The rule that is gone by, with its errors.
    alone = {
        "rule": said["fallback"], "mae": said["controls"]["models"], "networks_mae": said["networks_models_mae"],
    }  # fmt: skip
    ways = [said, said["base"]] if said["beats_all_controls"] else [said["base"], said]
    for way in ways:
        if (
            way is None
            or not way["helps"]
            or not math.isfinite(figures.get(way["rule"]["predictor"], math.nan))
        ):
            continue
        if not foreign or way["networks_mae"] < said["networks_models_mae"]:
            return way
    return alone


def _told(file: Mapping[str, Any], said: Mapping[str, Any], rule: Rule, figures: Mapping[str, float]) -> str:
    own, controls = said["rule"]["predictor"], said["controls"]
    mean = f"mean error on left-out tasks of {_many(file)}"
    alone = f"of the number of models alone {controls['models'][0]:.2f}"
    if rule.predictor == "base":
        errs = f"{mean} {said['base']['mae'][0]:.2f}, {alone}"
        text = f"{CONTROLS['base']} {figures['base']:.2f} and the number of models; {errs}"
        return (
            text
            if said["beats_all_controls"]
            else f"{text}; nothing known from {said['level']} reliably told more"
        )
    if rule.predictor is not None:
        base = f", with {CONTROLS['base']} {controls['base'][0]:.2f}" if "base" in controls else ""
        title = f"{PREDICTORS[rule.predictor].title} {figures[rule.predictor]:.3g}"
        return f"{title} and the number of models; {mean} {said['mae'][0]:.2f}, {alone}{base}"
    text = f"the number of models alone, {mean} {controls['models'][0]:.2f}"
    if not said["helps"]:
        return f"{text}; nothing known from {said['level']} reliably told more"
    if not math.isfinite(figures.get(own, math.nan)):
        return f"{text}; {PREDICTORS[own].title}, which tells more, has no value here"
    return f"{text}; on left-out networks {PREDICTORS[own].title} erred by {said['networks_mae']:.2f}, more than that"


def _many(file: Mapping[str, Any]) -> str:
    count = len(file["families"])
    return f"{count} famil{'y' if count == 1 else 'ies'}"


def _outside(
    file: Mapping[str, Any], rule: Rule, models: int, figure: float | None, network: str | None, linearized: bool
) -> list[str]:  # fmt: skip
    found = []
    if models > rule.most:
        found.append(f"{models} models, at most {rule.most} validated")
    if figure is not None and not rule.low <= figure <= rule.high:
        title = PREDICTORS[str(rule.predictor)].title
        found.append(f"{title} {figure:.3g}, {rule.low:.3g} to {rule.high:.3g} validated")
    if network is not None and network not in file["networks"]:
        found.append(f"the network {network}, {', '.join(file['networks'])} validated")
    if linearized:
        found.append("models of a linearised network")
    return found
