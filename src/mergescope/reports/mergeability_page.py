"""The report of ``mergescope mergeability``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergescope.protocols.mergeability import OUTCOMES, PREDICTORS, Analysis, Related, Verdict, analyse
from mergescope.protocols.mergeability.predictors import CONTROLS, FLOOR
from mergescope.protocols.mergeability.scores import Number
from mergescope.protocols.mergeability.told import findings, headline
from mergescope.reports.html import Parts
from mergescope.reports.mergeability_figures import PANELS, ROWS, correlations, predictions, scatter
from mergescope.reports.protocol_view import Drawing
from mergescope.reports.tables import Cell, Grid, interval, number
from mergescope.studies.mergeable_results import read_cases

TERMS = (
    (
        "Normalised accuracy",
        "mean over the merged tasks of the merged model's accuracy over that of the task's own fine-tune; 1 is as good "
        "as the single models.",
        "ATTN Eq. 5",
    ),
    (
        "Left-out tasks",
        "a rule is fitted on the cases without a task and asked about those with it, for every task; where a figure is "
        "chosen among several, the choice is made anew without that task. A case's prediction is the mean over its "
        "tasks.",
        "cross-validation by group",
    ),
    (
        "Intervals",
        "95 % percentile bootstrap over units (a family and regime): cases of one unit share models, and are drawn "
        "together. Units count alike, however many cases they have. Units of one base are not independent of each "
        "other either, so intervals are rather too short.",
        "Efron 1979",
    ),
    (
        "Rule",
        "a line in the number of models (doublings) and one figure, on a scale that was chosen beforehand: logarithmic "
        "for lengths and gaps, linear for cosines, conflicts and barriers; kept within the outcomes that were seen.",
        "this program",
    ),
    (
        "R²",
        "one minus the squared error of held-out predictions over the variance; below 0 they are worse than the mean.",
        "usual",
    ),
)  # fmt: skip

DRAWINGS: Mapping[str, str] = {
    "predictors": "The average's normalised accuracy against the best figure of each kind; lines: the rule",
    "correlations": "Spearman's correlation of each figure with the average's normalised accuracy",
    "held-out": "Held-out predictions against the truth; figure and rule chosen without the case's task",
}
"""File name of each figure, without suffix, to what it shows. A run has those that there is something to draw in."""


def mergeability_page(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read a run directory, judge its cases again, and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    found = analyse(read_cases(path), seed=int(about["config"]["settings"]["seed"]))
    drawings = draw(found)
    grids = [rules_grid(found), *(related_grid(found, outcome) for outcome in found.tables)]
    content = {
        "title": "Does anything known before a merge tell how good it will be?",
        "headline": headline(found), "findings": findings(found), "drawings": drawings,
        "grids": [grid for grid in grids if grid.rows], "terms": TERMS,
        "families": about["config"]["families"], "notes": about["provenance"].get("notes") or [],
        "better": any(it.beats for it in found.verdicts if it.outcome == "average"),
    }  # fmt: skip
    return Parts("mergeability.html.j2", {name: it.figure for name, it in drawings.items()}, content)


def draw(found: Analysis) -> dict[str, Drawing]:
    """All figures that there is something to draw in.

    Args:
        found: the analysis.

    Returns:
        File name without suffix to figure.
    """
    ranked = [it for it in found.of("average") if it.predictor != "models"]
    drawn, single = _drawn(ranked), _single(ranked)
    verdicts = [it for it in found.verdicts if it.outcome == "average"]
    drawings: dict[str, Drawing] = {}
    if drawn:
        low = f" Values below {FLOOR:g} count, and are drawn, as that." if _floored(found, drawn) else ""
        drawings["predictors"] = Drawing(
            scatter(found, drawn),
            DRAWINGS["predictors"],
            "Every mark is a pair (small) or a larger group of models that was averaged. Lines: the rule fitted on all "
            "cases, for the number of models at its end. The figures with the smallest errors on left-out tasks, one "
            f"of each kind of knowledge.{low}",
        )
    if single:
        cut = f", the first {ROWS} of {len(single)}" if len(single) > ROWS else ""
        drawings["correlations"] = Drawing(
            correlations(single[:ROWS]),
            DRAWINGS["correlations"],
            f"The figures with the smallest errors on left-out tasks first{cut}. Over all cases a figure may tell "
            "regimes and numbers of models apart; within regimes it has to tell pairs of the same regime apart.",
        )
    if verdicts:
        drawings["held-out"] = Drawing(
            predictions(found, verdicts),
            DRAWINGS["held-out"],
            "Each case is predicted by rules that saw none of the cases with one of its tasks, the figure chosen anew "
            "without them. On the line, predictions are right.",
        )
    return drawings


def rules_grid(found: Analysis) -> Grid:
    """The best rule at each level.

    Args:
        found: the analysis.

    Returns:
        The table.
    """
    columns = ("outcome and what is known", "figure", "error", "R²", "rank", "networks left out",
               *(f"error of {text}" for text in CONTROLS.values()), "less error than the number of models",
               "better than all")  # fmt: skip
    rows = tuple((f"{it.outcome}, {it.level}", _rule_cells(it)) for it in found.verdicts)
    return Grid("The best rule at each level, on left-out tasks", columns, rows)


def related_grid(found: Analysis, outcome: str) -> Grid:
    """Every predictor of one outcome.

    Args:
        found: the analysis.
        outcome: its name.

    Returns:
        The table.
    """
    columns = ("figure", "known from", "Spearman", "Pearson", "Spearman, pairs", "within regimes",
               "error, left-out tasks", "R²", "error, left-out networks")  # fmt: skip
    rows = []
    for it in found.of(outcome):
        cells = [_cell(value) for value in (it.spearman, it.pearson, it.pairs, it.within, it.left_tasks.mae)]
        networks = None if it.left_networks is None else it.left_networks.mae
        predictor = PREDICTORS[it.predictor]
        said = (Cell(predictor.level), *cells, Cell(number(it.left_tasks.r2.value, 2)),
                Cell("–") if networks is None else _cell(networks))  # fmt: skip
        rows.append((predictor.title, said))
    return Grid(f"Figures and {OUTCOMES[outcome]}, the smallest error first", columns, tuple(rows))


def _rule_cells(it: Verdict) -> tuple[Cell, ...]:
    name = it.rule.predictor
    networks = Cell("–") if it.left_networks is None else _cell(it.left_networks.mae)
    controls = [
        _cell(it.controls[control].mae) if control in it.controls else Cell("–") for control in CONTROLS
    ]
    return (
        Cell("number of models alone" if name is None else PREDICTORS[name].title), _cell(it.left_tasks.mae),
        _cell(it.left_tasks.r2), Cell(number(it.left_tasks.rank, 2)), networks, *controls, _cell(it.gained["models"]),
        Cell("yes" if it.beats else "no", bold=it.beats),
    )  # fmt: skip


def _cell(it: Number) -> Cell:
    return Cell(number(it.value, 2), interval(it.low, it.high))


def _drawn(ranked: Sequence[Related]) -> list[Related]:
    # The best of each kind of knowledge, so that the panels don't show one thing three times.
    best: dict[str, Related] = {}
    for it in ranked:
        level = PREDICTORS[it.predictor].level
        if level in ("weights", "features", "derivatives", "control"):
            best.setdefault(level, it)
    return list(best.values())[:PANELS]


def _floored(found: Analysis, drawn: Sequence[Related]) -> bool:
    names = [it.predictor for it in drawn if PREDICTORS[it.predictor].scale == "log"]
    return any(case.predictors[name] < FLOOR for case in found.tables["average"].cases for name in names)


def _single(ranked: Sequence[Related]) -> list[Related]:
    # Of a pair's mean over pairs and its worst pair, which are one on pairs, the better one.
    kept: dict[str, Related] = {}
    for it in ranked:
        kept.setdefault(it.predictor.removesuffix("_worst_pair"), it)
    return list(kept.values())
