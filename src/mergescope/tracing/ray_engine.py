"""The Ray engine: work items in worker processes of a Ray cluster, on one machine or on many."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, TypeVar

from mergescope.errors import MergescopeError
from mergescope.progress import progress_bar, say
from mergescope.tracing.ray_cluster import connect, require_ray, room_for_workers
from mergescope.tracing.ray_pool import Pool
from mergescope.tracing.ray_store import Sender
from mergescope.tracing.ray_worker import Blob, Failure

Item = TypeVar("Item")
Result = TypeVar("Result")

DEATHS = 3
"""How often an item may lose its worker before it is given up."""

SILENCE = 60.0
"""Seconds without a worker after which that is said."""

SHOWN = 300
"""Characters of an item that an error shows."""


class RayEngine:
    """Run work items in actors of a Ray cluster: the same results as in this process, with any number of workers.

    What is sent (a network, the points of a pass, batches) goes to the object store once and to each machine
    once; checkpoints on disk are opened by the workers (see [`shipping`][mergescope.tracing.shipping]). A worker
    that dies is replaced and its item done again. Items that raise are reported when the others are finished.

    Args:
        address: of a running cluster, or ``"auto"`` on one of its machines; by default that of ``RAY_ADDRESS``, else
            a cluster is started on this machine, and stopped at the end. One that this process is connected to
            already is used as it is.
        workers: how many; by default as many as the cluster has room for.
        num_cpus: CPUs, and torch threads, of each.
        num_gpus: GPUs of each, which then computes there.

    Raises:
        MergescopeError: Ray is not installed, or a number is too small.

    Example:
        >>> engine = RayEngine(workers=2)  # nothing is started before there is an item
        >>> engine.device is None
        True
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, num_cpus: int = 1, num_gpus: float = 0
    ) -> None:
        require_ray()
        for name, value, least in (("workers", workers, 1), ("CPUs", num_cpus, 1), ("GPUs", num_gpus, 0)):
            if value is not None and value < least:
                raise MergescopeError(f"The number of {name} is {value:g}. Give {least} or more.")
        self._address, self._wanted, self._cpus, self._gpus = address, workers, num_cpus, num_gpus
        self._own = False
        self._pool: Pool | None = None
        self._sender: Sender | None = None
        self._numbers = count(1)

    @property
    def device(self) -> str | None:
        """``"cuda"`` where workers have GPUs."""
        return "cuda" if self._gpus > 0 else None

    @property
    def workers(self) -> int:
        """How many items run at a time.

        Raises:
            MergescopeError: there is no cluster, or none with room for one worker.
        """  # noqa: DOC502 (raised by what this calls)
        self._connected()
        return self._wanted or room_for_workers(self._cpus, self._gpus)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._own:
            require_ray().shutdown()
        self._pool, self._sender, self._own = None, None, False

    def _connected(self) -> tuple[Pool, Sender]:
        if self._pool is None or self._sender is None:
            cpus = None if self._wanted is None else self._wanted * self._cpus
            self._own = connect(self._address, cpus)
            self._pool, self._sender = Pool(self._cpus, self._gpus), Sender()
        return self._pool, self._sender

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        label: str,
        done: Callable[[Item, Result], None] | None = None,
    ) -> list[Result]:
        """Apply a function to every item.

        Args:
            function: can be pickled. What a ``partial`` gives it first is sent once, however many items there are.
            items: can be pickled; they are taken as workers get free.
            label: what is being done, for the progress bar and errors.
            done: is told each item with its result as soon as it is there, in any order.

        Returns:
            Results in the order of the items.

        Raises:
            MergescopeError: items raised, or lost their workers too often: all of them are named, when the others
                are finished. Or there is no cluster.
        """
        pool, sender = self._connected()
        total = len(items) if isinstance(items, Sized) else None
        if total == 0:
            return []
        call = _Call(pool, sender, iter(items), next(self._numbers), function, done)
        with progress_bar(label, total) as advance:
            try:
                call.work(self.workers if total is None else min(total, self.workers), advance)
            except require_ray().exceptions.RayError as error:
                pool.drop(call.busy)
                raise MergescopeError(
                    f"The Ray cluster broke off while {label}: {str(error).splitlines()[0]} Look at its state (ray "
                    "status), and run the same command again: what is finished is not made again."
                ) from error
            except BaseException:
                pool.drop(call.busy)
                raise
        call.require_all(label)
        return [call.results[number] for number in range(call.taken)]


@dataclass
class _Task:
    number: int
    item: Any
    blob: Blob
    deaths: int = 0


class _Call:
    """One ``map``: which items wait, which are at work, and what came of the others."""

    def __init__(
        self, pool: Pool, sender: Sender, items: Iterator[Any], number: int, function: Any, done: Any
    ) -> None:
        self._ray, self._done = require_ray(), done
        self._pool, self._sender, self._items, self._number = pool, sender, items, number
        given: tuple[Any, ...] = ()
        if isinstance(function, partial):
            given, function = function.args, partial(function.func, **function.keywords)
        self._blobs = [sender.send(value) for value in (function, *given)]  # in the store as long as this is
        self._function = self._ray.put(self._blobs)
        self._waiting: deque[_Task] = deque()
        self._running: dict[Any, tuple[Any, _Task]] = {}
        self._failures: dict[int, tuple[str, Failure]] = {}
        self._said = False
        self.results: dict[int, Any] = {}
        self.taken = 0

    @property
    def busy(self) -> list[Any]:
        return [actor for actor, _ in self._running.values()]

    def work(self, workers: int, advance: Callable[[int], None]) -> None:
        pool = self._pool
        while True:
            self._take()
            if self._waiting and pool.idle:
                actor, task = pool.idle.pop(), self._waiting.popleft()
                ref = actor.run.remote(self._number, [self._function], task.blob)
                self._running[ref] = (actor, task)
            elif self._waiting and len(self._running) + len(pool.starting) < workers:
                pool.start()
            elif not self._waiting and not self._running:
                return
            else:
                ref = self._next()
                if ref in pool.starting:
                    pool.started(ref)
                elif self._ended(ref):
                    advance(1)

    def _next(self) -> Any:
        """Wait for an item to end or a worker to start; where there is no worker, say so once.

        Returns:
            The reference that is ready.
        """
        refs = [*self._running, *self._pool.starting]
        silence = SILENCE if not self._running and not self._said else None
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=silence)
        if not ready:
            self._said = True
            say(
                f"No worker has started for {SILENCE:g} s: the cluster has no free room for one, or is slow to start "
                "it. Look at ray status. This goes on when one starts."
            )
            ready, _ = self._ray.wait(refs, num_returns=1)
        return ready[0]

    def _take(self) -> None:
        """Have an item wait, if there is one: the next are read and sent only when it is at work."""
        if self._waiting:
            return
        for item in self._items:
            self._waiting.append(_Task(self.taken, item, self._sender.send(item)))
            self.taken += 1
            return

    def _ended(self, ref: Any) -> bool:
        """Take in what came of an item.

        Returns:
            Whether it is done with.
        """
        errors = self._ray.exceptions
        actor, task = self._running.pop(ref)
        try:
            result = self._ray.get(ref)
        except errors.RayTaskError as error:  # it could not even open what it was sent
            result = Failure(str(error).strip().splitlines()[-1], str(error))
            self._pool.idle.append(actor)
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ):
            self._pool.drop([actor])
            task.deaths += 1
            if task.deaths < DEATHS:
                self._waiting.appendleft(task)
                return False
            result = Failure(
                f"its worker died {DEATHS} times. What takes too much memory is killed: give smaller batches, fewer "
                "points, or fewer workers a machine (more CPUs each).", "",
            )  # fmt: skip
        else:
            self._pool.idle.append(actor)
        if isinstance(result, Failure):
            self._failures[task.number] = (words_of(task.item), result)
        else:
            self.results[task.number] = self._sender.receive(result)
            if self._done is not None:
                self._done(task.item, self.results[task.number])
        return True

    def require_all(self, label: str) -> None:
        """Raise one error for all items that failed.

        Raises:
            MergescopeError: there are some.
        """
        if not self._failures:
            return
        ordered = [self._failures[number] for number in sorted(self._failures)]
        listed = "\n".join(f"  - {words}: {failure.message}" for words, failure in ordered)
        raise MergescopeError(
            f"{len(ordered)} of {self.taken} items failed while {label}; the others are finished.\n{listed}"
        ) from _InWorkers("\n".join(failure.trace for _, failure in ordered))


class _InWorkers(Exception):  # noqa: N818 (it is shown as the cause of another)
    """Tracebacks of workers."""


def words_of(item: Any) -> str:
    """An item in an error.

    Args:
        item: any; what it says of itself is shown.

    Returns:
        At most [`SHOWN`][] characters, on one line.

    Example:
        >>> words_of("full/spam"), len(words_of("x" * 1000))
        ('full/spam', 300)
    """
    text = re.sub(r"\s+", " ", str(item))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
