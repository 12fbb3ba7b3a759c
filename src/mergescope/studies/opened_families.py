"""Families as other commands take them: a directory that ``finetune`` made, or a published one by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergescope.errors import MergescopeError, StudyError, did_you_mean, near_paths
from mergescope.studies.families import FamilyDirectory, is_family, read_family
from mergescope.studies.published import DECLARED, PublishedFamily, open_family
from mergescope.studies.published_clip import ClipFamily
from mergescope.studies.published_texts import TextFamily
from mergescope.weights import Checkpoint


@dataclass(frozen=True)
class OwnFamily:
    """Models of one regime of a family directory.

    Attributes:
        family: the directory.
        base: the base, whose weights are the family's.
        place: where the base is.
        models: task name to the model's directory.
    """

    family: FamilyDirectory
    base: Checkpoint
    place: str
    models: Mapping[str, Path]

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The fine-tunes.

        Returns:
            Task name to checkpoint, which is called by the task.
        """
        return {task: Checkpoint(path, name=task) for task, path in self.models.items()}

    def compared(self) -> tuple[Any, list[Any]]:
        """Base and fine-tunes, to be compared with each other.

        Returns:
            The base, and the fine-tunes, called by their tasks.
        """
        return self.base, list(self.checkpoints().values())


def find_family(
    text: str, regime: str | None = None, *, base: str | None = None, data: Mapping[str, str] | None = None
) -> OwnFamily | PublishedFamily:
    """Open what ``--family`` names.

    Args:
        text: a directory that ``finetune`` made; a published family, ``NAME``, ``NAME:BACKBONE`` or, where local
            copies are, ``NAME=DIR`` (``clip8:large-patch14=models``); or a directory that holds ``base`` and
            one directory a task, as [`open_family`][mergescope.studies.published.open_family] takes it.
        regime: label of a regime of a family directory.
        base: where the base of a family directory is now.
        data: task name to where its data are, for published families.

    Returns:
        The family. The base of a family directory has been read, to make sure that it is the right one.

    Raises:
        StudyError: there is no such family or regime, or the regime has to be chosen.
        MismatchError: the base is another one.
        CheckpointError: the base can't be opened.
    """  # noqa: DOC502 (raised by what this calls)
    path = Path(text).expanduser()
    if is_family(path):
        family = read_family(path)
        chosen = family.choose(regime)
        models = {member.task: family.folder(member.regime, member.task) for member in chosen}
        absent = [str(folder) for folder in models.values() if not folder.is_dir()]
        if absent:
            raise StudyError(
                f"The family {path} lacks {', '.join(absent)}. Run the mergescope finetune that made it again."
            )
        place = family.base.reference if base is None else base
        return OwnFamily(family, family.open_base(base), place, models)
    if regime is not None or base is not None:
        what = "--regime" if base is None else "--base"
        raise StudyError(
            f"{text} is no family that mergescope finetune made, so {what} has no meaning for it."
        )
    if path.is_dir():
        return open_family(path, data=data)
    said, equals, place = text.partition("=")
    name, colon, backbone = said.partition(":")
    if name not in DECLARED:
        raise StudyError(
            f"There is no family {text!r}.{near_paths(path) or did_you_mean(name, DECLARED)} Name a directory that "
            f"mergescope finetune --out made, or one of: {', '.join(DECLARED)}."
        )
    if equals and not Path(place).expanduser().is_dir():
        raise StudyError(f"There is no directory {place!r} with the models of {name}.{near_paths(place)}")
    return open_family(
        name, directory=place if equals else None, backbone=backbone if colon else None, data=data
    )


def family_models(text: str, regime: str | None = None, *, base: str | None = None) -> tuple[Any, list[Any]]:
    """Base and fine-tunes of a family, to be compared with each other.

    Args:
        text: as for [`find_family`][].
        regime: as there.
        base: as there.

    Returns:
        The base, and the fine-tunes, which are called by their tasks.
    """
    return find_family(text, regime, base=base).compared()


def family_recipe(
    text: str,
    regime: str | None,
    method: str | None,
    parameters: Mapping[str, Any],
    *,
    base: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A merge recipe for all models of a family.

    Args:
        text: as for [`find_family`][].
        regime: label of a regime of a family directory.
        method: the merge method.
        parameters: of the method. One that it has for each model is given to all; ``weight`` is
            1 / number of models where it has no default. Where vocabularies differ in size, rows are matched by token.
        base: where the base is now.

    Returns:
        For [`read_recipe`][mergescope.merging.recipe.read_recipe]; and for
        [`make_plan`][mergescope.merging.plan.make_plan], models that are parts of what their references name: the
        vision tower of CLIP.

    Raises:
        MergescopeError: no method is named, or there is none of that name.
    """
    from mergescope.merging.methods import METHODS

    if method is None or method not in METHODS:
        said = "Say how to merge with --method" if method is None else f"There is no merge method {method!r}"
        raise MergescopeError(
            f"{said}.{did_you_mean(method or '', METHODS)} Methods: {', '.join(sorted(METHODS))}."
        )
    found = find_family(text, regime, base=base)
    kind = METHODS[method]
    given = dict(parameters)
    if any(each.name == "weight" and each.default is None for each in kind.parameters):
        given.setdefault("weight", 1 / len(found.models))
    references = [str(path) for path in found.models.values()]
    models = [{"model": reference} for reference in references]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "parameters": given}
    if kind.base != "none":
        recipe["base_model"] = found.place
        references.append(found.place)
    if isinstance(found, TextFamily) and _sizes_differ(references):
        recipe["tokenizer_source"] = "union" if kind.base == "none" else "base"
    return recipe, found.mergeable() if isinstance(found, ClipFamily) else {}


def _sizes_differ(references: Sequence[str]) -> bool:
    # Some fine-tunes add a token; what was trained here has the base's.
    from mergescope.merging.vocabulary import vocabulary_rows
    from mergescope.weights.references import open_model

    return len({vocabulary_rows(open_model(reference)) for reference in references}) > 1
