"""trace(): one pass of a data set through a set of points in lock-step."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, as_text, pivot
from mergescope.errors import DataError, MergescopeError, PointError, did_you_mean
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features
from mergescope.models.layers import find_layers
from mergescope.models.loading import key_map, key_maps, usable_device
from mergescope.readings import FeatureMeans, InnerProducts, NextTokenLoss, Outputs, Reading, bootstrap
from mergescope.tracing.affine import affine_part
from mergescope.tracing.capture import trivially_linear
from mergescope.tracing.determinism import (
    few_samples,
    require_deterministic_data,
    require_deterministic_model,
    require_repeatable,
)
from mergescope.tracing.engines import Engine, chosen_engine
from mergescope.tracing.kept import Kept
from mergescope.tracing.parts import EXECUTORS, calibrated, peak_memory, run_pass
from mergescope.tracing.passes import Pass
from mergescope.weights import Checkpoint, Point
from mergescope.weights.point import TensorSource
from mergescope.weights.selection import Selection

R = TypeVar("R")


@dataclass
class Trace:
    """What a pass left behind: readings, and what it cost.

    Attributes:
        points: the distinct points, in the order of the readings.
        layers: the captured layers.
        trivial: layers that are linear in the weights by construction.
        readings: the filled readings.
        samples: how many samples were seen.
        forward_passes: forward passes of a batch.
        local_passes: further passes through the layers alone, for local linearity.
        features: the convention: kind of model and choice of feature.
        executor: ``"resident"``, ``"affine"``, ``"batched"`` or ``"streamed"``.
        affine: whether features are affine in the weights, since the network is linearised; outputs are
            as well, but those of a head that normalises.
        dtype: what the network computed in.
        network: name of its class.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end; of workers, if there were any, the largest.
    """

    points: tuple[Point, ...]
    layers: tuple[str, ...]
    trivial: frozenset[str]
    readings: tuple[Reading, ...]
    samples: int = 0
    forward_passes: int = 0
    local_passes: int = 0
    features: Features = Features()
    executor: str = "resident"
    affine: bool = False
    dtype: torch.dtype = torch.float32
    network: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0

    def reading(self, kind: type[R], **having: Any) -> R:
        """The reading of a kind.

        Args:
            kind: its class, for example ``InnerProducts``.
            **having: attributes it must have, for example ``local=True``.

        Returns:
            The reading.

        Raises:
            MergescopeError: the trace was made without it.
        """
        for reading in self.readings:
            if isinstance(reading, kind) and all(getattr(reading, k) == v for k, v in having.items()):
                return reading
        have = ", ".join(type(reading).__name__ for reading in self.readings)
        raise MergescopeError(
            f"This trace has no {kind.__name__} (it has: {have}). Pass readings=[{kind.__name__}()]."
        )

    def rows(self) -> list[dict[str, Any]]:
        """The points, with loss and accuracy where a reading knows them, as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": "trace", "seconds": self.seconds, "forward_passes": self.forward_passes}
        said = next((it for it in self.readings if isinstance(it, (Outputs, NextTokenLoss))), None)
        if said is None or (isinstance(said, Outputs) and not said.labelled):
            return [{**common, "points": str(point), "n": self.samples} for point in self.points]
        values = [part for point in self.points for part in (said.correct(point), said.losses(point))]
        names = [(str(point), what) for point in self.points for what in ("accuracy", "loss")]
        return [
            {**common, "points": point, "measure": what, **vars(summary)}
            for (point, what), summary in zip(names, bootstrap(np.stack(values, axis=1)), strict=True)
        ]

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        said = (
            f"{self.samples:,} samples through {len(self.points)} points and {len(self.layers)} layers of "
            f"{self.network}: {self.forward_passes:,} forward passes of a batch, {self.seconds:.1f} s"
        )
        held = ", ".join(type(reading).__name__ for reading in self.readings)
        rows = self.rows()
        if "measure" in rows[0]:
            return View(said, (pivot(rows, f"Points; readings: {held}", "points", "measure"),))
        points = tuple((row["points"],) for row in rows)
        return View(said, (Table(f"Readings: {held}", ("points",), points),))


def trace(
    points: Iterable[Point | TensorSource],
    data: Iterable[Any],
    model: nn.Module,
    *,
    layers: str | Sequence[str] = "blocks",
    readings: Sequence[Reading] | None = None,
    features: str = "auto",
    local: Point | TensorSource | None = None,
    centre: Point | TensorSource | None = None,
    executor: str = "auto",
    device: torch.device | str = "cpu",
    fixed: Collection[str] = (),
    calibration: Iterable[Any] | None = None,
    check: bool = True,
    progress: bool = True,
    engine: Engine | None = None,
    keep: Path | None = None,
) -> Trace:
    """Pass a data set through all points at once and reduce what they compute.

    For each batch every distinct point runs once: K end points and P combinations cost K + P
    forward passes a batch, where measuring pair by pair costs 3 P. Nothing larger than one batch's
    features is kept. The *resident* executor swaps weights in place: the network is in memory,
    checkpoints stay on disk.

    Args:
        points: models (coefficients sum to 1); equal ones are run once.
        data: batches: tensors, pairs ``(inputs, labels)``, or mappings of model arguments. It
            must give the same batches on every pass.
        model: the architecture; on any device. Its own weights are put back at the end.
        layers: ``"blocks"``, suffix patterns, or ``"output"``
            (see [`find_layers`][mergescope.models.find_layers]).
        readings: what to compute; by default [`InnerProducts`][mergescope.InnerProducts] of all
            points, and [`Outputs`][mergescope.Outputs] if the first batch has labels
            ([`NextTokenLoss`][mergescope.NextTokenLoss] if they are tokens).
        features: what counts as a sample's feature: ``auto``, ``all``, ``mean``, ``last``, ``cls``
            or ``each`` (see [`Features`][mergescope.models.features.Features]).
        local: a point, usually the pretrained model. Every layer of every other point is run once
            more on this point's input to it, for ``InnerProducts(local=True)``.
        centre: a point whose mean feature is subtracted from all features, at the price of another
            pass through it. Tests stay tests, since their coefficients sum to 1.
        executor: ``"resident"``; ``"batched"``: all points at once, for small networks on a GPU;
            ``"streamed"``: block by block, for models larger than memory; ``"affine"``: checkpoints only,
            and sums for their combinations, for linearised networks; or ``"auto"``: affine for those,
            streamed for an [`empty_model`][mergescope.empty_model], which has no other, batched on a GPU
            where that is likely faster and possible, else resident.
        device: where an empty model's parameters go; any other model computes where it is.
        fixed: state-dict entries that no point fills and that stay what they are in the model: a
            task's own head on a body that many share.
        calibration: if given, BatchNorm running statistics of every point that combines several
            checkpoints are re-estimated on these batches; otherwise they are combined like weights.
        check: refuse data or networks that are not deterministic, and NaN weights.
        progress: show a bar on a terminal.
        engine: runs the pass in parts, each some of the batches, in many processes; by default that of
            [`running_on`][mergescope.tracing.engines.running_on], else it runs here.
        keep: a directory in which the pass keeps what it has seen: if it is killed, the same call goes on, on any
            engine. The streamed executor, which sees all batches at the end only, keeps the parts of an engine. The
            directory's name must follow from all arguments; who calls removes it.

    Returns:
        The trace.

    Raises:
        PointError: no points, or one that is no model.
        LayerError: a layer pattern matches nothing.
        DataError: the data are empty, shuffled or malformed.
        CheckpointError: weights are NaN or infinite.
        MismatchError: the points don't fit the network.
        MergescopeError: there is no such executor, or it can't do what is asked.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> tuned = ms.random_neighbour(base, base * 1.1, seed=0)
        >>> test = ms.ctl(base, tuned)
        >>> traced = trace(test.points, [torch.ones(3, 4)], net)
        >>> traced.layers, len(traced.points), traced.forward_passes
        (('blocks.0', 'output'), 3, 3)
    """  # noqa: DOC502 (raised by what this calls)
    started = time.perf_counter()
    distinct = tuple(dict.fromkeys(Point.of(point) for point in points))
    if not distinct:
        raise PointError("There are no points to trace.")
    reference, middle = (None if it is None else Point.of(it) for it in (local, centre))
    for point in distinct if middle is None else (*distinct, middle):
        if not point.is_model:
            raise PointError(
                f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1. "
                "Add a direction to a base before tracing it."
            )
    _require_executor(executor)
    if reference is not None and reference not in distinct:
        raise PointError(f"local= must be one of the traced points, got {reference!r}.")
    chosen = find_layers(model, layers)
    affine = affine_part(model) is not None
    convention = Features.of(model, features)
    if affine:
        _require_linearised(executor, reference)
    elif executor == "affine":
        raise MergescopeError(
            f"The affine executor is for networks that are affine in their weights, and {type(model).__name__} is not. "
            "Linearise it: linearized_network(model, base); or use the resident executor."
        )
    empty = any(entry.is_meta for entry in model.parameters())
    if executor == "auto" and (affine or empty):
        executor = "affine" if affine else "streamed"
    if empty and executor != "streamed":
        raise MergescopeError(
            f"An empty model has no memory for the {executor} executor. "
            f"Use {'' if affine else 'streamed, or '}load_model()."
        )
    if calibration is not None and executor == "streamed":
        raise MergescopeError(
            "BatchNorm statistics can't be re-estimated block by block. Use the resident executor."
        )
    place = usable_device(device)
    if not empty:
        place = next((entry.device for entry in model.parameters()), torch.device("cpu"))
    require_repeatable(data, "data")
    if calibration is not None:
        require_repeatable(calibration, "calibration data")
    if check:
        require_deterministic_data(data)
    first = next(iter(data), None)
    if first is None:
        raise DataError(
            "The data set is empty: there is not one batch to trace. Check the split and any filter."
        )
    inputs, labels = split_batch(first)
    if readings is None:
        readings = [InnerProducts()]
        if labels is not None:  # a decoder may be a classifier
            tokens = convention.kind == "decoder" and labels.ndim > 1
            readings.append(NextTokenLoss() if tokens else Outputs())
        if reference is not None:
            readings.append(InnerProducts(local=True))
    if check:
        for source in {s.identity: s for point in distinct for s in point.checkpoints}.values():
            if isinstance(source, Checkpoint | Selection):
                source.require_finite()

    mappings = key_maps(model, distinct, fixed)
    own_weights = {} if empty else {name: value.clone() for name, value in model.state_dict().items()}
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        trivial: set[str] = set()
        if not empty:
            few = to_device(few_samples(inputs), place)
            trivial = trivially_linear(model, few, chosen, convention.call)
            if check:
                require_deterministic_model(model, first, place, convention)
        result = Trace(
            distinct, tuple(chosen), frozenset(trivial), tuple(readings), features=convention, affine=affine,
            dtype=next((entry.dtype for entry in model.parameters()), torch.float32), network=type(model).__name__,
        )  # fmt: skip
        for reading in readings:
            reading.start(distinct, chosen)
        engine = engine or chosen_engine()
        statistics = calibrated(model, distinct, mappings, calibration, engine)
        job = Pass(
            distinct, data, model, chosen, readings, convention, mappings, statistics, place=place, progress=progress,
            local=None if reference is None else distinct.index(reference),
        )  # fmt: skip
        if middle is not None:
            mapping = key_map(model, middle, fixed)
            alone = replace(
                job, points=[middle], mappings=[mapping], local=None,
                statistics=calibrated(model, [middle], [mapping], calibration, engine),
            )  # fmt: skip
            job.centre = _means(alone, executor, engine)
            job.forward_passes = alone.forward_passes
        if keep is not None and (engine is not None or executor != "streamed"):
            job.kept = Kept(keep)
            job.kept.begin(job)
        result.executor = run_pass(job, executor, engine)
        if job.kept is not None:
            job.kept.end(job)
        result.samples, result.local_passes = job.samples, job.local_passes
        result.forward_passes = job.forward_passes
    finally:
        if not empty:
            model.load_state_dict(own_weights)
        for module, mode in was_training.items():
            module.training = mode
    result.seconds = time.perf_counter() - started
    result.peak_bytes = job.peak_bytes or peak_memory()
    return result


def _require_executor(name: str) -> None:
    known = ["auto", *EXECUTORS]
    if name not in known:
        raise MergescopeError(
            f"There is no executor {name!r}.{did_you_mean(name, known)} Choose one of {', '.join(known)}."
        )


def _require_linearised(executor: str, reference: Point | None) -> None:
    if executor in ("batched", "streamed"):
        raise MergescopeError(
            f"The {executor} executor can't run a linearised network, which takes derivatives of the whole of it. "
            "Use the affine or the resident executor."
        )
    if reference is not None:
        raise MergescopeError(
            "The layers of a linearised network are affine in its weights whatever they are fed, so there is nothing "
            "that local linearity could show. Leave local out."
        )


def _means(job: Pass, executor: str, engine: Engine | None) -> dict[str, torch.Tensor]:
    means = FeatureMeans()
    means.start(job.points, job.layers)
    job.readings = [means]
    run_pass(job, executor, engine)
    return {layer: means.mean(job.points[0], layer) for layer in job.layers}
