"""Zero-shot heads: class names in words, through CLIP's text tower, cached by content."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mergescope.errors import CheckpointError, DataError, MergescopeError
from mergescope.models.heads import FILE, Head, content_key, load_head, save_head
from mergescope.weights.point import TensorSpec
from mergescope.weights.stores import bytes_digest, content_digest

BATCH = 256
"""Prompts a pass. Results don't depend on it beyond rounding."""

TOWER = ("text_model.", "text_projection")
"""How the tensors of the text tower begin in a CLIP model."""

SETTINGS = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")
"""What a text tower's configuration says of what it computes, beyond what its weights do."""


def user_cache() -> Path:
    """Where heads are kept from one run to the next.

    Returns:
        A directory in the user's cache; it need not be there.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergescope" / "heads"


@torch.no_grad()
def zero_shot_head(
    text_model: nn.Module,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    logit_scale: float,
    cache: Path | None = None,
) -> Head:
    """The classifier that a CLIP text tower makes of class names (CLIP, Radford et al. 2021; TA).

    Row ``c`` is ``exp(s) n(mean_t n(text(t with c)))`` for templates ``t``, where ``n(v) = v / |v|``.
    It is for normalised image embeddings.

    Args:
        text_model: ``CLIPModel`` or ``CLIPTextModelWithProjection``.
        tokenizer: its tokenizer.
        classes: names, in words.
        templates: texts with one ``{}`` for the class.
        logit_scale: ``s``, the logarithm that CLIP stores.
        cache: directory of heads made before, found by content: class names, templates, weights and settings of
            the text tower, tokenizer and scale. A change of any of them makes another head.

    Returns:
        The head, in float32.

    Raises:
        DataError: a template has no ``{}``, there are no classes or templates, a prompt is too long, or
            the tokenizer is not the model's.
        CheckpointError: the head in the cache is damaged.
        MergescopeError: the model gives no projected text embeddings.
    """  # noqa: DOC502 (raised by what this calls)
    _require_words(classes, templates)
    key = content_key(
        classes=list(classes), templates=list(templates), tower=_tower_digest(text_model),
        settings=_settings(text_model), tokenizer=_serialised(tokenizer), logit_scale=float(logit_scale),
    )  # fmt: skip
    folder = None if cache is None else cache / key[:32]
    if folder is not None and (folder / FILE).is_file():
        head = load_head(folder)
        if head.digest != key:
            raise CheckpointError(f"{folder / FILE} is another head than its name says. Delete it.")
        return head
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    _require_distinct(tokenizer, classes, templates[0])
    was_training = {module: module.training for module in text_model.modules()}
    text_model.eval()
    try:
        parts = [
            _embed(text_model, tokenizer, prompts[start : start + BATCH])
            for start in range(0, len(prompts), BATCH)
        ]
    finally:
        for module, mode in was_training.items():
            module.training = mode
    each = F.normalize(torch.cat(parts).float(), dim=-1).view(len(classes), len(templates), -1)
    weight = F.normalize(each.mean(1), dim=-1) * torch.tensor(float(logit_scale)).exp()
    head = Head("zero-shot", weight.cpu(), tuple(classes), normalise=True, digest=key)
    if folder is not None:
        save_head(folder, head)
    return head


def _require_words(classes: Sequence[str], templates: Sequence[str]) -> None:
    if not classes or not templates:
        raise DataError(
            f"A zero-shot head needs class names and templates, got {len(classes)} names and {len(templates)} "
            "templates. Name the task, or give both."
        )
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise DataError(
            f"The template {wrong[0]!r} must have one {{}}, where the class name goes. For example: a photo of a {{}}."
        )


def _require_distinct(tokenizer: Any, classes: Sequence[str], template: str) -> None:
    # transformers 5 makes a tokenizer of nothing where its files are missing.
    seen: dict[tuple[int, ...], str] = {}
    for name in classes:
        ids = tuple(tokenizer(template.replace("{}", name))["input_ids"])
        if seen.get(ids, name) != name:
            raise DataError(
                f"The tokenizer makes the same tokens of the classes {seen[ids]!r} and {name!r}, so no head can tell "
                "them apart. Take the tokenizer that belongs to the model."
            )
        seen[ids] = name


def _embed(model: nn.Module, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    config = _text_config(model)
    limit = getattr(config, "max_position_embeddings", None)
    lengths = inputs["attention_mask"].sum(1)
    if limit is not None and int(lengths.max()) > limit:
        long = int(lengths.argmax())
        raise DataError(
            f"The prompt {prompts[long]!r} has {int(lengths[long])} tokens, but the text tower takes {limit}. "
            "Shorten the template or the class name."
        )
    place = next(model.parameters()).device
    given = {name: inputs[name].to(place) for name in ("input_ids", "attention_mask")}
    if int(inputs["input_ids"].max()) >= getattr(config, "vocab_size", torch.inf):
        raise DataError(
            f"The tokenizer has tokens up to {int(inputs['input_ids'].max())}, but the text tower knows "
            f"{config.vocab_size}. Take the tokenizer that belongs to the model."
        )
    features: Any = getattr(model, "get_text_features", None)
    output = features(**given) if features is not None else model(**given)
    # transformers 4 gives the embeddings themselves, 5 an output that holds them.
    names = ("text_embeds",) if features is None else ("text_embeds", "pooler_output")
    found = [output] if isinstance(output, torch.Tensor) else [getattr(output, name, None) for name in names]
    for value in found:
        if isinstance(value, torch.Tensor):
            return value
    raise MergescopeError(
        f"{type(model).__name__} gives no text embeddings to compare images with. Use a CLIPModel or a "
        "CLIPTextModelWithProjection."
    )


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return getattr(config, "text_config", config)


def _settings(model: nn.Module) -> dict[str, Any]:
    config = _text_config(model)
    return {name: getattr(config, name, None) for name in SETTINGS}


def _tower_digest(model: nn.Module) -> str:
    # Of the text tower only, so that it is the same whether the vision tower is there or not.
    state = {name: value for name, value in model.state_dict().items() if name.startswith(TOWER)}
    return content_digest({
        name: (TensorSpec(tuple(value.shape), value.dtype), bytes_digest(value))
        for name, value in state.items()
    })


def _serialised(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        return json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map], default=str)
    content = json.loads(backend.to_str())
    # Padding and truncation are what it was last asked for, not what it is.
    return json.dumps({name: part for name, part in content.items() if name not in ("padding", "truncation")})
