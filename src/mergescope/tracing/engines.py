"""Engines: where independent work items run. The local engine uses processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from types import TracebackType
from typing import TypeVar

from mergescope.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


class LocalEngine:
    """Run work items in worker processes, one torch thread each.

    Small networks run 2 to 8 times slower with two threads than with one when anything else is
    on the machine, so parallelism comes from processes. Results don't depend on their number.

    Args:
        workers: processes; 1 runs in this process. By default one a core, at most 8.

    Example:
        >>> with LocalEngine(workers=1) as engine:
        ...     engine.map(abs, [-1, 2], "absolute values")
        [1, 2]
    """

    def __init__(self, workers: int | None = None) -> None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or min(available, 8)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], label: str) -> list[Result]:
        """Apply a function to every item.

        Args:
            function: importable by name, so that other processes find it.
            items: picklable; put the longest first.
            label: for the progress bar.

        Returns:
            Results in the order of the items. The first error of an item is raised, and items
            not yet begun are dropped.
        """
        with progress_bar(label, len(items)) as advance:
            if self.workers == 1 or len(items) < 2:
                results = []
                threads = _one_thread()
                try:
                    for item in items:
                        results.append(function(item))
                        advance(1)
                finally:
                    _set_threads(threads)
                return results
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_one_thread)
            futures: list[Future[Result]] = [self._pool.submit(function, item) for item in items]
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(1)
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
            return [future.result() for future in futures]


def _one_thread() -> int:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
