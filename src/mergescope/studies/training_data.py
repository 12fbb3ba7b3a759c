"""What a network is fine-tuned on: a task's splits as the batches it takes, and the head it ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mergescope.errors import DataError, MergescopeError
from mergescope.models.calling import split_batch
from mergescope.models.features import kind_of_model
from mergescope.models.heads import FILE as HEAD_FILE
from mergescope.models.heads import Head, linear_head, load_head, require_classes
from mergescope.models.with_head import WithHead
from mergescope.training.recipe import Recipe
from mergescope.weights import Checkpoint

if TYPE_CHECKING:
    import datasets

    from mergescope.data import Batches

HEADS = ("trained", "frozen-random", "none")
"""Policies of a task head that need nothing but a name; a directory with a head is the other choice."""


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
        head: ``"trained"``, ``"frozen-random"``, ``"none"`` (language models, and models with a head
            of their own), or a directory with a head.
        keep: ``"last"`` weights, or those of the ``"best"`` validation accuracy.
        seed: of the order of samples, dropout and head.
        limit: training samples at most; 0 for all.
        max_length: texts are cut at so many tokens.
        text_column: of the texts.
        label_column: of the labels.
        template: a text from columns.
        prompt: a column or template of a prompt, which is not learned.
    """

    base: str
    task: str
    name: str
    regime: str = "full"
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    head: str = "trained"
    keep: str = "last"
    seed: int = 0
    limit: int = 0
    max_length: int | None = None
    text_column: str | None = None
    label_column: str | None = None
    template: str | None = None
    prompt: str | None = None


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
        classes: names of the classes, or None for language models.
        head: the task head, as it is before training; None for networks that have their own.
    """

    parts: dict[str, Batches]
    classes: tuple[str, ...] | None
    head: Head | None


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
        MergescopeError: there is no such head.
    """  # noqa: DOC502 (raised by what this calls)
    tables = _tables(tune, network)
    parts = {name: _encode(tune, table, base, network, name) for name, table in tables.items()}
    classes = parts["train"].class_names
    if classes is None and parts["train"].labels is not None:
        classes = tuple(map(str, range(int(parts["train"].labels.max()) + 1)))
    head = None
    if classes is not None and tune.head != "none":
        head = _head(tune, network, parts["train"], tuple(classes))
    return TaskData(parts, None if classes is None else tuple(classes), head)


def _tables(tune: FineTune, network: nn.Module) -> dict[str, datasets.Dataset]:
    from mergescope.data import load_table
    from mergescope.data.registry import task_spec
    from mergescope.data.task_splits import held_out, load_split

    limit = tune.limit or None
    if kind_of_model(network) == "decoder":  # any text will do: there are no classes to check
        table = load_table(tune.task, split="train")
        train, validation = (table.select(places) for places in held_out(len(table)))
        parts = {"train": train, "validation": validation}
        return {name: part.select(range(min(limit or len(part), len(part)))) for name, part in parts.items()}
    spec = task_spec(tune.task)
    return {
        "train": load_split(spec, "train", limit=limit, seed=tune.seed),
        "validation": load_split(spec, "validation"),
        "test": load_split(spec, "test"),
    }


def _encode(
    tune: FineTune, table: datasets.Dataset, base: Checkpoint, network: nn.Module, part: str
) -> Batches:
    from mergescope.data import encode, load_processor

    if base.directory is None:
        raise DataError(f"{base.name} has no directory, so there is no tokenizer or image processor for it.")
    processor = load_processor(base.directory, kind_of_model(network))
    label = tune.label_column or next((c for c in ("label", "labels") if c in table.column_names), None)
    if kind_of_model(network) == "decoder":  # learns the next token, whatever columns there are
        label = None
    names = getattr(table.features[label], "names", None) if label is not None else None
    return encode(
        table, processor, batch_size=tune.recipe.batch, max_length=tune.max_length, text_column=tune.text_column,
        template=tune.template, prompt=tune.prompt, label_column=label, classes=len(names) if names else None,
        label2id={name: place for place, name in enumerate(names)} if names else None,
    )  # fmt: skip


def _head(tune: FineTune, network: nn.Module, train: Batches, classes: tuple[str, ...]) -> Head:
    if tune.head not in HEADS:
        if not Path(tune.head, HEAD_FILE).is_file():
            raise MergescopeError(
                f"There is no head {tune.head!r}. Choose one of {', '.join(HEADS)}, or a directory with {HEAD_FILE}."
            )
        head = load_head(Path(tune.head))
        require_classes(head, classes, tune.task)
        return head
    first, _ = split_batch(train.batch(torch.arange(1)))
    return linear_head(embedding_size(network, first), classes, tune.seed, tune.head)


@torch.no_grad()
def embedding_size(network: nn.Module, inputs: Any) -> int:
    """Length of the embedding that a head is put on.

    Args:
        network: a backbone.
        inputs: of one batch.

    Returns:
        The length.
    """
    return WithHead(network, linear_head(1, ["any"], 0)).embedding(inputs).shape[-1]
