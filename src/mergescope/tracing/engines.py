"""Engines: where independent work items run. The local engine uses processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, TypeVar

from mergescope.errors import MergescopeError
from mergescope.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs a function on independent items, many at a time. Results never depend on how many."""

    @property
    def workers(self) -> int:
        """How many items run at a time."""

    @property
    def device(self) -> str | None:
        """Where workers put the networks they are given; None to leave them where they are."""

    def __enter__(self) -> Engine:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers go."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        label: str,
        done: Callable[[Item, Result], None] | None = None,
    ) -> list[Result]:
        """Apply a function to every item: results in the order of the items, each told when it is there."""


_CHOSEN: ContextVar[Engine | None] = ContextVar("engine that passes and studies run on", default=None)


@contextmanager
def running_on(engine: Engine) -> Iterator[None]:
    """Run passes of data, studies and fine-tuning on an engine, whoever starts them.

    Args:
        engine: each pass is cut into parts that are its items
            (see [`run_pass`][mergescope.tracing.parts.run_pass]).

    Yields:
        Nothing.

    Example:
        >>> with LocalEngine(workers=2) as engine, running_on(engine):
        ...     chosen_engine() is engine
        True
    """
    token = _CHOSEN.set(engine)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen_engine() -> Engine | None:
    """The engine of the innermost [`running_on`][].

    Returns:
        The engine, or None where passes run in this process.

    Example:
        >>> chosen_engine() is None
        True
    """
    return _CHOSEN.get()


@contextmanager
def engine_or_processes(workers: int | None = None) -> Iterator[Engine]:
    """The chosen engine, else processes of this machine for as long as it takes.

    Args:
        workers: processes, as for [`LocalEngine`][].

    Yields:
        The engine.

    Example:
        >>> with engine_or_processes(1) as engine:
        ...     engine.map(abs, [-1, 2], "absolute values")
        [1, 2]
    """
    chosen = chosen_engine()
    if chosen is not None:
        yield chosen
        return
    with LocalEngine(workers) as engine:
        yield engine


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

    device: str | None = None

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

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        label: str,
        done: Callable[[Item, Result], None] | None = None,
    ) -> list[Result]:
        """Apply a function to every item.

        Args:
            function: importable by name, so that other processes find it.
            items: picklable; put the longest first. In this process they are taken one by one.
            label: for the progress bar.
            done: is told each item with its result as soon as it is there, in any order.

        Returns:
            Results in the order of the items. The first error of an item is raised, and items
            not yet begun are dropped.

        Raises:
            MergescopeError: a worker process was killed.
        """
        if self.workers > 1:
            items = list(items)
        count = len(items) if isinstance(items, Sized) else None
        with progress_bar(label, count) as advance:
            if self.workers == 1 or count in (0, 1):
                results = []
                threads = _one_thread()
                try:
                    for item in items:
                        results.append(function(item))
                        if done is not None:
                            done(item, results[-1])
                        advance(1)
                finally:
                    _set_threads(threads)
                return results
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin_worker)
            # As bytes: between processes, torch would share the memory of tensors, and with it a network's weights.
            packed = pickle.dumps(function)
            futures: dict[Future[bytes], Item] = {
                self._pool.submit(_applied, packed, pickle.dumps(item)): item for item in items
            }
            found: dict[Future[bytes], Result] = {}
            try:
                for future in as_completed(futures):
                    found[future] = pickle.loads(future.result())
                    if done is not None:
                        done(futures[future], found[future])
                    advance(1)
            except BrokenProcessPool as error:
                self._pool = None  # the next map starts another
                raise MergescopeError(
                    f"A worker process of {label} was killed, most likely because memory ran out. What it had finished "
                    "is kept: run the same command again with fewer workers or smaller batches."
                ) from error
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
            return [found[future] for future in futures]


_UNPACKED: tuple[bytes, Callable[[Any], Any]] | None = None
"""In a worker process: the function that it was given last."""


def _applied(function: bytes, item: bytes) -> bytes:
    global _UNPACKED
    if _UNPACKED is None or _UNPACKED[0] != function:
        _UNPACKED = function, pickle.loads(function)
    return pickle.dumps(_UNPACKED[1](pickle.loads(item)))


def _begin_worker() -> None:
    _one_thread()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed run must not go on in its workers: the next one would work in the same directories.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _one_thread() -> int:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def _set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
