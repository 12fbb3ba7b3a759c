"""Choosing coefficients on validation data: what is searched, and by how many passes.

Nothing here ever sees test data: what is chosen is a function of validation figures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.errors import MergescopeError
from mergescope.protocols.evaluation import Evaluation, Model, evaluate
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.search import GRID, Choice, choose, grid_parts, normalised_accuracy
from mergescope.protocols.which_data import require_unseen
from mergescope.tracing.affine import Mixtures
from mergescope.weights import Point


@dataclass(frozen=True)
class ArithmeticSettings:
    """How coefficients are searched.

    Attributes:
        grid: coefficients, ascending; TA and ATTN search 21 from 0 to 1.
        extend: go on beyond the grid's end while the best coefficient is the largest.
        limit: the largest coefficient to go to.
        control_share: what negation must keep of the pretrained model's control accuracy.
        linearized: in the network linearised around the base: True for any fine-tunes ("post-hoc"), None if
            all were trained in the linearised regime around this base.
        executor: of the passes, as for [`trace`][mergescope.trace].
        device: of the streamed executor.
        seed: of the intervals.
        progress: show bars on a terminal.
    """

    grid: tuple[float, ...] = GRID
    extend: bool = True
    limit: float = 3.0
    control_share: float = 0.95
    linearized: bool | None = None
    executor: str = "auto"
    device: str = "cpu"
    seed: int = 0
    progress: bool = True

    def parts(self) -> list[tuple[float, ...]]:
        """The grid, then its continuations.

        Returns:
            Coefficients, as [`grid_parts`][mergescope.protocols.search.grid_parts] divides them.

        Raises:
            PointError: the grid is no grid.
        """  # noqa: DOC502 (raised by what this calls)
        return grid_parts(self.grid, self.limit if self.extend else None)

    def run(
        self,
        points: Mapping[str, Iterable[Model]],
        held: Mapping[str, HeldOut],
        around: Point | None,
    ) -> Evaluation:
        """Evaluate as these settings say.

        Args:
            points: task to models.
            held: task to data.
            around: what the network is linearised around, or None.

        Returns:
            The evaluation.
        """
        return evaluate(
            points, held, around=around, executor=self.executor, device=self.device, progress=self.progress
        )  # fmt: skip

    def free(self, first: Iterable[Point], more: Iterable[Point], around: Point | None) -> bool:
        """Whether further points cost no pass, so that there is no reason to wait with them.

        Args:
            first: points that are evaluated anyway.
            more: further ones.
            around: what the network is linearised around, or None.

        Returns:
            True if sums give them.
        """
        if around is None or self.executor == "resident":
            return False
        told = list(dict.fromkeys(first))
        return len(Mixtures.of(told).runs) == len(Mixtures.of(dict.fromkeys([*told, *more])).runs)


@dataclass(frozen=True)
class LineSearch:
    """A coefficient chosen on validation data.

    Attributes:
        choice: the coefficient, its score and those of all others.
        accuracies: coefficient to task to validation accuracy.
        single: task to validation accuracy of the model fine-tuned on it.
        forward_passes: of a batch.
        seconds: of all passes.
    """

    choice: Choice
    accuracies: Mapping[float, Mapping[str, float]]
    single: Mapping[str, float]
    forward_passes: int
    seconds: float


def search_line(
    line: Callable[[float], Point],
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    settings: ArithmeticSettings,
    around: Point | None = None,
    single: Mapping[str, float] | None = None,
) -> LineSearch:
    """Choose the point of a line with the highest mean normalised validation accuracy.

    Args:
        line: coefficient to point.
        models: task to the model fine-tuned on it.
        validation: task to data.
        settings: of the search.
        around: what the network is linearised around, or None.
        single: validation accuracies of the models, if they are known.

    Returns:
        The choice.

    Raises:
        PointError: the grid is no grid, or a single-task accuracy is zero.
    """  # noqa: DOC502 (raised by what this calls)
    parts = settings.parts()
    rest = [line(lam) for part in parts[1:] for lam in part]
    own = {task: [] if single is not None else [Point.of(models[task])] for task in validation}
    if rest and settings.free(
        [*map(line, parts[0]), *(p for each in own.values() for p in each)], rest, around
    ):
        ahead = tuple(lam for part in parts for lam in part)
    else:
        ahead = parts[0]
    found = settings.run({task: [*map(line, ahead), *own[task]] for task in validation}, validation, around)
    passes, seconds = found.forward_passes, found.seconds
    if single is None:
        single = {task: found[task].accuracy(models[task]) for task in validation}
    accuracies: dict[float, dict[str, float]] = {}
    for part in parts:
        if part[0] not in ahead:
            found = settings.run({task: map(line, part) for task in validation}, validation, around)
            passes, seconds = passes + found.forward_passes, seconds + found.seconds
        accuracies |= {lam: {task: found[task].accuracy(line(lam)) for task in validation} for lam in part}
        choice = choose({lam: normalised_accuracy(said, single) for lam, said in accuracies.items()})
        if not choice.at_end:
            break
    return LineSearch(choice, accuracies, single, passes, seconds)


def end_note(choice: Choice, settings: ArithmeticSettings) -> str:
    """Whether a grid's end keeps a coefficient from being larger.

    Args:
        choice: of a coefficient.
        settings: of its search.

    Returns:
        In words.
    """
    if not choice.at_end:
        return "the grid's end does not bind"
    if settings.extend:
        return f"it is at the limit of the search, {max(choice.scores):g}: a larger one may be better"
    return f"the grid's end binds, {max(choice.scores):g}: a larger one may be better"


def require_tasks(
    models: Mapping[str, Any],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut] | None = None,
    control: tuple[HeldOut, HeldOut | None] | None = None,
) -> None:
    """Refuse data that are not those of the models, and test data that choose.

    Args:
        models: task to fine-tune.
        validation: task to data.
        test: task to data.
        control: control data to choose by and to report of.

    Raises:
        MergescopeError: tasks differ, or the same data are to choose and to report.
    """
    if not models:
        raise MergescopeError("Task arithmetic needs at least one fine-tuned model.")
    for what, held in (("validation", validation), ("test", test)):
        if held is None:
            continue
        lacking = [task for task in models if task not in held]
        extra = [task for task in held if task not in models]
        if lacking or extra:
            told = [f"no {what} data for {', '.join(lacking)}"] * bool(lacking)
            told += [f"no model for the {what} data of {', '.join(extra)}"] * bool(extra)
            raise MergescopeError(f"There are {' and '.join(told)}. Give one model and one data set a task.")
    choosing, reporting = dict(validation), dict(test or {})
    if control is not None and control[1] is not None:
        choosing["the control data"], reporting["the control data"] = control[0], control[1]
    require_unseen(choosing, reporting, "the coefficient")
