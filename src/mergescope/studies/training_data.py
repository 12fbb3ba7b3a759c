"""What a network is fine-tuned on: a task's splits as the batches it takes, and the head it ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mergescope.data.heads import CLASSES
from mergescope.data.heads import Head as Outputs
from mergescope.errors import DataError
from mergescope.models.calling import split_batch
from mergescope.models.features import Features, kind_of_model
from mergescope.models.heads import Head
from mergescope.models.towers import headless
from mergescope.studies.training_heads import OWN, ZERO_SHOT, head_policy, make_head
from mergescope.studies.training_texts import written_parts
from mergescope.training.recipe import Recipe
from mergescope.weights import Checkpoint

if TYPE_CHECKING:
    import datasets

    from mergescope.data import Batches, TaskSpec


@dataclass(frozen=True)
class FineTune:
    """What to do.

    Attributes:
        base: reference of the pretrained model.
        task: a known task, a hub id or a local data set.
        name: of the task, for tables and directories.
        regime: see [`regime`][mergescope.training.regime].
        options: of the regime.
        recipe: optimizer, schedule, length.
        head: one of [`HEADS`][mergescope.studies.training_heads.HEADS], or a directory with a head.
        keep: ``"last"`` weights, or those of the ``"best"`` validation accuracy.
        seed: of the order of samples, dropout and head.
        limit: training samples at most; 0 for all.
        max_length: texts are cut at so many tokens, and so are answers.
        text_column: of the texts.
        label_column: of the labels.
        template: a text from columns.
        prompt: a column or template of a prompt, which is not learned.
        image_column: of the images.
        answer_column: of what is to be written, for encoder-decoders and questions to language models.
        classes: numbers of the classes that make up the task, if it is a part of the data set. Rows of
            others are left out. A network's own head keeps its outputs, and the others don't count; a
            head that is made covers these classes only.
    """

    base: str
    task: str
    name: str
    regime: str = "full"
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    head: str = "auto"
    keep: str = "last"
    seed: int = 0
    limit: int = 0
    max_length: int | None = None
    text_column: str | None = None
    label_column: str | None = None
    template: str | None = None
    prompt: str | None = None
    image_column: str | None = None
    answer_column: str | None = None
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Encoded:
    """Batches as training data."""

    batches: Batches

    def __len__(self) -> int:
        return self.batches.samples

    def batch(self, places: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
        """Inputs and labels of some samples.

        Args:
            places: ``(batch,)`` positions.

        Returns:
            Both, in that order.
        """
        return split_batch(self.batches.batch(places))


@dataclass
class TaskData:
    """A task, ready to be trained on.

    Attributes:
        parts: ``train``, ``validation`` and, where there is one, ``test`` batches.
        classes: names of the classes, or None for networks that write.
        head: the task head, as it is before training; None for networks that have their own.
        mask: the outputs of a network's own head that count, if not all do.
    """

    parts: dict[str, Batches]
    classes: tuple[str, ...] | None
    head: Head | None
    mask: tuple[int, ...] | None = None


def open_task(tune: FineTune, base: Checkpoint, network: nn.Module) -> TaskData:
    """Open a task's data for a network, and make its head.

    Args:
        tune: what to do.
        base: the pretrained checkpoint, whose directory has tokenizer or image processor.
        network: its network.

    Returns:
        Batches, classes and head.

    Raises:
        DataError: the data can't be read or don't fit.
        MergescopeError: there is no such head, or the network does not take it.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.data import load_processor, load_split
    from mergescope.data.task_splits import SPLITS
    from mergescope.data.tokens import TextProcessor

    policy = head_policy(tune.head, network)
    kind = kind_of_model(network if policy == OWN else headless(network))
    if base.directory is None:
        raise DataError(f"{base.name} has no directory, so there is no tokenizer or image processor for it.")
    # An adapter may bring a tokenizer of its own, and rows for its tokens.
    files = None if kind == "image" else getattr(base, "tokenizer_directory", None)
    processor = load_processor(base.directory, kind, files=files, config=base.config)
    writes = kind in ("decoder", "encoder-decoder") and Features.of(network).writes
    if policy == OWN and writes and isinstance(processor, TextProcessor):
        return TaskData(written_parts(tune, processor), None, None)
    if policy == OWN and processor.head.target != CLASSES:
        raise DataError(
            f"{type(network).__name__} has no outputs for classes, so it can't be trained on {tune.name} without a "
            "head. Choose head='trained'."
        )
    spec = _classification(tune)
    processor = replace(processor, notes=(*processor.notes, *spec.notes))
    tables = {
        split: load_split(
            spec, split, classes=tune.classes, limit=(tune.limit or None) if split == "train" else None, seed=tune.seed,
        )
        for split in SPLITS
    }  # fmt: skip
    names = _class_names(spec, tables)
    chosen = tuple(sorted(set(range(len(names)) if tune.classes is None else tune.classes)))
    numbers = None
    if policy != OWN:
        processor = replace(processor, head=Outputs(CLASSES, len(chosen)))
        numbers = {old: new for new, old in enumerate(chosen)}
    parts = {split: _encode(tune, spec, table, processor, numbers) for split, table in tables.items()}
    classes = tuple(names[label] for label in chosen)
    if policy == OWN:
        return TaskData(parts, classes, None, None if tune.classes is None else _outputs(parts))
    inputs, _ = split_batch(parts["train"].batch(torch.arange(1)))
    words, templates = _in_words(spec, tables["train"], chosen) if policy == ZERO_SHOT else ((), ())
    head = make_head(
        policy, network, base, inputs, classes=classes, words=words, templates=templates, task=tune.name,
        seed=tune.seed,
    )  # fmt: skip
    return TaskData(parts, classes, head)


def _classification(tune: FineTune) -> TaskSpec:
    from mergescope.data.registry import TEXT_TO_TEXT, TEXTS, task_spec

    if tune.answer_column is not None:
        raise DataError(
            f"answer_column={tune.answer_column!r}: this network gives classes and writes nothing. Use "
            "label_column, or an encoder-decoder."
        )
    spec = task_spec(
        tune.task, label_column=tune.label_column, text=tune.template or tune.text_column,
        image_column=tune.image_column,
    )  # fmt: skip
    if spec.kind != TEXT_TO_TEXT:
        return spec
    if spec.classes is None:
        raise DataError(
            f"The task {spec.name} asks for answers in words, and this network gives classes. Take an encoder-decoder, "
            "such as T5, or a task with classes."
        )
    columns = {"text": "text", "label": tune.label_column or "label"}
    return replace(spec, kind=TEXTS, wording=None, columns=columns)


def _class_names(spec: TaskSpec, tables: Mapping[str, datasets.Dataset]) -> tuple[str, ...]:
    from mergescope.data.labels import read_labels
    from mergescope.data.task_splits import label_column

    column = label_column(spec, tables["train"])
    names = getattr(tables["train"].features[column], "names", None) or spec.classes
    if names is not None:
        return tuple(names)
    return tuple(map(str, range(int(read_labels(tables["train"], column).ids.max()) + 1)))


def _in_words(
    spec: TaskSpec, table: datasets.Dataset, chosen: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from mergescope.data import class_words

    words = class_words(spec, table)
    return tuple(words[label] for label in chosen), spec.templates


def _encode(
    tune: FineTune, spec: TaskSpec, table: datasets.Dataset, processor: Any, numbers: Mapping[int, int] | None
) -> Batches:
    from mergescope.data import encode
    from mergescope.data.registry import IMAGES
    from mergescope.data.task_splits import image_column

    columns: dict[str, Any] = {"label_column": spec.columns["label"]}
    if spec.kind == IMAGES:
        columns["image_column"] = tune.image_column or image_column(spec, table)
    else:
        text = tune.text_column or (spec.columns.get("text") if tune.template is None else None)
        columns |= {"text_column": text, "template": tune.template, "prompt": tune.prompt}
    return encode(
        table, processor, batch_size=tune.recipe.batch, max_length=tune.max_length, label2id=numbers, **columns
    )  # fmt: skip


def _outputs(parts: Mapping[str, Batches]) -> tuple[int, ...]:
    # The model's numbers, which need not be those of the data.
    found = [part.labels for part in parts.values() if part.labels is not None]
    return tuple(torch.cat(found).unique().tolist())
