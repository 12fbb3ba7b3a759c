"""Content digests of a merge's parents, gathered while their tensors are read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import xxhash

from mergescope.merging.plan import CheckpointRows, Job, Plan
from mergescope.merging.shards import raw_bytes
from mergescope.merging.streams import CHUNK, Rows
from mergescope.weights import Checkpoint
from mergescope.weights.chunks import chunks_of
from mergescope.weights.stores import content_digest


class Parents:
    """The digests of the tensors that have been read from front to back so far."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], str] = {}

    def watched(self, job: Job) -> Job:
        """A job whose rows are hashed as they are read.

        Args:
            job: a job.

        Returns:
            The same with watched rows. A tensor that is read in another order (an embedding whose
            rows are realigned) stays as it is and is hashed in the end.
        """
        return replace(
            job,
            models=tuple(self._watch(rows) for rows in job.models),
            base=None if job.base is None else self._watch(job.base),
        )

    def _watch(self, rows: Rows) -> Rows:
        return _Watched(rows, self._found) if type(rows) is CheckpointRows else rows

    def digests(self, plan: Plan, threads: int) -> dict[str, str]:
        """Digest of every checkpoint as [`Checkpoint.digest`][] gives it, reading what was not read yet.

        Args:
            plan: the plan that was carried out.
            threads: tensors read at once.

        Returns:
            Model reference to digest. Parts of a checkpoint have none.
        """
        models = {name: model for name, model in plan.models.items() if isinstance(model, Checkpoint)}
        jobs = [
            (model, key)
            for model in models.values()
            for key in model.spec
            if (id(model), key) not in self._found
        ]
        with ThreadPoolExecutor(threads) as pool:
            read = pool.map(lambda job: _digest(*job), jobs)
            found = self._found | {
                (id(model), key): digest for (model, key), digest in zip(jobs, read, strict=True)
            }
        return {
            name: content_digest({key: (spec, found[id(model), key]) for key, spec in model.spec.items()})
            for name, model in models.items()
        }


def _digest(model: Any, key: str) -> str:
    state = xxhash.xxh3_128()
    for _, start, stop in chunks_of(model, [key], CHUNK):
        state.update(raw_bytes(model.rows(key, start, stop).contiguous()))
    return state.hexdigest()


class _Watched:
    def __init__(self, source: CheckpointRows, found: dict[tuple[int, str], str]) -> None:
        self.source = source
        self.shape = source.shape
        self._found = found
        self._state = xxhash.xxh3_128()
        self._next = 0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        rows = self.source.rows(start, stop)
        if start == self._next and stop > start:
            self._state.update(raw_bytes(rows.contiguous()))
            self._next = stop
            if stop == (self.shape[0] if self.shape else 1):
                self._found[id(self.source.model), self.source.key] = self._state.hexdigest()
        return rows
