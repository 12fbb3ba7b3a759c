"""What networks that write are fine-tuned on: texts, or questions and their answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.data import TASKS, Batches, Wording, encode, load_split, load_table, task_spec
from mergescope.data.registry import IMAGES, TEXT_TO_TEXT, TaskSpec, as_template, known_task
from mergescope.data.task_splits import SPLITS, held_out
from mergescope.data.tokens import TextProcessor
from mergescope.errors import DataError

if TYPE_CHECKING:
    import datasets

    from mergescope.studies.training_data import FineTune


def written_parts(tune: FineTune, processor: TextProcessor) -> dict[str, Batches]:
    """The splits of a task for a network that writes.

    An encoder-decoder learns to write the answer to a text: the task's wording says which, or a
    template and a column of answers, or the name of the class is the answer. A causal language
    model learns any texts, or the answers behind their questions.

    Args:
        tune: what to do.
        processor: the network's tokenizer.

    Returns:
        Split to batches whose labels are tokens.

    Raises:
        DataError: the data can't be read, or are no texts.
    """  # noqa: DOC502 (raised by what this calls)
    if processor.kind == "decoder" and not _has_answers(tune):
        return _texts(tune, processor)
    spec = _worded(tune)
    processor = replace(processor, notes=(*processor.notes, *spec.notes))
    parts = {}
    for split in SPLITS:
        limit = (tune.limit or None) if split == "train" else None
        table = load_split(spec, split, classes=tune.classes, limit=limit, seed=tune.seed)
        if processor.kind == "decoder":
            columns: dict[str, Any] = {"text_column": "answer", "prompt": "text"}
        else:
            columns = {"text_column": "text", "answer_column": "answer"}
        parts[split] = encode(
            table, processor, batch_size=tune.recipe.batch, max_length=tune.max_length, **columns
        )
    return parts


def _has_answers(tune: FineTune) -> bool:
    known = known_task(tune.task.partition("=")[0].partition("@")[0])
    named = known is not None and not Path(tune.task).expanduser().exists()
    return tune.answer_column is not None or (named and TASKS[str(known)].kind == TEXT_TO_TEXT)


def _worded(tune: FineTune) -> TaskSpec:
    if tune.prompt is not None:
        raise DataError(
            f"prompt={tune.prompt!r} has no meaning where questions have answers: the question is the prompt. Make it "
            "part of the template."
        )
    spec = task_spec(
        tune.task, label_column=tune.label_column, text=tune.template or tune.text_column,
        answer_column=tune.answer_column,
    )  # fmt: skip
    if spec.kind == IMAGES:
        raise DataError(f"The task {spec.name} is {spec.kind}, and this model takes texts. Use text data.")
    if spec.wording is not None:
        return spec
    label = spec.columns["label"]
    return replace(spec, wording=Wording(as_template(spec.columns["text"]), f"{{{label}:named}}"))


def _texts(tune: FineTune, processor: TextProcessor) -> dict[str, Batches]:
    if tune.classes is not None:
        raise DataError(
            f"classes={list(tune.classes)} has no meaning for a language model, which learns texts. Leave it out."
        )
    table = load_table(tune.task, split="train")
    train, validation = (table.select(places) for places in held_out(len(table)))
    return {
        split: encode(
            rows, processor, batch_size=tune.recipe.batch, max_length=tune.max_length, text_column=tune.text_column,
            template=tune.template, prompt=tune.prompt,
        )
        for split, rows in (("train", _some(train, tune.limit, tune.seed)), ("validation", validation))
    }  # fmt: skip


def _some(table: datasets.Dataset, limit: int, seed: int) -> datasets.Dataset:
    if not limit or limit >= len(table):
        return table
    return table.select(np.sort(np.random.default_rng(seed).permutation(len(table))[:limit]))
