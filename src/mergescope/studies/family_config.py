"""What a family is fine-tuned by: one YAML file, or the same said on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from mergescope.documents import usable_path
from mergescope.errors import MergescopeError, StudyError, did_you_mean
from mergescope.studies.training_data import FineTune
from mergescope.training.recipe import PRESETS, Recipe, preset
from mergescope.training.regimes import regime
from mergescope.weights.references import parse_model_reference

PRESET_OF = {
    "image": "clip", "encoder": "sentence-encoder", "decoder": "lm", "encoder-decoder": "lm", "plain": "mc-sgd",
}  # fmt: skip
"""The preset of each kind of model, unless another one is asked for."""

ATTENTION = "attention"
"""Short for ``attention-1``, or for the paradigm that its options name."""

_HINTS = get_type_hints(Recipe)
_STRICT = ConfigDict(extra="forbid", frozen=True)


class _RecipeBase(BaseModel):
    model_config = _STRICT

    @model_validator(mode="after")
    def _can_be_followed(self) -> Any:
        try:
            changed(Recipe(), self)
        except MergescopeError as error:
            raise ValueError(str(error)) from error
        return self


RecipeChanges: Any = create_model(
    "RecipeChanges",
    __base__=_RecipeBase,
    **{each.name: (_HINTS[each.name] | None, None) for each in fields(Recipe)},  # type: ignore[call-overload]
)
"""Fields of a [`Recipe`][mergescope.training.Recipe] that differ from the preset's."""


class DataSettings(BaseModel):
    """How rows become samples; fields as for [`FineTune`][mergescope.studies.training_data.FineTune]."""

    model_config = _STRICT

    text_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    answer_column: str | None = None
    template: str | None = None
    prompt: str | None = None
    limit: int | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=1)
    classes: tuple[int, ...] | None = None
    head: str | None = None


class TaskConfig(DataSettings):
    """A task: where its data are, and what differs from the family's settings."""

    data: str
    recipe: RecipeChanges = Field(default_factory=RecipeChanges)


class RegimeConfig(BaseModel):
    """A regime under a label: its options, and what differs from the family's recipe."""

    model_config = _STRICT

    regime: str
    options: dict[str, Any] = Field(default_factory=dict)
    recipe: RecipeChanges = Field(default_factory=RecipeChanges)

    @model_validator(mode="after")
    def _exists(self) -> Any:
        decided = sorted({"frozen", "also", "base_digest"} & set(self.options))
        if decided:
            raise ValueError(f"{decided[0]} is decided by the head and the base, and is no option")
        try:
            regime(self.regime, **self.options)
        except MergescopeError as error:
            raise ValueError(str(error)) from error
        return self


class FamilyConfig(DataSettings):
    """A whole family: every task in every regime, from one base.

    Attributes:
        base: reference of the pretrained model.
        tasks: name to task.
        regimes: label to regime.
        preset: of the recipe; by default that of the model's kind.
        recipe: what differs from the preset.
        keep: ``"last"`` or ``"best"`` weights.
        seed: of the order of samples, dropout, heads and LoRA factors.
    """

    base: str
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    regimes: dict[str, RegimeConfig] = Field(min_length=1)
    preset: str | None = None
    recipe: RecipeChanges = Field(default_factory=RecipeChanges)
    keep: Literal["last", "best"] = "last"
    seed: int = Field(0, ge=0)

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: Any) -> Any:
        from mergescope.data import parse_data_option

        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            named = [_parsed(parse_data_option, item) for item in value]
            twice = {name for name, _ in named if [other for other, _ in named].count(name) > 1}
            if twice:
                raise ValueError(f"two tasks are called {min(twice)!r}; name them NAME=SOURCE")
            value = dict(named)
        if isinstance(value, Mapping):
            return {name: {"data": task} if isinstance(task, str) else task for name, task in value.items()}
        return value

    @field_validator("regimes", mode="before")
    @classmethod
    def _labelled_regimes(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        pairs = list(value.items()) if isinstance(value, Mapping) else None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            split = [item.partition("=")[::2] for item in value]
            pairs = [(label, {"regime": kind} if kind else {}) for label, kind in split]
        if pairs is None:
            return value
        named = [_labelled(str(label), said) for label, said in pairs]
        twice = {label for label, _ in named if [other for other, _ in named].count(label) > 1}
        if twice:
            raise ValueError(f"two regimes are called {min(twice)!r}; give one of them another label")
        return dict(named)

    @field_validator("tasks", "regimes")
    @classmethod
    def _safe(cls, value: dict[str, Any]) -> dict[str, Any]:
        seen: dict[str, str] = {}
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith((".yaml", ".")):
                raise ValueError(
                    f"{name!r} can't be the name of a directory everywhere; use letters, digits, '-', '_' and '.'"
                )
            if name.casefold() in seen:
                raise ValueError(f"{seen[name.casefold()]!r} and {name!r} are one directory on some systems")
            seen[name.casefold()] = name
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(
                f"there is no preset {value!r}.{did_you_mean(value, PRESETS)} Choose one of {', '.join(PRESETS)}"
            )
        return value

    def fine_tunes(self, kind: str) -> dict[tuple[str, str], FineTune]:
        """Every model of the family.

        Args:
            kind: of the base, as [`kind_of_model`][mergescope.models.features.kind_of_model] says it.

        Returns:
            Regime label and task name to what to do; the regimes of a task follow each other.

        Raises:
            MergescopeError: a recipe can't be followed.
        """  # noqa: DOC502 (raised by what this calls)
        common = changed(preset(self.preset or PRESET_OF[kind]), self.recipe)
        made = {}
        for name, task in self.tasks.items():
            for label, chosen in self.regimes.items():
                recipe = changed(changed(common, chosen.recipe), task.recipe)
                made[label, name] = self._fine_tune(name, task, chosen, recipe)
        return made

    def _fine_tune(self, name: str, task: TaskConfig, chosen: RegimeConfig, recipe: Recipe) -> FineTune:
        settings = {
            field: next((value for value in (getattr(task, field), getattr(self, field)) if value is not None), None)
            for field in DataSettings.model_fields
        }  # fmt: skip
        given = {field: value for field, value in settings.items() if value is not None}
        if "head" in given:
            given["head"] = located(given["head"])
        options = dict(chosen.options)
        if chosen.regime == "lora":
            options.setdefault("seed", self.seed)
        return FineTune(
            located_model(self.base), task_source(name, task.data), name, chosen.regime, options, recipe,
            keep=self.keep, seed=self.seed, **given,
        )  # fmt: skip


def changed(recipe: Recipe, changes: Any) -> Recipe:
    """A recipe with other settings.

    Args:
        recipe: the recipe.
        changes: a ``RecipeChanges``. Epochs count in place of the recipe's steps.

    Returns:
        The recipe.

    Raises:
        MergescopeError: it can't be followed.

    Example:
        >>> changed(preset("clip"), RecipeChanges(epochs=2, clip=None)).total_steps(1280)
        20
    """  # noqa: DOC502 (raised by what this calls)
    given = {name: getattr(changes, name) for name in changes.model_fields_set}
    optional = {"steps", "clip", "evaluate_every"}
    given = {name: value for name, value in given.items() if value is not None or name in optional}
    if "epochs" in given:
        given.setdefault("steps", None)
    return replace(recipe, **given)


def located(reference: str) -> str:
    """A local path in full, so that other commands find it from anywhere.

    Args:
        reference: a path, hub id or other name.

    Returns:
        The absolute path if it exists, else the reference as it is.

    Raises:
        StudyError: no file can have that name.
    """  # noqa: DOC502 (raised by what this calls)
    path = usable_path(reference, StudyError)
    return str(path.resolve()) if path.exists() else reference


def located_model(reference: str) -> str:
    """A reference of a model with its local paths in full: its own, and that of its adapter.

    Args:
        reference: as for [`open_model`][mergescope.weights.references.open_model].

    Returns:
        The same model's reference from anywhere.

    Raises:
        StudyError: no file can have that name.
        CheckpointError: a part of the reference is empty.

    Example:
        >>> located_model("org/base@v1+org/adapter@v2")
        'org/base@v1+org/adapter@v2'
    """  # noqa: DOC502 (raised by what this calls)
    whole = located(reference)
    if "+" not in reference or whole != reference:
        return whole
    found = parse_model_reference(reference)
    parts = ((found.model, found.revision), (found.lora, found.lora_revision))
    return "+".join(located(name) + (f"@{at}" if at else "") for name, at in parts if name)


def task_source(name: str, data: str) -> str:
    """How a task's data are named, so that what is known of the task is used.

    Args:
        name: the task's.
        data: a known task, hub id or path.

    Returns:
        For [`task_spec`][mergescope.data.registry.task_spec].

    Example:
        >>> task_source("mnist", "org/digits"), task_source("digits", "mnist")
        ('org/digits', 'mnist')
    """
    from mergescope.data.registry import known_task

    path = located(data)
    local = Path(path).is_absolute() and Path(path).exists()
    return f"{known_task(name)}={path}" if local and known_task(name) is not None else path


def _labelled(label: str, said: Any) -> tuple[str, Any]:
    said = {} if said is None else {"regime": said} if isinstance(said, str) else said
    if not isinstance(said, Mapping):
        return label, said
    given = {"regime": label, **said}
    options = given.get("options")
    if given["regime"] == ATTENTION:
        options = dict(options) if isinstance(options, Mapping) else {}
        given["regime"] = f"{ATTENTION}-{options.pop('paradigm', 1)}"
        given["options"] = options
        label = given["regime"] if label == ATTENTION else label
    return label, given


def _parsed(parse: Any, text: str) -> tuple[str, str]:
    try:
        return parse(text)
    except MergescopeError as error:
        raise ValueError(str(error)) from error
