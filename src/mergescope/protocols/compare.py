"""Merge methods compared in one protocol: the same data, the same search, what each needs and costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergescope.display import Table, View, as_html, as_pandas, as_pretty
from mergescope.errors import MergescopeError, PointError
from mergescope.merging.in_memory import known_method, merge_in_memory, parameter_values
from mergescope.protocols.evaluation import Evaluation, Model, joined
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import NAN, ModelScores, best_of, score_grid, score_table, scores_of
from mergescope.protocols.search import addition_line
from mergescope.protocols.tuning import ArithmeticSettings, require_tasks, search_line
from mergescope.weights import Point, mean

DEFAULT_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "tsv", "iso_c")
"""What is compared unless somebody says otherwise."""

PAPERS: dict[str, dict[str, float]] = {
    "ties": {"density": 0.2},  # Yadav et al.: the top 20 % are kept
    "dare_ties": {"density": 0.1},  # Yu et al.: 90 % are dropped
    "dare_linear": {"density": 0.1},
}
"""Parameters that papers recommend where the method's own default keeps everything."""

NONE, LABELS = "none", "validation labels"


@dataclass(frozen=True)
class Way:
    """A merge method with parameters.

    Attributes:
        method: its name.
        parameters: of the method; others are the paper's, or the method's defaults.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read ``"ties:density=0.2,lambda=1"``.

        Args:
            text: a method, and its parameters behind a colon.

        Returns:
            The way to merge.

        Raises:
            MergescopeError: there is no such method, or a parameter is no number.

        Example:
            >>> Way.parse("ties:density=0.5")
            Way(method='ties', parameters={'density': 0.5})
        """
        name, _, rest = text.partition(":")
        known_method(name)
        found: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            try:
                found[key.strip()] = value == "true" if value in ("true", "false") else float(value)
            except ValueError:
                raise MergescopeError(
                    f"{text!r}: {part!r} is no parameter. Write METHOD:name=number,name=number."
                ) from None
        return cls(name, found)

    @property
    def label(self) -> str:
        """For tables."""
        values = {
            name: f"{value:g}" if isinstance(value, (int, float)) else value
            for name, value in self.parameters.items()
        }
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        return f"{self.method} ({said})" if said else self.method

    @property
    def has_scale(self) -> bool:
        """Whether the length of the merged task vector is a parameter that is left to choose."""
        names = [parameter.name for parameter in known_method(self.method).parameters]
        return "lambda" in names and "lambda" not in self.parameters

    def check(self, models: int) -> None:
        """Refuse what can't be merged, before anything is run.

        Args:
            models: how many are merged.

        Raises:
            MergescopeError: as for [`parameter_values`][mergescope.merging.in_memory.parameter_values].
        """  # noqa: DOC502 (raised by what this calls)
        parameter_values(known_method(self.method), models, self._all())

    def line(self, base: Point, models: Sequence[Point], seed: int = 0) -> Callable[[float], Point]:
        """Merge, once: every ``lambda`` is on the line from the base to the model merged with ``lambda = 1``.

        Args:
            base: the pretrained model.
            models: fine-tunes.
            seed: of random methods.

        Returns:
            Coefficient to point; the same one for all where the method has none.
        """
        if self.parameters or self.method not in ("linear", "task_arithmetic"):
            merged = Point.of(merge_in_memory(self.method, models, base, self._all(), seed=seed))
        elif self.method == "linear":  # combinations of the models themselves cost less to evaluate
            merged = mean(models)
        else:
            merged = addition_line(base, models, [1])[1.0]
        if not self.has_scale:
            return lambda lam: merged
        return lambda lam: base + lam * (merged - base)

    def _all(self) -> dict[str, Any]:
        return {**PAPERS.get(self.method, {}), **self.parameters}


@dataclass(frozen=True)
class MethodScores:
    """One line of a comparison.

    Attributes:
        scores: test figures.
        needs: ``"none"`` or ``"validation labels"``.
        at_end: whether a larger coefficient might be better.
        merge_seconds: to merge once.
        points: evaluated to choose the coefficient.
        forward_passes: of a batch, to choose the coefficient.
    """

    scores: ModelScores
    needs: str
    at_end: bool
    merge_seconds: float
    points: int
    forward_passes: int


@dataclass(frozen=True)
class Comparison:
    """The result of [`compare_methods`][]; it prints as a table.

    Attributes:
        references: base and single-task models on test data.
        methods: one line a method, and one more where its coefficient was tuned.
        linearized: whether all figures are of the network linearised around the base.
        notes: what the user should know.
        network: name of its class.
        forward_passes: of a batch, everything.
        seconds: of all passes.
    """

    references: tuple[ModelScores, ...]
    methods: tuple[MethodScores, ...]
    linearized: bool
    notes: tuple[str, ...]
    network: str
    forward_passes: int
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """The result as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]; ``seconds`` are those of one merge, ``forward_passes``
            those of the choice of the coefficient. Of tuned methods also ``evaluated points`` and ``at_end``.
        """
        found = [row for scores in self.references for row in scores.rows("merging")]
        for line in self.methods:
            cost = {"seconds": line.merge_seconds, "forward_passes": line.forward_passes}
            found += [{**row, **cost} for row in line.scores.rows("merging")]
            if line.needs != NONE:
                same = {name: found[-1][name] for name in ("kind", "points", "data", "parameter")}
                for measure, value in (("evaluated points", line.points), ("at_end", line.at_end)):
                    found.append({**same, **cost, "measure": measure, "mean": float(value)})
        return found

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        scores = [line.scores for line in self.methods]
        grid = score_grid([*self.references, *scores], "Accuracy on test data")
        needs = ["", ""] + [line.needs + ", at the grid's end" * line.at_end for line in self.methods]
        lines = tuple((*line, said) for line, said in zip(grid.lines, needs, strict=True))
        return View(best_of(scores), (Table(grid.caption, (*grid.heads, "needs"), lines),), self.notes)

    def __str__(self) -> str:
        heading, *lines = score_table([*self.references, *(line.scores for line in self.methods)])
        width = max(len(text) for text in (heading, *lines)) + 2
        lines = [text.ljust(width) for text in lines]
        for number, line in enumerate(self.methods, start=len(self.references)):
            lines[number] += f"{line.needs:<19}{line.merge_seconds:>9.2f}{line.forward_passes:>9,}"
            lines[number] += "  at the grid's end" if line.at_end else ""
        told = [
            f"{heading:<{width}}{'needs':<19}{'merge s':>9}{'passes':>9}",
            *(line.rstrip() for line in lines),
        ]
        told.append(f"{self.forward_passes:,} forward passes, {self.seconds:.1f} s")
        return "\n".join([*told, *(f"Note: {note}." for note in self.notes)])


def compare_methods(
    base: Model,
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut],
    ways: Sequence[Way] | None = None,
    settings: ArithmeticSettings | None = None,
) -> Comparison:
    """Merge by several methods, choose each one's coefficient on validation data, and report test figures.

    A method with a ``lambda`` gives two lines: as its paper has it (``lambda = 1``), which needs no data, and
    tuned, which needs labelled validation data. One merged model is in memory at a time.

    Args:
        base: the pretrained model.
        models: task to the model fine-tuned on it.
        validation: task to the data that coefficients are chosen on.
        test: task to the data that figures are of; they take no part in any choice.
        ways: the methods; by default [`DEFAULT_METHODS`][].
        settings: of the search.

    Returns:
        The comparison.

    Raises:
        MergescopeError: a method can't be used so, or data and models don't belong together.
        PointError: the grid is no grid, or a single-task accuracy is zero.
        MismatchError: fine-tunes were linearised around another base.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> data = [(torch.randn(40, 4), torch.arange(40) % 2) for _ in range(2)]
        >>> validation, test = ({t: HeldOut(t, [part], net) for t in models} for part in data)
        >>> quick = ArithmeticSettings((0, 0.5, 1), extend=False)
        >>> found = compare_methods(base, models, validation, test, [Way("linear"), Way("ties")], quick)
        >>> [(line.scores.name.split(",")[0], line.needs) for line in found.methods]
        [('linear', 'none'), ('ties', 'none'), ('ties', 'validation labels')]
    """  # noqa: DOC502 (raised by what this calls)
    settings = settings or ArithmeticSettings()
    ways = [Way(name) for name in DEFAULT_METHODS] if ways is None else ways
    start, points = Point.of(base), {task: Point.of(model) for task, model in models.items()}
    require_tasks(points, validation, test)
    for way in ways:
        way.check(len(points))
    twice = sorted({way.label for way in ways if [other.label for other in ways].count(way.label) > 1})
    if twice:
        raise MergescopeError(
            f"Named twice: {', '.join(twice)}. Name every method once, or with other parameters."
        )
    linear, notes = in_linear_model(start, points, settings.linearized)
    around = start if linear else None
    own = settings.run({task: [points[task]] for task in validation}, validation, around)
    single = {task: own[task].accuracy(points[task]) for task in validation}
    unlearnt = [task for task, value in single.items() if not value]
    if unlearnt:
        raise PointError(
            f"No normalised accuracy: the validation accuracy of the task's own fine-tune is zero for "
            f"{', '.join(unlearnt)}. Give more validation samples, or leave the task out."
        )
    ends = settings.run({task: [start, points[task]] for task in test}, test, around)
    references = (
        scores_of("base", ends, start, points, seed=settings.seed),
        scores_of("single-task models", ends, points, points, seed=settings.seed),
    )
    lines: list[MethodScores] = []
    passes, seconds = own.forward_passes + ends.forward_passes, own.seconds + ends.seconds
    for way in ways:
        found, cost = _tried(way, start, points, validation, test, settings, around, single, ends)
        lines += found
        passes, seconds = passes + cost[0], seconds + cost[1]
    network = type(next(iter(test.values())).model).__name__
    return Comparison(references, tuple(lines), linear, tuple(notes), network, passes, seconds)


def _tried(
    way: Way,
    base: Point,
    models: Mapping[str, Point],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut],
    settings: ArithmeticSettings,
    around: Point | None,
    single: Mapping[str, float],
    ends: Evaluation,
) -> tuple[list[MethodScores], tuple[int, float]]:
    started = time.perf_counter()
    line = way.line(base, list(models.values()), settings.seed)
    merge_seconds = time.perf_counter() - started
    search = search_line(line, models, validation, settings, around, single) if way.has_scale else None
    lam = 1.0 if search is None else search.choice.lam
    said = settings.run({task: [line(1.0), line(lam)] for task in test}, test, around)
    every = joined(ends, said)

    def scores(name: str, at: float, parameter: float) -> ModelScores:
        return scores_of(name, every, line(at), models, parameter=parameter, seed=settings.seed)

    fixed = way.label if search is None else f"{way.label}, lambda 1"
    found = [
        MethodScores(scores(fixed, 1.0, NAN if search is None else 1.0), NONE, False, merge_seconds, 0, 0)
    ]
    if search is None:
        return found, (said.forward_passes, said.seconds)
    found.append(MethodScores(
        scores(f"{way.label}, lambda {lam:g} (tuned)", lam, lam), LABELS, search.choice.at_end, merge_seconds,
        len(search.choice.scores), search.forward_passes,
    ))  # fmt: skip
    return found, (said.forward_passes + search.forward_passes, said.seconds + search.seconds)
