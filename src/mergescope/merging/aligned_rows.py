"""Rows of embeddings and heads in the order of another vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergescope.errors import MergescopeError
from mergescope.merging.streams import Rows

if TYPE_CHECKING:
    from mergescope.merging.tokenizers import Alignment

_GAP = 64  # rows that are read along, rather than starting another read


class AlignedRows:
    """A vocabulary's tensor with its rows in the output's order, served block by block.

    Args:
        alignment: the output vocabulary.
        reference: the model.
        key: the tensor's name there.
        source: its rows in the model's own order, ``(rows, ...)``.
    """

    def __init__(self, alignment: Alignment, reference: str, key: str, source: Rows) -> None:
        self.source = source
        self.shape = (alignment.size, *source.shape[1:])
        self._index = _within(alignment.index[reference], source.shape[0])
        self._fill: list[tuple[Any, str, np.ndarray]] = []
        for other, fill in alignment.fill.items():
            name = alignment.counterpart(other, key, reference)
            if name is None or not (fill >= 0).any():
                continue
            shape = alignment.models[other].spec[name].shape
            if shape[1:] != tuple(source.shape[1:]):
                raise MergescopeError(
                    f"{name} has rows of {list(shape[1:])} in {alignment.models[other].name}, but {key} has "
                    f"{list(source.shape[1:])} in {alignment.models[reference].name}: these models have "
                    "different widths and can't be merged."
                )
            self._fill.append((alignment.models[other], name, _within(fill, shape[0])))

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of the output vocabulary.

        Args:
            start: first output row.
            stop: one past the last.

        Returns:
            ``(stop - start, ...)`` in the stored dtype.
        """
        index = self._index[start:stop]
        present = np.flatnonzero(index >= 0)
        own = _gather(self.source.rows, index[present]) if len(present) else self.source.rows(0, 0)
        out = own.new_zeros((stop - start, *self.shape[1:]))
        out[torch.from_numpy(present)] = own
        absent = np.flatnonzero(index < 0)
        if len(absent):
            out[torch.from_numpy(absent)] = self._filled(start + absent).to(out.dtype)
        return out

    def _filled(self, numbers: np.ndarray) -> torch.Tensor:
        total = torch.zeros((len(numbers), *self.shape[1:]), dtype=torch.float64)
        count = torch.zeros(len(numbers), dtype=torch.float64)
        for model, name, fill in self._fill:
            given = np.flatnonzero(fill[numbers] >= 0)
            if len(given):
                rows = _gather(lambda a, b, m=model, n=name: m.rows(n, a, b), fill[numbers[given]])
                total[torch.from_numpy(given)] += rows.double()
                count[torch.from_numpy(given)] += 1
        return total / count.clamp_min(1).view(-1, *[1] * (total.ndim - 1))


def _within(index: np.ndarray, rows: int) -> np.ndarray:
    return np.where(index < rows, index, -1)


def _gather(read: Any, numbers: np.ndarray) -> torch.Tensor:
    # Few reads of neighbouring rows, without reading what lies far between.
    ordered, inverse = np.unique(numbers, return_inverse=True)
    cuts = np.flatnonzero(np.diff(ordered) > _GAP) + 1
    parts = []
    for run in np.split(ordered, cuts):
        low = int(run[0])
        block = read(low, int(run[-1]) + 1)
        parts.append(block if len(run) == len(block) else block[torch.from_numpy(run - low)])
    return torch.cat(parts)[torch.from_numpy(inverse)]
