"""Streams: one tensor of every model of a merge, read in chunks of rows.

A merge method never holds a whole tensor. It takes a [`Stream`][], may reduce over it for
statistics of the whole tensor (norms, inner products, an exact top-k threshold), and returns a
function from chunks to merged chunks. Chunk borders depend on the shape only, so results don't
depend on threads or on how files are sharded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

CHUNK = 1 << 18
"""Elements of one chunk of one model, at most, unless a single row is longer."""

SAMPLE = 1 << 16
"""Elements sampled to bracket a top-k threshold before it is selected exactly."""


class Rows(Protocol):
    """Where a tensor's rows come from: a checkpoint, a re-indexed embedding, a LoRA product."""

    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` along the first dimension, in the stored dtype."""


@dataclass
class Chunk:
    """Some rows of one tensor, of every model.

    Attributes:
        models: one ``(rows, columns)`` tensor a model, float32 (float64 if the inputs are).
        base: the base model's, or None.
        start: index of the first row.
        name: the tensor's name.
    """

    models: list[torch.Tensor]
    base: torch.Tensor | None
    start: int
    name: str

    @property
    def deltas(self) -> list[torch.Tensor]:
        """``theta_k - theta_0`` for each model.

        Raises:
            ValueError: there is no base.
        """
        if self.base is None:
            raise ValueError("this method has no base")
        return [model - self.base for model in self.models]

    def generator(self, seed: int, model: int) -> torch.Generator:
        """Random numbers that depend on seed, tensor, model and position only.

        Args:
            seed: the recipe's seed.
            model: the model's index.

        Returns:
            A seeded generator.
        """
        return torch.Generator().manual_seed(self._seed(seed, model))

    def bernoulli(self, probability: float, seed: int, model: int) -> torch.Tensor:
        """Independent draws for every entry, several times faster than torch's.

        Args:
            probability: of a 1, exact to 2^-12 of itself or 2^-32.
            seed: the recipe's seed.
            model: the model's index.

        Returns:
            Ones and zeros of the models' shape, uint8: eight times faster to turn into floats than bools.
        """
        like = self.models[model] if model < len(self.models) else self.models[0]
        # 16 random bits an entry, unless the probability is so small that they would round it.
        whole = round(probability * 2**16)
        bits = 16 if abs(whole / 2**16 - probability) <= probability * 2**-12 else 32
        words = np.random.SFC64(self._seed(seed, model)).random_raw(-(-like.numel() * bits // 64))
        drawn = words.view(f"u{bits // 8}")[: like.numel()] < round(probability * 2**bits)
        return torch.from_numpy(drawn.view(np.uint8)).view(like.shape)

    def _seed(self, seed: int, model: int) -> int:
        text = f"{seed} {self.name} {model} {self.start}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


Apply = Callable[[Chunk], torch.Tensor]


@dataclass(frozen=True)
class Top:
    """The k largest values of a tensor: a threshold, and where its ties end.

    Attributes:
        value: the k-th largest value.
        end: values equal to it belong to the k largest if they come before this element.
    """

    value: float
    end: int

    def mask(self, chunk: Chunk, values: torch.Tensor) -> torch.Tensor:
        """Which of a chunk's values are among the k largest.

        Args:
            chunk: where the values come from.
            values: ``(rows, columns)``.

        Returns:
            Ones and zeros of that shape, uint8.
        """
        found = values.numpy()  # which compares several times faster than torch
        kept = found > self.value
        ties_here = self.end - chunk.start * values.shape[1]
        if ties_here > 0:
            ties = found == self.value
            if ties_here < values.numel():
                ties.reshape(-1)[ties_here:] = False
            kept |= ties
        return torch.from_numpy(kept.view(np.uint8))


class Stream:
    """One tensor of every model, read chunk by chunk as often as a method needs.

    Args:
        name: the output tensor's name.
        models: where each model's rows come from.
        base: where the base's come from.
        whole: give the whole tensor as one chunk (methods that factorise matrices).
    """

    def __init__(
        self, name: str, models: Sequence[Rows], base: Rows | None = None, whole: bool = False
    ) -> None:
        self.name = name
        self.models = list(models)
        self.base = base
        self.shape = tuple(models[0].shape)
        self.rows = self.shape[0] if self.shape else 1
        columns = 1
        for size in self.shape[1:]:
            columns *= size
        self.columns = columns
        self.numel = self.rows * self.columns
        self.step = max(self.rows, 1) if whole else max(1, CHUNK // max(columns, 1))

    def alone(self, model: int, whole: bool = False) -> Stream:
        """The same tensor of one model (and the base), for statistics that need no other.

        Args:
            model: its index.
            whole: as one chunk.

        Returns:
            Another stream.
        """
        return Stream(self.name, [self.models[model]], self.base, whole)

    def split(self) -> None:
        """Give chunks of rows from now on, if the stream was to give the whole tensor."""
        self.step = max(1, CHUNK // max(self.columns, 1))

    def __iter__(self) -> Iterator[Chunk]:
        if not self.rows:
            yield self.chunk(0, 0)
        for start in range(0, self.rows, self.step):
            yield self.chunk(start, min(start + self.step, self.rows))

    def chunk(self, start: int, stop: int) -> Chunk:
        """Read some rows of every model.

        Args:
            start: first row.
            stop: one past the last.

        Returns:
            The chunk.
        """
        return Chunk(
            [self._read(model, start, stop) for model in self.models],
            None if self.base is None else self._read(self.base, start, stop),
            start,
            self.name,
        )

    def _read(self, source: Rows, start: int, stop: int) -> torch.Tensor:
        rows = source.rows(start, stop).reshape(stop - start, self.columns)
        return rows if rows.dtype == torch.float64 else rows.float()

    def reduce(self, function: Callable[[Chunk], torch.Tensor]) -> torch.Tensor:
        """Sum a statistic over all chunks, in float64.

        Args:
            function: chunk to a tensor of fixed shape.

        Returns:
            The sum.
        """
        total: torch.Tensor | None = None
        for chunk in self:
            part = function(chunk).double()
            total = part if total is None else total + part
        assert total is not None
        return total

    def gram(self, of: Callable[[Chunk], Sequence[torch.Tensor]]) -> torch.Tensor:
        """Inner products between the tensors that a function makes of the models.

        Args:
            of: chunk to tensors, for example ``lambda c: c.deltas``.

        Returns:
            ``(k, k)``, float64.
        """

        def products(chunk: Chunk) -> torch.Tensor:
            parts = torch.stack([part.reshape(-1) for part in of(chunk)]).double()
            return parts @ parts.T

        return self.reduce(products)

    def kth_largest(self, of: Callable[[Chunk], torch.Tensor], k: int) -> tuple[float, int]:
        """The k-th largest value of a tensor, exactly, without holding it.

        A sample brackets the value; one pass counts what lies above the bracket and on its ends,
        and collects what lies strictly inside; a bracket that missed is widened (after Floyd and
        Rivest 1975). The ends are counted, not collected: a value that fills much of the tensor,
        as zero does in the task vectors of bfloat16 models, costs no memory. NaN counts as
        infinite.

        Args:
            of: chunk to values ``(rows, columns)``, element by element.
            k: rank, from 1 (largest) to the number of elements.

        Returns:
            The value, and how many elements equal to it belong to the k largest.

        Raises:
            ValueError: there is no such rank.
        """
        if not 1 <= k <= self.numel:
            raise ValueError(f"rank {k} of {self.numel} elements")
        sample = self._sample(of)
        margin = 4.0
        while True:
            low, high = _bracket(sample, k / self.numel, margin)
            if low == float("-inf") and high == float("inf"):
                break
            above, top, bottom, inside = 0, 0, 0, []
            for chunk in self:
                values = of(chunk).reshape(-1).numpy()  # which compares and counts several times faster
                below = values < high
                if high < float("inf"):
                    equal = np.count_nonzero(values == high)
                    above += len(values) - np.count_nonzero(below) - equal
                    top += equal
                if low > float("-inf"):
                    bottom += np.count_nonzero(values == low) if low < high else 0
                inside.append(values[np.flatnonzero(below & (values > low))])
            collected = torch.from_numpy(np.concatenate(inside))
            if above < k <= above + top:
                return high, k - above
            if above + top < k <= above + top + len(collected):
                return _select(collected, k - above - top)
            if above + top + len(collected) < k <= above + top + len(collected) + bottom:
                return low, k - above - top - len(collected)
            margin *= 4
        everything = torch.cat([of(chunk).reshape(-1) for chunk in self])
        return _select(everything.masked_fill(everything.isnan(), float("inf")), k)

    def top(self, of: Callable[[Chunk], torch.Tensor], k: int) -> Top:
        """The k largest values, exactly k: of equal ones the first in the tensor.

        Args:
            of: chunk to values ``(rows, columns)``, element by element.
            k: how many, from 0 to the number of elements.

        Returns:
            What tells them from the others.
        """
        if k <= 0:
            return Top(float("inf"), 0)
        if k >= self.numel:
            return Top(float("-inf"), self.numel)
        value, missing = self.kth_largest(of, k)
        for chunk in self:
            ties = of(chunk).reshape(-1).numpy() == value
            count = np.count_nonzero(ties)
            if count >= missing:
                return Top(value, chunk.start * self.columns + int(np.flatnonzero(ties)[missing - 1]) + 1)
            missing -= count
        return Top(value, self.numel)  # NaN took the place of the rest

    def _sample(self, of: Callable[[Chunk], torch.Tensor]) -> torch.Tensor:
        # Values from places spread evenly over a large tensor, sorted; none of a small one.
        if self.numel <= 4 * SAMPLE:
            return torch.empty(0)
        places = min(64, self.rows)
        rows = max(1, SAMPLE // (places * self.columns))
        picked = []
        for place in range(places):
            start = place * (self.rows - rows) // max(1, places - 1)
            values = of(self.chunk(start, start + rows)).reshape(-1)
            picked.append(values[:: max(1, values.numel() * places // SAMPLE)])
        return torch.cat(picked).sort(descending=True).values


def _bracket(sample: torch.Tensor, share: float, margin: float) -> tuple[float, float]:
    place = share * len(sample)
    width = margin * (len(sample) * max(share * (1 - share), 1e-4)) ** 0.5 + margin
    first, last = int(place - width), int(place + width)
    high = float("inf") if place < width or not len(sample) else float(sample[first])
    low = float("-inf") if last >= len(sample) else float(sample[last])
    return low, high


def _select(values: torch.Tensor, k: int) -> tuple[float, int]:
    value = values.kthvalue(len(values) - k + 1).values
    return float(value), k - int((values > value).sum())
