"""The page of merge methods that are compared in one protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergescope.reports.protocol_evaluation import score_grids, spread_over_tasks
from mergescope.reports.protocol_figures import Line, ranking
from mergescope.reports.protocol_view import Drawing, Scores, Shown, Stored, scores_in
from mergescope.reports.protocol_words import apart, cell, listed, told
from mergescope.reports.tables import NONE, Cell, Grid, number
from mergescope.studies.rundir import Row

KIND = "merging"

TUNED = " (tuned)"


@dataclass(frozen=True)
class Compared:
    """A merge method.

    Attributes:
        name: with its parameters.
        plain: name of its scores as it is.
        tuned: name of its scores with the chosen coefficient; None where it has none.
        lam: the chosen coefficient, or NaN.
        at_end: whether a larger coefficient might be better.
        points: evaluated to choose the coefficient.
        passes: of a batch, to choose the coefficient.
        seconds: to merge once.
    """

    name: str
    plain: str
    tuned: str | None
    lam: float
    at_end: bool
    points: int
    passes: int
    seconds: float


def methods_page(stored: Stored) -> Shown:
    """What the page of compared methods shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    scores = scores_in(stored, KIND, normalised=True)
    methods = compared(stored, scores)

    def worth(name: str | None) -> Row | None:
        return None if name is None else scores.overall(name)

    ordered = sorted(methods, key=lambda method: -max(_values(scores, method)))
    lines = [
        Line(method.name, [worth(method.plain), worth(method.tuned)], _note(method)) for method in ordered
    ]
    references = [
        (name, scores.overall(name).mean) for name in ("base", "single-task models") if name in scores.names
    ]
    drawings = {
        "methods": Drawing(
            ranking(
                lines, ["as it is, without labels", "tuned on validation labels"],
                f"{scores.whole}, test", references, "chosen λ, passes to choose it, time to merge",
            ),
            "normalised accuracy on test data by method, as it is and tuned",
            "On test data, the best first. Where intervals overlap, the order is not certain. On the right: the λ "
            "that validation data choose, the forward passes of a batch that it took, and the seconds of one merge.",
        )
    }  # fmt: skip
    return Shown(
        "Which merge method?",
        "Merge methods on the same models and data, each as it is and with a coefficient chosen on validation data.",
        _headline(scores, methods),
        _sentences(scores, methods),
        drawings,
        [_cost_grid(scores, ordered), *score_grids(scores, "Accuracy on test data")],
        ["normalised accuracy", "as it is, tuned", "validation, test", "the grid’s end"],
        caveat=any(method.at_end for method in methods),
    )


def compared(stored: Stored, scores: Scores) -> list[Compared]:
    """The methods that rows tell of.

    Args:
        stored: the run.
        scores: of its rows.

    Returns:
        The methods, in order.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    found = []
    names = [name for name in scores.names if name not in ("base", "single-task models")]
    if not names:
        raise stored.lacks(f"kind {KIND!r} of a merge method")
    tuned = {name.rpartition(", lambda ")[0]: name for name in names if name.endswith(TUNED)}
    for name in names:
        row = scores.overall(name)
        if name.endswith(TUNED):
            continue
        if not math.isfinite(row.parameter):
            found.append(Compared(name, name, None, math.nan, False, 0, 0, row.seconds))
            continue
        method = name.rpartition(", lambda ")[0]
        if method not in tuned:
            raise stored.lacks(f"kind {KIND!r}, points '{method}, lambda ...{TUNED}'")
        said = {measure: stored.one(kind=KIND, points=tuned[method], measure=measure)
                for measure in ("at_end", "evaluated points")}  # fmt: skip
        found.append(Compared(
            method, name, tuned[method], said["at_end"].parameter, bool(said["at_end"].mean),
            int(said["evaluated points"].mean), said["at_end"].forward_passes, row.seconds,
        ))  # fmt: skip
    return found


def _values(scores: Scores, method: Compared) -> list[float]:
    return [scores.overall(name).mean for name in (method.plain, method.tuned) if name is not None]


def _note(method: Compared) -> str:
    parts = [f"λ {method.lam:g}, {method.passes:,} passes"] if method.tuned else ["no λ"]
    return ", ".join([*parts, f"{method.seconds:.2f} s" if method.seconds >= 0.005 else "under 0.01 s"])


def _headline(scores: Scores, methods: list[Compared]) -> str:
    plain = max(methods, key=lambda method: scores.overall(method.plain).mean)
    tuned = [(method, scores.overall(method.tuned)) for method in methods if method.tuned is not None]
    without = f"{plain.name} as it is, {scores.whole} {told(scores.overall(plain.plain))}"
    if not tuned:
        return f"Best on test data: {without}."
    best, row = max(tuned, key=lambda entry: entry[1].mean)
    with_labels = f"{best.name} tuned to λ = {best.lam:g}, {scores.whole} {told(row)}"
    if row.mean > scores.overall(plain.plain).mean:
        return f"Best on test data: {with_labels}; without labels: {without}."
    return f"Best on test data: {without}; tuning gives no more: {with_labels}."


def _sentences(scores: Scores, methods: list[Compared]) -> list[str]:
    lines = [
        (name, f"{method.name}{' tuned' if name == method.tuned else ' as it is'}")
        for method in methods
        for name in (method.plain, method.tuned)
        if name is not None
    ]
    best, called = max(lines, key=lambda entry: scores.overall(entry[0]).mean)
    near = [
        text for name, text in lines if name != best and not apart(scores.overall(name), scores.overall(best))
    ]
    said = [
        f"The interval of {called} overlaps with those of {listed(near)}: which of them is best is not certain."
        if near
        else f"The interval of {called} overlaps with no other one."
    ]
    gains = [
        (scores.overall(method.tuned).mean - scores.overall(method.plain).mean, method.name)
        for method in methods
        if method.tuned is not None
    ]
    if gains:
        (least, least_of), (most, most_of) = min(gains), max(gains)
        said.append(
            f"Tuning is worth from {number(least, sign=True)} ({least_of}) to {number(most, sign=True)} ({most_of})."
            if len(gains) > 1
            else f"Tuning is worth {number(most, sign=True)} to {most_of}."
        )
    ends = [method.name for method in methods if method.at_end]
    if ends:
        said.append(
            f"The grid’s end binds for {listed(ends)}: larger coefficients may be better (--up-to, --grid)."
        )
    elif gains:
        said.append("The grid’s end binds for none of them.")
    if len(scores.tasks) > 1:
        said.append(spread_over_tasks(scores, best, called))
    return said


def _cost_grid(scores: Scores, methods: list[Compared]) -> Grid:
    best = max(value for method in methods for value in _values(scores, method))

    def shown(name: str | None) -> Cell:
        row = None if name is None else scores.overall(name)
        return cell(row, bold=row is not None and row.mean == best)

    body = tuple(
        (
            method.name,
            (
                shown(method.plain),
                shown(method.tuned),
                Cell(
                    NONE if method.tuned is None else f"{method.lam:g}",
                    "at the grid’s end" if method.at_end else "",
                ),
                Cell(f"{method.points:,}" if method.tuned else NONE),
                Cell(f"{method.passes:,}" if method.tuned else NONE),
                Cell(f"{method.seconds:.2f}"),
            ),
        )
        for method in methods
    )
    columns = (
        "method",
        "as it is",
        "tuned",
        "chosen λ",
        "points tried",
        "passes to choose",
        "seconds to merge",
    )
    return Grid(f"Methods: {scores.whole} on test data, and what they cost", columns, body)
