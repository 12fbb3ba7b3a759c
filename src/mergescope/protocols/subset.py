"""Fixed parts of batched data: some samples of one data set, some batches of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from mergescope.models.calling import batch_size, split_batch
from mergescope.protocols.which_data import fingerprint_of


class Subset:
    """So many samples of batched data, drawn with a fixed seed; the same ones on every pass.

    Samples stay in their order and are put together again to batches of the usual size, where their
    shapes agree (texts may be padded to different lengths).

    Args:
        batches: as for [`trace`][mergescope.trace]; passed once to count the samples.
        samples: how many; all, if there are no more.
        seed: of the draw.

    Example:
        >>> few = Subset([torch.arange(4).view(4, 1), torch.arange(4, 6).view(2, 1)], 3, seed=0)
        >>> [batch.flatten().tolist() for batch in few], few.samples
        ([[2, 3, 5]], 3)
    """

    def __init__(self, batches: Iterable[Any], samples: int, seed: int = 0) -> None:
        seen = [(batch_size(split_batch(batch)[0]), _shapes(batch)) for batch in batches]
        total = sum(size for size, _ in seen)
        self.samples, self._batches, self._seed = min(samples, total), batches, seed
        drawn = np.zeros(total, bool)
        drawn[np.random.default_rng(seed).permutation(total)[: self.samples]] = True
        ends = np.cumsum([size for size, _ in seen])[:-1]
        self._rows = [np.flatnonzero(part) for part in np.split(drawn, ends)]
        self._groups: list[list[int]] = []  # numbers of the batches that a new one is made of
        largest = max((size for size, _ in seen), default=0)
        room, before = 0, None
        for number, (rows, (_, shapes)) in enumerate(zip(self._rows, seen, strict=False)):
            if not len(rows):
                continue
            if self.samples == total or len(rows) > room or shapes != before:
                self._groups.append([])
                room, before = largest, shapes
            self._groups[-1].append(number)
            room -= len(rows)

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def size(self) -> int | None:
        """Samples a batch of the data; None if they don't say it."""
        return getattr(self._batches, "size", None)

    @property
    def fingerprint(self) -> str | None:
        """Which samples these are; None if the data don't say which they are."""
        whole = fingerprint_of(self._batches)
        return None if whole is None else f"{self.samples} of {whole} by {self._seed}"

    def __iter__(self) -> Iterator[Any]:
        ends = {group[-1] for group in self._groups}
        parts: list[Any] = []
        for number, (batch, rows) in enumerate(zip(self._batches, self._rows, strict=False)):
            if len(rows):
                parts.append(_mapped(batch, torch.from_numpy(rows)))
            if number in ends:
                yield _joined(parts)
                parts = []


class Shares:
    """Every n-th batch of each of n data sets: what statistics of one model for all of them are taken over.

    Args:
        data: batches of each data set, which can be passed over again and again.

    Example:
        >>> [batch.item() for batch in Shares([torch.arange(3), torch.arange(10, 14)])]
        [0, 2, 10, 12]
    """

    def __init__(self, data: Iterable[Iterable[Any]]) -> None:
        self._data = list(data)

    @property
    def fingerprint(self) -> str:
        """Which samples these are, as far as the data say which they are."""
        return f"shares of {', '.join(str(fingerprint_of(each)) for each in self._data)}"

    def __iter__(self) -> Iterator[Any]:
        for batches in self._data:
            yield from islice(batches, 0, None, len(self._data))


def subset(batches: Iterable[Any], samples: int, seed: int = 0) -> Iterable[Any]:
    """Batches of so many samples, without a look at data that say that they are no more.

    Args:
        batches: as for [`Subset`][].
        samples: how many at most.
        seed: of the draw.

    Returns:
        The batches themselves, or a [`Subset`][] of them.

    Example:
        >>> subset([torch.ones(3, 1), torch.ones(3, 1)], 4).samples
        4
    """
    said = getattr(batches, "samples", None)
    return batches if isinstance(said, int) and said <= samples else Subset(batches, samples, seed)


def _mapped(value: Any, rows: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, Mapping):
        return {key: _mapped(item, rows) for key, item in value.items()}
    return tuple(_mapped(item, rows) for item in value) if isinstance(value, (tuple, list)) else value


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape[1:]), value.dtype
    if isinstance(value, Mapping):
        return {key: _shapes(item) for key, item in value.items()}
    return [_shapes(item) for item in value] if isinstance(value, (tuple, list)) else value


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return (
        tuple(_joined(list(items)) for items in zip(*parts, strict=True))
        if isinstance(first, (tuple, list))
        else first
    )
