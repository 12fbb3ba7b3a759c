"""trace(): one pass of a data set through a set of points in lock-step."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from mergescope.errors import CheckpointError, DataError, MergescopeError, PointError
from mergescope.models.batchnorm import has_running_statistics, reestimate_batchnorm
from mergescope.models.calling import batch_size, call_model, split_batch, to_device
from mergescope.models.layers import OUTPUT, feature_of, find_layers
from mergescope.models.loading import key_map, load_weights
from mergescope.progress import progress_bar
from mergescope.readings import Batch, InnerProducts, Outputs, Reading
from mergescope.tracing.capture import capture, trivially_linear
from mergescope.tracing.determinism import (
    require_deterministic_data,
    require_deterministic_model,
    require_repeatable,
)
from mergescope.weights import Checkpoint, Point
from mergescope.weights.point import TensorSource

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
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
    """

    points: tuple[Point, ...]
    layers: tuple[str, ...]
    trivial: frozenset[str]
    readings: tuple[Reading, ...]
    samples: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def reading(self, kind: type[R]) -> R:
        """The reading of a kind.

        Args:
            kind: its class, for example ``InnerProducts``.

        Returns:
            The reading.

        Raises:
            MergescopeError: the trace was made without it.
        """
        for reading in self.readings:
            if isinstance(reading, kind):
                return reading
        have = ", ".join(type(reading).__name__ for reading in self.readings)
        raise MergescopeError(
            f"This trace has no {kind.__name__} (it has: {have}). Pass readings=[{kind.__name__}()]."
        )


def trace(
    points: Iterable[Point | TensorSource],
    data: Iterable[Any],
    model: nn.Module,
    *,
    layers: str | Sequence[str] = "blocks",
    readings: Sequence[Reading] | None = None,
    calibration: Iterable[Any] | None = None,
    check: bool = True,
    progress: bool = True,
) -> Trace:
    """Pass a data set through all points at once and reduce what they compute.

    For each batch every distinct point runs once: K end points and P combinations cost K + P
    forward passes a batch, where measuring pair by pair costs 3 P. Weights are swapped in place;
    nothing larger than one batch's features is kept. This is the resident executor: the model
    and one point's weights are in memory, checkpoints stay on disk.

    Args:
        points: models (coefficients sum to 1); equal ones are run once.
        data: batches: tensors, pairs ``(inputs, labels)``, or mappings of model arguments. It
            must give the same batches on every pass.
        model: the architecture; on any device. Its own weights are put back at the end.
        layers: ``"blocks"``, suffix patterns, or ``"output"``
            (see [`find_layers`][mergescope.models.find_layers]).
        readings: what to compute; by default [`InnerProducts`][mergescope.InnerProducts] of all
            points, and [`Outputs`][mergescope.Outputs] if the first batch has labels.
        calibration: if given, BatchNorm running statistics of every point that combines several
            checkpoints are re-estimated on these batches; otherwise they are combined like weights.
        check: refuse data or networks that are not deterministic, and NaN weights.
        progress: show a bar on a terminal.

    Returns:
        The trace.

    Raises:
        PointError: no points, or one that is no model.
        LayerError: a layer pattern matches nothing.
        DataError: the data are empty, shuffled or malformed.
        CheckpointError: weights are NaN or infinite.
        MismatchError: the points don't fit the network.

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
    for point in distinct:
        if not point.is_model:
            raise PointError(
                f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1. "
                "Add a direction to a base before tracing it."
            )
    chosen = find_layers(model, layers)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
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
        readings = [InnerProducts()] if labels is None else [InnerProducts(), Outputs()]
    if check:
        for source in {s.identity: s for point in distinct for s in point.checkpoints}.values():
            if isinstance(source, Checkpoint):
                source.require_finite()

    mappings = [key_map(model, point) for point in distinct]
    own_weights = {name: value.clone() for name, value in model.state_dict().items()}
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        trivial = trivially_linear(model, to_device(inputs, device), chosen)
        if check:
            require_deterministic_model(model, first, device)
        result = Trace(distinct, tuple(chosen), frozenset(trivial), tuple(readings))
        for reading in readings:
            reading.start(distinct, chosen)
        statistics = _calibrate(model, distinct, mappings, calibration)
        _run(result, data, model, device, mappings, statistics, progress)
    finally:
        model.load_state_dict(own_weights)
        for module, mode in was_training.items():
            module.training = mode
    result.seconds = time.perf_counter() - started
    result.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def _calibrate(
    model: nn.Module, points: Sequence[Point], mappings: Sequence[dict[str, str]], data: Iterable[Any] | None
) -> list[dict[str, torch.Tensor]]:
    statistics: list[dict[str, torch.Tensor]] = [{} for _ in points]
    if data is None or not has_running_statistics(model):
        return statistics
    for index, point in enumerate(points):
        if len(point.terms) > 1:
            load_weights(model, point, mappings[index])
            statistics[index] = reestimate_batchnorm(model, data)
    return statistics


@torch.no_grad()
def _run(
    result: Trace,
    data: Iterable[Any],
    model: nn.Module,
    device: torch.device,
    mappings: Sequence[dict[str, str]],
    statistics: Sequence[dict[str, torch.Tensor]],
    progress: bool,
) -> None:
    needs_features = any(reading.needs_features for reading in result.readings)
    captured = [name for name in result.layers if name != OUTPUT] if needs_features else []
    entries = model.state_dict(keep_vars=True)
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError:  # no __len__, or a DataLoader over a data set that has none
        length = None
    with capture(model, captured) as caught, progress_bar("tracing", length, progress) as advance:
        for batch in data:
            inputs, labels = split_batch(batch)
            inputs, labels = to_device(inputs, device), to_device(labels, device)
            features: dict[str, list[torch.Tensor]] = {name: [] for name in result.layers}
            outputs = []
            for point, mapping, buffers in zip(result.points, mappings, statistics, strict=True):
                load_weights(model, point, mapping)
                for name, value in buffers.items():
                    entries[name].copy_(value)
                caught.clear()
                output = feature_of(call_model(model, inputs), OUTPUT)
                if needs_features:
                    for name in captured:
                        features[name].append(caught[name])
                    if OUTPUT in features:
                        features[OUTPUT].append(output.flatten(1))
                outputs.append(output)
                result.forward_passes += 1
            _require_finite_outputs(result.points, outputs)
            seen = Batch(features, outputs, labels)
            for reading in result.readings:
                reading.update(seen)
            result.samples += batch_size(inputs)
            advance(1)


def _require_finite_outputs(points: Sequence[Point], outputs: Sequence[torch.Tensor]) -> None:
    for point, output in zip(points, outputs, strict=True):
        if not torch.isfinite(output).all():
            raise CheckpointError(
                f"The network gives NaN or infinite outputs at {point!r}. Look for exploded weights in "
                f"{', '.join(source.name for source in point.checkpoints)}, or extrapolate less far."
            )
