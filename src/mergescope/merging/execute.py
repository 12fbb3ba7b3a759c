"""Carrying out a plan: tensors in parallel, each in chunks, straight into the output's files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.plan import Job, Plan
from mergescope.merging.shards import Shards
from mergescope.merging.streams import Chunk
from mergescope.progress import progress_bar

MAX_SHARD_BYTES = 5 * 10**9
JOURNAL = "merge.journal"


class PartialMerge:
    """The hidden sibling in which a merge is written until it is complete.

    It keeps a journal of finished tensors under the plan's digest. If the process is killed or
    the disk is full, a later merge of the same plan with ``resume`` goes on from there; any
    other one starts afresh.

    Args:
        target: the directory to appear.
        plan: the plan.
        resume: use what an interrupted merge of the same plan left.
    """

    def __init__(self, target: Path, plan: Plan, resume: bool) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.merging"
        self.done: set[str] = set()
        digest = plan.digest
        journal = self.folder / JOURNAL
        if resume and journal.is_file():
            lines = journal.read_text().split("\n")
            if lines[0] == digest:
                self.done = set(lines[1:-1])  # the last line may be torn
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.done:
            journal.write_text(digest + "\n")
        self.resumed = bool(self.done)
        self._journal = journal.open("a")
        self._lock = threading.Lock()

    def finished(self, name: str) -> None:
        """Note that a tensor is complete.

        Args:
            name: the tensor.
        """
        with self._lock:
            self._journal.write(name + "\n")
            self._journal.flush()

    def publish(self, overwrite: bool) -> None:
        """Let the directory appear under its name.

        Args:
            overwrite: replace an existing one.
        """
        self._journal.close()
        (self.folder / JOURNAL).unlink()
        if self.target.exists() and overwrite:
            retired = self.target.parent / f".{self.target.name}.replaced"
            shutil.rmtree(retired, ignore_errors=True)
            self.target.rename(retired)
            self.folder.rename(self.target)
            shutil.rmtree(retired)
        else:
            self.folder.rename(self.target)
        parent = os.open(self.target.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    def abandon(self) -> None:
        """Remove everything."""
        self._journal.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def write_tensors(
    plan: Plan, partial: PartialMerge, *, threads: int, max_shard_bytes: int, progress: bool = True
) -> list[str]:
    """Merge every tensor of a plan into the partial directory's files.

    Args:
        plan: the plan.
        partial: where to.
        threads: how many tensors at once.
        max_shard_bytes: largest file.
        progress: show a bar on a terminal.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: an input or a result is NaN or infinite, or can't be read.
        MergescopeError: a method can't merge a tensor; its name is told.
    """
    metadata = {"mergescope.method": plan.recipe.method.name}
    shards = Shards(
        partial.folder, ((job.name, job.spec) for job in plan.jobs), metadata, max_shard_bytes, keep=partial.resumed
    )
    todo = [job for job in plan.jobs if job.name not in partial.done]
    # The largest first: a big embedding at the end would leave one thread working alone.
    todo.sort(key=lambda job: -job.spec.nbytes)
    inner = torch.get_num_threads()
    _keep_freed_memory()
    complete = False
    try:
        with progress_bar("merging (MB)", sum(job.spec.nbytes for job in todo) >> 20, progress) as advance:
            lock = threading.Lock()
            if threads > 1:
                torch.set_num_threads(1)
            stop = threading.Event()

            def run(job: Job) -> None:
                if not stop.is_set():
                    _merge_one(plan, job, shards, stop)
                    partial.finished(job.name)
                    with lock:
                        advance(job.spec.nbytes >> 20)

            with ThreadPoolExecutor(threads) as pool:
                futures = [pool.submit(run, job) for job in todo]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                    for future in futures:
                        if future.done() and future.exception() is not None:
                            future.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        complete = True
    finally:
        torch.set_num_threads(inner)
        shards.close(flush=complete)
    return sorted({slot.file for slot in shards.slots.values()})


def _keep_freed_memory() -> None:
    # Chunks are allocated and freed thousands of times. By default glibc gives their pages back to
    # the kernel each time and faults them in again, which costs more than the merging itself.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((-1, 256 << 20), (-2, 16 << 20), (-3, 32 << 20)):  # trim, top pad, mmap
            libc.mallopt(option, value)


@torch.no_grad()
def _merge_one(plan: Plan, job: Job, shards: Shards, stop: threading.Event) -> None:
    try:
        if job.copy:
            rows = job.models[0]
            shards.write(job.name, 0, rows.rows(0, rows.shape[0] if rows.shape else 1).contiguous())
            return
        stream = job.stream(plan.recipe.method)
        apply = plan.recipe.method.build(stream, job.values)
        row_bytes = stream.columns * job.spec.dtype.itemsize
        for chunk in stream:
            if stop.is_set():
                return
            merged = apply(chunk)
            stored = merged.to(job.spec.dtype).contiguous()
            _require_finite(job, chunk, stored)
            shards.write(job.name, chunk.start * row_bytes, stored)
    except MergescopeError as error:
        if job.name in str(error):
            raise
        raise MergescopeError(f"{job.name}: {error}") from error


def _require_finite(job: Job, chunk: Chunk, stored: torch.Tensor) -> None:
    # A sum is finite unless a term is not (or float32 overflows, which is checked again).
    wide = stored if stored.dtype in (torch.float32, torch.float64) else stored.float()
    if torch.isfinite(wide.sum()) or torch.isfinite(wide).all():
        return
    guilty = [
        label for label, values in zip(job.labels, chunk.models, strict=False) if not torch.isfinite(values).all()
    ]
    if chunk.base is not None and not torch.isfinite(chunk.base).all():
        guilty.append("the base model")
    if guilty:
        raise CheckpointError(
            f"The tensor {job.name!r} has NaN or infinite values in {', '.join(guilty)}. Nothing was written. "
            "Leave that model out, or fetch it again if it should be sound."
        )
    raise CheckpointError(
        f"Merging gives NaN or infinite values in {job.name!r} though all inputs are finite: the result does not fit "
        f"{str(job.spec.dtype).removeprefix('torch.')}, or the weights are extreme. Use a wider out_dtype."
    )
