"""Task addition: one coefficient, chosen on validation data, and the figures of test data (TA; ATTN Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.display import View, as_html, as_pandas, as_pretty, pivot
from mergescope.errors import MergescopeError
from mergescope.protocols.evaluation import Evaluation, Model
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import NAN, ModelScores, score_grid, score_table, scores_of
from mergescope.protocols.search import addition_line
from mergescope.protocols.tuning import ArithmeticSettings, LineSearch, end_note, require_tasks, search_line
from mergescope.weights import Point, mean

LINE = "base + lambda * sum of task vectors"
"""What is searched."""


@dataclass(frozen=True)
class Addition:
    """The result of [`task_addition`][]; it prints as a table.

    Attributes:
        search: the coefficient, and what it was chosen by.
        test: base, single-task models, average, coefficient 1 and the chosen one on test data; empty without.
        settings: of the search.
        linearized: whether all figures are of the network linearised around the base.
        notes: what the user should know.
        network: name of its class.
        forward_passes: of a batch, validation and test.
        seconds: of all passes.
    """

    search: LineSearch
    test: tuple[ModelScores, ...]
    settings: ArithmeticSettings
    linearized: bool
    notes: tuple[str, ...]
    network: str
    forward_passes: int
    seconds: float

    @property
    def lam(self) -> float:
        """The chosen coefficient."""
        return self.search.choice.lam

    @property
    def tuned(self) -> ModelScores:
        """Test scores at the chosen coefficient.

        Raises:
            MergescopeError: no test data were given.
        """
        if not self.test:
            raise MergescopeError("There are no test figures: give task_addition test data.")
        return self.test[-1]

    @property
    def binds(self) -> str:
        """Which end of the grid the chosen coefficient is at, in words."""
        return end_note(self.search.choice, self.settings)

    def rows(self) -> list[dict[str, Any]]:
        """The result as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "lambda-search", "points": LINE}
        found: list[dict[str, Any]] = []
        for lam, accuracies in self.search.accuracies.items():
            line = {**common, "parameter": lam}
            found += [
                {**line, "data": task, "measure": "validation accuracy", "mean": value}
                for task, value in accuracies.items()
            ]
            score = self.search.choice.scores[lam]
            every = {
                "data": " ∪ ".join(accuracies),
                "measure": "validation normalised accuracy",
                "mean": score,
            }
            found.append({**line, **every})
        single = {"kind": "lambda-search", "points": "single-task models", "measure": "validation accuracy"}
        found += [{**single, "data": task, "mean": value} for task, value in self.search.single.items()]
        return found + [row for scores in self.test for row in scores.rows("addition")]

    @property
    def says(self) -> str:
        """The choice in words."""
        choice = self.search.choice
        return (
            f"Addition: lambda = {choice.lam:g}, chosen on validation (normalised accuracy {choice.score:.4f}); "
            f"{self.binds}"
        )

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        if self.test:
            return View(self.says, (score_grid(self.test, "Accuracy on test data"),), self.notes)
        search = pivot(self.rows(), "Accuracy on validation data", "parameter", "data", points=LINE)
        return View(self.says, (search,), self.notes)

    def __str__(self) -> str:
        lines = [
            self.says,
            *(score_table(self.test) if self.test else ["No test data were given."]),
            f"{self.forward_passes:,} forward passes, {self.seconds:.1f} s",
        ]
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])


def task_addition(
    base: Model,
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut] | None = None,
    settings: ArithmeticSettings | None = None,
) -> Addition:
    """Add all task vectors with one coefficient: ``th_0 + lam sum_k tau_k`` (TA; ATTN Tables 1 and 2).

    The coefficient is that of the highest mean normalised validation accuracy; among equals the smallest.
    A linearised network passes its data through base and fine-tunes only, whatever the grid.

    Args:
        base: the pretrained model ``th_0``.
        models: task to the model fine-tuned on it.
        validation: task to the data that the coefficient is chosen on.
        test: task to the data that figures are reported of; they take no part in the choice.
        settings: of the search.

    Returns:
        The choice, and test figures at it, at coefficient 1, of the average and of the models themselves.

    Raises:
        MergescopeError: tasks of models and data differ, or the same data are to choose and to report.
        PointError: the grid is no grid, or a single-task accuracy is zero.
        MismatchError: fine-tunes were linearised around another base.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> data = [(torch.randn(20, 4), torch.arange(20) % 2)]
        >>> held = {name: HeldOut(name, data, net) for name in models}
        >>> found = task_addition(base, models, held, settings=ArithmeticSettings((0, 0.5, 1), extend=False))
        >>> list(found.search.choice.scores), found.lam in (0, 0.5, 1)
        ([0.0, 0.5, 1.0], True)
    """  # noqa: DOC502 (raised by what this calls)
    settings = settings or ArithmeticSettings()
    start, points = Point.of(base), {task: Point.of(model) for task, model in models.items()}
    require_tasks(points, validation, test)
    linear, notes = in_linear_model(start, points, settings.linearized)
    around = start if linear else None
    line = _line(start, points)
    search = search_line(line, points, validation, settings, around)
    scores, found = report_line(start, points, line, search.choice.lam, test, settings, around)
    return Addition(
        search, tuple(scores), settings, linear, tuple(notes), _network(validation),
        search.forward_passes + found.forward_passes, search.seconds + found.seconds,
    )  # fmt: skip


def report_line(
    base: Point,
    models: Mapping[str, Point],
    line: Callable[[float], Point],
    lam: float,
    test: Mapping[str, HeldOut] | None,
    settings: ArithmeticSettings,
    around: Point | None = None,
) -> tuple[list[ModelScores], Evaluation]:
    """Test figures of a coefficient that was chosen already, next to what it is compared with.

    Args:
        base: the pretrained model.
        models: task to fine-tune.
        line: coefficient to point.
        lam: the chosen coefficient.
        test: task to data; None for no figures.
        settings: of the passes.
        around: what the network is linearised around, or None.

    Returns:
        Base, single-task models, average, coefficient 1 and the chosen one, which comes last; what was
        evaluated.
    """
    if test is None:
        return [], Evaluation({})
    average = mean(models.values())
    shared = [base, average, line(1.0), line(lam)]
    found = settings.run({task: [*shared, models[task]] for task in test}, test, around)
    named: list[tuple[str, Model | Mapping[str, Model], float]] = [
        ("base", base, 0.0), ("single-task models", models, NAN), ("average", average, 1 / len(models)),
        ("lambda = 1", line(1.0), 1.0), (f"lambda = {lam:g} (tuned)", line(lam), lam),
    ]  # fmt: skip
    return [
        scores_of(name, found, model, models, parameter=value, seed=settings.seed)
        for name, model, value in named
    ], found


def _line(base: Point, models: Mapping[str, Point]) -> Callable[[float], Point]:
    return lambda lam: addition_line(base, list(models.values()), [lam])[float(lam)]


def _network(held: Mapping[str, HeldOut]) -> str:
    return type(next(iter(held.values())).model).__name__
