"""Cutting tensors into chunks of rows, and working on the chunks in several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def chunks_of(source: Any, keys: Iterable[str], chunk: int) -> Iterator[tuple[str, int, int]]:
    """Cut tensors into chunks of rows.

    Args:
        source: a checkpoint, for the shapes.
        keys: which tensors; those without entries give no chunk.
        chunk: entries of a chunk at most, unless a single row is longer.

    Yields:
        Tensor name, first row and one past the last. A scalar is one row.

    Example:
        >>> from mergescope import Checkpoint
        >>> list(chunks_of(Checkpoint({"w": torch.ones(3, 4), "b": torch.tensor(1.0)}), ["w", "b"], 8))
        [('w', 0, 2), ('w', 2, 3), ('b', 0, 1)]
    """
    for key in keys:
        spec = source.spec[key]
        if spec.numel:
            rows = spec.shape[0] if spec.shape else 1
            step = max(1, chunk * rows // spec.numel)
            for start in range(0, rows, step):
                yield key, start, min(start + step, rows)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite, in the time of one sum.

    A sum is finite unless a term is not, or unless it overflows: only then is every entry looked at.

    Args:
        values: any shape and type.

    Returns:
        Whether all are finite.

    Example:
        >>> all_finite(torch.tensor([1.0, float("-inf")])), all_finite(torch.full((9,), 60000.0).half())
        (False, True)
    """
    wide = values if values.dtype.itemsize > 1 else values.float()  # float8 has neither sums nor isfinite
    return bool(torch.isfinite(wide.sum()) or torch.isfinite(wide).all())


def in_order(
    work: Callable[[str, int, int], Result], jobs: Iterable[tuple[str, int, int]], threads: int
) -> Iterator[tuple[str, Result]]:
    """Work on chunks in several threads and give the results in the order of the chunks.

    So whoever adds them up gets the same sum, rounding included, whatever the number of threads.
    Only a few chunks are under way at a time.

    Args:
        work: tensor name, first row and one past the last to a result.
        jobs: the chunks.
        threads: how many at once.

    Yields:
        Tensor name and result.
    """
    if threads == 1:
        with torch_threads(1):
            for key, start, stop in jobs:
                yield key, work(key, start, stop)
        return
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, Future[Result]]] = deque()
        try:
            for key, start, stop in jobs:
                waiting.append((key, pool.submit(work, key, start, stop)))
                if len(waiting) > 4 * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many torch threads: a sum that is split over more comes out different in its last digits.

    Args:
        count: of threads.

    Yields:
        Nothing; afterwards there are as many as before.

    Example:
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
