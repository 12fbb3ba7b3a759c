"""Planning: every tensor of the output, and everything that is wrong, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.blocks import comes_before_blocks, depth_of, main_stack, place_of, stacks
from mergescope.merging.configs import layer_count_path, restack, set_dtype
from mergescope.merging.methods import Values
from mergescope.merging.plan import CheckpointRows, Job
from mergescope.merging.recipe import Module, Recipe, Slice, Source
from mergescope.merging.settings import resolve
from mergescope.merging.shards import TAGS
from mergescope.merging.streams import Rows
from mergescope.merging.vocabulary import (
    HEADS,
    INPUTS,
    read_vocabulary,
    tokenizer_directory,
    vocabulary_problems,
)
from mergescope.weights.kinds import is_derived
from mergescope.weights.point import TensorSpec

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "added_tokens.json",
)
STATISTICS = ("running_mean", "running_var")
ARCHITECTURE = "Merge models of one architecture."
VOCABULARY = (
    "The vocabularies differ in size: set tokenizer_source: union (or base) in the recipe to match rows by "
    "token."
)
RANGES = "Correct the layer ranges."


class Planner:
    """Plans a recipe over open models.

    Args:
        recipe: the recipe.
        models: reference to open checkpoint.
        seed: of random methods.
    """

    def __init__(self, recipe: Recipe, models: dict[str, Any], seed: int) -> None:
        self.recipe, self.models, self.seed = recipe, models, seed
        self.home_reference = recipe.base_model or recipe.references[0]
        self.home = models[self.home_reference]
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.statistics: tuple[str, ...] = ()
        self.alignment: Any = None
        self._advice: dict[str, None] = {}
        self._blocks: dict[str, list[tuple[Any, int]]] = {}
        self._configs = {name: self._config(model) for name, model in models.items()}
        self._references = {id(model): name for name, model in models.items()}
        self._dtypes: set[str] = set()
        self._own_heads = False
        if recipe.tokenizer is not None:
            from mergescope.merging.tokenizers import output_vocabulary

            self.alignment = output_vocabulary(recipe.tokenizer, models, recipe.base_model)

    def jobs(self) -> list[Job]:
        """Plan every tensor; what is wrong is collected in ``problems``.

        Returns:
            The tensors of the output.
        """
        jobs = [job for module in self.recipe.modules for job in self._module(module)]
        self._require_complete(jobs)
        if not self.problems:
            self._compare_tokenizers(jobs)
        self.statistics = tuple(
            job.name
            for job in jobs
            if job.name.endswith(STATISTICS) and len(job.models) + (job.base is not None) > 1
        )
        if self.statistics:
            self.notes.append(
                f"{len(self.statistics)} running statistics of BatchNorm are combined like weights, which are not the "
                "statistics of the merged network and can cost much of its accuracy: re-estimate them on data "
                "(merge(..., calibration=batches))"
            )
        if len(self._dtypes) > 1 and not (self.recipe.out_dtype or self.recipe.dtype):
            self.notes.append(
                f"the models are stored as {' and '.join(sorted(self._dtypes))}, and the output as its tensors are in "
                f"{self.home_reference}: set dtype to choose another type"
            )
        return jobs

    def advice(self) -> str:
        """What to do about the problems.

        Returns:
            One or more sentences.
        """
        return " ".join(self._advice)

    def problem(self, text: str, advice: str = ARCHITECTURE) -> None:
        """Note something that is wrong.

        Args:
            text: what.
            advice: what to do about it.
        """
        self.problems.append(text)
        self._advice[advice] = None

    # -- which tensors ---------------------------------------------------------------------

    def _module(self, module: Module) -> Iterator[Job]:
        if len(module.slices) == 1 and not any(source.layers for source in module.slices[0].sources):
            yield from self._whole(module, module.slices[0])
        else:
            yield from self._stack(module)

    def _whole(self, module: Module, part: Slice) -> Iterator[Job]:
        taking = list(dict.fromkeys(source.model for source in part.sources))
        base = self._base_of(part)
        if base is not None and base not in taking:
            taking.append(base)
        first = base or taking[0]
        # All of the first's tensors, and heads that it ties to its embedding but others do not.
        names = self._names(first, module)
        self._leave_out_derived(names, first, taking)
        for model in taking:
            for key in self._names(model, module):
                if key not in names and is_derived(key, self.models[model].spec[key].shape):
                    continue
                if key not in names and self._key_in(first, key) is not None:
                    names[key] = None
                elif key not in names:
                    self.problem(f"{key}: only in {model}, missing in {first}")
        if not names:
            self.problem(
                f"module {module.prefix!r}: no tensor of {first} belongs to it", "Correct the module's name."
            )
        counts = stacks(names)
        for name in names:
            keys = [name] * len(part.sources)
            yield from self._job(module, part, name, keys, name, depth_of(name, counts))

    def _leave_out_derived(self, names: dict[str, None], first: str, taking: list[str]) -> None:
        # Position numbers and the like follow from the configuration: some versions of transformers
        # store them, others don't. What not all models have is left out.
        for key in list(names):
            lacking = [model for model in taking if self._key_in(model, key) is None]
            if lacking and is_derived(key, self.models[first].spec[key].shape):
                del names[key]
                self.notes.append(
                    f"{key} follows from the configuration and is left out: {', '.join(lacking)} lacks it"
                )

    def _names(self, model: str, module: Module) -> dict[str, None]:
        # A head that the configuration ties is not read by transformers, even if it is stored.
        tied = all((config or {}).get("tie_word_embeddings") is True for config in self._configs.values())
        spec = self.models[model].spec
        return {
            key: None
            for key in spec
            if module.holds(key) and not (tied and is_head(key) and self._embedding(model, spec[key].shape))
        }

    def _embedding(self, model: str, shape: tuple[int, ...] | None = None) -> str | None:
        # The input embedding of a model, if it has the shape of a head that may be tied to it.
        spec = self.models[model].spec
        names = (name for end in INPUTS for name in spec if name == end or name.endswith(f".{end}"))
        return next((name for name in names if shape is None or spec[name].shape == shape), None)

    def _stack(self, module: Module) -> Iterator[Job]:
        first, last = module.slices[0], module.slices[-1]
        names = self._names(first.sources[0].model, module)
        try:
            stack = main_stack(names, self._configs[first.sources[0].model], first.sources[0].model)
        except MergescopeError as error:
            self.problem(str(error), RANGES)
            return
        for part, early in ((first, True), (last, False)):
            outside = dict(self._names(part.sources[0].model, module)) | names
            for key in outside:
                here = place_of(key).stack != stack and comes_before_blocks(key) == early
                if here and self._key_in(part.sources[0].model, key) is not None:
                    yield from self._job(module, part, key, [key] * len(part.sources), key, 0.0)
        blocks: list[tuple[Any, int]] = []
        for part in module.slices:
            spans = self._spans(part, stack)
            if spans is None:
                continue
            count = spans[0][1] - spans[0][0]
            held = [self._blocks_of(source.model, stack) for source in part.sources]
            for offset in range(count):
                numbers = [span[0] + offset for span in spans]
                rests = dict.fromkeys(
                    rest for blocks, number in zip(held, numbers, strict=True) for rest in blocks[number]
                )
                base_block = self._base_block(part, numbers)
                depth = offset / (count - 1) if count > 1 else 1.0
                for rest in rests:
                    keys = [f"{stack}.{number}.{rest}" for number in numbers]
                    base_key = f"{stack}.{base_block}.{rest}"
                    yield from self._job(module, part, f"{stack}.{len(blocks)}.{rest}", keys, base_key, depth)
                blocks.append((self._configs[part.sources[0].model], numbers[0]))
        self._blocks[stack] = blocks

    def _blocks_of(self, model: str, stack: str) -> dict[int, list[str]]:
        held: dict[int, list[str]] = {}
        for key in self.models[model].spec:
            place = place_of(key)
            if place.stack == stack:
                held.setdefault(place.index, []).append(place.rest)
        return held

    def _spans(self, part: Slice, stack: str) -> list[tuple[int, int]] | None:
        spans: list[tuple[int, int]] = []
        for source in part.sources:
            have = stacks(self.models[source.model].spec).get(stack, 0)
            if source.layers is None:
                self.problem(f"line {source.line}: {source.model} needs a layer_range", RANGES)
            elif source.layers[1] > have:
                self.problem(
                    f"line {source.line}: layer_range {list(source.layers)} of {source.model}, which has {have} blocks "
                    f"in {stack}",
                    RANGES,
                )
            else:
                spans.append(source.layers)
        base = self._base_of(part)
        if base is not None and all(source.model != base for source in part.sources) and len(set(spans)) > 1:
            self.problem(f"line {part.line}: list the base {base} with its layer_range too", RANGES)
            return None
        return spans if len(spans) == len(part.sources) else None

    def _base_block(self, part: Slice, numbers: list[int]) -> int:
        base = self._base_of(part)
        listed = [
            number for source, number in zip(part.sources, numbers, strict=True) if source.model == base
        ]
        return listed[0] if listed else numbers[0]

    def _base_of(self, part: Slice) -> str | None:
        return None if self.recipe.method.base == "none" else part.base_model or self.recipe.base_model

    # -- one tensor ------------------------------------------------------------------------

    def _job(
        self, module: Module, part: Slice, name: str, keys: list[str], base_key: str, depth: float
    ) -> Iterator[Job]:
        base_name = self._base_of(part)
        pairs = [pair for pair in zip(part.sources, keys, strict=True) if pair[0].model != base_name]
        wanted = [(source.model, key) for source, key in pairs]
        if base_name is not None:
            wanted.append((base_name, base_key))
        missing = [model for model, key in wanted if self._key_in(model, key) is None]
        if missing or not wanted:
            self.problem(f"{name}: missing in {', '.join(missing)}")
            return
        stored = [self._rows(model, key) for model, key in wanted]
        labels = tuple(model for model, _ in wanted)
        kinds = {rows.dtype.is_floating_point for rows in stored}
        if len({rows.shape for rows in stored}) > 1 and self.alignment is None or len(kinds) > 1:
            self._differ(name, labels, stored)
            return
        found = [self._aligned(rows) for rows in stored]
        if len({item.shape for item in found}) > 1:
            self._differ(name, labels, stored)
            return
        dtype = self._dtype(name, labels, stored)
        spec = TensorSpec(tuple(found[0].shape), dtype)
        values = self._values(module, part, [source for source, _ in pairs], name, depth)
        rows, base = (found[:-1], found[-1]) if base_name is not None else (found, None)
        if is_head(name) and self._embedding(labels[-1]):
            self._own_heads = True
        if not dtype.is_floating_point:
            self._require_equal(name, labels, found)
            yield Job(
                name, spec, (base or rows[0],), labels[-1:] if base else labels[:1], None, values, copy=True
            )
            return
        yield Job(name, spec, tuple(rows), labels[: len(rows)], base, values)

    def _differ(self, name: str, labels: tuple[str, ...], stored: list[CheckpointRows]) -> None:
        spec = [self.models[label].spec[rows.key] for label, rows in zip(labels, stored, strict=True)]
        kinds = len({item.dtype.is_floating_point for item in spec}) > 1
        told = [
            (str(item) if kinds else str(list(item.shape)), label)
            for item, label in zip(spec, labels, strict=True)
        ]
        same_rows = len({item.shape[1:] for item in spec}) == 1 and not kinds
        by_token = same_rows and any(name.endswith(end) for end in (*HEADS, *INPUTS))
        advice = (
            "Dequantise models before merging them." if kinds else VOCABULARY if by_token else ARCHITECTURE
        )
        self.problem(f"{name}: {', '.join(f'{what} in {label}' for what, label in told)}", advice)

    def _rows(self, model: str, key: str) -> CheckpointRows:
        actual = self._key_in(model, key)
        assert actual is not None
        spec = self.models[model].spec[actual]
        return CheckpointRows(self.models[model], actual, tuple(spec.shape), spec.dtype)

    def _aligned(self, rows: CheckpointRows) -> Rows:
        if self.alignment is None:
            return cast("Rows", rows)
        return self.alignment.rows(rows.model, rows.key, rows)

    def _key_in(self, model: str, key: str) -> str | None:
        # A tied head is not stored; the embedding stands for it.
        spec = self.models[model].spec
        if key in spec:
            return key
        tied = (self._configs[model] or {}).get("tie_word_embeddings", True)
        return self._embedding(model) if tied and is_head(key) else None

    def _dtype(self, name: str, labels: tuple[str, ...], stored: list[CheckpointRows]) -> torch.dtype:
        own = dict(zip(labels, stored, strict=True))
        first = own.get(self.home_reference, stored[0]).dtype
        wanted = self.recipe.out_dtype or self.recipe.dtype
        if not first.is_floating_point:
            return first
        self._dtypes |= {str(rows.dtype).removeprefix("torch.") for rows in stored}
        dtype = getattr(torch, wanted) if wanted else first
        if dtype not in TAGS:
            plain = str(dtype).removeprefix("torch.")
            self.problem(
                f"{name}: stored as {plain}, which can't be written", "Set dtype: bfloat16, for example."
            )
        return dtype

    def _require_equal(self, name: str, labels: tuple[str, ...], found: list[Rows]) -> None:
        if name.endswith("num_batches_tracked"):
            return
        first, *others = (item.rows(0, item.shape[0] if item.shape else 1) for item in found)
        for label, other in zip(labels[1:], others, strict=True):
            if first.dtype != other.dtype or not torch.equal(first, other):
                self.problem(
                    f"{name}: integers that differ between {labels[0]} and {label}",
                    "Integers can't be merged: if they are quantised weights, dequantise the models first.",
                )

    def _values(self, module: Module, part: Slice, sources: list[Source], name: str, depth: float) -> Values:
        shared = (part.parameters, module.parameters, self.recipe.parameters)
        per_model: dict[str, list[float]] = {}
        common: dict[str, Any] = {}
        for item in self.recipe.method.parameters:
            whole = (lambda value: round(value)) if item.kind == "integer" else (lambda value: value)
            if item.per_model:
                per_model[item.name] = [
                    whole(resolve(item.name, (source.parameters, *shared), name, depth, item.default))
                    for source in sources
                ]
            else:
                common[item.name] = whole(resolve(item.name, shared, name, depth, item.default))
        return Values(per_model, common, self.seed)

    # -- the whole -------------------------------------------------------------------------

    def _require_complete(self, jobs: list[Job]) -> None:
        for name, count in Counter(job.name for job in jobs).items():
            if count > 1:
                self.problem(f"{name}: made by {count} modules", "Correct the modules' names.")
        if all(module.prefix for module in self.recipe.modules):
            keys = dict.fromkeys(key for model in self.models.values() for key in model.spec)
            for key in keys:
                if not any(module.holds(key) for module in self.recipe.modules):
                    self.problem(
                        f"{key}: belongs to no module of the recipe", "Name every module of the model."
                    )

    def _compare_tokenizers(self, jobs: list[Job]) -> None:
        """Rows of different tokens must not be averaged without a word."""
        mixed = any(
            job.name.endswith((*HEADS, *INPUTS)) and len(job.models) + (job.base is not None) > 1
            for job in jobs
        )
        if self.alignment is not None or not mixed:
            return
        used = [self.home, *(model for model in self.models.values() if model is not self.home)]
        folders = [folder for model in used if (folder := tokenizer_directory(model)) is not None]
        if all(_same_files(folders[0], folder) for folder in folders[1:]):
            return
        try:
            tables = [
                (model, read_vocabulary(model).ids)
                for model in used
                if tokenizer_directory(model) is not None
            ]
            notes = vocabulary_problems(used)
        except CheckpointError as error:
            self.notes.append(f"vocabularies were not compared: {error}")
            return
        first, ours = tables[0]
        for model, ids in tables[1:]:
            moved = [token for token, number in ids.items() if ours.get(token, number) != number]
            if moved:
                token = moved[0]
                self.problem(
                    f"{len(moved)} tokens have other ids in {self._references[id(model)]} than in "
                    f"{self._references[id(first)]}: {token!r} is {ids[token]} and {ours[token]}",
                    "Rows of different tokens would be averaged: set tokenizer_source: union (or base) in the recipe.",
                )
        self.notes += [note.rstrip(".") for note in notes]

    def config(self, jobs: list[Job]) -> dict[str, Any] | None:
        """The output's ``config.json``.

        Args:
            jobs: the tensors of the output.

        Returns:
            The home model's, changed where the output differs; None if it has none.
        """
        config = self._config(self.home)
        if config is None:
            return None
        if self.alignment is not None:
            config = self.alignment.config(config, self.home_reference)
        ties = {(self._configs[name] or {}).get("tie_word_embeddings") for name in self.models}
        if self._own_heads and (ties != {False} or config.get("tie_word_embeddings") is not False):
            stored = [any(map(is_head, model.spec)) for model in self.models.values()]
            if config.get("tie_word_embeddings") is not None or not all(stored) or len(ties) > 1:
                config["tie_word_embeddings"] = False
            if not all(stored):
                self.notes.append(
                    "tie_word_embeddings is set to false: some models have a head of their own, which is averaged with "
                    "the others' embeddings"
                )
        for stack, blocks in self._blocks.items():
            restack(config, stack, blocks)
            if layer_count_path(config, stack) is None:
                self.notes.append(f"config.json names no number of layers for {stack}: correct it by hand")
        wanted = self.recipe.out_dtype or self.recipe.dtype
        if wanted:
            set_dtype(config, wanted)
        return config

    @staticmethod
    def _config(model: Any) -> dict[str, Any] | None:
        found = model.config
        if found is not None and not isinstance(found, dict):
            raise CheckpointError(f"config.json of {model.name} is no mapping.")
        return None if found is None else dict(found)


def is_head(name: str) -> bool:
    """Whether a tensor is the head of a language model.

    Args:
        name: its name.

    Returns:
        True if it is called as heads are, and is in no block.
    """
    return not place_of(name).stack and any(name == end or name.endswith(f".{end}") for end in HEADS)


def _same_files(a: Path, b: Path) -> bool:
    names = [name for name in VOCABULARY_FILES if (a / name).is_file() or (b / name).is_file()]
    return all(
        (a / name).is_file() and (b / name).is_file() and (a / name).read_bytes() == (b / name).read_bytes()
        for name in names
    )
