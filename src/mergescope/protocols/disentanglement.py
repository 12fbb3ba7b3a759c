"""Weight disentanglement: does a task vector change what the model does on another task's data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from mergescope.display import View, as_html, as_pandas, as_pretty, pivot
from mergescope.errors import MergescopeError, did_you_mean
from mergescope.models.layers import find_layers
from mergescope.protocols.error_grids import BOX, THRESHOLD, ErrorGrid, coefficients, inside, summarised
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place, require_executor
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.protocols.subset import subset
from mergescope.readings.disagreement import Disagreement, require_distance
from mergescope.tracing import trace
from mergescope.tracing.affine import Mixtures
from mergescope.weights import Point, task_vector
from mergescope.weights.point import TensorSource

Model = Point | TensorSource

SAMPLES = 2048
"""Samples of each task, unless told otherwise (TANGENT, ATTN)."""


@dataclass(frozen=True)
class DisentanglementSettings:
    """What to measure.

    Attributes:
        points: of the grid, a side.
        reach: the grid is on ``[-reach, reach]^2``.
        pairs: of tasks; None for all.
        distance: ``predictions`` or ``kl`` (see
            [`Disagreement`][mergescope.readings.disagreement.Disagreement]).
        layer: compare the features of this layer, by ``kl``, in place of outputs: a suffix pattern of one
            module, such as ``backbone`` for the embedding under a head.
        features: what counts as a sample's feature of that layer. ``all`` keeps ``points^2`` token maps of a
            batch at a time.
        samples: of each task.
        threshold: errors below it count as small.
        box: ends of the search box.
        linearized: measure in the network linearised around the base: True for any fine-tunes ("post-hoc"),
            None if all were trained so.
        executor: of the trace.
        device: of the streamed executor.
        seed: of the choice of samples and of intervals.
        progress: show bars on a terminal.
    """

    points: int = 20
    reach: float = 3.0
    pairs: tuple[tuple[str, str], ...] | None = None
    distance: str = "predictions"
    layer: str | None = None
    features: str = "auto"
    samples: int = SAMPLES
    threshold: float = THRESHOLD
    box: tuple[float, float] = BOX
    linearized: bool | None = None
    executor: str = "auto"
    device: str = "cpu"
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Disentanglement:
    """The result of [`disentanglement`][].

    Attributes:
        grids: one a pair of tasks.
        settings: what was measured.
        linearized: whether in the linearised network.
        network: name of its class.
        forward_passes: of a batch.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        notes: what the user should know.
    """

    grids: tuple[ErrorGrid, ...]
    settings: DisentanglementSettings
    linearized: bool
    network: str
    forward_passes: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, pair: tuple[str, str]) -> ErrorGrid:
        for grid in self.grids:
            if grid.tasks == pair:
                return grid
        known = ", ".join(":".join(grid.tasks) for grid in self.grids)
        raise MergescopeError(f"The pair {':'.join(pair)} was not measured. Measured: {known}.")

    def rows(self) -> list[dict[str, Any]]:
        """All summaries as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        cost = {
            "seconds": round(self.seconds, 3), "forward_passes": self.forward_passes, "peak_bytes": self.peak_bytes,
        }  # fmt: skip
        return [{**row, **cost} for grid in self.grids for row in grid.rows()]

    @property
    def _title(self) -> str:
        s, (low, high) = self.settings, self.settings.box
        what = f"features of {s.layer}" if s.layer else "outputs"
        where = " in the linearised network" if self.linearized else ""
        return (
            f"Weight disentanglement error ({s.distance} of {what}){where}, {s.points} x {s.points} on "
            f"[-{s.reach:g}, {s.reach:g}]^2; box [{low:g}, {high:g}]^2; small: below {s.threshold:g}"
        )

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        in_box = [(grid.summaries["mean error of the box"].mean, grid.name) for grid in self.grids]
        (low, least), (high, most) = min(in_box), max(in_box)
        more = f"; smallest {low:.3f} ({least})" if len(in_box) > 1 else ""
        said = f"Largest mean error in the search box: {high:.3f} ({most}){more}"
        return View(said, (pivot(self.rows(), self._title, "points", "measure"),), self.notes)

    def __str__(self) -> str:
        width, names = max([5, *(len(grid.name) for grid in self.grids)]), ("mean error", "share below")
        lines = [
            self._title,
            f"{'tasks':<{width}}  {'samples':>11}"
            + "".join(f"  {f'{name}, {where}':>24}" for where in ("square", "box") for name in names),
        ]
        for grid in self.grids:
            shown = [
                grid.summaries[f"{name} of the {where}"] for where in ("square", "box") for name in names
            ]
            figures = "".join(f"  {f'{x.mean:.3f} [{x.low:.3f}, {x.high:.3f}]':>24}" for x in shown)
            lines.append(f"{grid.name:<{width}}  {' + '.join(map(str, grid.samples)):>11}{figures}")
        return "\n".join(lines)


def disentanglement(
    base: Model,
    models: Mapping[str, Model],
    test: Mapping[str, HeldOut],
    settings: DisentanglementSettings | None = None,
) -> Disentanglement:
    """The weight disentanglement error of pairs of tasks over a square of coefficients.

    ``xi(a1, a2) = sum_t E_{x ~ D_t} dist(f(x; th_0 + a_t tau_t), f(x; th_0 + a1 tau_1 + a2 tau_2))``
    (TANGENT; ATTN Property 4). Single-task terms depend on one coefficient, so a pair
    costs ``n^2`` evaluations on each task's data and ``n`` more, which all pairs with that task share. In
    a linearised network the checkpoints' passes give the whole grid exactly.

    Args:
        base: the pretrained model.
        models: task to fine-tuned model.
        test: task to its held-out data.
        settings: what to measure.

    Returns:
        The errors, with summaries.

    Raises:
        MergescopeError: a pair is unknown, a task lacks data or predictions, or the distance does not exist.
        LayerError: the layer does not exist.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 3))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.5, seed=i) for i, name in enumerate("ab")}
        >>> test = {name: HeldOut(name, [torch.randn(6, 4)], net, name) for name in "ab"}
        >>> found = disentanglement(base, models, test, DisentanglementSettings(points=3, reach=1))
        >>> found["a", "b"].error.shape, float(found["a", "b"].error[1, 1]), found.forward_passes
        ((3, 3), 0.0, 18)
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, test, settings or DisentanglementSettings())
    return work.run()


def plan(
    base: Model,
    models: Mapping[str, Model],
    test: Mapping[str, HeldOut],
    settings: DisentanglementSettings | None = None,
) -> dict[str, Any]:
    """What [`disentanglement`][] will cost.

    Args:
        base: as for [`disentanglement`][].
        models: as for [`disentanglement`][].
        test: as for [`disentanglement`][].
        settings: as for [`disentanglement`][].

    Returns:
        Pairs, whether linearised, and of each task its points and forward passes a batch.

    Raises:
        MergescopeError: as for [`disentanglement`][].
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, test, settings or DisentanglementSettings())
    points, runs = dict.fromkeys(work.partners, 0), dict.fromkeys(work.partners, 0)
    for task, others in work.passes():
        every = tuple(dict.fromkeys(point for pair in work.compared(task, others) for point in pair))
        points[task] += len(every)
        affine = work.linearized and work.settings.executor != "resident"
        runs[task] += len(Mixtures.of(every).runs) if affine else len(every)
    return {
        "pairs": [":".join(pair) for pair in work.pairs],
        "linearized": work.linearized,
        "points": points,
        "passes_a_batch": runs,
    }


@dataclass(frozen=True)
class _Work:
    base: Point
    vectors: Mapping[str, Point]
    test: Mapping[str, HeldOut]
    settings: DisentanglementSettings
    pairs: tuple[tuple[str, str], ...]
    grid: tuple[Fraction, ...]
    linearized: bool
    notes: tuple[str, ...]
    partners: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, base: Model, models: Mapping[str, Model], test: Mapping[str, HeldOut], s: DisentanglementSettings
    ) -> _Work:
        require_distance(s.distance, s.layer)
        start, points = Point.of(base), {task: Point.of(model) for task, model in models.items()}
        pairs = task_pairs(s.pairs, models)
        partners: dict[str, list[str]] = {}
        for one, other in pairs:
            partners.setdefault(one, []).append(other)
            partners.setdefault(other, []).append(one)
        lacking = [task for task in partners if task not in test]
        if lacking:
            raise MergescopeError(f"There are no data for {', '.join(lacking)}. Give each task's test data.")
        mute = [task for task in partners if s.distance == "predictions" and not test[task].predicts]
        if mute:
            raise MergescopeError(
                f"The networks of {', '.join(mute)} predict no classes. Compare their outputs: distance kl."
            )
        linear, notes = in_linear_model(start, points, s.linearized)
        if linear:
            require_executor(s.executor)
        vectors = {task: task_vector(points[task], start) for task in partners}
        grid = coefficients(s.points, s.reach)
        return cls(start, vectors, test, s, pairs, grid, linear, tuple(notes), partners)

    def passes(self) -> list[tuple[str, list[str]]]:
        """A task's data and the other tasks whose vectors are added; one by one, if features are kept.

        Returns:
            One entry a trace.
        """
        if self.settings.layer is None:
            return list(self.partners.items())
        return [(task, [other]) for task, others in self.partners.items() for other in others]

    def compared(self, task: str, others: Sequence[str]) -> list[tuple[Point, Point]]:
        own = [self.base + a * self.vectors[task] for a in self.grid]
        added = {other: [b * self.vectors[other] for b in self.grid] for other in others}
        return [(single, single + more) for other in others for single in own for more in added[other]]

    def run(self) -> Disentanglement:
        found: dict[tuple[str, str], np.ndarray] = {}
        passes: list[Arrays] = []
        data = {
            task: subset(self.test[task].batches, self.settings.samples, self.settings.seed)
            for task in self.partners
        }
        for task, others in self.passes():
            left = self._pass(task, others, replace(self.test[task], batches=data[task]))
            passes.append(left)
            n = len(self.grid)
            values = left["distances"].reshape(len(others), n, n, -1)
            found |= {(task, other): part for other, part in zip(others, values, strict=True)}
        return Disentanglement(
            tuple(self._grid(pair, found) for pair in self.pairs), self.settings, self.linearized,
            str(passes[0]["network"]), sum(int(left["passes"]) for left in passes),
            sum(float(left["seconds"]) for left in passes), max(int(left["peak"]) for left in passes), self.notes,
        )  # fmt: skip

    def _pass(self, task: str, others: Sequence[str], held: HeldOut) -> Arrays:
        s, pairs = self.settings, self.compared(task, others)
        layer = None if s.layer is None else one_layer(held.model, s.layer)
        points = [point for pair in pairs for point in pair]

        def passed() -> Arrays:
            network: AbstractContextManager[nn.Module] = nullcontext(held.model)
            if self.linearized:
                network = linearized_in_place(held.model, self.base, held.fixed)
            with network as model:
                traced = trace(
                    points, held.batches, model, layers="output" if layer is None else [layer],
                    readings=[Disagreement(pairs, s.distance, layer, held.classes)], features=s.features,
                    executor=s.executor, device=s.device, fixed=held.fixed, progress=s.progress,
                )  # fmt: skip
            return {
                "distances": traced.reading(Disagreement).distances(), "passes": np.array(traced.forward_passes),
                "seconds": np.array(traced.seconds), "peak": np.array(traced.peak_bytes),
                "network": np.array(traced.network),
            }  # fmt: skip

        around = self.base if self.linearized else None
        return once("disentangle", held, points, around, [s.distance, layer, s.features, s.executor], passed)

    def _grid(self, pair: tuple[str, str], found: Mapping[tuple[str, str], np.ndarray]) -> ErrorGrid:
        s, (one, other) = self.settings, pair
        values = found[one, other], found[other, one].transpose(1, 0, 2)
        grid = tuple(map(float, self.grid))
        summaries = summarised(values, inside(grid, s.box), s.threshold, s.seed)
        return ErrorGrid(
            pair, grid, np.stack([np.nanmean(part, axis=2, dtype=np.float64) for part in values]),
            (values[0].shape[2], values[1].shape[2]), s.distance, s.layer or "", summaries, s.threshold, s.box,
        )  # fmt: skip


def task_pairs(
    wanted: Sequence[tuple[str, str]] | None, models: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """The pairs of tasks that were asked for.

    Args:
        wanted: pairs of names, or None for all.
        models: by task.

    Returns:
        The pairs, each once.

    Raises:
        MergescopeError: there are fewer than two models, a task is unknown, or a pair is of one task.

    Example:
        >>> task_pairs(None, {"a": 1, "b": 2, "c": 3})
        (('a', 'b'), ('a', 'c'), ('b', 'c'))
    """
    if wanted is None:
        if len(models) < 2:
            raise MergescopeError("This takes two fine-tuned models or more, each with data of its own task.")
        return tuple(combinations(models, 2))
    for pair in wanted:
        for task in pair:
            if task not in models:
                raise MergescopeError(
                    f"There is no task {task!r}.{did_you_mean(task, models)} Tasks: {', '.join(models)}."
                )
        if pair[0] == pair[1]:
            raise MergescopeError(f"{pair[0]}:{pair[1]} is no pair of tasks. Name two, like a:b.")
    return tuple({frozenset(pair): pair for pair in reversed(list(wanted))}.values())[::-1]


def one_layer(model: nn.Module, pattern: str) -> str:
    """The one module that a pattern names.

    Args:
        model: the network.
        pattern: a suffix pattern.

    Returns:
        Its name.

    Raises:
        MergescopeError: the pattern names several.
        LayerError: it names none.

    Example:
        >>> import mergescope as ms
        >>> one_layer(ms.MLP(), "blocks.1")
        'blocks.1'
    """  # noqa: DOC502 (raised by what this calls)
    found = find_layers(model, pattern)
    if len(found) > 1:
        raise MergescopeError(
            f"The layer {pattern!r} is {len(found)} modules: {', '.join(found[:4])} ... Name one of them."
        )
    return found[0]
