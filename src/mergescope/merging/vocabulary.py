"""Which token a row of an embedding belongs to, and which tensors have such rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from mergescope.errors import CheckpointError
from mergescope.weights.lora import VOCABULARY_FILES

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "bpe.codes",
    "tekken.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files that make up a tokenizer."""

INPUTS = (
    "embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "embed_in.weight", "token_embedding.weight", "word_embedding.weight", "tokens_embed.weight",
)  # fmt: skip
"""How names of input embeddings end."""

HEADS = (
    "lm_head.weight", "embed_out.weight", "output.weight", "predictions.decoder.weight", "lm_head.decoder.weight",
    "vocab_projector.weight", "proj_out.weight", "generator_lm_head.weight",
)  # fmt: skip
"""How names of language-model heads end."""

BIASES = (
    "lm_head.bias", "predictions.bias", "predictions.decoder.bias", "lm_head.decoder.bias",
    "vocab_projector.bias", "embed_out.bias", "generator_lm_head.bias",
)  # fmt: skip
"""How names of the heads' biases end."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one model.

    Attributes:
        name: the model's.
        directory: where the tokenizer is.
        ids: token to id.
        added: tokens outside the trained vocabulary, with their attributes.
    """

    name: str
    directory: Path
    ids: Mapping[str, int]
    added: Mapping[str, Any]

    @property
    def tokens(self) -> list[str]:
        """The tokens by rising id."""
        return sorted(self.ids, key=lambda token: (self.ids[token], token))

    @property
    def end(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1


def tokenizer_directory(model: Any) -> Path | None:
    """Where a model's tokenizer is.

    Args:
        model: a checkpoint.

    Returns:
        The adapter's or the model's directory, or None if there are no tokenizer files.
    """
    folder = getattr(model, "tokenizer_directory", None) or getattr(model, "directory", None)
    # Some tokenizers (of bytes) have no vocabulary, but a lone template or list of special tokens is none.
    shows = (*VOCABULARY_FILES, "tokenizer_config.json")
    if folder is None or not any((folder / name).is_file() for name in shows):
        return None
    return Path(folder)


def load_tokenizer(directory: Path, name: str) -> Any:
    """Load a tokenizer from local files, without remote code.

    Args:
        directory: where its files are.
        name: the model's, for the message.

    Returns:
        transformers' tokenizer.

    Raises:
        CheckpointError: transformers can't load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions
        first = shorten((str(error).splitlines() or [""])[0], 200)  # it may list every model there is
        raise CheckpointError(
            f"The tokenizer of {name} in {directory} can't be loaded: {type(error).__name__}: {first}. "
            "Fetch its files again, or leave out the recipe's tokenizer."
        ) from error


def read_vocabulary(model: Any) -> Vocabulary:
    """Read the token table of a model.

    Args:
        model: a checkpoint with a directory.

    Returns:
        The vocabulary; the embedding may have more rows than it has tokens.

    Raises:
        CheckpointError: there is no tokenizer, or it can't be loaded.
    """
    folder = tokenizer_directory(model)
    if folder is None:
        raise CheckpointError(
            f"{model.name} ({getattr(model, 'directory', None) or 'in memory'}) has no tokenizer files, so its "
            "rows can't be matched by token. Add its tokenizer, or leave out the recipe's tokenizer."
        )
    tokenizer = load_tokenizer(folder, model.name)
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    return Vocabulary(model.name, folder, dict(tokenizer.get_vocab()), added)


def vocabulary_rows(checkpoint: Any) -> int | None:
    """How many rows the vocabulary's tensors have, padding rows included.

    Args:
        checkpoint: a checkpoint.

    Returns:
        ``vocab_size`` of the configuration (or its text part); without one, the rows of the input
        embedding; None if there is neither.
    """
    config = checkpoint.config or {}
    for part in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    found = [
        spec.shape[0]
        for key, spec in checkpoint.spec.items()
        if ends_with(key, INPUTS) and len(spec.shape) == 2
    ]
    return max(found, default=None)


def embedding_keys(checkpoint: Any) -> dict[str, str]:
    """Which tensors have one row a token.

    A tensor counts if its name is that of an embedding, head or head's bias and its first
    dimension is the vocabulary's; also if the name is unknown, but no other number in the
    configuration is that large. A tied head is not stored and not listed.

    Args:
        checkpoint: a checkpoint.

    Returns:
        Key to ``"input"``, ``"head"``, ``"bias"`` or ``"other"``.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> state = {"model.embed_tokens.weight": torch.ones(7, 2), "lm_head.weight": torch.ones(7, 2)}
        >>> embedding_keys(Checkpoint(state | {"norm.weight": torch.ones(2)}))
        {'model.embed_tokens.weight': 'input', 'lm_head.weight': 'head'}
    """
    rows = vocabulary_rows(checkpoint)
    if rows is None:
        return {}
    config = checkpoint.config or {}
    numbers = [value for value in _numbers(config) if value >= rows]
    distinct = len(numbers) == 1  # the vocabulary's own size, and nothing near it
    found = {}
    for key, spec in checkpoint.spec.items():
        if not spec.shape or spec.shape[0] != rows:
            continue
        known = (("input", INPUTS), ("head", HEADS), ("bias", BIASES))
        role = next((role for role, names in known if ends_with(key, names)), "other" if distinct else None)
        if role is not None:
            found[key] = role
    return found


def ends_with(key: str, names: Sequence[str]) -> bool:
    """Whether a tensor is called one of some names, whatever it is in.

    Args:
        key: the tensor's name.
        names: such as [`HEADS`][].

    Returns:
        True if it ends with one of them.

    Example:
        >>> ends_with("model.lm_head.weight", HEADS), ends_with("elm_head.weight", HEADS)
        (True, False)
    """
    return any(key == name or key.endswith("." + name) for name in names)


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def vocabulary_problems(models: Sequence[Any]) -> list[str]:
    """What would go wrong if these models were merged row by row.

    Args:
        models: checkpoints, the base first; those without tokenizer files are compared by rows.

    Returns:
        One sentence for each difference from the first; empty if rows belong to the same tokens.

    Raises:
        CheckpointError: a tokenizer is there but can't be loaded.
    """  # noqa: DOC502 (raised by what this calls)
    problems = []
    advice = "Set tokenizer: {source: union} (or base) in the recipe to match rows by token."
    tables = {id(model): read_vocabulary(model) for model in models if tokenizer_directory(model) is not None}
    for model in models:
        table, rows = tables.get(id(model)), vocabulary_rows(model)
        if table is not None and rows is not None and table.end > rows:
            problems.append(
                f"{model.name}: its tokenizer has ids up to {table.end - 1}, but its embedding has {rows} rows."
            )
    for model in models[1:]:
        first = models[0]
        have, want = vocabulary_rows(model), vocabulary_rows(first)
        if have is not None and want is not None and have != want:
            problems.append(f"{model.name} has {have} embedding rows, {first.name} has {want}. {advice}")
        ours, theirs = tables.get(id(model)), tables.get(id(first))
        if ours is not None and theirs is not None:
            problems += _differences(ours, theirs, advice)
        elif (ours is None) != (theirs is None):
            without = model.name if ours is None else first.name
            problems.append(
                f"{without} has no tokenizer files, so its tokens can't be compared with the others'."
            )
    base = tables.get(id(models[0])) if models else None
    others = [(model.name, tables[id(model)]) for model in models[1:] if id(model) in tables]
    if base is not None:  # of those with other ids than it has, that was told
        others = [
            (name, it) for name, it in others if all(base.ids.get(t, row) == row for t, row in it.ids.items())
        ]
    found = conflicts(others, base)
    return problems + [f"{text}. Rows of different tokens would be averaged. {advice}" for text in found]


def conflicts(tables: Iterable[tuple[str, Vocabulary]], base: Vocabulary | None = None) -> Iterator[str]:
    """Where one row belongs to different tokens in two models, or one token to different rows.

    Args:
        tables: names and vocabularies of all models.
        base: what they were fine-tuned from. A token that takes the place of one of its own, such as a reserved one,
            is in no conflict with that, but with what another model has there.

    Yields:
        A clause for each model that does not fit to those before it.

    Example:
        >>> def told(*ids): return list(conflicts((str(n), Vocabulary("", Path(), it, {})) for n, it in enumerate(ids)))
        >>> told({"a": 0, "b": 1}, {"a": 0, "c": 2}, {"a": 0, "d": 2})
        ["1 row has another token in 2 than in 1: row 2 is 'd' and 'c'"]
        >>> told({"a": 0, "b": 1}, {"a": 1, "b": 0})
        ["2 tokens have other ids in 1 than in 0: 'a' is 1 and 0"]
    """
    based = {} if base is None else {number: token for token, number in base.ids.items()}
    rows: dict[str, tuple[int, str]] = {}
    tokens: dict[int, tuple[str, str]] = {}
    for name, table in tables:
        moved = [token for token, row in table.ids.items() if rows.get(token, (row,))[0] != row]
        own = {row: token for token, row in table.ids.items() if based.get(row) != token}
        taken = [row for row, token in own.items() if tokens.get(row, (token,))[0] != token]
        if moved:
            token = moved[0]
            row, other = rows[token]
            told = "1 token has another id" if len(moved) == 1 else f"{len(moved)} tokens have other ids"
            yield f"{told} in {name} than in {other}: {token!r} is {table.ids[token]} and {row}"
        elif taken:
            row = taken[0]
            token, other = tokens[row]
            told = "1 row has another token" if len(taken) == 1 else f"{len(taken)} rows have other tokens"
            yield f"{told} in {name} than in {other}: row {row} is {own[row]!r} and {token!r}"
        rows = {token: (row, name) for token, row in table.ids.items()} | rows
        tokens = {row: (token, name) for row, token in own.items()} | tokens


def _differences(ours: Vocabulary, theirs: Vocabulary, advice: str) -> list[str]:
    problems = []
    moved = [token for token in theirs.tokens if token in ours.ids and ours.ids[token] != theirs.ids[token]]
    if moved:
        token = moved[0]
        size = "the same number of tokens" if len(ours.ids) == len(theirs.ids) else "other sizes"
        problems.append(
            f"{ours.name} and {theirs.name} have {size}, but {len(moved)} token(s) with other ids: {token!r} is "
            f"{ours.ids[token]} in {ours.name} and {theirs.ids[token]} in {theirs.name}. Rows of different tokens "
            f"would be averaged. {advice}"
        )
    for a, b in ((ours, theirs), (theirs, ours)):
        only = [token for token in a.tokens if token not in b.ids]
        if only:
            added = [token for token in only if token in a.added]
            kind = f", {len(added)} of them added tokens" if added else ""
            shown = ", ".join(map(repr, (added or only)[:3]))
            problems.append(f"{a.name} has {len(only)} token(s) that {b.name} lacks{kind}: {shown}. {advice}")
    return problems
