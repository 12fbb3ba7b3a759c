"""The page of task addition: one coefficient for all task vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergescope.protocols.search import Choice, choose
from mergescope.reports.panels import legend
from mergescope.reports.protocol_evaluation import score_grids, spread_over_tasks
from mergescope.reports.protocol_figures import REFERENCE, score_panels
from mergescope.reports.protocol_view import Drawing, Scores, Shown, Stored, scores_in
from mergescope.reports.protocol_words import apart, told
from mergescope.reports.style import INK, MUTED, STRONG, WIDTH, look, new_figure, settle, shorten, styled
from mergescope.reports.tables import Cell, Grid, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lambda-search"

NAMED = 12
"""More tasks than this are drawn alike."""


def addition_page(stored: Stored) -> Shown:
    """What the page of a search for one coefficient shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    choice, curves = searched(stored)
    count = len(curves)
    drawings = {
        "lambda": Drawing(
            lambda_curves(choice, curves),
            "validation accuracy against the coefficient",
            "On validation data. Bold: the mean over tasks, by which λ is chosen; thin: each task, relative to its own "
            "model. "
            + (
                f"λ = 1/{count} is the average of the models."
                if count > 1
                else "λ = 1 is the fine-tune itself."
            ),
        )
    }
    grids = [_search_grid(choice, curves)]
    scores = None
    if stored.tested:
        scores = scores_in(stored, "addition", normalised=True)
        tuned = scores.names[-1]
        drawings["scores"] = Drawing(
            score_panels(
                scores, lambda name, task: name == tuned, ("to compare with", "chosen on validation data")
            ),
            "test accuracy at the chosen coefficient and of what it is compared with",
            "On test data, which took no part in the choice. The first panel is over all tasks.",
        )
        grids = [*score_grids(scores, "Accuracy on test data"), *grids]
    return Shown(
        "Which coefficient?",
        "All task vectors are added with one coefficient λ, chosen on validation data and judged on test data.",
        _headline(choice, scores),
        [*_sentences(choice, scores), end_words(choice, stored)],
        drawings,
        grids,
        ["task vector", "normalised accuracy", "validation, test", "the grid’s end"],
        caveat=choice.at_end,
    )


def searched(stored: Stored) -> tuple[Choice, dict[str, dict[float, float]]]:
    """The coefficient that validation rows choose.

    Args:
        stored: the run.

    Returns:
        The choice; and task to coefficient to accuracy relative to the task's own model.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    rows = stored.of(kind=KIND)
    scores = {row.parameter: row.mean for row in rows if row.measure == "validation normalised accuracy"}
    if not scores:
        raise stored.lacks(f"kind {KIND!r}, measure 'validation normalised accuracy'")
    curves: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.measure == "validation accuracy" and math.isfinite(row.parameter):
            curves.setdefault(row.data, {})[row.parameter] = row.mean
    if not curves:
        raise stored.lacks(f"kind {KIND!r}, measure 'validation accuracy'")
    for task, found in curves.items():
        own = stored.one(
            kind=KIND, measure="validation accuracy", data=task, points="single-task models"
        ).mean
        lacking = [lam for lam in scores if lam not in found]
        if lacking:
            raise stored.lacks(f"validation accuracy on {task!r} at lambda {lacking[0]:g}")
        curves[task] = {lam: value / own for lam, value in found.items()}
    return choose(scores), curves


def lambda_curves(choice: Choice, curves: Mapping[str, Mapping[float, float]]) -> Figure:
    """Draw normalised validation accuracy against the coefficient.

    Args:
        choice: the mean over tasks, and what is chosen by it.
        curves: task to coefficient to relative accuracy.

    Returns:
        The figure.
    """
    few = len(curves) <= NAMED
    lams = sorted(choice.scores)
    apart_by = min(4, len(lams))
    with styled():
        figure = new_figure(WIDTH, 4.3 if few else 4.0)
        axes = figure.subplots()
        entries: list[tuple[str, dict[str, Any]]] = [
            ("mean over tasks", {"color": INK, "ls": "-", "lw": 2.6})
        ]
        for place, (task, found) in enumerate(curves.items()):
            entry = look(place)
            style: dict[str, Any] = {
                "color": entry.colour if few else MUTED,
                "ls": entry.line if few else "-",
                "lw": 1.1,
                "alpha": 0.6,
            }
            if few:
                # Lines come again after four: marks tell them apart, each line's at coefficients of its own.
                style |= {"marker": entry.marker, "ms": 4, "markevery": (place % apart_by, apart_by)}
                entries.append((shorten(task, 26), {**style, "alpha": 0.9}))
            axes.plot(lams, [found[lam] for lam in lams], zorder=2, **style)
        if not few:
            entries.append(("single tasks", {"color": MUTED, "ls": "-", "lw": 1.1, "alpha": 0.6}))
        axes.plot(lams, [choice.scores[lam] for lam in lams], color=INK, lw=2.6, zorder=4)
        axes.axvline(choice.lam, color=STRONG, lw=1.3, zorder=3)
        axes.plot(
            [choice.lam],
            [choice.score],
            marker="D",
            color=STRONG,
            mec=INK,
            mew=0.6,
            ms=8,
            ls="none",
            zorder=6,
        )
        entries.append((
            f"chosen, λ = {choice.lam:g}",
            {"color": STRONG, "ls": "-", "lw": 1.3, "marker": "D"},
        ))
        if lams[0] <= 1 <= lams[-1]:
            axes.axvline(1, zorder=1, **REFERENCE)
            entries.append(("λ = 1", REFERENCE))
        axes.set(xlabel="λ", ylabel="normalised accuracy, validation")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        legend(figure, entries)
        return settle(figure)


def end_words(choice: Choice, stored: Stored) -> str:
    """Whether a grid's end keeps a coefficient from being larger, in a sentence.

    Args:
        choice: of a coefficient.
        stored: the run, for the settings of its search.

    Returns:
        The sentence.
    """
    top = max(choice.scores)
    if not choice.at_end:
        return (
            f"The grid’s end does not bind: up to {top:g} was tried, and larger coefficients are no better."
        )
    what = "limit of the search" if stored.setting("extend") else "grid’s end"
    more = f"--up-to {2 * top:g}" if stored.setting("extend") else "without --no-extend"
    return f"The {what} binds: the best coefficient is the largest that was tried, {top:g}. Try larger ones ({more})."


def _headline(choice: Choice, scores: Scores | None) -> str:
    if scores is None:
        return f"λ = {choice.lam:g}, by a normalised accuracy of {number(choice.score)} on validation data."
    worth = scores.overall(scores.names[-1])
    return (
        f"λ = {choice.lam:g}, chosen on validation data, keeps {number(worth.mean)} of the single-task models’ "
        f"accuracy on test data ({told(worth).partition(' (')[2] or 'no interval)'}."
    )


def _sentences(choice: Choice, scores: Scores | None) -> list[str]:
    if scores is None:
        return ["There are no test figures."]
    *others, tuned = scores.names
    worth = {name: scores.overall(name) for name in scores.names}
    shown = [name for name in others if name != "single-task models"]
    said = ["To compare with: " + "; ".join(f"{name} {told(worth[name])}" for name in shown) + "."]
    if "average" in worth:
        more = worth[tuned].mean - worth["average"].mean
        clear = apart(worth[tuned], worth["average"])
        said.append(
            f"Tuning is worth {number(more, sign=True)} over the average of the models, which needs no labels"
            + ("." if clear else ": no clear difference, since the intervals overlap.")
        )
    if len(scores.tasks) > 1:
        said.append(spread_over_tasks(scores, tuned, f"λ = {choice.lam:g}"))
    return said


def _search_grid(choice: Choice, curves: Mapping[str, Mapping[float, float]]) -> Grid:
    body = tuple(
        (
            f"{lam:g}",
            (
                Cell(number(choice.scores[lam]), bold=lam == choice.lam),
                *(Cell(number(curves[task][lam])) for task in curves),
            ),
        )
        for lam in sorted(choice.scores)
    )
    title = "Search on validation data: accuracy relative to each task’s own model"
    return Grid(title, ("λ", "mean", *curves), body)
