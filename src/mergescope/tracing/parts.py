"""Passes in parts: consecutive batches of the data, each part wherever an engine runs it.

Data are cut between batches, so every batch is what it is in one piece, and with it BatchNorm on statistics
of the batch, features and losses. Each part fills fresh copies of the readings, which are merged in order.
"""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from mergescope.errors import MergescopeError
from mergescope.models.batchnorm import has_running_statistics, reestimate_batchnorm
from mergescope.models.calling import batch_size, split_batch
from mergescope.models.loading import load_weights
from mergescope.readings import Reading
from mergescope.tracing.affine import run_affine
from mergescope.tracing.batched import pays, run_batched
from mergescope.tracing.engines import Engine
from mergescope.tracing.kept import Piece
from mergescope.tracing.passes import Pass
from mergescope.tracing.resident import run_resident
from mergescope.tracing.streamed import run_streamed
from mergescope.weights import Point
from mergescope.weights.layered import Layered

Executor = Callable[[Pass], None]

EXECUTORS: dict[str, Executor] = {
    "resident": run_resident,
    "affine": run_affine,
    "batched": run_batched,
    "streamed": run_streamed,
}

PARTS_A_WORKER = 4
"""So that the last part is short, and little is lost with a worker."""

ONCE_A_PART = ("batched", "streamed")
"""Executors that read all weights once a pass, and would once a part: they get one part a worker."""

UNKNOWN = 4
"""Batches a part of data that don't say how many they are."""


@dataclass(frozen=True)
class Part:
    """Some batches of a pass.

    Attributes:
        batches: consecutive ones.
        first: number of the first, from 0.
        start: samples before them.

    Example:
        >>> print(Part([torch.ones(2, 3), torch.ones(1, 3)], 4, 8))
        batches 4 to 5 (3 samples from number 8 on)
    """

    batches: Sequence[Any]
    first: int
    start: int

    @property
    def samples(self) -> int:
        """How many samples the batches have."""
        return sum(batch_size(split_batch(batch)[0]) for batch in self.batches)

    def __str__(self) -> str:
        last = self.first + len(self.batches) - 1
        named = f"batch {last}" if last == self.first else f"batches {self.first} to {last}"
        return f"{named} ({self.samples} samples from number {self.start} on)"


def cut(data: Iterable[Any], sizes: Iterable[int], finished: Container[int] = ()) -> Iterator[Part]:
    """Cut data between batches.

    Args:
        data: batches.
        sizes: how many batches make each part.
        finished: numbers of the first batches of parts that are left out.

    Yields:
        The parts, in order.

    Example:
        >>> [(part.first, part.start, len(part.batches)) for part in cut([torch.ones(2, 3)] * 5, [2, 2, 2])]
        [(0, 0, 2), (2, 4, 2), (4, 8, 1)]
    """
    batches = iter(data)
    first = start = 0
    for size in sizes:
        part = Part(list(islice(batches, size)), first, start)
        if not part.batches:
            return
        if first not in finished:
            yield part
        first, start = first + size, start + part.samples


class Parts:
    """Data in parts of nearly one size, which are read only when they are asked for.

    Args:
        data: batches that say how many they are.
        count: of parts, at most; those that are finished already may add some.
        finished: what is left out: number of its first batch to how many batches it has.

    Example:
        >>> parts = Parts([torch.ones(2, 3)] * 5, 4)
        >>> len(parts), [len(part.batches) for part in parts]
        (4, [1, 1, 1, 2])
        >>> [(part.first, len(part.batches)) for part in Parts([torch.ones(2, 3)] * 9, 2, {1: 4})]
        [(0, 1), (5, 4)]
    """

    def __init__(self, data: Iterable[Any], count: int, finished: Mapping[int, int] | None = None) -> None:
        self._data, self._finished = data, dict(finished or {})
        length: int = len(data)  # type: ignore[arg-type]
        count = min(count, length)
        ends = {length * number // count for number in range(count + 1)}
        for first, size in self._finished.items():
            ends -= set(range(first + 1, first + size))
            ends |= {first, first + size}
        self._sizes = [end - begin for begin, end in pairwise(sorted(ends))]

    def __len__(self) -> int:
        return len(self._sizes) - len(self._finished)

    def __iter__(self) -> Iterator[Part]:
        return cut(self._data, self._sizes, self._finished)


def _unknown_sizes(finished: Mapping[int, int]) -> Iterator[int]:
    first = 0
    while True:
        nearest = min((other - first for other in finished if other > first), default=UNKNOWN)
        size = finished.get(first, min(UNKNOWN, nearest))
        yield size
        first += size


def parts_for(
    engine: Engine,
    data: Iterable[Any],
    a_worker: int = PARTS_A_WORKER,
    finished: Mapping[int, int] | None = None,
) -> Iterable[Part]:
    """Cut data into parts that keep all workers of an engine busy.

    Args:
        engine: that will run them.
        data: batches.
        a_worker: how many parts each worker gets, about.
        finished: what is left out: number of its first batch to how many batches it has.

    Returns:
        The parts.
    """
    finished = finished or {}
    try:
        return Parts(data, engine.workers * a_worker, finished)
    except TypeError:  # no __len__, or a DataLoader over a data set that has none
        return cut(data, _unknown_sizes(finished), finished)


def run_pass(job: Pass, executor: str, engine: Engine | None = None) -> str:
    """Run a pass: fill its readings and count what it cost.

    Args:
        job: the pass, its readings started.
        executor: one of [`EXECUTORS`][], or ``"auto"``: batched where that pays, else resident.
        engine: runs the pass in parts; None to run it here in one piece.

    Returns:
        The executor that was chosen.

    Raises:
        MergescopeError: a reading can't be merged, or parts of the pass failed; each is named.
    """  # noqa: DOC502 (raised by what this calls)
    if engine is None:
        return _execute(executor, job)
    a_worker = 1 if executor in ONCE_A_PART else PARTS_A_WORKER
    chosen: list[str] = run_in_parts(job, partial(_execute, executor), engine, a_worker)
    return next(iter(chosen), "resident" if executor == "auto" else executor)  # none if all parts were kept


def _execute(executor: str, job: Pass) -> str:
    if executor == "auto":
        executor = "batched" if pays(job, next(iter(job.data))) else "resident"
    EXECUTORS[executor](job)
    return executor


def run_in_parts(
    job: Pass, run: Callable[[Pass], Any], engine: Engine, a_worker: int = PARTS_A_WORKER
) -> list[Any]:
    """Run a pass in parts: merge their readings into those of the pass, and add up what they cost.

    Args:
        job: the pass, its readings started.
        run: runs a pass; importable by name, or a ``partial`` of such.
        engine: runs the parts.
        a_worker: how many parts each worker gets, about.

    Returns:
        What ``run`` returned, part by part; nothing for parts that were kept.

    Raises:
        MergescopeError: a reading can't be merged, or parts of the pass failed; each is named.
    """  # noqa: DOC502 (raised by what this calls)
    require_mergeable(job.readings)
    bare = replace(job, model=nn.Identity(), data=(), progress=False, kept=None)
    work = partial(_run_part, job.model, bare, run, engine.device)
    kept = job.kept
    finished = {} if kept is None else {first: piece.batches for first, piece in kept.pieces.items()}
    parts = parts_for(engine, job.data, a_worker, finished)
    filled = engine.map(
        work, parts, "tracing", None if kept is None else lambda part, it: kept.add(part.first, it.piece)
    )
    for it in filled:
        job.peak_bytes = max(job.peak_bytes, it.peak_bytes)
        if kept is None:
            it.piece.into(job, job.readings)
    return [it.said for it in filled]


@dataclass(frozen=True)
class _Filled:
    """What a part left behind."""

    piece: Piece
    peak_bytes: int
    said: Any


def _run_part(
    model: nn.Module, bare: Pass, run: Callable[[Pass], Any], device: str | None, part: Part
) -> _Filled:
    # Every entry of the network that differs between parts is filled by points: it is not put back here.
    job = replace(
        bare, model=on_device(model, device), data=part.batches, readings=copy.deepcopy(bare.readings),
        samples=part.start, place=bare.place if device is None else torch.device(device),
        forward_passes=0, local_passes=0,
    )  # fmt: skip
    said = run(job)
    counts = np.array([job.samples - part.start, job.forward_passes, job.local_passes])
    return _Filled(Piece(len(part.batches), job.readings, counts), peak_memory(), said)


def on_device(model: nn.Module, device: str | None) -> nn.Module:
    """A network where a worker computes.

    Args:
        model: any; one without memory stays so.
        device: as torch names it; None to leave it where it is.

    Returns:
        The network.
    """
    if device is None or any(entry.is_meta for entry in model.parameters()):
        return model
    return model.to(device)


def require_mergeable(readings: Iterable[Reading]) -> None:
    """Refuse readings that can't be put together from parts.

    Args:
        readings: of a pass.

    Raises:
        MergescopeError: one has no ``merge``.
    """
    for reading in readings:
        if not hasattr(reading, "merge"):
            raise MergescopeError(
                f"{type(reading).__name__} has no merge(), so a pass that fills it can't run in parts. Give it one "
                "that appends a later part of the pass, or leave the engine out."
            )


def peak_memory() -> int:
    """The largest resident memory that this process has had.

    Returns:
        Bytes.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def calibrated(
    model: nn.Module,
    points: Sequence[Point],
    mappings: Sequence[Mapping[str, str]],
    data: Iterable[Any] | None,
    engine: Engine | None = None,
) -> list[dict[str, torch.Tensor]]:
    """BatchNorm statistics of every point that combines several checkpoints, re-estimated.

    Args:
        model: the network; its weights are overwritten.
        points: of a pass.
        mappings: a point's state-dict names to checkpoint keys.
        data: calibration batches; None to leave statistics as they are.
        engine: runs the points; None to run them here.

    Returns:
        Names to statistics, one dict a point; empty where they stay.
    """
    statistics: list[dict[str, torch.Tensor]] = [{} for _ in points]
    if data is None or not has_running_statistics(model):
        return statistics
    due = [
        place
        for place, point in enumerate(points)
        if len(point.terms) > 1 or any(isinstance(source, Layered) for source, _ in point.terms)
    ]
    if engine is None:
        found = [_estimated(model, data, None, (points[place], mappings[place])) for place in due]
    else:
        items = [(points[place], mappings[place]) for place in due]
        found = engine.map(partial(_estimated, model, list(data), engine.device), items, "calibrating")
    for place, values in zip(due, found, strict=True):
        statistics[place] = values
    return statistics


def _estimated(
    model: nn.Module, data: Iterable[Any], device: str | None, item: tuple[Point, Mapping[str, str]]
) -> dict[str, torch.Tensor]:
    network = on_device(model, device)
    load_weights(network, *item)
    return {name: value.cpu() for name, value in reestimate_batchnorm(network, data).items()}
