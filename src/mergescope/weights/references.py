"""Naming models: ``path_or_id[@revision][+lora[@revision]]``, mergekit's syntax."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from mergescope.documents import usable_path
from mergescope.errors import CheckpointError
from mergescope.weights.checkpoint import Checkpoint
from mergescope.weights.files import ADAPTER_CONFIG, INDEX, SINGLE


class ModelReference(NamedTuple):
    """A model as a recipe or command line names it.

    Attributes:
        model: path or hub id.
        revision: branch, tag or commit of a hub id.
        lora: path or hub id of a PEFT adapter that is applied to the model.
        lora_revision: that one's revision.
    """

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None


def parse_model_reference(text: str) -> ModelReference:
    """Take ``path_or_id[@revision][+lora[@revision]]`` apart.

    A path that exists is taken as it is, also if it holds ``+`` or ``@``: the whole text first,
    then the longest part before a ``+``.

    Args:
        text: the reference.

    Returns:
        Its parts.

    Raises:
        CheckpointError: a part is empty.

    Example:
        >>> parse_model_reference("org/base@v1+org/adapter")
        ModelReference(model='org/base', revision='v1', lora='org/adapter', lora_revision=None)
    """  # noqa: DOC502 (raised by what this calls)
    text = text.strip()
    pluses = [place for place, letter in enumerate(text) if letter == "+"]
    if _exists(text) or not pluses:
        return ModelReference(*_revision(text, text))
    # The longest existing path before a "+" is the model; without one, the first "+" separates.
    cut = next((place for place in reversed(pluses) if _exists(text[:place])), pluses[0])
    return ModelReference(*_revision(text[:cut], text), *_revision(text[cut + 1 :], text))


def _revision(part: str, text: str) -> tuple[str, str | None]:
    name, at, revision = part.rpartition("@")
    if not at or _exists(part):
        name, at, revision = part, "", ""
    if not name or (at and not revision):
        raise CheckpointError(
            f"The model reference {text!r} has an empty part. Write path_or_id[@revision][+lora[@revision]]."
        )
    return name, revision or None


def _exists(part: str) -> bool:
    return bool(part) and usable_path(part, CheckpointError).exists()


def open_model(
    text: str | os.PathLike[str], *, revision: str | None = None, dtype: str | torch.dtype | None = None
) -> Checkpoint:
    """Open what a reference names: a checkpoint, or a base with a LoRA adapter applied lazily.

    A PEFT adapter directory named alone is applied to the base that its configuration names.

    Args:
        text: ``path_or_id[@revision][+lora[@revision]]``.
        revision: of the model, if the text gives none.
        dtype: read floating-point tensors as this type.

    Returns:
        A [`Checkpoint`][mergescope.Checkpoint], for an adapter a
        [`LoraCheckpoint`][mergescope.weights.lora.LoraCheckpoint].

    Raises:
        CheckpointError: it can't be found or read.
    """
    from mergescope.weights.adapters import read_adapter
    from mergescope.weights.lora import LoraCheckpoint

    parts = parse_model_reference(os.fspath(text))
    if parts.revision and revision and parts.revision != revision:
        raise CheckpointError(
            f"{os.fspath(text)!r} names the revision {parts.revision!r}, but {revision!r} was asked for."
        )
    revision = parts.revision or revision
    folder = Path(parts.model).expanduser()
    lone = (folder / ADAPTER_CONFIG).is_file() and not any(
        (folder / name).is_file() for name in (SINGLE, INDEX)
    )
    if parts.lora is None and lone:
        adapter = read_adapter(folder)
        if not adapter.base:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} does not name its base model. Name it: BASE+{folder}."
            )
        try:
            base = Checkpoint(adapter.base, revision=adapter.base_revision, dtype=dtype)
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} names the base {adapter.base!r}, which can't be opened: {error} If it is "
                f"elsewhere, or an old id without an organisation, name it: PATH+{folder} or ORG/NAME+{folder}."
            ) from error
        return LoraCheckpoint(base, folder)
    base = Checkpoint(parts.model, revision=revision, dtype=dtype)
    return base if parts.lora is None else LoraCheckpoint(base, parts.lora, revision=parts.lora_revision)
