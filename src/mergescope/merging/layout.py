"""Which tensors come out of a merge, and where each model has them: whole models, or stacked blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergescope.errors import MergescopeError
from mergescope.merging.blocks import (
    comes_before_blocks,
    depth_of,
    main_stack,
    place_of,
    shared_by_blocks,
    stacks,
)
from mergescope.merging.recipe import Module, Recipe, Slice
from mergescope.merging.values import equal_tensors
from mergescope.merging.vocabulary import HEADS, INPUTS, ends_with
from mergescope.models.architecture import ignored_keys
from mergescope.weights.kinds import copy_of, is_derived

ARCHITECTURE = "Merge models of one architecture."
RANGES = "Correct the layer ranges."

Block = tuple[Mapping[str, Any] | None, int]
"""A model's configuration, and the number of one of its blocks."""


@dataclass
class Problems:
    """What is wrong with a merge, collected to be told at once.

    Attributes:
        found: one line each.
    """

    found: list[str] = field(default_factory=list)
    _advice: dict[str, None] = field(default_factory=dict)

    def add(self, text: str, advice: str = ARCHITECTURE) -> None:
        """Note something that is wrong.

        Args:
            text: what.
            advice: what to do about it.
        """
        self.found.append(text)
        self._advice[advice] = None

    @property
    def advice(self) -> str:
        """What to do about them, each advice once."""
        return " ".join(self._advice)


@dataclass(frozen=True)
class Wanted:
    """A tensor of the output.

    Attributes:
        part: the slice that it is merged in.
        name: its name in the output.
        keys: its name in each of the slice's sources.
        base_key: its name in the base.
        depth: relative depth of its block, for gradients.
    """

    part: Slice
    name: str
    keys: list[str]
    base_key: str
    depth: float


class Layout:
    """Finds the output's tensors.

    Args:
        recipe: the recipe.
        models: reference to open checkpoint.
        configs: reference to ``config.json``.
        problems: where to note what is wrong.

    Attributes:
        notes: what the user should know, one sentence each.
        blocks: of each stack that was put together anew, the origin of every block.
    """

    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, Any],
        configs: Mapping[str, dict[str, Any] | None],
        problems: Problems,
    ) -> None:
        self._recipe, self._models, self._configs, self._problems = recipe, models, configs, problems
        self.notes: list[str] = []
        self.blocks: dict[str, list[Block]] = {}
        self._left_out: set[str] = set()

    def tensors(self, module: Module) -> Iterator[Wanted]:
        """The output's tensors in one module.

        Args:
            module: a module of the recipe.

        Returns:
            The tensors; some sources may lack one of them.
        """
        whole = len(module.slices) == 1 and not any(source.layers for source in module.slices[0].sources)
        return self._whole(module, module.slices[0]) if whole else self._stack(module)

    def base_of(self, part: Slice) -> str | None:
        """The base in a slice.

        Args:
            part: the slice.

        Returns:
            Its reference; None if the method uses none.
        """
        return None if self._recipe.method.base == "none" else part.base_model or self._recipe.base_model

    def key_in(self, model: str, key: str) -> str | None:
        """Where a model has a tensor: a tied head is not stored, and the embedding stands for it.

        Args:
            model: the reference.
            key: the tensor's name.

        Returns:
            The name there, or None.
        """
        if key in self._models[model].spec:
            return key
        tied = (self._configs[model] or {}).get("tie_word_embeddings", True)
        return self.embedding(model) if tied and is_head(key) else None

    def embedding(self, model: str, shape: tuple[int, ...] | None = None) -> str | None:
        """The input embedding of a model.

        Args:
            model: the reference.
            shape: the shape that it must have, as that of a head that may be tied to it.

        Returns:
            Its name, or None.
        """
        spec = self._models[model].spec
        names = (name for end in INPUTS for name in spec if name == end or name.endswith(f".{end}"))
        return next((name for name in names if shape is None or spec[name].shape == shape), None)

    def _names(self, model: str, module: Module) -> dict[str, None]:
        spec = self._models[model].spec
        return {key: None for key in spec if module.holds(key) and key not in self._left_out}

    # -- whole models ----------------------------------------------------------------------

    def _whole(self, module: Module, part: Slice) -> Iterator[Wanted]:
        taking = list(dict.fromkeys(source.model for source in part.sources))
        base = self.base_of(part)
        if base is not None and base not in taking:
            taking.append(base)
        first = base or taking[0]
        self._leave_out(module, taking)
        # All of the first's tensors, and heads that it ties to its embedding but others do not.
        names = self._names(first, module)
        for model in taking:
            for key in self._names(model, module):
                if key not in names and self.key_in(first, key) is not None:
                    names[key] = None
                elif key not in names:
                    self._problems.add(f"{key}: only in {model}, missing in {first}")
        if not names:
            self._problems.add(
                f"module {module.prefix!r}: no tensor of {first} belongs to it", "Correct the module's name."
            )
        counts = stacks(names)
        for name in names:
            yield Wanted(part, name, [name] * len(part.sources), name, depth_of(name, counts))

    def _leave_out(self, module: Module, taking: Sequence[str]) -> None:
        # Tensors that say nothing of their own, which some versions of transformers store and others don't.
        owners: dict[str, list[str]] = {}
        for model in taking:
            for key in filter(module.holds, self._models[model].spec):
                owners.setdefault(key, []).append(model)
        tied = all((config or {}).get("tie_word_embeddings") is True for config in self._configs.values())
        unknown: dict[str, list[str]] = {}
        for key, has in owners.items():
            specs = [self._models[model].spec for model in has]
            lacking = [model for model in taking if self.key_in(model, key) is None]
            asked = is_head(key) and (tied or len(has) < len(taking))
            own = [model for model in has if not self._repeats(model, key)] if asked else has
            if all(self._copied(model, key) for model in has):
                self._note_left_out(key, "is the shared embedding once more")
            elif not own:
                self._note_left_out(key, "equals the embedding")
            elif lacking and all(is_derived(key, spec[key].shape) for spec in specs):
                self._note_left_out(key, "follows from the configuration", lacking)
            elif lacking:
                unknown[key] = lacking
            if tied and asked and own and self.embedding(own[0]):
                self._note_kept(key, own)
        for model in taking if unknown else ():
            own = [key for key in unknown if owners[key][0] == model]
            for key in ignored_keys(self._configs[model], own):
                named = (self._configs[model] or {})["architectures"][0]
                self._note_left_out(key, f"is not read by {named}", unknown[key])

    def _copied(self, model: str, key: str) -> bool:
        source = self._models[model]
        shared = copy_of(key, source.spec)
        return shared is not None and equal_tensors(source, key, shared)

    def _repeats(self, model: str, head: str) -> bool:
        # Not always told by the configuration: that of T5 is silent, and its head is the embedding.
        rows = self.embedding(model, self._models[model].spec[head].shape)
        tied = (self._configs[model] or {}).get("tie_word_embeddings") is not False
        return tied and rows is not None and equal_tensors(self._models[model], head, rows)

    def _note_left_out(self, key: str, why: str, lacking: Sequence[str] = ()) -> None:
        if key not in self._left_out:
            self._left_out.add(key)
            told = f": {', '.join(lacking)} lack{'s' * (len(lacking) == 1)} it" if lacking else ""
            self.notes.append(f"{key} {why} and is left out{told}")

    def _note_kept(self, head: str, own: Sequence[str]) -> None:
        # transformers 5 keeps such a head apart, whatever the configuration says; 4 ties it.
        self.notes.append(
            f"{head} is kept and tie_word_embeddings set to false: it is not the embedding in {', '.join(own)}"
        )

    # -- stacked blocks --------------------------------------------------------------------

    def _stack(self, module: Module) -> Iterator[Wanted]:
        taking = [source.model for part in module.slices for source in part.sources]
        taking += [base for part in module.slices if (base := self.base_of(part)) is not None]
        self._leave_out(module, list(dict.fromkeys(taking)))
        first, last = module.slices[0], module.slices[-1]
        model = first.sources[0].model
        names = self._names(model, module)
        try:
            stack = main_stack(names, self._configs[model], model)
        except MergescopeError as error:
            self._problems.add(str(error), RANGES)
            return
        for part, early in ((first, True), (last, False)):
            used = dict.fromkeys(source.model for source in part.sources)
            if (base := self.base_of(part)) is not None:
                used[base] = None
            outside = {key: None for model in used for key in self._names(model, module)} | names
            for key in outside:
                here = place_of(key).stack != stack and comes_before_blocks(key) == early
                if here and any(self.key_in(model, key) is not None for model in used):
                    yield Wanted(part, key, [key] * len(part.sources), key, 0.0)
        blocks: list[Block] = []
        for part in module.slices:
            spans = self._spans(part, stack)
            if spans is None:
                continue
            count = spans[0][1] - spans[0][0]
            held = [self._blocks_of(source.model, stack) for source in part.sources]
            shared = set.intersection(*(shared_by_blocks(blocks_held) for blocks_held in held))
            for offset in range(count):
                numbers = [span[0] + offset for span in spans]
                depth = offset / (count - 1) if count > 1 else 1.0
                rests = dict.fromkeys(
                    rest for own, number in zip(held, numbers, strict=True) for rest in own.get(number, ())
                )
                where = {rest: numbers for rest in rests if rest not in shared}
                if not blocks:
                    where |= dict.fromkeys(sorted(shared), [0] * len(numbers))
                for rest, at in where.items():
                    keys = [f"{stack}.{number}.{rest}" for number in at]
                    base_key = f"{stack}.{self._base_block(part, at)}.{rest}"
                    yield Wanted(part, f"{stack}.{len(blocks)}.{rest}", keys, base_key, depth)
                blocks.append((self._configs[part.sources[0].model], numbers[0]))
        self.blocks[stack] = blocks

    def _blocks_of(self, model: str, stack: str) -> dict[int, list[str]]:
        held: dict[int, list[str]] = {}
        for key in self._models[model].spec:
            place = place_of(key)
            if place.stack == stack and key not in self._left_out:
                held.setdefault(place.index, []).append(place.rest)
        return held

    def _spans(self, part: Slice, stack: str) -> list[tuple[int, int]] | None:
        spans: list[tuple[int, int]] = []
        for source in part.sources:
            have = stacks(self._models[source.model].spec).get(stack, 0)
            if source.layers is None:
                self._problems.add(f"line {source.line}: {source.model} needs a layer_range", RANGES)
            elif source.layers[1] > have:
                self._problems.add(
                    f"line {source.line}: layer_range {list(source.layers)} of {source.model}, which has {have} blocks "
                    f"in {stack}",
                    RANGES,
                )
            else:
                spans.append(source.layers)
        base = self.base_of(part)
        if base is not None and all(source.model != base for source in part.sources) and len(set(spans)) > 1:
            self._problems.add(f"line {part.line}: list the base {base} with its layer_range too", RANGES)
            return None
        return spans if len(spans) == len(part.sources) else None

    def _base_block(self, part: Slice, numbers: list[int]) -> int:
        base = self.base_of(part)
        listed = [
            number for source, number in zip(part.sources, numbers, strict=True) if source.model == base
        ]
        return listed[0] if listed else numbers[0]


def is_head(name: str) -> bool:
    """Whether a tensor is the head of a language model.

    Args:
        name: its name.

    Returns:
        True if it is called as heads are, and is in no block.
    """
    return not place_of(name).stack and ends_with(name, HEADS)
