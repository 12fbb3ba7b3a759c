"""Planning: every tensor of the output, and everything that is wrong, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from mergescope.errors import CheckpointError, MergescopeError
from mergescope.merging.blocks import place_of, stacks
from mergescope.merging.configs import count_both_sides, layer_count_path, match_dtype, restack, set_dtype
from mergescope.merging.layout import ARCHITECTURE, Layout, Problems, Wanted, is_head
from mergescope.merging.methods import Parameter, Values
from mergescope.merging.plan import CheckpointRows, Job, plain_rows
from mergescope.merging.recipe import Module, Recipe, Source
from mergescope.merging.settings import Setting, resolve
from mergescope.merging.shards import TAGS
from mergescope.merging.streams import Rows
from mergescope.merging.vocabulary import (
    BIASES,
    HEADS,
    INPUTS,
    conflicts,
    ends_with,
    read_vocabulary,
    tokenizer_directory,
    vocabulary_problems,
)
from mergescope.merging.writer import links_elsewhere, modules_with_weights
from mergescope.weights.kinds import is_derived
from mergescope.weights.lora import VOCABULARY_FILES
from mergescope.weights.point import TensorSpec

STATISTICS = ("running_mean", "running_var")
VOCABULARY = (
    "The vocabularies differ in size: set tokenizer_source: union (or base) in the recipe to match rows by "
    "token."
)
TOGETHER = "Embedding, head and tokenizer would be of different vocabularies"
VALUES = "Correct the recipe's parameters."
DEQUANTISE = "Dequantise models before merging them."


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
        self.problems = Problems()
        self.notes: list[str] = []
        self.statistics: tuple[str, ...] = ()
        self.alignment: Any = None
        self._configs = {name: self._config(model) for name, model in models.items()}
        self._layout = Layout(recipe, models, self._configs, self.problems)
        self._refused: dict[str, list[str]] = {}
        self._references = {id(model): name for name, model in models.items()}
        self._dtypes: set[str] = set()
        self._elsewhere = False  # whether some tensors are none of the home model's
        self._scaled: dict[int, tuple[bool, set[str]]] = {}
        self._own_heads = False
        if recipe.tokenizer is not None:
            from mergescope.merging.tokenizers import output_vocabulary

            self.alignment = output_vocabulary(recipe.tokenizer, models, recipe.base_model)

    def jobs(self) -> list[Job]:
        """Plan every tensor; what is wrong is collected in ``problems``.

        Returns:
            The tensors of the output.
        """
        jobs = [
            job
            for module in self.recipe.modules
            for wanted in self._layout.tensors(module)
            for job in self._job(module, wanted)
        ]
        self.notes += self._layout.notes
        for why, names in self._refused.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.problems.add(f"{names[0]}{more}: {why}", VALUES)
        self._require_complete(jobs)
        self._require_described(jobs)
        if not self.problems.found:
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
        self._note_files()
        return jobs

    # -- one tensor ------------------------------------------------------------------------

    def _job(self, module: Module, wanted: Wanted) -> Iterator[Job]:
        name, part = wanted.name, wanted.part
        base_name = self._layout.base_of(part)
        pairs = [pair for pair in zip(part.sources, wanted.keys, strict=True) if pair[0].model != base_name]
        taken = [(source.model, key) for source, key in pairs]
        if base_name is not None:
            taken.append((base_name, wanted.base_key))
        missing = [model for model, key in taken if self._layout.key_in(model, key) is None]
        if missing or not taken:
            self.problems.add(f"{name}: missing in {', '.join(missing)}")
            return
        stored = [self._rows(model, key) for model, key in taken]
        labels = tuple(model for model, _ in taken)
        kinds = {rows.dtype.is_floating_point for rows in stored}
        if len({rows.shape for rows in stored}) > 1 and self.alignment is None or len(kinds) > 1:
            self._differ(name, labels, stored)
            return
        scaled = [label for label, rows in zip(labels, stored, strict=True) if self._is_scaled(rows)]
        if scaled:
            self.problems.add(
                f"{name}: 8-bit floats with scales of their own in {', '.join(scaled)}", DEQUANTISE
            )
            return
        found = [self._aligned(rows) for rows in stored]
        if len({item.shape for item in found}) > 1:
            self._differ(name, labels, stored)
            return
        dtype = self._dtype(name, labels, stored)
        spec = TensorSpec(tuple(found[0].shape), dtype)
        values = self._values(module, wanted, [source for source, _ in pairs])
        rows, base = (found[:-1], found[-1]) if base_name is not None else (found, None)
        if is_head(name) and self._layout.embedding(labels[-1]):
            self._own_heads = True
        if not dtype.is_floating_point:
            self._require_equal(name, labels, found)
            yield Job(
                name, spec, (base or rows[0],), labels[-1:] if base else labels[:1], None, values, copy=True
            )
            return
        try:
            self.recipe.method.check(values)
        except MergescopeError as error:
            self._refused.setdefault(str(error), []).append(name)
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
        advice = DEQUANTISE if kinds else VOCABULARY if by_token else ARCHITECTURE
        self.problems.add(f"{name}: {', '.join(f'{what} in {label}' for what, label in told)}", advice)

    def _rows(self, model: str, key: str) -> CheckpointRows:
        actual = self._layout.key_in(model, key)
        assert actual is not None
        spec = self.models[model].spec[actual]
        return CheckpointRows(self.models[model], actual, tuple(spec.shape), spec.dtype)

    def _is_scaled(self, rows: CheckpointRows) -> bool:
        # Codes that mean nothing without another tensor; 8-bit floats by themselves are numbers like others.
        if rows.dtype.itemsize > 1 or not rows.dtype.is_floating_point:
            return False
        if id(rows.model) not in self._scaled:
            quantised = "quantization_config" in (rows.model.config or {})
            scales = {key.rpartition(".")[0] for key in rows.model.spec if "scale" in key.rpartition(".")[2]}
            self._scaled[id(rows.model)] = quantised, scales
        quantised, scales = self._scaled[id(rows.model)]
        return quantised or rows.key.rpartition(".")[0] in scales

    def _aligned(self, rows: CheckpointRows) -> Rows:
        if self.alignment is None:
            return cast("Rows", rows)
        return self.alignment.rows(rows.model, rows.key, rows)

    def _dtype(self, name: str, labels: tuple[str, ...], stored: list[CheckpointRows]) -> torch.dtype:
        own = dict(zip(labels, stored, strict=True))
        first = own.get(self.home_reference, stored[0]).dtype
        wanted = self.recipe.out_dtype or self.recipe.dtype
        if not first.is_floating_point:
            return first
        self._elsewhere = self._elsewhere or self.home_reference not in own
        self._dtypes |= {str(rows.dtype).removeprefix("torch.") for rows in stored}
        dtype = getattr(torch, wanted) if wanted else first
        if dtype not in TAGS:
            plain = str(dtype).removeprefix("torch.")
            self.problems.add(
                f"{name}: stored as {plain}, which can't be written", "Set dtype: bfloat16, for example."
            )
        return dtype

    def _require_equal(self, name: str, labels: tuple[str, ...], found: list[Rows]) -> None:
        if name.endswith("num_batches_tracked"):
            return
        first, *others = (item.rows(0, item.shape[0] if item.shape else 1) for item in found)
        for label, other in zip(labels[1:], others, strict=True):
            if first.dtype != other.dtype or not torch.equal(first, other):
                self.problems.add(
                    f"{name}: integers that differ between {labels[0]} and {label}",
                    "Integers can't be merged: if they are quantised weights, dequantise the models first.",
                )

    def _values(self, module: Module, wanted: Wanted, sources: list[Source]) -> Values:
        shared = (wanted.part.parameters, module.parameters, self.recipe.parameters)
        per_model: dict[str, list[float]] = {}
        common: dict[str, Any] = {}

        def value(item: Parameter, levels: Iterable[Mapping[str, Setting]]) -> Any:
            found = resolve(item.name, levels, wanted.name, wanted.depth, item.default)
            return round(found) if item.kind == "integer" else found

        for item in self.recipe.method.parameters:
            if item.per_model:
                per_model[item.name] = [value(item, (source.parameters, *shared)) for source in sources]
            else:
                common[item.name] = value(item, shared)
        return Values(per_model, common, self.seed)

    # -- the whole -------------------------------------------------------------------------

    def _note_files(self) -> None:
        if len(self._dtypes) > 1 and not (self.recipe.out_dtype or self.recipe.dtype):
            others = " (where that has no part, as in the first that has)" if self._elsewhere else ""
            self.notes.append(
                f"the models are stored as {' and '.join(sorted(self._dtypes))}, and the output as its tensors are in "
                f"{self.home_reference}{others}: set dtype to choose another type"
            )
        directory = getattr(self.home, "directory", None)
        if directory is None:
            return
        if modules := modules_with_weights(directory):
            self.notes.append(
                f"the weights in {', '.join(modules)} are those of {self.home_reference}, and not merged"
            )
        if links := links_elsewhere(directory):
            self.notes.append(
                f"{', '.join(links)} of {self.home_reference} are links to elsewhere and are not copied: put the "
                "files there"
            )

    def _require_complete(self, jobs: list[Job]) -> None:
        for name, count in Counter(job.name for job in jobs).items():
            if count > 1:
                self.problems.add(f"{name}: made by {count} modules", "Correct the modules' names.")
        if all(module.prefix for module in self.recipe.modules):
            keys = dict.fromkeys(key for model in self.models.values() for key in model.spec)
            for key in keys:
                if not any(module.holds(key) for module in self.recipe.modules):
                    self.problems.add(
                        f"{key}: belongs to no module of the recipe", "Name every module of the model."
                    )

    def _require_described(self, jobs: list[Job]) -> None:
        """Tensors must have the shapes of the home model, whose configuration the output gets."""
        if self._configs[self.home_reference] is None:
            return
        blocks: dict[tuple[str, str], set[tuple[int, ...]]] = {}
        for key, spec in self.home.spec.items():
            place = place_of(key)
            if place.stack in self._layout.blocks:
                blocks.setdefault((place.stack, place.rest), set()).add(tuple(spec.shape))
        for job in jobs:
            place, shape = place_of(job.name), tuple(job.spec.shape)
            if place.stack in self._layout.blocks:
                known = blocks.get((place.stack, place.rest), set())
            else:
                like = self._layout.key_in(self.home_reference, job.name)
                known = set() if like is None else {tuple(self.home.spec[like].shape)}
            if self._is_aligned(job):  # the configuration gets the number of rows
                known = {(*shape[:1], *other[1:]) for other in known}
            if known and shape not in known and not is_derived(job.name, shape):
                by_token = ends_with(job.name, (*HEADS, *INPUTS, *BIASES))
                by_token = by_token and any(shape[1:] == other[1:] for other in known)
                self.problems.add(
                    f"{job.name}: {list(shape)} from {', '.join(job.labels)}, but config.json comes from "
                    f"{self.home_reference}, which has {' or '.join(str(list(other)) for other in sorted(known))}",
                    VOCABULARY if by_token else ARCHITECTURE,
                )

    def _is_aligned(self, job: Job) -> bool:
        return self.alignment is not None and any(
            rows.key in self.alignment.keys(self._references[id(rows.model)]) for rows in plain_rows(job)
        )

    def _compare_tokenizers(self, jobs: list[Job]) -> None:
        """Rows of different tokens must not come together without a word."""
        rows_of = [job for job in jobs if is_head(job.name) or ends_with(job.name, INPUTS)]
        givers = [rows.model for job in rows_of for rows in plain_rows(job)]
        used = list({id(model): model for model in (self.home, *givers)}.values())
        if self.alignment is not None or len(used) < 2:
            return
        averaged = any(len(job.models) + (job.base is not None) > 1 for job in rows_of)
        together = "Rows of different tokens would be averaged" if averaged else TOGETHER
        folders = [folder for model in used if (folder := tokenizer_directory(model)) is not None]
        if all(_same_files(folders[0], folder) for folder in folders[1:]):
            return
        try:
            tables = {
                id(model): (self._references[id(model)], read_vocabulary(model))
                for model in used
                if tokenizer_directory(model) is not None
            }
            notes = vocabulary_problems(used)
        except CheckpointError as error:
            self.notes.append(f"vocabularies were not compared: {error}")
            return
        _, base = tables.get(id(self.models.get(self.recipe.base_model or "")), ("", None))
        for conflict in conflicts(tables.values(), base):
            self.problems.add(
                conflict,
                f"{together}: set tokenizer_source: union (or base) in the recipe.",
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
        if self._layout.blocks:
            count_both_sides(config, stacks(job.name for job in jobs))
        for stack, blocks in self._layout.blocks.items():
            restack(config, stack, blocks)
            if layer_count_path(config, stack) is None:
                self.notes.append(f"config.json names no number of layers for {stack}: correct it by hand")
        wanted = self.recipe.out_dtype or self.recipe.dtype
        if wanted:
            set_dtype(config, wanted)
        else:
            match_dtype(config, (job.spec.dtype for job in jobs))
        return config

    @staticmethod
    def _config(model: Any) -> dict[str, Any] | None:
        found = model.config
        if found is not None and not isinstance(found, dict):
            raise CheckpointError(f"config.json of {model.name} is no mapping.")
        return None if found is None else dict(found)


def _same_files(a: Path, b: Path) -> bool:
    names = [
        name
        for name in (*VOCABULARY_FILES, "added_tokens.json")
        if (a / name).is_file() or (b / name).is_file()
    ]
    return all(
        (a / name).is_file() and (b / name).is_file() and (a / name).read_bytes() == (b / name).read_bytes()
        for name in names
    )
