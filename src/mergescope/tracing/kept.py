"""Passes that are killed: what they had seen is kept on disk, and the same pass goes on after it."""

from __future__ import annotations

import copy
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import MergescopeError
from mergescope.readings import InnerProducts, NextTokenLoss, Outputs, Reading
from mergescope.weights.files import atomic_file

if TYPE_CHECKING:
    from mergescope.tracing.passes import Pass

EVERY = 60.0
"""Seconds between two files: so much is lost at most, and passes that are shorter write one, at their end."""


KINDS = (InnerProducts, Outputs, NextTokenLoss)
"""Readings that can be kept: lists of arrays that batches append to."""


@dataclass(frozen=True)
class Piece:
    """What consecutive batches left.

    Attributes:
        batches: how many.
        readings: filled by these batches alone.
        counts: samples, forward passes and local passes.
    """

    batches: int
    readings: Sequence[Reading]
    counts: np.ndarray

    def into(self, job: Pass, readings: Sequence[Reading]) -> None:
        """Append it to a pass.

        Args:
            job: the pass, whose counts it adds to.
            readings: of the pass.
        """
        self.fill(readings)
        job.samples, job.forward_passes, job.local_passes = (_counted(job) + self.counts).tolist()

    def fill(self, readings: Sequence[Reading]) -> None:
        """Append it to readings.

        Args:
            readings: of the pass.
        """
        for reading, part in zip(readings, self.readings, strict=True):
            reading.merge(part)


class Kept:
    """The batches that a pass has seen, in files of consecutive ones.

    Each file holds what its batches left in fresh copies of the readings. The pass that goes on leaves these batches
    out and merges them in their order, as parts that engines run. Parts may be finished in any order.

    Args:
        folder: of this pass alone: whatever changes its result must be in the name.

    Attributes:
        pieces: number of the first batch to what is there and not yet in the readings, without overlaps.

    Example:
        >>> import tempfile, torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> data = [torch.ones(3, 4), torch.zeros(2, 4)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = (
        ...         ms.trace([ms.Checkpoint(net.state_dict())], data, net, keep=Path(folder)) for _ in range(2)
        ...     )
        >>> first.samples, second.samples, second.forward_passes
        (5, 5, 2)
    """

    def __init__(self, folder: Path) -> None:
        self.pieces: dict[int, Piece] = {}
        self._folder = folder
        self._seen = self._stored = 0
        self._whole: Sequence[Reading] = ()
        self._empty: Sequence[Reading] = ()
        self._counts = np.zeros(3, dtype=np.int64)
        self._clock = time.monotonic()

    def begin(self, job: Pass) -> None:
        """Look for what is there already.

        Args:
            job: the pass, its readings started; it gets copies that are filled in their place.

        Raises:
            MergescopeError: a reading is of another kind.
        """
        others = [type(reading).__name__ for reading in job.readings if not isinstance(reading, KINDS)]
        if others:
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise MergescopeError(f"{others[0]} can't be kept, only {known}. Leave keep out.")
        self._whole, self._empty = job.readings, copy.deepcopy(job.readings)
        self._counts = _counted(job)
        job.readings = copy.deepcopy(self._empty)
        end = 0
        for path in sorted(self._folder.glob("*.npz")):
            first = int(path.stem) if path.stem.isdecimal() else -1
            piece = _read(path, self._empty) if first >= end else None
            if piece is not None:
                self.pieces[first] = piece
                end = first + piece.batches

    def skips(self, job: Pass, number: int) -> bool:
        """Whether a batch was seen before the pass was killed.

        Args:
            job: the pass, which runs here, in order.
            number: of the batch, from 0.

        Returns:
            True for one that is not to be run.
        """
        if number in self.pieces and number >= self._seen:
            self._store(job)
            self._take(job, self.pieces.pop(number))
        return number < self._seen

    def finished(self, job: Pass) -> None:
        """Note that a batch is done, of a pass that runs here.

        Args:
            job: the pass.
        """
        self._seen += 1
        if time.monotonic() - self._clock >= EVERY:
            self._store(job)

    def add(self, first: int, piece: Piece) -> None:
        """Store a part that an engine has finished.

        Args:
            first: number of its first batch.
            piece: what it left.
        """
        self._write(first, piece)
        self.pieces[first] = piece

    def end(self, job: Pass) -> None:
        """Store what is left, and give the pass its own readings back, filled by all batches.

        Args:
            job: the pass, at its end.
        """
        self._store(job)
        for first in sorted(self.pieces):
            self._take(job, self.pieces[first])
        job.readings = self._whole

    def _store(self, job: Pass) -> None:
        batches = self._seen - self._stored
        if batches:
            piece = Piece(batches, job.readings, _counted(job) - self._counts)
            self._write(self._stored, piece)
            piece.fill(self._whole)
            job.readings = copy.deepcopy(self._empty)
            self._stored, self._counts, self._clock = self._seen, _counted(job), time.monotonic()

    def _take(self, job: Pass, piece: Piece) -> None:
        piece.into(job, self._whole)
        self._counts = _counted(job)
        self._seen = self._stored = self._seen + piece.batches

    def _write(self, first: int, piece: Piece) -> None:
        arrays = _arrays(piece.readings)
        arrays["counts"] = np.array([piece.batches, *piece.counts])
        with (
            atomic_file(self._folder / f"{first:08}.npz") as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its own keywords are not names of ours


def _counted(job: Pass) -> np.ndarray:
    return np.array([job.samples, job.forward_passes, job.local_passes])


def _lists(reading: Reading) -> Iterator[tuple[str, str | None, list[np.ndarray]]]:
    # What fills a reading are lists of arrays, some of them by layer; all else is there when it is started.
    for name, value in vars(reading).items():
        for key, arrays in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(arrays, list) and arrays and isinstance(arrays[0], np.ndarray):
                yield name, key, arrays


def _arrays(readings: Sequence[Reading]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    said: list[list[Any]] = []
    for number, reading in enumerate(readings):
        for name, key, arrays in _lists(reading):
            found[f"values{len(said)}"] = np.concatenate([array.ravel() for array in arrays])
            found[f"shapes{len(said)}"] = np.array([array.shape for array in arrays])
            said.append([number, name, key])
    return {**found, "said": np.array(json.dumps(said))}


def _read(path: Path, empty: Sequence[Reading]) -> Piece | None:
    readings: Any = copy.deepcopy(empty)
    try:
        with np.load(path, allow_pickle=False) as stored:
            for place, (number, name, key) in enumerate(json.loads(str(stored["said"]))):
                shapes = stored[f"shapes{place}"]
                ends = np.cumsum(shapes.prod(axis=1))
                flat = np.split(stored[f"values{place}"], ends[:-1])
                arrays = [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]
                value = getattr(readings[number], name)
                if key is None:
                    value += arrays
                else:
                    value.setdefault(key, []).extend(arrays)
            batches, *counts = stored["counts"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None  # damaged: its batches are passed again
    return Piece(int(batches), readings, np.array(counts))
