"""From a recipe to a plan: which tensors come out, of what, by which parameters.

Planning reads headers and configurations only, and finds everything that is wrong before a byte
is merged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.merging.blocks import (
    comes_before_blocks,
    depth_of,
    layer_count_key,
    main_stack,
    place_of,
    stacks,
)
from mergescope.merging.methods import Method, Values
from mergescope.merging.recipe import Module, Recipe, Slice, Source
from mergescope.merging.settings import resolve
from mergescope.merging.streams import CHUNK, Rows, Stream
from mergescope.weights.point import TensorSpec

HEADS = ("lm_head.weight",)
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class CheckpointRows:
    """One tensor of a checkpoint as rows.

    Attributes:
        model: the checkpoint.
        key: the tensor's name there.
        shape: its shape.
    """

    model: Any
    key: str
    shape: tuple[int, ...]

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
        labels: the models' names, for messages.
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
    """

    recipe: Recipe
    models: dict[str, Any]
    jobs: list[Job]
    config: dict[str, Any] | None
    home: Any
    seed: int
    alignment: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def bytes_read(self) -> int:
        """Bytes of the inputs, once."""
        used = {(id(rows.model), rows.key): rows for job in self.jobs for rows in _plain_rows(job)}
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
            elements = job.spec.numel if self.recipe.method.whole else min(job.spec.numel, max(CHUNK, columns))
            most = max(most, 4 * elements * (len(job.models) + 4))
        return most * threads

    @property
    def digest(self) -> str:
        """Key of the plan: recipe, inputs and seed."""
        parts = [
            self.recipe.text, self.seed, {name: model.identity for name, model in self.models.items()},
            [(job.name, job.spec.shape, str(job.spec.dtype)) for job in self.jobs],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _plain_rows(job: Job) -> Iterator[Any]:
    for rows in (*job.models, *([job.base] if job.base is not None else [])):
        inner = getattr(rows, "source", rows)
        if isinstance(inner, CheckpointRows):
            yield inner


def make_plan(recipe: Recipe, *, seed: int = 0, opened: Mapping[str, Any] | None = None) -> Plan:
    """Open the models of a recipe and plan every tensor of the output.

    Args:
        recipe: the recipe.
        seed: of random methods.
        opened: checkpoints by reference, for models that are in memory.

    Returns:
        The plan.

    Raises:
        CheckpointError: a model can't be opened.
        MismatchError: models differ where they must not; everything is named.
        MergescopeError: layer ranges don't fit.
    """
    from mergescope.weights.references import open_model

    models = {name: (opened or {}).get(name) or open_model(name) for name in recipe.references}
    home = models[recipe.base_model] if recipe.base_model else models[recipe.references[0]]
    planner = _Planner(recipe, models, home, seed)
    jobs = [job for module in recipe.modules for job in planner.module(module)]
    planner.require_complete(jobs)
    if planner.problems:
        raise MismatchError(
            f"{recipe.name}: the models can't be merged, {len(planner.problems)} tensor(s) differ:",
            planner.problems,
            "Merge models of one architecture. If only the vocabulary differs, set tokenizer_source: union (or base).",
        )
    return Plan(recipe, models, jobs, planner.config(jobs), home, seed, planner.alignment, planner.notes)


class _Planner:
    def __init__(self, recipe: Recipe, models: dict[str, Any], home: Any, seed: int) -> None:
        self.recipe, self.models, self.home, self.seed = recipe, models, home, seed
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.layer_types: list[Any] = []
        self.stacked: int | None = None
        self.alignment: Any = None
        if recipe.tokenizer is not None:
            from mergescope.merging.tokenizers import output_vocabulary

            self.alignment = output_vocabulary(recipe.tokenizer, models, recipe.base_model)

    # -- which tensors ---------------------------------------------------------------------

    def module(self, module: Module) -> Iterator[Job]:
        if len(module.slices) == 1 and not any(source.layers for source in module.slices[0].sources):
            yield from self.whole(module, module.slices[0])
        else:
            yield from self.stack(module)

    def whole(self, module: Module, part: Slice) -> Iterator[Job]:
        members = [self.models[source.model] for source in part.sources]
        base = self.base_of(part)
        names = [key for key in (base or members[0]).spec if key.startswith(module.prefix)]
        for model in (*members, *([base] if base is not None else [])):
            for key in model.spec:
                if key.startswith(module.prefix) and key not in names and self.key_in(members[0], key):
                    names.append(key)
        if not names:
            self.problems.append(f"module {module.prefix!r}: no tensor of {members[0].name} starts with it")
        extra = {key: model.name for model in members for key in model.spec if key.startswith(module.prefix)}
        self.problems += [
            f"{key}: only in {model}, missing in {(base or members[0]).name}"
            for key, model in extra.items()
            if key not in names
        ]
        counts = stacks(names)
        for name in names:
            yield from self.job(module, part, name, [name] * len(part.sources), depth_of(name, counts))

    def stack(self, module: Module) -> Iterator[Job]:
        first = self.models[module.slices[0].sources[0].model]
        own = [key for key in first.spec if key.startswith(module.prefix)]
        stack = main_stack(own, first.config, first.name)
        outside = [key for key in own if place_of(key).stack != stack]
        for key in outside:
            part = module.slices[0] if comes_before_blocks(key) else module.slices[-1]
            yield from self.job(module, part, key, [key] * len(part.sources), 0.0)
        out = 0
        for part in module.slices:
            ranges = [source.layers for source in part.sources]
            lengths = {model.name: stacks(model.spec).get(stack, 0) for model in self.members(part)}
            bad = [
                f"{stack}: layer_range {list(span)} of {model.name}, which has {lengths[model.name]} layers"
                for span, model in zip(ranges, self.members(part), strict=True)
                if span is None or span[1] > lengths[model.name]
            ]
            if bad:
                self.problems += bad
                continue
            spans = [span for span in ranges if span is not None]
            count = spans[0][1] - spans[0][0]
            for offset in range(count):
                numbers = [span[0] + offset for span in spans]
                rests = [
                    place_of(key).rest for key in self.members(part)[0].spec
                    if (place := place_of(key)).stack == stack and place.index == numbers[0]
                ]  # fmt: skip
                depth = offset / (count - 1) if count > 1 else 1.0
                for rest in rests:
                    keys = [f"{stack}.{number}.{rest}" for number in numbers]
                    yield from self.job(module, part, f"{stack}.{out}.{rest}", keys, depth)
                self.layer_types.append((self.members(part)[0], numbers[0]))
                out += 1
        self.stacked = out

    def members(self, part: Slice) -> list[Any]:
        return [self.models[source.model] for source in part.sources]

    def base_of(self, part: Slice) -> Any:
        name = part.base_model or self.recipe.base_model
        return self.models[name] if name and self.recipe.method.base != "none" else None

    # -- one tensor ------------------------------------------------------------------------

    def job(self, module: Module, part: Slice, name: str, keys: list[str], depth: float) -> Iterator[Job]:
        method = self.recipe.method
        base_name = part.base_model or self.recipe.base_model
        uses_base = method.base != "none" and base_name is not None
        pairs = [
            (source, key)
            for source, key in zip(part.sources, keys, strict=True)
            if not (uses_base and source.model == base_name)
        ]
        rows = [self.rows(self.models[source.model], key, name) for source, key in pairs]
        base_key = next((k for s, k in zip(part.sources, keys, strict=True) if s.model == base_name), name)
        base = self.rows(self.models[base_name], base_key, name) if uses_base and base_name else None
        found = [item for item in (*rows, *([base] if uses_base else [])) if item is not None]
        if len(found) < len(rows) + uses_base or not found:
            return
        shapes = {item.shape for item in found}
        if len(shapes) > 1:
            told = ", ".join(f"{list(item.shape)} in {self.label(item)}" for item in found)
            self.problems.append(f"{name}: {told}")
            return
        sources = [source for source, _ in pairs]
        dtype = self.dtype(found)
        spec = TensorSpec(tuple(found[0].shape), dtype)
        values = self.values(module, part, sources, name, depth)
        labels = tuple(self.models[source.model].name for source in sources)
        plain = [item for item in rows if item is not None]
        if not dtype.is_floating_point:
            self.require_equal(name, found)
            yield Job(name, spec, (base or plain[0],), labels[:1], None, values, copy=True)
            return
        yield Job(name, spec, tuple(plain), labels, base, values)

    def rows(self, model: Any, key: str, name: str) -> Rows | None:
        actual = self.key_in(model, key)
        if actual is None:
            self.problems.append(f"{name}: missing in {model.name}")
            return None
        found = CheckpointRows(model, actual, tuple(model.spec[actual].shape))
        return self.alignment.rows(model, actual, found) if self.alignment is not None else found

    def key_in(self, model: Any, key: str) -> str | None:
        # A tied head is not stored; the embedding stands for it.
        if key in model.spec:
            return key
        tied = (model.config or {}).get("tie_word_embeddings", True)
        if tied and key.endswith(HEADS):
            return next((name for name in model.spec if name.endswith(EMBEDDINGS)), None)
        return None

    def label(self, rows: Any) -> str:
        inner = getattr(rows, "source", rows)
        return str(getattr(getattr(inner, "model", None), "name", "?"))

    def dtype(self, found: list[Any]) -> torch.dtype:
        inner = getattr(found[-1], "source", found[-1])
        stored = inner.model.spec[inner.key].dtype
        wanted = self.recipe.out_dtype or self.recipe.dtype
        return getattr(torch, wanted) if wanted and stored.is_floating_point else stored

    def require_equal(self, name: str, found: list[Any]) -> None:
        first = found[0].rows(0, found[0].shape[0] if found[0].shape else 1)
        for other in found[1:]:
            if not torch.equal(first, other.rows(0, other.shape[0] if other.shape else 1)):
                if name.endswith("num_batches_tracked"):
                    continue
                self.problems.append(
                    f"{name}: integers that differ between {self.label(found[0])} and {self.label(other)} "
                    "(quantised weights? dequantise them first)"
                )

    def values(self, module: Module, part: Slice, sources: list[Source], name: str, depth: float) -> Values:
        shared = (part.parameters, module.parameters, self.recipe.parameters)
        per_model: dict[str, list[float]] = {}
        common: dict[str, Any] = {}
        for parameter in self.recipe.method.parameters:
            if parameter.per_model:
                per_model[parameter.name] = [
                    resolve(parameter.name, (source.parameters, *shared), name, depth, parameter.default)
                    for source in sources
                ]
            else:
                common[parameter.name] = resolve(parameter.name, shared, name, depth, parameter.default)
        return Values(per_model, common, self.seed)

    # -- the whole -------------------------------------------------------------------------

    def require_complete(self, jobs: list[Job]) -> None:
        names = [job.name for job in jobs]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        self.problems += [f"{name}: made by two modules" for name in twice]
        if any(module.prefix for module in self.recipe.modules):
            covered = tuple(module.prefix for module in self.recipe.modules)
            self.problems += [
                f"{key}: belongs to no module of the recipe" for key in self.home.spec if not key.startswith(covered)
            ]

    def config(self, jobs: list[Job]) -> dict[str, Any] | None:
        try:
            config = self.home.config
        except CheckpointError as error:
            raise MergescopeError(str(error)) from error
        if config is None:
            return None
        config = dict(config)
        names = {job.name for job in jobs}
        if any(name.endswith(HEADS) for name in names) and config.get("tie_word_embeddings"):
            config["tie_word_embeddings"] = False
            self.notes.append("tie_word_embeddings set to false: one of the models has a head of its own")
        if self.stacked is not None:
            key = layer_count_key(config)
            if key is not None:
                config[key] = self.stacked
            types = [(model.config or {}).get("layer_types") for model, _ in self.layer_types]
            if "layer_types" in config and all(types):
                config["layer_types"] = [
                    found[number] for found, (_, number) in zip(types, self.layer_types, strict=True)
                ]
        wanted = self.recipe.out_dtype or self.recipe.dtype
        for key in ("torch_dtype", "dtype"):
            if wanted and key in config:
                config[key] = wanted
        return config
