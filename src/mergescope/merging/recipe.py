"""Recipes: mergekit's YAML, read strictly.

Nothing that is not understood is passed over: unknown keys, parameters and methods are errors
with a near match, and all errors of a recipe are told at once, each with its line.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergescope.errors import RecipeError, near_paths
from mergescope.merging.methods import Method
from mergescope.merging.settings import Setting

DTYPES = {
    "float32": "float32", "fp32": "float32", "float16": "float16", "fp16": "float16", "half": "float16",
    "bfloat16": "bfloat16", "bf16": "bfloat16", "float64": "float64", "fp64": "float64",
}  # fmt: skip
"""Accepted names of dtypes, each also with the prefix ``torch.``."""


@dataclass(frozen=True)
class Source:
    """A model in a recipe.

    Attributes:
        model: reference ``path_or_id[@revision][+lora[@revision]]``.
        layers: first block and one past the last, or None for all.
        parameters: settings of this model here.
        line: where it stands.
    """

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True)
class Slice:
    """Sources whose blocks are merged and stacked behind the slices before.

    Attributes:
        sources: the models, with equal numbers of blocks.
        base_model: the base in this slice, if not the recipe's.
        parameters: settings of this slice.
        line: where it stands.
    """

    sources: tuple[Source, ...]
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True)
class Module:
    """The part of a model whose tensor names start with a prefix.

    Attributes:
        prefix: the prefix, whole parts of a name; empty for the whole model.
        slices: what is merged; one slice without layer ranges if models are merged whole.
        parameters: settings of this module.
    """

    prefix: str
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting] = field(default_factory=dict)

    def holds(self, tensor: str) -> bool:
        """Whether a tensor belongs to the module.

        Args:
            tensor: its name.

        Returns:
            True if the prefix is all of the name, or what stands before a dot.

        Example:
            >>> text = Module("text_model", ())
            >>> text.holds("text_model.embed.weight"), text.holds("text_model_2.embed.weight")
            (True, False)
        """
        return not self.prefix or tensor == self.prefix or tensor.startswith(f"{self.prefix.rstrip('.')}.")


@dataclass(frozen=True)
class Recipe:
    """A merge, as written.

    Attributes:
        method: the merge method.
        modules: what is merged; one with an empty prefix unless the recipe says ``modules``.
        base_model: reference of the base, or None.
        parameters: settings of the whole recipe.
        dtype: type of the output, unless ``out_dtype`` says otherwise. Arithmetic is in float32.
        out_dtype: type of the output.
        tokenizer: ``{"source": ..., "tokens": {...}, "pad_to_multiple_of": ...}``, or None.
        chat_template: ``"auto"``, a built-in name or Jinja text, or None.
        text: the YAML, kept for the model card.
        name: of the file, for messages.
        seed: of methods that draw random numbers, or None; ours, mergekit has none.
    """

    method: Method
    modules: tuple[Module, ...]
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None
    text: str = ""
    name: str = "recipe"
    seed: int | None = None

    @property
    def slices(self) -> Iterator[tuple[Module, Slice]]:
        """Every slice with its module."""
        return ((module, part) for module in self.modules for part in module.slices)

    @property
    def references(self) -> list[str]:
        """Every model named, the base first, each once."""
        named = [self.base_model] if self.base_model else []
        for _, part in self.slices:
            named += [part.base_model] if part.base_model else []
            named += [source.model for source in part.sources]
        return list(dict.fromkeys(named))

    def text_with_seed(self, seed: int) -> str:
        r"""The YAML of a recipe that gives the same merge without further options.

        Args:
            seed: with which the merge is made.

        Returns:
            The text as written; if the seed is another one than it says, with that seed.

        Example:
            >>> recipe = read_recipe("merge_method: passthrough  # copies\nmodels: [{model: a}]\n")
            >>> print(recipe.text_with_seed(7), end="")
            merge_method: passthrough  # copies
            models: [{model: a}]
            seed: 7
        """
        import yaml

        text = self.text.removeprefix("\ufeff")
        text += "" if text.endswith("\n") else "\n"
        if seed == (self.seed or 0):
            return text
        wanted = {**yaml.safe_load(text), "seed": seed}
        # A recipe may be written in ways in which a line more or less means something else.
        for edited in (re.sub(r"(?m)^seed\b.*$", f"seed: {seed}", text), f"{text}seed: {seed}\n"):
            with contextlib.suppress(yaml.YAMLError):
                if yaml.safe_load(edited) == wanted:
                    return edited
        return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    r"""Read a recipe from a YAML file, YAML text or a mapping of the same structure.

    Args:
        source: a path, text with a line break, or a mapping.

    Returns:
        The recipe, checked as far as possible without opening a model.

    Raises:
        RecipeError: the file is absent, or the recipe has problems; all are listed.

    Example:
        >>> recipe = read_recipe({"merge_method": "linear", "models": [
        ...     {"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 3}}]})
        >>> recipe.method.name, recipe.references
        ('linear', ['a', 'b'])
        >>> read_recipe("merge_methd: linear\nmodels: []\n")
        Traceback (most recent call last):
        ...
        mergescope.errors.RecipeError: recipe has 3 problems:
          - line 1: unknown key 'merge_methd'. Did you mean: merge_method? ...
          - line 1: merge_method is missing; it names one of: ...
          - line 2: models must be a list with at least one entry.
    """
    from mergescope.merging.parsing import parse

    if isinstance(source, Mapping):
        import yaml

        try:
            return parse(yaml.safe_dump(_plain(source), sort_keys=False, allow_unicode=True), "recipe")
        except yaml.representer.RepresenterError as error:
            raise RecipeError(f"The recipe holds what YAML can't: {error.args[-1]!r}.", []) from None
    text = os.fspath(source)
    if "\n" in text:
        return parse(text, "recipe")
    path = Path(text).expanduser()
    if len(text) > 4096 or not path.is_file():
        raise RecipeError(f"There is no recipe file {text!r:.300}.{near_paths(path)}", [])
    try:
        return parse(path.read_text(encoding="utf-8-sig"), path.name)
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file in UTF-8.", []) from None
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}.", []) from None


def _plain(value: Any) -> Any:
    # What YAML has no words for, but means something it has.
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if type(value).__module__ == "torch":
        return str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
