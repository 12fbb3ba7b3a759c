"""An analysis in words: what was found, computed from the numbers, and tables for terminals, notebooks and pandas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.display import Cell, Table, View, figure
from mergescope.protocols.mergeability.case import OUTCOMES
from mergescope.protocols.mergeability.predictors import CONTROLS, PREDICTORS
from mergescope.protocols.mergeability.scores import Number

if TYPE_CHECKING:
    from mergescope.protocols.mergeability.analysis import Analysis, Related, Verdict

COMMANDS = {"weights": "check", "features": "measure", "derivatives": "predict"}
"""What is known, and the command that knows it."""

SHOWN = 12
"""Predictors in a terminal's table."""


def headline(found: Analysis) -> str:
    """The answer in a sentence.

    Args:
        found: the analysis.

    Returns:
        Which rule is better than all controls; or that none is.
    """
    table = found.tables["average"]
    where = f"in {len(table.cases)} cases of {len(set(table.units.tolist()))} families and regimes"
    of_average = [it for it in found.verdicts if it.outcome == "average"]
    better, helping = [it for it in of_average if it.beats], [it for it in of_average if it.helps]
    if not of_average:
        return f"Too few tasks to judge a rule by, {where}."
    if not better:
        text = f"Nothing measured beforehand predicts the average better than all controls do, {where}"
        if not helping:
            return f"{text}."
        best = min(helping, key=lambda it: it.left_tasks.mae.value)
        control = best.best_control
        return (
            f"{text}. Nearest is {_title(best)}, known to mergescope {COMMANDS[best.level]}: on left-out tasks it errs "
            f"by {best.left_tasks.mae.value:.2f}, the number of models alone by "
            f"{best.controls['models'].mae.value:.2f}; the best control, {CONTROLS[control]}, by "
            f"{best.controls[control].mae.value:.2f}."
        )
    best = min(better, key=lambda it: it.left_tasks.mae.value)
    return (
        f"{_title(best)} predicts the average's normalised accuracy on left-out tasks to "
        f"±{best.left_tasks.mae.value:.2f}, {where}; the best control, {CONTROLS[best.best_control]}, to "
        f"±{best.controls[best.best_control].mae.value:.2f}."
    )


def findings(found: Analysis) -> list[str]:
    """What was found, one sentence a thing.

    Args:
        found: the analysis.

    Returns:
        Sentences with their numbers.
    """
    out = [_sizes(found)]
    for level in COMMANDS:
        said = [it for it in found.verdicts if (it.level, it.outcome) == (level, "average")]
        out += [_of_level(found, it) for it in said]
    out += _of_base(found)
    others = [it for it in found.verdicts if it.outcome not in ("average", "recovered")]
    for outcome in dict.fromkeys(it.outcome for it in others):
        out.append(_of_outcome([it for it in others if it.outcome == outcome]))
    out += _of_gap(found)
    inside = [it for it in found.of("average") if np.isfinite(it.within.value) and it.predictor != "base"]
    if inside:
        best = max(inside, key=lambda it: abs(it.within.value))
        out.append(
            f"Within a family and regime, pairs of models are told apart best by {PREDICTORS[best.predictor].title}: "
            f"mean Spearman {best.within} (the largest of {len(inside)} predictors, so too large by chance)."
        )
    return out


def table_lines(found: Analysis) -> list[str]:
    """Rules and predictors as plain text.

    Args:
        found: the analysis.

    Returns:
        Lines.
    """
    lines = [
        "Best rule at each level, judged on left-out tasks",
        f"{'outcome':<16}{'known':<12}{'figure':<52}{'error':>18}{'R^2':>7}{'rank':>7}{'models':>8}{'base':>7}"
        f"{'constant':>10}  better than all",
    ]
    for it in found.verdicts:
        mae, controls = it.left_tasks.mae, {name: score.mae.value for name, score in it.controls.items()}
        lines.append(
            f"{it.outcome:<16}{it.level:<12}{_title(it):<52}{str(mae):>18}{it.left_tasks.r2.value:>7.2f}"
            f"{it.left_tasks.rank:>7.2f}{controls['models']:>8.2f}{controls.get('base', np.nan):>7.2f}"
            f"{controls['constant']:>10.2f}  {'yes' if it.beats else 'no'}"
        )
    lines += [
        "",
        "Predictors of the average, the best on left-out tasks first",
        f"{'predictor':<62}{'Spearman':>22}{'within regimes':>22}{'error':>18}",
    ]
    lines += [
        f"{PREDICTORS[it.predictor].title:<62}{str(it.spearman):>22}{str(it.within):>22}{str(it.left_tasks.mae):>18}"
        for it in found.of("average")[:SHOWN]
    ]
    return lines


def analysis_rows(found: Analysis) -> list[dict[str, Any]]:
    """Correlations and scores as lines of a results table.

    Args:
        found: the analysis.

    Returns:
        Fields of [`Row`][mergescope.studies.rundir.Row], one line a number. Kinds: ``related``, a predictor and an
        outcome; ``rule from LEVEL``, the best rule there. ``points`` names the predictor, ``data`` the outcome.
    """
    table = []
    for one in found.related:
        said = {
            "spearman": one.spearman, "pearson": one.pearson, "spearman of pairs": one.pairs,
            "spearman within": one.within, "error": one.left_tasks.mae, "r2": one.left_tasks.r2,
            "rank": Number(one.left_tasks.rank, math.nan, math.nan),
        }  # fmt: skip
        if one.left_networks is not None:
            said["error, networks left out"] = one.left_networks.mae
        common = {"kind": "related", "points": one.predictor, "data": one.outcome}
        table += [_row(common, name, it, len(found.tables[one.outcome].y)) for name, it in said.items()]
    for verdict in found.verdicts:
        said = {"error": verdict.left_tasks.mae, "r2": verdict.left_tasks.r2}
        said["rank"] = Number(verdict.left_tasks.rank, math.nan, math.nan)
        said |= {f"error of {control}": score.mae for control, score in verdict.controls.items()}
        said |= {f"less than {control}": gain for control, gain in verdict.gained.items()}
        name = verdict.rule.predictor or "models"
        common = {"kind": f"rule from {verdict.level}", "points": name, "data": verdict.outcome}
        table += [_row(common, name, it, verdict.left_tasks.cases) for name, it in said.items()]
    return table


def analysis_view(found: Analysis) -> View:
    """What of an analysis is worth a look.

    Args:
        found: the analysis.

    Returns:
        The answer, the rules, and the best predictors of the average.
    """
    rules = tuple(
        (
            f"{it.outcome}, from {it.level}", _title(it), _cell(it.left_tasks.mae), _cell(it.left_tasks.r2),
            _cell(it.controls["models"].mae), _cell(it.controls["constant"].mae), "yes" if it.beats else "no",
        )
        for it in found.verdicts
    )  # fmt: skip
    predictors = tuple(
        (PREDICTORS[it.predictor].title, _cell(it.spearman), _cell(it.within), _cell(it.left_tasks.mae))
        for it in found.of("average")[:SHOWN]
    )
    tables = (
        Table(
            "Best rule at each level, judged on left-out tasks",
            (
                "outcome",
                "figure",
                "error",
                "R²",
                "number of models alone",
                "constant",
                "better than all controls",
            ),
            rules,
        ),
        Table(
            "Predictors of the average, the best on left-out tasks first",
            ("predictor", "Spearman", "within regimes", "error"),
            predictors,
        ),
    )
    return View(headline(found), tuple(table for table in tables if table.lines), found.notes)


def _row(common: dict[str, str], measure: str, it: Number, count: int) -> dict[str, Any]:
    return {**common, "measure": measure, "mean": it.value, "low": it.low, "high": it.high, "n": count}


def _cell(it: Number) -> Cell:
    return figure(it.value, it.low, it.high)


def _title(it: Verdict) -> str:
    return "the number of models alone" if it.rule.predictor is None else PREDICTORS[it.rule.predictor].title


def _sizes(found: Analysis) -> str:
    table = found.tables["average"]
    sizes = np.array([len(case.models) for case in table.cases])
    means = []
    for size in np.unique(sizes):
        at = sizes == size
        means.append(f"{size} models {np.average(table.y[at], weights=table.weights[at]):.2f}")
    return f"Normalised accuracy of the average, mean over families and regimes: {', '.join(means)}."


def _of_level(found: Analysis, it: Verdict) -> str:
    command, mae = COMMANDS[it.level], it.left_tasks.mae
    controls = {name: score.mae.value for name, score in it.controls.items()}
    alone = f"{controls['models']:.3f}"
    base = f", the base's own normalised accuracy to ±{controls['base']:.3f}" if "base" in controls else ""
    if it.rule.predictor is None:
        text = (
            f"From {it.level} (mergescope {command}) no figure is better on left-out tasks than the number of models "
            f"alone, which errs by {alone}{base}"
        )
    else:
        gain = it.gained["models"]
        verdict = "more than chance" if gain.low > 0 else "not more than chance"
        text = (
            f"From {it.level} (mergescope {command}) the best figure is {_title(it)}: on left-out tasks, with the "
            f"choice made anew for each, it errs by {mae.value:.3f} [{mae.low:.3f}, {mae.high:.3f}] (R² "
            f"{it.left_tasks.r2.value:.2f}), the number of models alone by {alone}{base}; the gain over the number of "
            f"models is {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}], {verdict}"
        )
    if it.left_networks is not None and it.models_on_networks is not None:
        text += (
            f". On networks left out, with the choice made anew, it errs by {it.left_networks.mae.value:.3f}, the "
            f"number of models alone by {it.models_on_networks.mae.value:.3f}"
        )
        same = [one for one in found.of(it.outcome) if one.predictor == it.rule.predictor]
        if same and same[0].left_networks is not None:
            text += (
                f"; {_title(it)}, chosen with all networks in sight but fitted without, by "
                f"{same[0].left_networks.mae.value:.3f}"
            )
    return f"{text}."


def _of_base(found: Analysis) -> list[str]:
    if "average" not in found.bases:
        return []
    it = found.bases["average"]
    verdict = "more than chance" if it.helps else "not more than chance"
    networks = (
        ""
        if it.left_networks is None
        else f"; on networks left out it errs by {it.left_networks.mae.value:.3f}"
    )
    return [
        f"The base's own normalised accuracy, which takes labels but no merge, errs by {it.left_tasks.mae.value:.3f} "
        f"[{it.left_tasks.mae.low:.3f}, {it.left_tasks.mae.high:.3f}] on left-out tasks (R² "
        f"{it.left_tasks.r2.value:.2f}); the gain over the number of models alone is {it.gained.value:.3f} "
        f"[{it.gained.low:.3f}, {it.gained.high:.3f}], {verdict}{networks}."
    ]


def _of_outcome(of: Sequence[Verdict]) -> str:
    best = min(of, key=lambda it: it.left_tasks.mae.value)
    said = "better than all controls" if best.beats else "not better than all controls"
    return (
        f"{OUTCOMES[best.outcome][0].upper()}{OUTCOMES[best.outcome][1:]}: the best rule is from {best.level}, "
        f"{_title(best)}, with an error of {best.left_tasks.mae.value:.3f} on left-out tasks; {said} (number of models "
        f"alone {best.controls['models'].mae.value:.3f})."
    )


def _of_gap(found: Analysis) -> list[str]:
    by_name = {it.predictor: it for it in found.of("average")}
    out = []
    for name, what in (("gap_output", "measured"), ("predicted_gap_output", "predicted")):
        if name in by_name:
            out.append(_one_gap(by_name[name], what))
    return out


def _one_gap(it: Related, what: str) -> str:
    return (
        f"The {what} CTL gap at the output: Spearman with the average's normalised accuracy over pairs {it.pairs}, "
        f"within families and regimes {it.within}."
    )
