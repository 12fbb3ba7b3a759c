"""Carrying out a plan: tensors in parallel, each in chunks, straight into the output's files."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
import xxhash

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.parents import Parents
from mergescope.merging.partial import PartialMerge
from mergescope.merging.plan import Job, Plan
from mergescope.merging.shards import Shards, raw_bytes
from mergescope.merging.streams import Apply, Chunk, Stream
from mergescope.progress import progress_bar
from mergescope.weights.chunks import all_finite

MAX_SHARD_BYTES = 5 * 10**9
FAITHFUL = frozenset({"linear", "task_arithmetic", "passthrough"})
"""Methods whose result is NaN or infinite wherever an input is; others may drop such values."""


def write_tensors(
    plan: Plan,
    partial: PartialMerge,
    parents: Parents | None = None,
    *,
    threads: int,
    max_shard_bytes: int,
    progress: bool = True,
) -> list[str]:
    """Merge every tensor of a plan into the partial directory's files.

    Args:
        plan: the plan.
        partial: where to.
        parents: gathers digests of what is read.
        threads: how many tensors at once.
        max_shard_bytes: largest file.
        progress: show a bar on a terminal.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: an input or a result is NaN or infinite, or can't be read.
        MergescopeError: a method can't merge a tensor; its name is told.
        OSError: the disk is full or can't be written.
    """  # noqa: DOC502 (raised by what this calls)
    metadata = {"mergescope.method": plan.recipe.method.name}
    shards = Shards(
        partial.folder,
        ((job.name, job.spec) for job in plan.jobs),
        metadata,
        max_shard_bytes,
        keep=partial.resumed,
    )
    inner = torch.get_num_threads()
    _keep_freed_memory()
    complete = False
    try:
        done = partial.begin(shards.digest, set(shards.slots))
        todo = [parents.watched(job) if parents else job for job in plan.jobs if job.name not in done]
        # The largest first: a big embedding at the end would leave one thread working alone.
        todo.sort(key=lambda job: -job.spec.nbytes)
        # One thread a tensor, however many tensors: sums must not depend on how they are split.
        torch.set_num_threads(1)
        total = sum(job.spec.nbytes for job in todo)
        with progress_bar("merging (kB)", total >> 10, progress) as advance:
            _run_all(plan, todo, shards, partial, threads, advance)
        complete = True
    finally:
        torch.set_num_threads(inner)
        shards.close(flush=complete)
    return sorted({slot.file for slot in shards.slots.values()})


def _run_all(
    plan: Plan,
    todo: list[Job],
    shards: Shards,
    partial: PartialMerge,
    threads: int,
    advance: Callable[[int], None],
) -> None:
    stop = threading.Event()
    lock = threading.Lock()

    def run(job: Job) -> None:
        try:
            digest = _merge_one(plan, job, shards, stop)
        except BaseException:
            stop.set()
            raise
        if digest is not None:
            partial.finished(job.name, digest)
            with lock:
                advance(job.spec.nbytes >> 10)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for future in as_completed([pool.submit(run, job) for job in todo]):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _keep_freed_memory() -> None:
    # Chunks are allocated and freed thousands of times. By default glibc gives their pages back to
    # the kernel each time and faults them in again, which costs more than the merging itself.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((-1, 256 << 20), (-2, 16 << 20), (-3, 32 << 20)):  # trim, top pad, mmap
            libc.mallopt(option, value)


@torch.no_grad()
def _merge_one(plan: Plan, job: Job, shards: Shards, stop: threading.Event) -> str | None:
    """Merge one tensor.

    Returns:
        Digest of its bytes, or None if it was stopped before its end.

    Raises:
        MergescopeError: it can't be merged; its name is told.
    """
    state = xxhash.xxh3_128()

    def write(at: int, values: torch.Tensor) -> None:
        state.update(raw_bytes(values))
        shards.write(job.name, at, values)

    try:
        if stop.is_set():
            return None
        if job.copy:
            rows = job.models[0]
            write(0, rows.rows(0, rows.shape[0] if rows.shape else 1).contiguous())
            return state.hexdigest()
        stream = job.stream(plan.recipe.method)
        apply = _built(plan, job, stream)
        row_bytes = stream.columns * job.spec.dtype.itemsize
        for chunk in stream:
            if stop.is_set():
                return None
            if plan.recipe.method.name not in FAITHFUL:
                _blame(plan, job, chunk)
            merged = apply(chunk)
            if job.name.endswith("running_var"):
                merged = merged.clamp(min=0)  # no variance is negative: a network would give NaN
            stored = merged.to(job.spec.dtype).contiguous()
            _require_finite(plan, job, chunk, stored)
            write(chunk.start * row_bytes, stored)
        return state.hexdigest()
    except MergescopeError as error:
        if job.name in str(error):
            raise
        raise MergescopeError(f"{job.name}: {error}") from error


def _built(plan: Plan, job: Job, stream: Stream) -> Apply:
    try:
        return plan.recipe.method.build(stream, job.values)
    except Exception:
        for chunk in stream:  # a factorisation fails on NaN in its own words
            _blame(plan, job, chunk)
        raise


def _blame(plan: Plan, job: Job, chunk: Chunk) -> None:
    guilty = [label for label, values in zip(job.labels, chunk.models, strict=True) if not all_finite(values)]
    if chunk.base is not None and not all_finite(chunk.base):
        guilty.append(f"{_base_name(plan, job)} (the base)")
    if guilty:
        raise CheckpointError(
            f"The tensor {job.name!r} has NaN or infinite values in {', '.join(guilty)}. Nothing was written. "
            "Leave that model out, or fetch it again if it should be sound."
        )


def _base_name(plan: Plan, job: Job) -> str:
    inner = getattr(job.base, "source", job.base)
    model = getattr(inner, "model", None)
    return next((name for name, other in plan.models.items() if other is model), "the base")


def _require_finite(plan: Plan, job: Job, chunk: Chunk, stored: torch.Tensor) -> None:
    if all_finite(stored):
        return
    _blame(plan, job, chunk)
    for other in job.stream(plan.recipe.method):  # norms and the like carry it from one chunk to all
        _blame(plan, job, other)
    raise CheckpointError(
        f"Merging gives NaN or infinite values in {job.name!r} though all inputs are finite: the result does not fit "
        f"{str(job.spec.dtype).removeprefix('torch.')}, or the weights are extreme. Use a wider out_dtype."
    )
