"""Reading what a family is fine-tuned by, strictly: all problems are told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mergescope.documents import DocumentError, read_yaml, usable_path
from mergescope.errors import StudyError, did_you_mean, near_paths
from mergescope.studies.family_config import FamilyConfig, RecipeChanges, RegimeConfig, TaskConfig


def read_family_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> FamilyConfig:
    """Read what a family is fine-tuned by.

    Args:
        source: a YAML file, or a mapping of the same structure.

    Returns:
        The configuration. Paths in it count from the working directory.

    Raises:
        StudyError: the file is absent or no YAML, or the configuration has problems; all are listed.

    Example:
        >>> family = read_family_config({"base": "org/base", "tasks": ["mnist", "pets=org/pets"],
        ...                              "regimes": ["full", "attention"], "recipe": {"lr": "3e-5"}})
        >>> list(family.tasks), list(family.regimes), family.recipe.lr
        (['mnist', 'pets'], ['full', 'attention-1'], 3e-05)
        >>> read_family_config({"base": "org/base", "task": ["mnist"], "regimes": ["ful"]})
        Traceback (most recent call last):
        ...
        mergescope.errors.StudyError: The family has 3 problems:
          - tasks is missing.
          - regimes.ful: There is no regime 'ful'. Did you mean: full? ...
          - unknown key 'task'. Did you mean: tasks, base? ...
    """
    name = "The family"
    if not isinstance(source, Mapping):
        name = str(source)
        source = _read(usable_path(source, StudyError))
    try:
        return FamilyConfig.model_validate(source)
    except ValidationError as error:
        problems = [_told(dict(problem)) for problem in error.errors()]
        listing = "".join(f"\n  - {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise StudyError(f"{name} has {count}:{listing}") from None


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise StudyError(f"There is no file {str(path)!r} that describes a family.{near_paths(path)}")
    try:
        found = read_yaml(path)
    except DocumentError as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(found, Mapping):
        raise StudyError(
            f"{path} describes no family: expected the keys {', '.join(FamilyConfig.model_fields)}."
        )
    return found


def _told(problem: dict[str, Any]) -> str:
    where, kind = [str(part) for part in problem["loc"]], problem["type"]
    if kind == "missing":
        return f"{'.'.join(where)} is missing."
    if kind == "extra_forbidden":
        *path, key = where
        inside = f" in {'.'.join(path)}" if path else ""
        known = _known(path)
        return f"unknown key {key!r}{inside}.{did_you_mean(key, known)} Keys there are {', '.join(known)}."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        got = str(problem["input"])
        hint = did_you_mean(got, choices)
        return f"{'.'.join(where)} can't be {got!r:.60}.{hint} Choose one of {', '.join(choices)}."
    message = str(problem["msg"]).removeprefix("Value error, ")
    got = "" if kind == "value_error" else f", got {problem['input']!r:.60}"
    return f"{'.'.join(where)}: {message.rstrip('.')}{got}."


def _known(path: list[str]) -> list[str]:
    if path and path[-1] == "recipe":
        return list(RecipeChanges.model_fields)
    models: dict[str, type[BaseModel]] = {"tasks": TaskConfig, "regimes": RegimeConfig}
    return list((models[path[0]] if path else FamilyConfig).model_fields)
