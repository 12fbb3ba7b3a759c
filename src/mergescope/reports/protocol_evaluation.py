"""The page of an evaluation: models and points between them, task by task."""

from __future__ import annotations

from mergescope.reports.protocol_figures import Line, ranking, score_panels
from mergescope.reports.protocol_view import Drawing, Scores, Shown, Stored, scores_in
from mergescope.reports.protocol_words import apart, listed, told
from mergescope.reports.tables import Cell, Grid, interval, number

TASKS_IN_COLUMNS = 10
"""Tables of more tasks than this have a task a row."""


def evaluation_page(stored: Stored) -> Shown:
    """What the page of an evaluation shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    scores = scores_in(stored, "accuracy")
    own = scores.whole == "normalised accuracy"
    drawings = {
        "scores": Drawing(
            score_panels(scores, lambda name, task: name == task, ("any point", "the task’s own model")),
            "accuracy of every point, by task",
            ("The first panel is over all tasks, relative to their own models (dotted: 1). " if own else "")
            + "A panel a task; right is better.",
        )
    }
    if len(scores.names) > 2:
        best_first = sorted(scores.names, key=lambda name: -scores.overall(name).mean)
        drawings["ranking"] = Drawing(
            ranking(
                [
                    Line(name, [scores.overall(name)], number(scores.overall(name).mean))
                    for name in best_first
                ],
                [scores.whole],
                scores.whole,
            ),
            f"{scores.whole} of every point, best first",
            "Best first. A fine-tune is judged on all tasks here, not only on its own. Where intervals overlap, the "
            "order is not certain.",
        )
    return Shown(
        "How good are these models?",
        "Accuracy and loss of models and of points between them, task by task.",
        _headline(scores),
        _sentences(scores),
        drawings,
        score_grids(scores, "Accuracy"),
        ["normalised accuracy" if own else "mean accuracy", "task vector"],
    )


def score_grids(scores: Scores, title: str) -> list[Grid]:
    """Accuracy, and loss, of models on tasks.

    Args:
        scores: of the models.
        title: of the first table.

    Returns:
        Tables with a model a row, or with many tasks a task a row; the best of each column (row) in bold.
    """
    grids = []
    for measure, heading in (("accuracy", title), ("loss", "Loss")):
        if not all((measure, name, task) in scores.found for name in scores.names for task in scores.tasks):
            continue
        over = [kind for kind in ("mean accuracy", "normalised accuracy") if measure == "accuracy"
                and (kind, scores.names[0], "") in scores.found]  # fmt: skip
        columns = [(measure, task) for task in scores.tasks] + [(kind, "") for kind in over]
        best = {
            column: (max if measure == "accuracy" else min)(
                scores.found[column[0], name, column[1]].mean for name in scores.names
            )
            for column in columns
        }
        # Intervals have fewer digits: there are many columns.
        table = {
            name: [
                Cell(number(row.mean), interval(row.low, row.high), bold=row.mean == best[column])
                for column in columns
                for row in [scores.found[column[0], name, column[1]]]
            ]
            for name in scores.names
        }
        heads = [task or kind for kind, task in columns]
        if len(scores.tasks) > TASKS_IN_COLUMNS:
            body = tuple(
                (head, tuple(table[name][place] for name in scores.names)) for place, head in enumerate(heads)
            )
            grids.append(Grid(heading, ("task", *scores.names), body))
        else:
            grids.append(
                Grid(heading, ("model", *heads), tuple((name, tuple(row)) for name, row in table.items()))
            )
    return grids


def _headline(scores: Scores) -> str:
    best = max(scores.names, key=lambda name: scores.overall(name).mean)
    count = len(scores.tasks)
    where = f"over {count} tasks" if count > 1 else f"on {scores.tasks[0]}"
    return f"Best {where}: {best}, {scores.whole} {told(scores.overall(best))}."


def _sentences(scores: Scores) -> list[str]:
    ordered = sorted(scores.names, key=lambda name: -scores.overall(name).mean)
    best, said = ordered[0], []
    near = [name for name in ordered[1:] if not apart(scores.overall(name), scores.overall(best))]
    if near:
        said.append(f"Its interval overlaps with {listed(near)}: which of them is best is not certain.")
    others = [name for name in ("base", "average") if name in scores.names and name != best]
    if others:
        figures = "; ".join(f"{name} {told(scores.overall(name))}" for name in others)
        said.append(f"To compare with: {figures}.")
    if len(scores.tasks) > 1:
        said.append(spread_over_tasks(scores, best, best))
    return said


def spread_over_tasks(scores: Scores, name: str, called: str) -> str:
    """Where a model is worst and best.

    Args:
        scores: of the models.
        name: of the model.
        called: what the sentence calls it.

    Returns:
        The sentence.
    """
    found = {task: scores.accuracy(name, task).mean for task in scores.tasks}
    low, high = min(found, key=lambda task: found[task]), max(found, key=lambda task: found[task])
    return f"Accuracy of {called} is lowest on {low} ({number(found[low])}), highest on {high} ({number(found[high])})."
