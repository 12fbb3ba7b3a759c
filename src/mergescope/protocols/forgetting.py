"""Task negation: forget a task and keep the others, or control data, up (TA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, figure, pivot
from mergescope.errors import MergescopeError
from mergescope.protocols.evaluation import Evaluation, Model
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import as_fields, over_tasks
from mergescope.protocols.search import ConstrainedChoice, choose_negation
from mergescope.protocols.tuning import ArithmeticSettings, require_tasks
from mergescope.readings import Summary
from mergescope.weights import Point, task_vector

CONTROL = "control"
"""What the user's own control data are called."""


@dataclass(frozen=True)
class NegationSearch:
    """Coefficients chosen on validation data, one a task.

    Attributes:
        choices: task to the coefficient.
        targets: task to coefficient to validation accuracy on the task.
        controls: task to coefficient to validation accuracy on its control data.
        forward_passes: of a batch.
        seconds: of all passes.
    """

    choices: Mapping[str, ConstrainedChoice]
    targets: Mapping[str, Mapping[float, float]]
    controls: Mapping[str, Mapping[float, float]]
    forward_passes: int
    seconds: float


@dataclass(frozen=True)
class Forgotten:
    """Test accuracies at one coefficient.

    Attributes:
        name: ``"base"``, ``"lambda = 1"`` or ``"tuned"``.
        lam: task to the coefficient.
        target: task to accuracy on it.
        control: task to accuracy on its control data; every data set counts alike.
        mean_target: over tasks.
        mean_control: over tasks.
    """

    name: str
    lam: Mapping[str, float]
    target: Mapping[str, Summary]
    control: Mapping[str, Summary]
    mean_target: Summary
    mean_control: Summary


@dataclass(frozen=True)
class Negation:
    """The result of [`task_negation`][]; it prints as a table.

    Attributes:
        search: the coefficients, and what they were chosen by.
        test: of base, coefficient 1 and the chosen ones; empty without test data.
        control: what the control data are, in words.
        settings: of the search.
        linearized: whether all figures are of the network linearised around the base.
        notes: what the user should know.
        network: name of its class.
        forward_passes: of a batch, validation and test.
        seconds: of all passes.
    """

    search: NegationSearch
    test: tuple[Forgotten, ...]
    control: str
    settings: ArithmeticSettings
    linearized: bool
    notes: tuple[str, ...]
    network: str
    forward_passes: int
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """The result as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        found: list[dict[str, Any]] = []
        for task, choice in self.search.choices.items():
            common = {"kind": "negation-search", "points": f"base - lambda * {task}", "data": task}
            for measure, values in (("target", self.search.targets), ("control", self.search.controls)):
                found += [
                    {**common, "measure": f"validation {measure} accuracy", "mean": value, "parameter": lam}
                    for lam, value in values[task].items()
                ]
            for measure in ("feasible", "at_end", "control_binds"):
                value = float(getattr(choice, measure))
                found.append({**common, "measure": measure, "mean": value, "parameter": choice.lam})
        for said in self.test:
            for measure, summaries in (("target", said.target), ("control", said.control)):
                found += [
                    {
                        "kind": "negation", "points": said.name, "data": task, "measure": f"{measure} accuracy",
                        "parameter": said.lam[task], **as_fields(summary),
                    }
                    for task, summary in summaries.items()
                ]  # fmt: skip
            every = {"kind": "negation", "points": said.name, "data": " ∪ ".join(said.target)}
            for measure, summary in (("target", said.mean_target), ("control", said.mean_control)):
                found.append({**every, "measure": f"mean {measure} accuracy", **as_fields(summary)})
        return found

    @property
    def says(self) -> str:
        """What was asked for, in words."""
        share = f"{100 * self.settings.control_share:g} %"
        return f"Negation: control accuracy on {self.control}, at least {share} of the pretrained model's"

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        chosen = tuple(
            (task, *map(figure, (it.lam, it.target, it.control, it.floor)), it.binds)
            for task, it in self.search.choices.items()
        )
        kept = [task for task, choice in self.search.choices.items() if not choice.feasible]
        failed = f"; no coefficient above 0 does that for {', '.join(kept)}" if kept else ""
        tables = [
            Table(
                "Chosen on validation data", ("task", "lambda", "target", "control", "floor", "binds"), chosen
            )
        ]
        if self.test:
            rows = [{**row, "measure": row["measure"].removeprefix("mean ")} for row in self.rows()]
            tables.append(pivot(rows, "On test data", ("points", "data"), "measure", kind="negation"))
        return View(f"{self.says}{failed}", tuple(tables), self.notes)

    def __str__(self) -> str:
        width = max(len("mean"), *(len(task) for task in self.search.choices))
        heads = "".join(f"{head:>10}" for head in ("target", "control", "floor"))
        lines = [
            self.says,
            f"{'validation':<{width + 2}}{'lambda':>8}{heads}  binds",
        ]
        for task, choice in self.search.choices.items():
            figures = "".join(f"{value:>10.4f}" for value in (choice.target, choice.control, choice.floor))
            lines.append(f"{task:<{width + 2}}{choice.lam:>8g}{figures}  {choice.binds}")
        for task, choice in self.search.choices.items():
            if not choice.feasible:
                lines.append(
                    f"{task}: no feasible coefficient: every one above 0 costs too much control accuracy, so lambda "
                    "= 0, the pretrained model, is kept. Try a finer grid (--grid) near 0."
                )
        for said in self.test:
            lines.append(f"test, {said.name}")
            both = {**{task: (said.target[task], said.control[task]) for task in said.target},
                    "mean": (said.mean_target, said.mean_control)}  # fmt: skip
            for task, (target, control) in both.items():
                cells = (f"  {what} {one.mean:.4f} [{one.low:.4f}, {one.high:.4f}]"
                         for what, one in (("target", target), ("control", control)))  # fmt: skip
                lines.append(f"{task:<{width + 2}}{''.join(cells)}")
        lines.append(f"{self.forward_passes:,} forward passes, {self.seconds:.1f} s")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])


def task_negation(
    base: Model,
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut] | None = None,
    settings: ArithmeticSettings | None = None,
    *,
    control: tuple[HeldOut, HeldOut | None] | None = None,
) -> Negation:
    """Forget each task in turn: ``th_0 - lam tau_t``, the task's accuracy as low as the control rule allows.

    The coefficient minimises validation accuracy on the task among those that keep ``control_share`` of the
    pretrained model's accuracy on the control data. If none above 0 does, it is 0, and the result says so.

    Args:
        base: the pretrained model ``th_0``.
        models: task to the model fine-tuned on it.
        validation: task to the data that coefficients are chosen on.
        test: task to the data that figures are reported of; they take no part in the choice.
        settings: of the search.
        control: control data to choose by, and to report of (None if there are no test data); by default
            the other tasks' mean.

    Returns:
        The choices, and test figures of the base, at coefficient 1 and at the choices.

    Raises:
        MergescopeError: tasks of models and data differ, the same data are to choose and to report, or there
            are no control data.
        PointError: the grid is no grid.
        MismatchError: fine-tunes were linearised around another base.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> data = [(torch.randn(20, 4), torch.arange(20) % 2)]
        >>> found = task_negation(base, models, {name: HeldOut(name, data, net) for name in models})
        >>> found.control, list(found.search.choices)
        ('the mean of the other tasks', ['a', 'b'])
    """  # noqa: DOC502 (raised by what this calls)
    settings = settings or ArithmeticSettings()
    start, points = Point.of(base), {task: Point.of(model) for task, model in models.items()}
    require_tasks(points, validation, test, control)
    if control is None and len(points) < 2:
        raise MergescopeError(
            "Negating the only task needs control data: give some (--control-data, in Python control=) or another task."
        )
    if control is not None and CONTROL in points:
        raise MergescopeError(f"A task is called {CONTROL!r}, as control data are: give it another name.")
    if control is not None and (control[1] is None) != (test is None):
        raise MergescopeError(
            "Control data need a part to choose by, and another to report of if tasks have test data: give "
            "control=(validation, test)."
        )
    linear, notes = in_linear_model(start, points, settings.linearized)
    around = start if linear else None
    choosing = validation if control is None else {**validation, CONTROL: control[0]}
    search = search_negation(start, points, choosing, settings, around)
    told = "the mean of the other tasks" if control is None else control[0].name
    scores: list[Forgotten] = []
    found = Evaluation({})
    if test is not None:
        reporting = dict(test)
        if control is not None and control[1] is not None:
            reporting[CONTROL] = control[1]
        chosen = {task: choice.lam for task, choice in search.choices.items()}
        scores, found = _report(start, points, chosen, reporting, settings, around)
    network = type(next(iter(validation.values())).model).__name__
    return Negation(
        search, tuple(scores), told, settings, linear, tuple(notes), network,
        search.forward_passes + found.forward_passes, search.seconds + found.seconds,
    )  # fmt: skip


def search_negation(
    base: Point,
    models: Mapping[str, Point],
    validation: Mapping[str, HeldOut],
    settings: ArithmeticSettings,
    around: Point | None = None,
) -> NegationSearch:
    """Choose a coefficient for each task by validation data alone.

    Args:
        base: the pretrained model.
        models: task to fine-tune.
        validation: task to data; ``"control"`` to control data, if the other tasks are not that.
        settings: of the search.
        around: what the network is linearised around, or None.

    Returns:
        The choices.
    """
    first, *more = settings.parts()
    parts = [tuple(dict.fromkeys([0.0, *first])), *more]
    lines = {task: _line(base, model) for task, model in models.items()}
    targets: dict[str, dict[float, float]] = {task: {} for task in models}
    controls: dict[str, dict[float, float]] = {task: {} for task in models}
    choices: dict[str, ConstrainedChoice] = {}
    passes, seconds = 0, 0.0
    every = [line(lam) for line in lines.values() for lam in parts[0]]
    rest = [line(lam) for line in lines.values() for part in more for lam in part]
    # One evaluation of everything if what may follow is free, else one a part of the grid.
    steps = [parts] if rest and settings.free(every, rest, around) else [[part] for part in parts]
    for step in steps:
        active = [task for task in models if task not in choices or choices[task].at_end]
        if not active:
            break
        lams = [lam for part in step for lam in part]
        wanted = {
            data: [
                lines[task](lam)
                for task in active
                for lam in lams
                if data in _judges(task, models, validation)
            ]
            for data in validation
        }
        found = settings.run({data: points for data, points in wanted.items() if points}, validation, around)
        passes, seconds = passes + found.forward_passes, seconds + found.seconds
        for task in active:
            for part in step:
                for lam in part:
                    targets[task][lam] = found[task].accuracy(lines[task](lam))
                    controls[task][lam] = _control(task, models, found, lines[task](lam))
                floor = settings.control_share * controls[task][0.0]
                choices[task] = choose_negation(targets[task], controls[task], floor)
                if not choices[task].at_end:
                    break
    return NegationSearch(choices, targets, controls, passes, seconds)


def _line(base: Point, model: Point) -> Callable[[float], Point]:
    vector = task_vector(model, base)
    return lambda lam: base - lam * vector


def _controls(task: str, models: Mapping[str, Point], data: Mapping[str, Any]) -> list[str]:
    return [CONTROL] if CONTROL in data else [other for other in models if other != task]


def _judges(task: str, models: Mapping[str, Point], data: Mapping[str, Any]) -> list[str]:
    return [task, *_controls(task, models, data)]


def _control(task: str, models: Mapping[str, Point], found: Evaluation, point: Point) -> float:
    return float(np.mean([found[data].accuracy(point) for data in _controls(task, models, found.tasks)]))


def _report(
    base: Point,
    models: Mapping[str, Point],
    chosen: Mapping[str, float],
    test: Mapping[str, HeldOut],
    settings: ArithmeticSettings,
    around: Point | None,
) -> tuple[list[Forgotten], Evaluation]:
    ways = {
        "base": dict.fromkeys(models, 0.0),
        "lambda = 1": dict.fromkeys(models, 1.0),
        "tuned": dict(chosen),
    }
    points = {
        name: {task: _line(base, models[task])(lam) for task, lam in lams.items()}
        for name, lams in ways.items()
    }
    wanted = {
        data: [
            each[task] for each in points.values() for task in models if data in _judges(task, models, test)
        ]
        for data in test
    }
    found = settings.run(wanted, test, around)
    out = []
    for name, lams in ways.items():
        own = {task: found[task].correct_of(points[name][task]) for task in models}
        others = {
            task: [found[data].correct_of(points[name][task]) for data in _controls(task, models, test)]
            for task in models
        }
        # A data set judges several tasks' models by the same samples: they are resampled together.
        judging = [CONTROL] if CONTROL in test else list(models)
        judged = [
            np.mean([
                found[data].correct_of(points[name][task]) for task in models if data in _controls(task, models, test)
            ], axis=0)
            for data in judging
        ]  # fmt: skip
        out.append(Forgotten(
            name, lams, {task: over_tasks([value], seed=settings.seed) for task, value in own.items()},
            {
                task: over_tasks(values, alike=found.alike_of(_controls(task, models, test)), seed=settings.seed)
                for task, values in others.items()
            },
            over_tasks(list(own.values()), alike=found.alike_of(own), seed=settings.seed),
            over_tasks(judged, alike=found.alike_of(judging), seed=settings.seed),
        ))  # fmt: skip
    return out, found
