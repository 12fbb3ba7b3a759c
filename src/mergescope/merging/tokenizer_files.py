"""Writing the tokenizer of a merged model, and checking that it gives the ids of its rows."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.documents import read_settings
from mergescope.errors import CheckpointError
from mergescope.merging.chat_templates import FILE, choose_chat_template
from mergescope.merging.vocabulary import TOKENIZER_FILES, load_tokenizer, tokenizer_directory

if TYPE_CHECKING:
    from mergescope.merging.tokenizers import Alignment

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def write_tokenizer(
    out_dir: Path,
    alignment: Alignment | None,
    *,
    models: Mapping[str, Any],
    base: str | None = None,
    chat_template: str | None = None,
) -> None:
    """Write the tokenizer files of a merge, load them again and compare the ids.

    A tokenizer of one model is copied. A union is the base's tokenizer with the other models'
    tokens after its own, so that ids of the base stay: tokens that were added to a model are added
    here too; pieces of a trained vocabulary enter the vocabulary (without merges, so that the base
    goes on to split text as before, unless its model is WordPiece or Unigram, which use any piece).

    Args:
        out_dir: the merged model's directory; tokenizer files there are replaced.
        alignment: the output vocabulary, or None to leave the tokenizer as it is.
        models: reference to checkpoint.
        base: the base model's reference; its chat template counts first.
        chat_template: ``"auto"``, a built-in name, Jinja text, or None to leave it.

    Raises:
        CheckpointError: the tokenizer can't be extended, gives other ids when loaded, or has damaged files.
        MergescopeError: the chat template is unknown or invalid.
    """  # noqa: DOC502 (raised by what this calls)
    if alignment is not None:
        home = alignment.vocabularies[alignment.home]
        _remove(out_dir)
        if alignment.tokens == dict(home.ids):
            _copy(home.directory, out_dir)
        else:
            _write_union(out_dir, alignment)
        _verify(out_dir, alignment)
    if chat_template is not None:
        order = ([base] if base is not None and base in models else []) + [
            name for name in models if name != base
        ]
        folders = [folder for name in order if (folder := tokenizer_directory(models[name])) is not None]
        template = choose_chat_template(chat_template, folders)
        if template is not None:
            _write_template(out_dir, template, folders)


def _remove(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


def _copy(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_union(out_dir: Path, alignment: Alignment) -> None:
    home = alignment.vocabularies[alignment.home]
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        # Saved again, because older directories have the vocabulary in other files.
        load_tokenizer(home.directory, home.name).save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"The tokenizer of {home.name} ({home.directory}) has no tokenizer.json form and can't be "
                "extended. Use tokenizer: {source: base}, or a base with a fast tokenizer."
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        added = {
            str(token): token
            for table in alignment.vocabularies.values()
            for token in table.added.values()
            if str(token) not in home.ids
        }
        _extend(content, alignment, added, home.name)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        for name in (
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "tokenizer.model",
            "spiece.model",
            "added_tokens.json",
        ):
            (Path(folder) / name).unlink(missing_ok=True)  # they would tell the old vocabulary
        _extend_config(Path(folder) / "tokenizer_config.json", alignment, added)
        _copy(Path(folder), out_dir)


def _extend(content: dict[str, Any], alignment: Alignment, added: Mapping[str, Any], name: str) -> None:
    model, ids = content["model"], alignment.tokens
    listed = {item["content"]: item for item in content["added_tokens"]}
    for token, attributes in added.items():
        listed[token] = {"id": ids[token], "content": token} | {
            flag: bool(getattr(attributes, flag, False)) for flag in _FLAGS
        }
    content["added_tokens"] = sorted(listed.values(), key=lambda item: item["id"])
    # An added token's id is its place after the vocabulary, so with tokens of given ids behind it
    # the only way to keep it is to have it in the vocabulary as well.
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    elif isinstance(model.get("vocab"), list):
        by_id = {number: token for token, number in ids.items()}
        scores = [score for _, score in model["vocab"]] or [0.0]
        low = min(scores) - 10.0  # rarer than any piece, so that the base's pieces are preferred
        for number in range(len(model["vocab"]), max(by_id) + 1):
            if number not in by_id:
                raise CheckpointError(
                    f"The Unigram tokenizer of {name} has no token {number}, and one can't be left out. "
                    "Use tokenizer: {source: base}."
                )
            model["vocab"].append([by_id[number], low])
    else:
        raise CheckpointError(
            f"The tokenizer of {name} is of the kind {model.get('type')!r}, which can't be extended. "
            "Use tokenizer: {source: base}."
        )


def _extend_config(path: Path, alignment: Alignment, added: Mapping[str, Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    table = config.get("added_tokens_decoder")
    if isinstance(table, dict):
        for token, attributes in added.items():
            table[str(alignment.tokens[token])] = {"content": token} | {
                flag: bool(getattr(attributes, flag, False)) for flag in _FLAGS
            }
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _verify(out_dir: Path, alignment: Alignment) -> None:
    written = load_tokenizer(out_dir, "the merged model").get_vocab()
    wrong = sorted(
        (
            token
            for token in {*written, *alignment.tokens}
            if written.get(token) != alignment.tokens.get(token)
        ),
        key=lambda token: alignment.tokens.get(token, -1),
    )
    if wrong:
        shown = ", ".join(
            f"{token!r} (row {alignment.tokens.get(token, 'none')}, id {written.get(token, 'none')})"
            for token in wrong[:5]
        )
        raise CheckpointError(
            f"The merged tokenizer in {out_dir} gives {len(wrong)} token(s) other ids than their rows: {shown}. "
            f"The tokenizer of {alignment.home} can't be extended faithfully: use tokenizer: {{source: base}}."
        )


def _write_template(out_dir: Path, template: str, folders: Sequence[Path]) -> None:
    (out_dir / FILE).write_text(template, encoding="utf-8")
    (out_dir / "chat_template.json").unlink(missing_ok=True)
    path = out_dir / "tokenizer_config.json"
    if path.is_file():
        origin = next((folder for folder in folders if (folder / path.name).is_file()), None)
        config = read_settings(path, named=None if origin is None else origin / path.name)
        if config.pop("chat_template", None) is not None:  # two templates would contradict each other
            path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
