"""Published families of CLIP: vision towers around one base, with zero-shot heads.

Their files hold ``CLIPVisionModel`` weights, while the base is a whole ``CLIPModel``; both are seen here
as vision towers under the same names, whichever version of transformers saved them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mergescope.data.processors import VOCABULARIES
from mergescope.data.registry import TaskSpec
from mergescope.errors import CheckpointError, MismatchError, StudyError, did_you_mean
from mergescope.merging.configs import set_dtype
from mergescope.models.heads import Head
from mergescope.models.loading import load_weights
from mergescope.models.with_head import BACKBONE, WithHead
from mergescope.models.zero_shot import zero_shot_head
from mergescope.studies.published_parts import Part
from mergescope.weights import Checkpoint
from mergescope.weights.kinds import is_derived
from mergescope.weights.references import open_model
from mergescope.weights.selection import Selection

TOWER, PROJECTION, SCALE = "vision_model.", "visual_projection.weight", "logit_scale"


@dataclass(frozen=True)
class ClipFamily:
    """A base and its fine-tunes, by reference: nothing is read before it is asked for.

    Attributes:
        name: of the family.
        base: reference of the whole CLIP model, as for
            [`open_model`][mergescope.weights.references.open_model].
        models: task name to the reference of the model that was fine-tuned on it.
        tasks: task name to its description.
        head: policy of the heads: ``"zero-shot"``.
    """

    name: str
    base: str
    models: Mapping[str, str]
    tasks: Mapping[str, TaskSpec]
    head: str = "zero-shot"

    @property
    def place(self) -> str:
        """Where the base is."""
        return self.base

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets that the models are measured on."""
        return tuple(self.tasks)

    def _open(self, reference: str) -> Checkpoint:
        return open_model(reference, dtype="float32")  # base and fine-tunes may be saved in different types

    def towers(self) -> tuple[Selection, dict[str, Selection]]:
        """Base and fine-tunes as vision towers that combine with each other.

        Returns:
            The base, and task name to fine-tune, under the names of [`ClipFamily.network`][].

        Raises:
            MismatchError: a model is no vision tower of the base's shape, or has another projection.
            CheckpointError: a model can't be found or read.
        """  # noqa: DOC502 (raised by what this calls)
        whole = self._open(self.base)
        base = _tower(whole, "base")
        found = {}
        for task, reference in self.models.items():
            model = self._open(reference)
            tower = _tower(model, task)
            _require_same(base, tower, whole, model)
            found[task] = tower
        return base, found

    def compared(self) -> tuple[Part, list[Part]]:
        """Base and fine-tunes, to be compared with each other.

        Returns:
            The towers of the base and of the fine-tunes, which are called by their tasks.
        """
        base, towers = self.towers()
        return Part(base, "base"), [Part(tower, task) for task, tower in towers.items()]

    def mergeable(self) -> dict[str, Part]:
        """Base and fine-tunes as vision models of the class and with the tensor names of the first fine-tune.

        Returns:
            Reference to model, the base first. Their files stay where they are: the base's are a whole CLIP model.
        """
        base, towers = self.towers()
        first = next(iter(towers.values()))
        config = dict(first.source.config or {})
        set_dtype(config, "float32")  # as they are opened

        def part(tower: Selection, name: str) -> Part:
            names = {saved: tower.names[name] for name, saved in first.names.items()}
            return Part(Selection(tower.source, names), name, whole=True, config=config)

        models = {reference: part(towers[task], task) for task, reference in self.models.items()}
        return {self.base: part(base, "base"), **models}

    def network(self, task: str, head: Head | None = None, *, cache: Path | None = None) -> WithHead:
        """The base's vision tower and projection with a task's head, in eval mode.

        Args:
            task: its name.
            head: by default the zero-shot head of the task's classes in the registry's order
                (see [`ClipFamily.heads`][]).
            cache: directory of zero-shot heads.

        Returns:
            The network. Trace towers with it, and with ``fixed=fixed_entries(network)``.

        Raises:
            StudyError: the family has no such task.
        """
        if task not in self.tasks:
            raise StudyError(
                f"The family {self.name} has no task {task!r}.{did_you_mean(task, self.tasks)} Its tasks are: "
                f"{', '.join(self.tasks)}."
            )
        if head is None:
            head = replace(self, tasks={task: self.tasks[task]}).heads(cache=cache)[task]
        base = self._open(self.base)
        network = _built(base, "vision_config", "CLIPVisionModelWithProjection", (TOWER, PROJECTION))
        return WithHead(network, head).eval()

    def heads(
        self, words: Mapping[str, tuple[str, ...]] | None = None, *, cache: Path | None = None
    ) -> dict[str, Head]:
        """Zero-shot heads of the tasks, by the base's text tower.

        Args:
            words: task name to its classes in the order of the data's labels, as
                [`class_words`][mergescope.data.task_splits.class_words] gives them; by default the
                registry's.
            cache: directory of heads made before.

        Returns:
            Task name to head.

        Raises:
            StudyError: a task's classes are not known.
        """
        base = self._open(self.base)
        tower = _built(
            base, "text_config", "CLIPTextModelWithProjection", ("text_model.", "text_projection.")
        )
        tokenizer = _tokenizer(base)
        made = {}
        for task, spec in self.tasks.items():
            classes = (words or {}).get(task) or spec.classes
            if classes is None:
                raise StudyError(
                    f"The classes of the task {task} are not known, so it has no zero-shot head. Give them: "
                    f"words={{{task!r}: class_words(spec, table)}}."
                )
            scale = float(base.tensor(SCALE))
            made[task] = zero_shot_head(
                tower, tokenizer, classes, spec.templates, logit_scale=scale, cache=cache
            )
        return made


def fixed_entries(network: WithHead) -> frozenset[str]:
    """What no tower fills in a network of the family: the head and the projection.

    Args:
        network: of [`ClipFamily.network`][].

    Returns:
        Names of entries of its state dict.
    """
    return network.head_entries | {f"{BACKBONE}.{PROJECTION}"}


def _tower(model: Checkpoint, task: str) -> Selection:
    # CLIPModel, and CLIPVisionModel as transformers 4 saves it, have the prefix; transformers 5 has none.
    keys = [key for key in model.spec if key.startswith(TOWER)]
    if not keys:
        keys = [
            key for key in model.spec if key.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_"))
        ]
    if not keys:
        shown = ", ".join(list(model.spec)[:4])
        raise MismatchError(
            f"{model.name} (for {task}) has no CLIP vision tower:",
            [f"its tensors are {shown}, ..."],
            "Name a CLIPModel or a CLIPVisionModel, or say which family it is: NAME=DIR.",
        )
    names = {f"{BACKBONE}.{TOWER}{key.removeprefix(TOWER)}": key for key in keys}
    return _without_derived(model, names)


def _without_derived(model: Checkpoint, names: Mapping[str, str]) -> Selection:
    kept = {new: key for new, key in names.items() if not is_derived(key, model.spec[key].shape)}
    return Selection(model, kept)


def _require_same(base: Selection, tower: Selection, whole: Checkpoint, model: Checkpoint) -> None:
    problems = [f"{name}: missing in {tower.name}" for name in base.spec if name not in tower.spec]
    problems += [f"{name}: not in {base.name}" for name in tower.spec if name not in base.spec]
    problems += [
        f"{name}: {base.spec[name]} in {base.name}, {spec} in {tower.name}"
        for name, spec in tower.spec.items()
        if name in base.spec and base.spec[name] != spec
    ]
    if PROJECTION in model.spec and not _equal(whole, model, PROJECTION):
        problems.append(f"{PROJECTION}: another one in {model.name}, but the family holds the base's fixed")
    if problems:
        raise MismatchError(
            f"{model.name} was not fine-tuned from {whole.name}:",
            problems,
            "Choose the backbone of these models.",
        )


def _equal(one: Checkpoint, other: Checkpoint, key: str) -> bool:
    return key in one.spec and torch.equal(one.tensor(key), other.tensor(key))


def _built(base: Checkpoint, part: str, name: str, prefixes: tuple[str, ...]) -> Any:
    found = base.config or {}
    missing = [key for key in (SCALE, PROJECTION, "text_projection.weight") if key not in base.spec]
    if found.get("model_type") != "clip" or missing:
        raise CheckpointError(
            f"{base.name} is no whole CLIP model (model_type {found.get('model_type')!r}, missing: "
            f"{', '.join(missing) or 'nothing'}), so it gives no zero-shot heads. Name a CLIPModel as base."
        )
    import transformers

    config = transformers.CLIPConfig.from_pretrained(str(base.directory), local_files_only=True)
    settings = getattr(config, part)
    settings.projection_dim = config.projection_dim
    with torch.random.fork_rng():  # the random weights are replaced at once
        network: Any = getattr(transformers, name)(settings)
    keys = {key: key for key in base.spec if key.startswith(prefixes)}
    load_weights(network, _without_derived(base, keys))
    return network.eval()


def _tokenizer(base: Checkpoint) -> Any:
    import transformers

    try:
        # transformers 5 makes a tokenizer of nothing where there is no vocabulary.
        if base.directory is None or not any((base.directory / name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(f"none of {', '.join(VOCABULARIES[:4])}")
        return transformers.AutoTokenizer.from_pretrained(str(base.directory), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(
            f"The tokenizer of {base.name} can't be loaded from {base.directory}: {type(error).__name__}: {error}. "
            "Copy its files there: zero-shot heads are made of class names in words."
        ) from error
