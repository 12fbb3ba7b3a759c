"""The held-out data of a family's tasks, as they were encoded when its models were fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope.errors import DataError
from mergescope.studies.families import Task

if TYPE_CHECKING:
    import datasets


def held_out_rows(
    task: Task,
    kind: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    answers: bool = False,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The rows of a task that its models did not see.

    Args:
        task: of a family.
        kind: of the network, as [`kind_of_model`][mergescope.models.features.kind_of_model] says it.
        split: by default test; for texts without one, those that fine-tuning held out. ``validation`` means these for
            texts that have no such split, or none for tests beside it.
        limit: at most so many rows, a random choice in the order of the data.
        seed: of that choice.
        answers: a causal language model's answers count, not its questions.

    Returns:
        The rows, and how they become samples: arguments of [`encode`][mergescope.data.encode].

    Raises:
        DataError: the data can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.data import load_split
    from mergescope.data.registry import IMAGES, TEXT_TO_TEXT, TEXTS, as_template, task_spec
    from mergescope.data.task_splits import image_column

    said = dict(task.columns)
    classes, length = said.pop("classes", None), {"max_length": said.get("max_length")}
    text = said.get("template") or said.get("text_column")
    if task.classes is None and kind == "decoder" and _is_plain(task):
        columns = {name: said.get(name) for name in ("text_column", "template", "prompt")}
        return _texts(task.source, split, limit, seed), columns | length
    spec = task_spec(
        task.source, label_column=said.get("label_column"), text=text, answer_column=said.get("answer_column"),
        image_column=said.get("image_column"),
    )  # fmt: skip
    if spec.kind == TEXT_TO_TEXT and task.classes is not None:  # its answers are classes for this network
        spec = replace(
            spec, kind=TEXTS, wording=None, columns={"text": "text", "label": said.get("label_column") or "label"}
        )  # fmt: skip
    table = load_split(spec, split or "test", classes=classes, limit=limit, seed=seed)
    if spec.kind == TEXT_TO_TEXT:
        if kind == "decoder" and answers:
            return table, {"text_column": "answer", "prompt": "text", **length}
        return table, {"text_column": "text", **length}
    columns = {"label_column": spec.columns["label"]}
    if classes is not None and task.mask is None:
        columns["label2id"] = {old: new for new, old in enumerate(sorted(set(classes)))}
    if spec.kind == IMAGES:
        return table, columns | {"image_column": said.get("image_column") or image_column(spec, table)}
    template, named = said.get("template"), said.get("text_column") or spec.columns.get("text")
    if kind == "encoder-decoder" and task.classes is None and not template and "," in (named or ""):
        template = as_template(str(named))  # one that writes learned the pair as one text
    columns |= {"template": template, "prompt": said.get("prompt"), **length}
    return table, columns | {"text_column": None if template else named}


def _is_plain(task: Task) -> bool:
    from mergescope.data.registry import TASKS, TEXT_TO_TEXT, known_task

    known = known_task(task.source.partition("=")[0].partition("@")[0])
    return "answer_column" not in task.columns and (known is None or TASKS[known].kind != TEXT_TO_TEXT)


def _texts(source: str, split: str | None, limit: int | None, seed: int) -> datasets.Dataset:
    from mergescope.data import load_table
    from mergescope.data.splits import SYNONYMS
    from mergescope.data.task_splits import held_out

    if split == "validation":
        return _some(_validation(source), limit, seed)
    table = load_table(source, split=split)
    if split is None and SYNONYMS.get(str(table.split).lower()) not in ("test", "validation"):
        table = load_table(source, split="train")
        table = table.select(held_out(len(table))[1])
    return _some(table, limit, seed)


def _validation(source: str) -> datasets.Dataset:
    # A split of its own beside that for tests; else the part of the training split that no model was trained on.
    from mergescope.data import load_table
    from mergescope.data.task_splits import held_out

    try:
        table = load_table(source, split="validation")
        load_table(source, split="test")
    except DataError:
        table = load_table(source, split="train")
        return table.select(held_out(len(table))[1])
    return table


def _some(table: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    if limit is not None and limit < len(table):
        table = table.select(np.sort(np.random.default_rng(seed).permutation(len(table))[:limit]))
    return table
