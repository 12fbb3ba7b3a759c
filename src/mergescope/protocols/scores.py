"""What models score on tasks, with intervals: one line a model, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergescope.display import NONE, Cell, Table, figure
from mergescope.errors import PointError
from mergescope.protocols.evaluation import Evaluation, Model
from mergescope.readings import Summary, bootstrap

NAN = float("nan")


@dataclass(frozen=True)
class ModelScores:
    """One model (or one a task) on all tasks.

    Attributes:
        name: for tables.
        accuracy: task to accuracy.
        loss: task to cross-entropy.
        mean: accuracy, over tasks; every task counts alike.
        normalised: ``mean_t acc_t / acc_t(theta_t)`` (ATTN Eq. 5); None without single-task models.
        parameter: its coefficient, or NaN.
    """

    name: str
    accuracy: Mapping[str, Summary]
    loss: Mapping[str, Summary]
    mean: Summary
    normalised: Summary | None
    parameter: float = NAN

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The figures as lines of a results table.

        Args:
            kind: what was done.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": kind, "points": self.name, "parameter": self.parameter}
        found = [
            {**common, "data": task, "measure": measure, **as_fields(summary)}
            for measure, values in (("accuracy", self.accuracy), ("loss", self.loss))
            for task, summary in values.items()
        ]
        over = {"mean accuracy": self.mean, "normalised accuracy": self.normalised}
        return found + [
            {**common, "data": " ∪ ".join(self.accuracy), "measure": measure, **as_fields(summary)}
            for measure, summary in over.items()
            if summary is not None
        ]


def as_fields(summary: Summary) -> dict[str, Any]:
    """A summary's figures by name.

    Args:
        summary: of a measure.

    Returns:
        Mean, spread, interval, counts.
    """
    return {name: getattr(summary, name) for name in ("mean", "std", "low", "high", "n", "dead")}


def over_tasks(
    values: Sequence[np.ndarray],
    against: Sequence[np.ndarray] | None = None,
    *,
    alike: Sequence[int] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """Mean over tasks of their means, or of the ratios of two means: ``1/T sum_t mean(v_t) / mean(w_t)``.

    The bootstrap resamples every task's samples within the task, and both numbers of a ratio together,
    since they are of the same samples. So are tasks that share their samples.

    Args:
        values: one ``(samples,)`` a task; NaN for a sample without a value.
        against: what each task's mean is divided by, of the same samples.
        alike: of each task, the number of the first one with the same samples, as
            [`alike`][mergescope.protocols.which_data.alike] tells; by default no two share any.
        confidence: probability mass of the interval.
        resamples: how many.
        seed: of the resampling.

    Returns:
        The mean and its interval; ``std`` is that of the tasks, ``n`` the number of distinct samples.

    Raises:
        PointError: a mean that is divided by is zero.

    Example:
        >>> found = over_tasks([np.array([1.0, 0.0]), np.array([1.0, 1.0])])
        >>> found.mean, found.std, found.n
        (0.75, 0.25, 4)
    """
    firsts: Sequence[int] = range(len(values)) if alike is None else alike
    per_task, drawn = [], []
    for number, (value, first) in enumerate(zip(values, firsts, strict=True)):
        columns = [value] if against is None else [value, against[number]]
        table = np.stack(columns, axis=1).astype(float)
        table = table[~np.isnan(table).any(axis=1)]
        means = table.mean(axis=0)
        if against is not None and means[1] == 0:
            raise PointError(
                f"No normalised accuracy: the single-task accuracy of task {number + 1} is zero."
            )
        picks = np.random.default_rng([seed, first]).multinomial(
            len(table), np.full(len(table), 1 / len(table)), size=resamples
        )
        sums = picks @ table / len(table)
        with np.errstate(invalid="ignore", divide="ignore"):
            per_task.append(means[0] if against is None else means[0] / means[1])
            drawn.append(sums[:, 0] if against is None else sums[:, 0] / sums[:, 1])
    tail, every = (1 - confidence) / 2, np.mean(drawn, axis=0)
    low, high = np.quantile(every[np.isfinite(every)], [tail, 1 - tail])
    distinct = [values[number] for number in dict.fromkeys(firsts)]
    dead = sum(int(np.isnan(value).sum()) for value in distinct)
    count = sum(len(value) for value in distinct) - dead
    return Summary(float(np.mean(per_task)), float(np.std(per_task)), float(low), float(high), count, dead)


def scores_of(
    name: str,
    found: Evaluation,
    model: Model | Mapping[str, Model],
    single: Mapping[str, Model] | None = None,
    *,
    parameter: float = NAN,
    seed: int = 0,
) -> ModelScores:
    """Scores of a model on the tasks of an evaluation.

    Args:
        name: for tables.
        found: the evaluation.
        model: an evaluated model, or task to the one that is used for it.
        single: task to the model fine-tuned on it, in the same regime; None without.
        parameter: the model's coefficient.
        seed: of the intervals.

    Returns:
        The scores.

    Raises:
        PointError: a model was not evaluated, or a single-task accuracy is zero.
    """  # noqa: DOC502 (raised by what this calls)
    chosen = model if isinstance(model, Mapping) else dict.fromkeys(found.tasks, model)
    tables = {
        task: np.stack([found[task].correct_of(point), found[task].losses_of(point)], axis=1)
        for task, point in chosen.items()
    }
    summaries = {task: bootstrap(table, seed=seed) for task, table in tables.items()}
    hits, shared = [table[:, 0] for table in tables.values()], found.alike_of(tables)
    normalised = None
    if single is not None:
        own = [found[task].correct_of(single[task]) for task in tables]
        normalised = over_tasks(hits, own, alike=shared, seed=seed)
    return ModelScores(
        name, {task: both[0] for task, both in summaries.items()}, {task: both[1] for task, both in summaries.items()},
        over_tasks(hits, alike=shared, seed=seed), normalised, parameter,
    )  # fmt: skip


def score_grid(scores: Sequence[ModelScores], caption: str) -> Table:
    """The scores as a table of a notebook: accuracy by task, mean, and normalised mean.

    Args:
        scores: one a line.
        caption: of the table.

    Returns:
        The table, intervals with the means.
    """
    tasks = list(dict.fromkeys(task for line in scores for task in line.accuracy))
    normalised = any(line.normalised for line in scores)

    def cell(summary: Summary | None, interval: bool = True) -> Cell:
        ends = (summary.low, summary.high) if summary is not None and interval else ()
        return Cell(NONE) if summary is None else figure(summary.mean, *ends)

    lines = tuple(
        (
            line.name,
            *(cell(line.accuracy.get(task), interval=False) for task in tasks),
            cell(line.mean),
            *([cell(line.normalised)] if normalised else []),
        )
        for line in scores
    )
    return Table(caption, ("model", *tasks, "mean", *(["normalised"] if normalised else [])), lines)


def best_of(scores: Sequence[ModelScores]) -> str:
    """The best of some models, in words.

    Args:
        scores: one or more.

    Returns:
        A sentence: by normalised accuracy where all have it, else by mean accuracy.

    Example:
        >>> found = Summary(0.5, 0.1, 0.4, 0.6, 10, 0)
        >>> best_of([ModelScores("average", {}, {}, found, None)])
        'Highest mean accuracy: 0.5000 [0.4000, 0.6000] of average.'
    """
    named = [(line.name, line.normalised) for line in scores if line.normalised is not None]
    what = "normalised" if len(named) == len(scores) else "mean"
    every = named if what == "normalised" else [(line.name, line.mean) for line in scores]
    name, found = max(every, key=lambda entry: entry[1].mean)
    return f"Highest {what} accuracy: {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}] of {name}."


def score_table(scores: Sequence[ModelScores]) -> list[str]:
    """The scores as lines of plain text: accuracy by task, mean, and normalised mean with its interval.

    Args:
        scores: one a line.

    Returns:
        A heading and the lines.
    """
    tasks = list(dict.fromkeys(task for line in scores for task in line.accuracy))
    first = max([5, *(len(line.name) for line in scores)])
    widths = [max(len(task), 6) for task in tasks]
    heads = [f"{task:>{width}}" for task, width in zip(tasks, widths, strict=True)]
    lines = ["  ".join([f"{'model':<{first}}", *heads, "  mean", "normalised  95% interval"]).rstrip()]
    for line in scores:
        cells = [
            f"{line.accuracy[task].mean:>{width}.4f}" if task in line.accuracy else " " * width
            for task, width in zip(tasks, widths, strict=True)
        ]
        cells += [f"{line.mean.mean:.4f}"]
        if line.normalised is not None:
            cells += [
                f"{line.normalised.mean:>10.4f}",
                f"[{line.normalised.low:.4f}, {line.normalised.high:.4f}]",
            ]
        lines.append("  ".join([f"{line.name:<{first}}", *cells]).rstrip())
    return lines
