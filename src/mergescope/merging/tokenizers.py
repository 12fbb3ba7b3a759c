"""Matching vocabularies of a merge: rows of embeddings and heads by token, not by number.

Rows that a model lacks are filled by mergekit's rule: the base's row, else the only owner's, else
the mean of the owners'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergescope.errors import CheckpointError, MergescopeError, did_you_mean
from mergescope.merging.aligned_rows import AlignedRows
from mergescope.merging.streams import Rows
from mergescope.merging.tokenizer_files import write_tokenizer
from mergescope.merging.vocabulary import (
    HEADS,
    INPUTS,
    Vocabulary,
    embedding_keys,
    ends_with,
    read_vocabulary,
    vocabulary_problems,
    vocabulary_rows,
)

__all__ = [
    "AlignedRows",
    "Alignment",
    "Vocabulary",
    "embedding_keys",
    "output_vocabulary",
    "read_vocabulary",
    "vocabulary_problems",
    "write_tokenizer",
]

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id",
        "mask_token_id", "decoder_start_token_id", "image_token_id")  # fmt: skip


@dataclass
class Alignment:
    """The output vocabulary of a merge and where each model has its rows.

    Attributes:
        source: ``"base"``, ``"union"`` or a model reference.
        home: reference of the model whose tokenizer is taken or extended.
        tokens: output token to id.
        size: rows of the output's embedding; more than tokens if it is padded.
        index: reference to ``(size,)`` int64: the model's row for each output row, or -1.
        fill: reference to ``(size,)`` int64: rows whose mean a model without the token gets, or -1.
        vocabularies: reference to the model's own vocabulary.
        models: reference to checkpoint.
    """

    source: str
    home: str
    tokens: dict[str, int]
    size: int
    index: dict[str, np.ndarray]
    fill: dict[str, np.ndarray]
    vocabularies: dict[str, Vocabulary]
    models: dict[str, Any]
    _keys: dict[str, dict[str, str]] = field(default_factory=dict)

    def keys(self, reference: str) -> dict[str, str]:
        """The vocabulary's tensors of a model, as [`embedding_keys`][] finds them.

        Args:
            reference: one of the models.

        Returns:
            Key to role.
        """
        if reference not in self._keys:
            self._keys[reference] = embedding_keys(self.models[reference])
        return self._keys[reference]

    def rows(self, model: Any, key: str, found: Rows) -> Rows:
        """One model's tensor as it takes part in the merge.

        Args:
            model: one of the checkpoints.
            key: the tensor's name there.
            found: its rows.

        Returns:
            ``found`` itself if its rows are no tokens or stand in order, else re-indexed rows.
        """
        reference = next(name for name, other in self.models.items() if other is model)
        if key not in self.keys(reference):
            return found
        index = self.index[reference]
        if found.shape[0] == self.size and np.array_equal(index, np.arange(self.size)):
            return found
        return AlignedRows(self, reference, key, found)

    def counterpart(self, reference: str, key: str, owner: str) -> str | None:
        """Where another model has the tensor that a model calls ``key``.

        Args:
            reference: the other model.
            key: the tensor's name.
            owner: the model that calls it so.

        Returns:
            The name there; of a tied head the embedding's; None if there is no such tensor.
        """
        theirs = self.keys(reference)
        if key in theirs:
            return key
        role = self.keys(owner).get(key, "input")
        roles = ("head", "input") if role == "head" or key.endswith(HEADS) else (role,)
        return next((name for wanted in roles for name, has in theirs.items() if has == wanted), None)

    def config(self, config: Mapping[str, Any], reference: str) -> dict[str, Any]:
        """A configuration with the output's vocabulary size and special token ids.

        Args:
            config: ``config.json`` or ``generation_config.json`` of a model.
            reference: which model's.

        Returns:
            The changed copy.
        """
        by_id = {number: token for token, number in self.vocabularies[reference].ids.items()}

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(item) for item in value]
            return self.tokens.get(by_id.get(value, ""), value) if type(value) is int else value

        out = {key: moved(value) if key in _IDS else value for key, value in config.items()}
        if "vocab_size" in out:
            out["vocab_size"] = self.size
        for part in ("text_config", "decoder"):
            if isinstance(out.get(part), dict):
                out[part] = self.config(out[part], reference)
        return out


def output_vocabulary(
    settings: Mapping[str, Any] | str, models: Mapping[str, Any], base: str | None
) -> Alignment:
    """Decide the output vocabulary of a merge.

    Args:
        settings: mergekit's ``tokenizer``: ``{"source": "base" | "union" | reference, "tokens":
            {token: {"source": ..., "force": ...}}, "pad_to_multiple_of": ...}``, or its source.
        models: reference to checkpoint, all with a tokenizer.
        base: reference of the base model, or None; then ``"base"`` is the first model.

    Returns:
        The alignment.

    Raises:
        MergescopeError: a model or token is unknown; all such are named.
        CheckpointError: a model has no usable tokenizer, or other rows than its configuration says.
    """  # noqa: DOC502 (raised by what this calls)
    settings = {"source": settings} if isinstance(settings, str) else dict(settings)
    source = settings.get("source") or "union"
    first = base if base is not None else next(iter(models))
    home = first if source in {"base", "union"} else source
    if home not in models:
        raise MergescopeError(
            f"The tokenizer source {source!r} is not one of the models: {', '.join(models)}; write base, union or "
            f"one of them.{did_you_mean(source, models)}"
        )
    tables = {name: read_vocabulary(model) for name, model in models.items()}
    _require_rows(models)
    rows = {name: max(vocabulary_rows(model) or 0, 0) or tables[name].end for name, model in models.items()}
    tokens = dict(tables[home].ids)
    if source == "union":
        following = tables[home].end
        for table in [tables[home], *tables.values()]:
            for token in table.tokens:
                if token not in tokens:
                    tokens[token] = following
                    following += 1
    size = max(rows[home], max(tokens.values(), default=-1) + 1)
    multiple = settings.get("pad_to_multiple_of") or 1
    size = math.ceil(size / multiple) * multiple
    index = {name: _index(tokens, table.ids, size, rows[name]) for name, table in tables.items()}
    fill = _fill(index, base)
    alignment = Alignment(source, home, tokens, size, index, fill, tables, dict(models))
    _override(alignment, settings.get("tokens") or {}, rows)
    return alignment


def _require_rows(models: Mapping[str, Any]) -> None:
    # Else no tensor would count as the vocabulary's, and rows of different tokens be merged after all.
    problems = []
    for name, model in models.items():
        inputs = {
            key: spec.shape[0]
            for key, spec in model.spec.items()
            if ends_with(key, INPUTS) and len(spec.shape) == 2
        }
        if inputs and "input" not in embedding_keys(model).values():
            key, rows = next(iter(inputs.items()))
            size = vocabulary_rows(model)
            problems.append(f"{key} of {name} has {rows} rows, but its vocab_size is {size}")
    if problems:
        raise CheckpointError(
            f"Rows can't be matched by token: {'; '.join(problems)}. Correct vocab_size in config.json there if it is "
            "wrong; where the network has further rows of its own, leave out the recipe's tokenizer."
        )


def _index(tokens: Mapping[str, int], ids: Mapping[str, int], size: int, rows: int) -> np.ndarray:
    index = np.arange(size)  # rows without a token stay where they are
    named, taken = set(tokens.values()), set(ids.values())
    for number in range(size):
        if number >= rows or (number not in named and number in taken):
            index[number] = -1
    for token, number in tokens.items():
        own = ids.get(token, -1)
        index[number] = own if own < rows else -1
    return index


def _fill(index: Mapping[str, np.ndarray], base: str | None) -> dict[str, np.ndarray]:
    in_base = index[base] >= 0 if base is not None else np.zeros(len(next(iter(index.values()))), dtype=bool)
    return {name: np.where(in_base & (name != base), -1, rows) for name, rows in index.items()}


def _override(alignment: Alignment, overrides: Mapping[str, Any], rows: Mapping[str, int]) -> None:
    problems = []
    for token, setting in overrides.items():
        place = alignment.tokens.get(token)
        if place is None:
            problems.append(
                f"token {token!r} is not in the output vocabulary.{did_you_mean(token, alignment.tokens)}"
            )
            continue
        chosen = setting.get("source")
        if chosen is not None:
            found = _chosen(alignment, token, chosen, rows)
            if isinstance(found, str):
                problems.append(f"token {token!r}: {found}")
                continue
            for name in alignment.fill:
                alignment.fill[name][place] = found.get(name, -1)
        if setting.get("force"):
            for name in alignment.index:
                alignment.index[name][place] = -1
    if problems:
        raise MergescopeError(
            "The recipe's tokenizer.tokens can't be applied:\n  - " + "\n  - ".join(problems)
        )


def _chosen(alignment: Alignment, token: str, source: Any, rows: Mapping[str, int]) -> dict[str, int] | str:
    described: dict[str, Any] = {"model": source, "token": token} if isinstance(source, str) else source
    if described.get("kind") == "zero":
        return {}
    model = described.get("model")
    if model not in alignment.models:
        return f"{model!r} is not one of the models: {', '.join(alignment.models)}."
    if (described.get("token") is None) == (described.get("token_id") is None):
        return "give either token or token_id."
    number = described.get("token_id")
    if number is None:
        ids = alignment.vocabularies[model].ids
        number = ids.get(described["token"])
        if number is None:
            return f"{model} has no token {described['token']!r}.{did_you_mean(described['token'], ids)}"
    if not 0 <= number < rows[model]:
        return f"{model} has {rows[model]} embedding rows, and no row {number}."
    return {model: int(number)}
