"""Families of fine-tuned models that others have published: a base, one model a task, by hub ids.

``clip8`` is CLIP with its eight tasks (ATTN Table 1): vision towers that were fine-tuned
with the head and the projection frozen, published by A. Tang with FusionBench. ``t5-six`` is T5-base with
six text-to-text tasks, fine-tuned by M. Romero (TA; CTL Figs 19 to 24). ``llama2-13b`` is Llama 2 with
three public fine-tunes (CTL), which is run block by block.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mergescope.data.registry import (
    IMAGES,
    TASKS,
    TEXT_TO_TEXT,
    TEXTS,
    TaskSpec,
    copy_of,
    known_task,
    task_spec,
)
from mergescope.errors import StudyError, did_you_mean
from mergescope.studies.published_clip import ClipFamily
from mergescope.studies.published_texts import TextFamily

PublishedFamily: TypeAlias = ClipFamily | TextFamily

BASE = "base"
"""Directory of the base beside those of its fine-tunes."""

BACKBONES = ("base-patch32", "base-patch16", "large-patch14")
"""CLIP's vision transformers that are published for ``clip8``."""

WIKITEXT = TaskSpec(
    "wikitext", "Salesforce/wikitext", TEXTS, "wikitext-2-raw-v1", columns={"text": "text"},
    citation="Merity et al., ICLR 2017",
)  # fmt: skip
"""Texts for language models that have no tasks of their own."""


@dataclass(frozen=True)
class Declared:
    """What a published family is.

    Attributes:
        base: hub id of the base; ``{}`` is the backbone.
        models: task, or name, to hub id of a fine-tune.
        kinds: of tasks that its models can do; none if they are measured on the corpus.
        corpus: texts that all are measured on, unless the user names others.
        executor: of passes, unless the user names another one.
        backbones: the networks that it is published for, the usual one first.
    """

    base: str
    models: Mapping[str, str]
    kinds: tuple[str, ...] = ()
    corpus: TaskSpec | None = None
    executor: str = "auto"
    backbones: tuple[str, ...] = ("",)

    def named(self, backbone: str) -> Mapping[str, str]:
        """The models of one network.

        Args:
            backbone: of ``backbones``.

        Returns:
            ``base`` and tasks to hub ids.
        """
        return {
            what: reference.format(backbone) for what, reference in {BASE: self.base, **self.models}.items()
        }

    def task_of(self, folder: str) -> str:
        """The task that a directory of a fine-tune is called by.

        Args:
            folder: its name: a task's, or the last part of a hub id.

        Returns:
            The task; the name itself if it is neither.
        """
        for named in map(self.named, self.backbones):
            found = next((task for task, reference in named.items() if folder == _last(reference)), None)
            if found is not None:
                return found
            folder = folder.removeprefix(f"{_last(named[BASE])}_")
        return known_task(folder) or folder


DECLARED = {
    "clip8": Declared(
        "openai/clip-vit-{}",
        {
            task: f"tanganke/clip-vit-{{}}_{'stanford-cars' if task == 'cars' else task}"
            for task in ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
        },
        (IMAGES,), backbones=BACKBONES,
    ),
    "t5-six": Declared(
        "google-t5/t5-base",
        {
            "imdb": "mrm8488/t5-base-finetuned-imdb-sentiment",
            "race": "mrm8488/t5-base-finetuned-race",
            "qasc": "mrm8488/t5-base-finetuned-qasc",
            "multi_news": "mrm8488/t5-base-finetuned-summarize-news",
            "squad": "mrm8488/t5-base-finetuned-squadv2",
            "common_gen": "mrm8488/t5-base-finetuned-common_gen",
        },
        (TEXT_TO_TEXT, TEXTS),
    ),
    "llama2-13b": Declared(
        "meta-llama/Llama-2-13b-hf",
        {
            "wizardlm": "WizardLMTeam/WizardLM-13B-V1.2",
            "wizardmath": "vanillaOVO/WizardMath-13B-V1.0",
            "code-alpaca": "layoric/llama-2-13b-code-alpaca",
        },
        corpus=WIKITEXT, executor="streamed",
    ),
}  # fmt: skip
"""The families by name."""


def open_family(
    name_or_dir: str | os.PathLike[str],
    *,
    directory: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    data: Mapping[str, str | os.PathLike[str]] | None = None,
    revisions: Mapping[str, str] | None = None,
) -> PublishedFamily:
    """A family by name, or from a directory.

    Args:
        name_or_dir: one of [`DECLARED`][], or a directory of CLIP towers, as ``directory`` of ``clip8``.
        directory: local copies in place of the hub. Either it holds ``base`` and one directory a fine-tune, called
            by the task (``mnist``) or as on the hub (``clip-vit-base-patch32_mnist``); or many models, all called
            as on the hub, of which the family's are taken. The family is of those that are there.
        backbone: of ``clip8``: one of [`BACKBONES`][].
        data: task name to where its data are, instead of the hub; needed for tasks that are not in the
            registry. Of families that are measured on a corpus, any name to texts.
        revisions: task name, or ``"base"``, to the revision of its model on the hub.

    Returns:
        The family. Which files are there is found out when they are read.

    Raises:
        StudyError: there is no such family, backbone or task, or the directory holds none.

    Example:
        >>> family = open_family("clip8", backbone="large-patch14")
        >>> family.base, family.models["cars"]
        ('openai/clip-vit-large-patch14', 'tanganke/clip-vit-large-patch14_stanford-cars')
        >>> open_family("llama2-13b").executor
        'streamed'
    """
    name, path = os.fspath(name_or_dir), None if directory is None else Path(directory).expanduser()
    if path is None and Path(name).expanduser().is_dir():
        path = Path(name).expanduser()
        name = "clip8"
    if name not in DECLARED:
        raise StudyError(
            f"There is no family {name!r}.{did_you_mean(name, DECLARED)} Known: {', '.join(DECLARED)}. Or name a "
            "directory that holds base and one directory a task."
        )
    declared = DECLARED[name]
    models = dict(declared.named(_backbone(name, declared, backbone)))
    if path is not None:
        models, name = _in_directory(path, declared, models), path.resolve().name
    base = models.pop(BASE)
    data, revisions = data or {}, revisions or {}
    for what, given in (("data", data if declared.kinds else {}), ("revisions", revisions)):
        unknown = sorted(set(given) - {*models, BASE})
        if unknown:
            raise StudyError(
                f"{what} names {unknown[0]!r}, which the family {name} does not have."
                f"{did_you_mean(unknown[0], models)} Its tasks are: {', '.join(models)}."
            )
    pinned = {what: f"@{revision}" for what, revision in revisions.items()}
    references = {task: reference + pinned.get(task, "") for task, reference in models.items()}
    base += pinned.get(BASE, "")
    tasks = {task: _task(task, data.get(task), declared.kinds) for task in models if declared.kinds}
    if IMAGES in declared.kinds:
        return ClipFamily(name, base, references, tasks)
    corpus = declared.corpus
    if corpus is not None and corpus.name in data:
        corpus = copy_of(corpus, os.fspath(data[corpus.name]))
    return TextFamily(name, base, references, tasks, corpus, declared.executor)


def _backbone(name: str, declared: Declared, wanted: str | None) -> str:
    chosen = declared.backbones[0] if wanted is None else wanted
    if chosen not in declared.backbones:
        known = ", ".join(declared.backbones)
        raise StudyError(
            f"{name} has no backbone {chosen!r}.{did_you_mean(chosen, declared.backbones)} "
            f"{f'Choose one of {known}.' if known else 'It is of one network: leave it out.'}"
        )
    return chosen


def copies_in(path: Path, name: str, backbone: str | None = None) -> bool:
    """Whether a directory of many models holds a family: its base and a fine-tune, called as on the hub.

    Args:
        path: the directory.
        name: of [`DECLARED`][].
        backbone: of the family.

    Returns:
        Whether it does.

    Raises:
        StudyError: there is no such backbone.
    """  # noqa: DOC502 (raised by what this calls)
    named = DECLARED[name].named(_backbone(name, DECLARED[name], backbone))
    found = [what for what, reference in named.items() if (path / _last(reference)).is_dir()]
    return BASE in found and len(found) > 1


def _in_directory(path: Path, declared: Declared, named: Mapping[str, str]) -> dict[str, str]:
    if not (path / BASE).is_dir():
        found = {what: path / _last(reference) for what, reference in named.items()}
        models = {what: str(folder) for what, folder in found.items() if folder.is_dir()}
        if BASE in models and len(models) > 1:
            return models
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    models = {declared.task_of(folder.name): str(folder) for folder in folders if folder.name != BASE}
    if not models or not (path / BASE).is_dir():
        seen = ", ".join(folder.name for folder in folders) or "no directories"
        raise StudyError(
            f"{path} holds no family: expected a directory base with the pretrained model (or {_last(named[BASE])}), "
            f"and one directory a task, found {seen}."
        )
    return {BASE: str(path / BASE), **models}


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]


def _task(task: str, source: str | os.PathLike[str] | None, kinds: tuple[str, ...]) -> TaskSpec:
    if source is not None:
        spec = task_spec(f"{task}={os.fspath(source)}")
    elif task in TASKS:
        spec = TASKS[task]
    else:
        raise StudyError(
            f"There is no task {task!r}.{did_you_mean(task, TASKS)} Rename the model's directory, or say where its "
            f"data are: data={{{task!r}: DIRECTORY}}."
        )
    if spec.kind not in kinds:
        raise StudyError(
            f"The task {task} is {spec.kind}, and the family's models can only do {' or '.join(kinds)}."
        )
    return spec
