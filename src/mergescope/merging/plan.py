"""From a recipe to a plan: which tensors come out, of what, by which parameters.

Planning reads headers, configurations and embeddings that are stored twice, and finds everything
that is wrong before a byte is merged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mergescope._version import __version__
from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.merging.methods import Method, Values
from mergescope.merging.recipe import Recipe
from mergescope.merging.streams import CHUNK, Rows, Stream
from mergescope.weights.point import TensorSpec
from mergescope.weights.stores import files_identity


@dataclass(frozen=True)
class CheckpointRows:
    """One tensor of a checkpoint as rows.

    Attributes:
        model: the checkpoint.
        key: the tensor's name there.
        shape: its shape.
        dtype: its dtype.
    """

    model: Any
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows in the stored dtype.

        Args:
            start: first row.
            stop: one past the last.

        Returns:
            A view.
        """
        return self.model.rows(self.key, start, stop)


@dataclass(frozen=True)
class Job:
    """One tensor of the output.

    Attributes:
        name: its name.
        spec: its shape and dtype.
        models: where each model's rows come from.
        labels: the models' references, for messages.
        base: where the base's rows come from.
        values: the method's parameters for it.
        copy: take the first model's tensor as it is (integers, or nothing to merge).
    """

    name: str
    spec: TensorSpec
    models: tuple[Rows, ...]
    labels: tuple[str, ...]
    base: Rows | None
    values: Values
    copy: bool = False

    def stream(self, method: Method) -> Stream:
        """The tensor as a stream.

        Args:
            method: decides whether it comes as one chunk.

        Returns:
            The stream.
        """
        return Stream(self.name, self.models, self.base, whole=method.whole)


@dataclass
class Plan:
    """Everything a merge will do.

    Attributes:
        recipe: the recipe.
        models: reference to opened checkpoint, the base first.
        jobs: the output's tensors.
        config: the output's ``config.json``, or None.
        home: the model that configuration and tokenizer files come from.
        seed: of random methods.
        alignment: how vocabularies are aligned, or None.
        notes: what the user should know, one sentence each.
        statistics: names of BatchNorm running statistics that are combined like weights.
    """

    recipe: Recipe
    models: dict[str, Any]
    jobs: list[Job]
    config: dict[str, Any] | None
    home: Any
    seed: int
    alignment: Any = None
    notes: list[str] = field(default_factory=list)
    statistics: tuple[str, ...] = ()

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs, once."""
        used = {(id(rows.model), rows.key): rows for job in self.jobs for rows in plain_rows(job)}
        return sum(rows.model.spec[rows.key].nbytes for rows in used.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of the output's tensors."""
        return sum(job.spec.nbytes for job in self.jobs)

    def expected_memory(self, threads: int) -> int:
        """Estimate of anonymous memory in bytes, above what the program itself takes.

        Args:
            threads: how many tensors are merged at once.

        Returns:
            Chunks (or whole tensors) of all models in float32, with room for temporaries.
        """
        most = 0
        for job in self.jobs:
            columns = max(1, job.spec.numel // max(job.spec.shape[0] if job.spec.shape else 1, 1))
            elements = (
                job.spec.numel if self.recipe.method.whole else min(job.spec.numel, max(CHUNK, columns))
            )
            most = max(most, 4 * elements * (len(job.models) + 4))
        return most * threads

    @property
    def digest(self) -> str:
        """Key of the plan: what decides the bytes of the output's tensors."""
        names = {id(model): name for name, model in self.models.items()}
        parts: list[Any] = [
            __version__, self.recipe.method.name, self.recipe.tokenizer, self.seed,
            {name: model.identity for name, model in self.models.items()},
            [
                (job.name, str(job.spec), job.base is not None, job.copy, repr(job.values),
                 [(names[id(rows.model)], rows.key) for rows in plain_rows(job)])
                for job in self.jobs
            ],
        ]  # fmt: skip
        if self.alignment is not None:
            files = [path for model in self.models.values() for path in _tokenizer_files(model)]
            parts.append(files_identity(files))
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _tokenizer_files(model: Any) -> list[Path]:
    folder = getattr(model, "tokenizer_directory", None) or getattr(model, "directory", None)
    return (
        sorted(path for name in ("*token*", "vocab*", "*.model") for path in folder.glob(name))
        if folder
        else []
    )


def plain_rows(job: Job) -> Iterator[CheckpointRows]:
    """Where the rows of a tensor of the output are read, the base's last.

    Args:
        job: the tensor.

    Yields:
        Each model's rows in its own order.
    """
    for rows in (*job.models, *([job.base] if job.base is not None else [])):
        inner = getattr(rows, "source", rows)
        if isinstance(inner, CheckpointRows):
            yield inner


def make_plan(recipe: Recipe, *, seed: int | None = None, opened: Mapping[str, Any] | None = None) -> Plan:
    """Open the models of a recipe and plan every tensor of the output.

    Args:
        recipe: the recipe.
        seed: of random methods; by default the recipe's, or 0.
        opened: checkpoints by reference, for models that are in memory.

    Returns:
        The plan.

    Raises:
        CheckpointError: models can't be opened; all such are named.
        MismatchError: models differ where they must not, or layer ranges don't fit; everything is named.
        MergescopeError: the seed is negative.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.merging.planner import Planner

    seed = (recipe.seed or 0) if seed is None else seed
    if seed < 0:
        raise MergescopeError(f"A seed is a non-negative integer, got {seed}.")
    models = open_models(recipe, opened or {})
    planner = Planner(recipe, models, seed)
    jobs = planner.jobs()
    if planner.problems.found:
        count = len(planner.problems.found)
        raise MismatchError(
            f"{recipe.name}: the models can't be merged so, {count} problem{'s' if count > 1 else ''}:",
            planner.problems.found,
            planner.problems.advice,
        )
    return Plan(
        recipe, models, jobs, planner.config(jobs), planner.home, seed, planner.alignment, planner.notes,
        planner.statistics,
    )  # fmt: skip


def open_models(recipe: Recipe, opened: Mapping[str, Any]) -> dict[str, Any]:
    """Open every model that a recipe names.

    Args:
        recipe: the recipe.
        opened: those that are open already.

    Returns:
        Reference to checkpoint, in the recipe's order.

    Raises:
        CheckpointError: some can't be opened; all are named.
    """
    from mergescope.weights.references import open_model

    lines = {source.model: source.line for _, part in recipe.slices for source in part.sources}
    models, errors = {}, []
    for name in recipe.references:
        try:
            models[name] = opened[name] if name in opened else open_model(name)
        except CheckpointError as error:  # noqa: PERF203 (opening a file takes far longer)
            line = lines.get(name)
            errors.append(f"line {line}: {error}" if line else str(error))
    if errors:
        count = f"{len(errors)} models" if len(errors) > 1 else "a model"
        told = "\n".join(f"  - {error}" for error in errors)
        raise CheckpointError(f"{recipe.name}: {count} can't be opened:\n{told}")
    return models
