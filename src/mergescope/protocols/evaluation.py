"""Accuracy and loss of many points on many tasks, sample by sample, in one pass a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mergescope.display import View, as_html, as_pandas, as_pretty, as_text, pivot
from mergescope.errors import DataError, MergescopeError, PointError, did_you_mean
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.protocols.which_data import alike, fingerprint_of
from mergescope.readings import Outputs, bootstrap
from mergescope.tracing import trace
from mergescope.tracing.affine import Mixtures
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class TaskScores:
    """What points said about one task's samples.

    Attributes:
        task: its name.
        correct: point to ``(samples,)``: 0.0 or 1.0, or the share of a text's tokens that were guessed;
            NaN for a text without a token that counts.
        losses: point to ``(samples,)``: cross-entropy.
        forward_passes: of a batch.
        seconds: of the pass.
        peak_bytes: the process' peak resident memory at its end.
        network: name of the network's class.
        fingerprint: of the samples; None if the data don't say which they are.
    """

    task: str
    correct: Mapping[Point, np.ndarray]
    losses: Mapping[Point, np.ndarray]
    forward_passes: int
    seconds: float
    peak_bytes: int
    network: str
    fingerprint: str | None = None

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.correct.values())))

    def accuracy(self, point: Model) -> float:
        """Mean of what is correct.

        Args:
            point: an evaluated one.

        Returns:
            The accuracy, in [0, 1].

        Raises:
            PointError: the point was not evaluated on this task.
        """  # noqa: DOC502 (raised by what this calls)
        return float(np.nanmean(self.correct_of(point)))

    def loss(self, point: Model) -> float:
        """Mean cross-entropy.

        Args:
            point: an evaluated one.

        Returns:
            The loss, natural logarithm.

        Raises:
            PointError: the point was not evaluated on this task.
        """  # noqa: DOC502 (raised by what this calls)
        return float(np.nanmean(self.losses_of(point)))

    def correct_of(self, point: Model) -> np.ndarray:
        """What is correct, sample by sample.

        Args:
            point: an evaluated one.

        Returns:
            ``(samples,)``.

        Raises:
            PointError: the point was not evaluated on this task.
        """  # noqa: DOC502 (raised by what this calls)
        return self.correct[self._known(point)]

    def losses_of(self, point: Model) -> np.ndarray:
        """Cross-entropy, sample by sample.

        Args:
            point: an evaluated one.

        Returns:
            ``(samples,)``.

        Raises:
            PointError: the point was not evaluated on this task.
        """  # noqa: DOC502 (raised by what this calls)
        return self.losses[self._known(point)]

    def _known(self, point: Model) -> Point:
        found = Point.of(point)
        if found not in self.correct:
            raise PointError(f"{found} was not evaluated on {self.task}: give it to evaluate().")
        return found


@dataclass(frozen=True)
class Evaluation:
    """The result of [`evaluate`][].

    Attributes:
        tasks: task to what was said about it.
    """

    tasks: Mapping[str, TaskScores]

    def __getitem__(self, task: str) -> TaskScores:
        if task not in self.tasks:
            raise PointError(
                f"Nothing was evaluated on {task!r}.{did_you_mean(task, self.tasks)} Tasks: {', '.join(self.tasks)}."
            )
        return self.tasks[task]

    def accuracies(self, point: Model) -> dict[str, float]:
        """Accuracy of a point on every task that it was evaluated on.

        Args:
            point: an evaluated one.

        Returns:
            Task to accuracy.
        """
        found = Point.of(point)
        return {task: said.accuracy(found) for task, said in self.tasks.items() if found in said.correct}

    def alike_of(self, tasks: Iterable[str]) -> list[int]:
        """Which of some tasks have the same samples, for means over tasks.

        Args:
            tasks: their names.

        Returns:
            As of [`alike`][mergescope.protocols.which_data.alike].

        Raises:
            PointError: nothing was evaluated on a task.
        """  # noqa: DOC502 (raised by what this calls)
        return alike(self[task].fingerprint for task in tasks)

    @property
    def forward_passes(self) -> int:
        """Forward passes of a batch, over all tasks."""
        return sum(said.forward_passes for said in self.tasks.values())

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""
        return sum(said.seconds for said in self.tasks.values())

    def rows(self) -> list[dict[str, Any]]:
        """Accuracy and loss of every point on every task as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        found = []
        for task, said in self.tasks.items():
            values = np.stack([*said.correct.values(), *said.losses.values()], axis=1)
            names = [(str(point), what) for what in ("accuracy", "loss") for point in said.correct]
            found += [
                {"kind": "accuracy", "points": point, "data": task, "measure": what, **vars(summary)}
                for (point, what), summary in zip(names, bootstrap(values), strict=True)
            ]
        return found

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        everywhere = {
            str(point): float(np.mean(list(self.accuracies(point).values())))
            for point in next(iter(self.tasks.values())).correct
            if all(point in said.correct for said in self.tasks.values())
        }
        best = max(everywhere, key=lambda name: everywhere[name], default=None)
        of_all = f", the mean over {len(self.tasks)} tasks," if len(self.tasks) > 1 else ""
        said = (
            "No point was evaluated on every task"
            if best is None
            else f"Highest accuracy{of_all} of what ran on all data: {everywhere[best]:.4f} of {best}"
        )
        return View(said, (pivot(self.rows(), "Accuracy", "points", "data", measure="accuracy"),))


def evaluate(
    points: Iterable[Model] | Mapping[str, Iterable[Model]],
    held: Mapping[str, HeldOut],
    *,
    around: Model | None = None,
    executor: str = "auto",
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Pass every task's data once through all points, and keep what each says of each sample.

    Args:
        points: models for all tasks, or task to models. Equal ones are run once; in a linearised network,
            combinations of the same checkpoints cost nothing.
        held: task to its data and network.
        around: evaluate in the network linearised around this point; None for the ordinary one.
        executor: as for [`trace`][mergescope.trace].
        device: of the streamed executor.
        progress: show bars on a terminal.

    Returns:
        Correctness and loss, by task, point and sample.

    Raises:
        MergescopeError: a network predicts nothing, or there is no task.
        DataError: data have no labels.
        PointError: a point is no model, or a task has none.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = ms.random_neighbour(base, base * 1.1, seed=0)
        >>> held = {"noise": HeldOut("noise", [(torch.randn(6, 4), torch.zeros(6).long())], net)}
        >>> found = evaluate([base, near, (base + near) / 2], held)
        >>> found["noise"].samples, sorted(found.accuracies(near)), found.forward_passes
        (6, ['noise'], 3)
    """  # noqa: DOC502 (raised by what this calls)
    if not held:
        raise MergescopeError("There is no task to evaluate on: give held-out data.")
    start = None if around is None else Point.of(around)
    wanted = points if isinstance(points, Mapping) else dict.fromkeys(held, list(points))
    unknown = [task for task in wanted if task not in held]
    if unknown:
        raise MergescopeError(
            f"There are points, but no data, for {', '.join(unknown)}.{did_you_mean(unknown[0], held)} Tasks: "
            f"{', '.join(held)}."
        )
    return Evaluation({
        task: _scores(task, [Point.of(point) for point in wanted[task]], held[task], start, executor, device, progress)
        for task in held
        if task in wanted
    })  # fmt: skip


def _scores(
    task: str, points: list[Point], data: HeldOut, start: Point | None, executor: str, device: str, progress: bool
) -> TaskScores:  # fmt: skip
    reading = data.reading()
    if reading is None:
        raise MergescopeError(
            f"{task}: {type(data.model).__name__} predicts no classes and no next tokens, so it has no accuracy. Give "
            "models with a head, or measure features instead."
        )
    distinct = list(dict.fromkeys(points))

    def passed() -> Arrays:
        network: AbstractContextManager[nn.Module] = nullcontext(data.model)
        if start is not None:
            network = linearized_in_place(data.model, start, data.fixed)
        with network as model:
            traced = trace(
                distinct, data.batches, model, layers="output", readings=[reading], executor=executor, device=device,
                fixed=data.fixed, progress=progress,
            )  # fmt: skip
        if isinstance(reading, Outputs) and not reading.labelled:
            raise DataError(
                f"{task}: the data have no labels, so there is no accuracy. Yield (inputs, labels)."
            )
        return {
            "correct": np.stack([reading.correct(point) for point in distinct]),
            "losses": np.stack([reading.losses(point) for point in distinct]),
            "passes": np.array(traced.forward_passes), "seconds": np.array(traced.seconds),
            "peak": np.array(traced.peak_bytes), "network": np.array(traced.network),
        }  # fmt: skip

    found = once("evaluate", data, distinct, start, executor, passed)
    return TaskScores(
        task, dict(zip(distinct, found["correct"], strict=True)), dict(zip(distinct, found["losses"], strict=True)),
        int(found["passes"]), float(found["seconds"]), int(found["peak"]), str(found["network"]),
        fingerprint_of(data.batches),
    )  # fmt: skip


def planned_passes(
    points: Mapping[str, Iterable[Model]], batches: Mapping[str, int], *, affine: bool = False
) -> int:
    """Forward passes of a batch that [`evaluate`][] will make.

    Args:
        points: task to models.
        batches: task to its number of batches.
        affine: whether combinations of checkpoints cost nothing: a linearised network.

    Returns:
        Their number, over all tasks.

    Example:
        >>> import torch, mergescope as ms
        >>> a, b = (ms.Checkpoint({"w": torch.full((2,), v)}, name=name) for name, v in (("a", 1.0), ("b", 2.0)))
        >>> [planned_passes({"task": [a, b, (a + b) / 2]}, {"task": 10}, affine=free) for free in (False, True)]
        [30, 20]
    """
    total = 0
    for task, models in points.items():
        distinct = dict.fromkeys(Point.of(model) for model in models)
        total += batches[task] * (len(Mixtures.of(distinct).runs) if affine else len(distinct))
    return total


def joined(first: Evaluation, second: Evaluation) -> Evaluation:
    """Two evaluations on the same samples as one.

    Args:
        first: of some points.
        second: of others, on the same tasks.

    Returns:
        Both, at the price of both.

    Raises:
        MergescopeError: a task's samples differ in number.
    """
    out = {}
    for task, one in first.tasks.items():
        other = second[task]
        if one.samples != other.samples:
            raise MergescopeError(
                f"{task}: {one.samples} samples in one evaluation and {other.samples} in the other can't be compared."
            )
        out[task] = TaskScores(
            task, {**one.correct, **other.correct}, {**one.losses, **other.losses},
            one.forward_passes + other.forward_passes, one.seconds + other.seconds,
            max(one.peak_bytes, other.peak_bytes), one.network, one.fingerprint,
        )  # fmt: skip
    return Evaluation(out)
