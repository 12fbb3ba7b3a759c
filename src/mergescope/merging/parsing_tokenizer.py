"""The ``tokenizer`` and ``tokenizer_source`` of a recipe."""

from __future__ import annotations

from typing import Any

import yaml

from mergescope.merging.parsing_yaml import Fields, YamlReader, shown


def read_tokenizer(reader: YamlReader, fields: Fields, base: str | None) -> dict[str, Any] | None:
    """What a recipe says about the output's tokenizer.

    Args:
        reader: collects what is wrong.
        fields: of the recipe.
        base: the recipe's base model.

    Returns:
        ``{"source": ..., "tokens": {...}, "pad_to_multiple_of": ...}``, or None if it says nothing.
    """
    if "tokenizer" in fields and "tokenizer_source" in fields:
        reader.problem(fields["tokenizer"][1], "tokenizer and tokenizer_source exclude each other.")
    if "tokenizer" not in fields:
        if "tokenizer_source" not in fields:
            return None
        return {"source": _source(reader, fields["tokenizer_source"], base)}
    inner = reader.fields(fields["tokenizer"][0], ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
    tokens: dict[str, Any] = {}
    if "tokens" in inner:
        for token, (item, at) in reader.fields(inner["tokens"][0], None, "tokens").items():
            tokens[token] = _token(reader, token, item, at)
    pad = reader.plain(inner["pad_to_multiple_of"][0]) if "pad_to_multiple_of" in inner else None
    if pad is not None and (type(pad) is not int or pad < 1):
        at = inner["pad_to_multiple_of"][1]
        reader.problem(at, f"pad_to_multiple_of must be a positive integer, got {shown(pad)}.")
    chosen = _source(reader, inner["source"], base) if "source" in inner else "union"
    return {"source": chosen, "tokens": tokens, "pad_to_multiple_of": pad}


def _source(reader: YamlReader, field: tuple[yaml.Node, int], base: str | None) -> str | None:
    source = reader.reference(*field)
    if source == "base" and base is None:
        reader.problem(field[1], "the tokenizer's source is base, but there is no base_model.")
    return source


def _token(reader: YamlReader, token: str, node: yaml.Node, line: int) -> dict[str, Any]:
    fields = reader.fields(node, ("source", "force"), f"token {token!r}")
    force = reader.plain(fields["force"][0]) if "force" in fields else False
    if not isinstance(force, bool):
        reader.problem(fields["force"][1], f"force must be true or false, got {shown(force)}.")
    out: dict[str, Any] = {"force": bool(force)}
    if "source" in fields:
        out["source"] = _token_source(reader, token, *fields["source"])
    elif not out["force"]:
        reader.problem(line, f"the token {token!r} needs a source.")
    return out


def _token_source(reader: YamlReader, token: str, node: yaml.Node, line: int) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return reader.reference(node, line)
    inner = reader.fields(node, ("kind", "model", "token", "token_id"), f"the source of {token!r}")
    source = {key: reader.plain(value) for key, (value, _) in inner.items()}
    if "model" in inner:
        source["model"] = reader.reference(*inner["model"])
    kind = source.get("kind", "model_token" if "model" in source else None)
    if kind not in ("zero", "model_token"):
        reader.problem(line, f"the source of token {token!r} needs kind: zero or model_token.")
    elif kind == "model_token" and ("model" not in source or ("token" in source) == ("token_id" in source)):
        reader.problem(line, f"the source of token {token!r} needs a model, and either token or token_id.")
    elif kind == "zero" and len(source) > 1:
        reader.problem(line, f"the source of token {token!r} has kind: zero, which takes nothing else.")
    elif "token_id" in source and type(source["token_id"]) is not int:
        reader.problem(line, f"token_id must be an integer, got {shown(source['token_id'])}.")
    return {**source, "kind": kind}
