"""What the rules of a file say of models that are to be merged, and how much that is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError, did_you_mean
from mergescope.merging.findings import plain
from mergescope.protocols.mergeability.predictors import KNOWN, PREDICTORS
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

    Where the figure of the rule does not reliably tell more than the number of models, has no value, or told less than
    that on left-out networks and this network is none of those that were validated, the number of models is left.

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
    models, name = round(figures["models"]), said["rule"]["predictor"]
    foreign = network is not None and network not in file["networks"] and said["networks_mae"] is not None
    instead = _reason(file, said, figures, foreign)
    rule = Rule(**said["fallback" if instead else "rule"])
    value = rule(models, 0.0 if instead else figures[name])
    error = said["controls"]["models"][0] if instead else said["mae"][0]
    if foreign:
        error = said["networks_models_mae" if instead else "networks_mae"]
    outside = _outside(file, rule, models, None if instead else figures[name], network, linearized)
    text = f"Expected {_OF[outcome]}: {value:.2f} ± {error:.2f} (rule: {instead or _validated(file, said, figures)})."
    if not instead and not said["beats_all_controls"]:
        text += " It is not reliably better than all of these."
    if not instead and said["networks_mae"] is not None and not foreign:
        text += (
            f" On networks left out, the figure chosen without them, it errs by {said['networks_mae']:.2f}, the number "
            f"of models alone by {said['networks_models_mae']:.2f}."
        )
    if instead:
        text += " Better measure the merge itself: mergescope evaluate."
    if outside:
        text += f" Outside of what was validated: {'; '.join(outside)}."
    return Expected(
        outcome, value, error, None if instead else name, not instead, not outside, f"{text} See {PAGE}."
    )


def _reason(
    file: Mapping[str, Any], said: Mapping[str, Any], figures: Mapping[str, float], foreign: bool
) -> str | None:
    # Why the number of models is all that is gone by; None if the figure is.
    name, alone = said["rule"]["predictor"], "the number of models alone"
    if not said["helps"]:
        return f"{alone}; nothing known from {said['level']} reliably told more on left-out tasks of {_many(file)}"
    if not math.isfinite(figures.get(name, math.nan)):
        return f"{alone}; {PREDICTORS[name].title}, which tells more, has no value here"
    if foreign and said["networks_mae"] >= said["networks_models_mae"]:
        erred = f"{PREDICTORS[name].title} erred by {said['networks_mae']:.2f}"
        return f"{alone}; on left-out networks {erred}, more than that"
    return None


def _validated(file: Mapping[str, Any], said: Mapping[str, Any], figures: Mapping[str, float]) -> str:
    name, controls = said["rule"]["predictor"], said["controls"]
    base = f", with the base's own accuracy {controls['base'][0]:.2f}" if "base" in controls else ""
    return (
        f"{PREDICTORS[name].title} {figures[name]:.3g} and the number of models; mean error on left-out tasks of "
        f"{_many(file)} {said['mae'][0]:.2f}, of the number of models alone {controls['models'][0]:.2f}{base}"
    )


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
