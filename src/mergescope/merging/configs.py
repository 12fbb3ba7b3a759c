"""The output's ``config.json``: layer counts, per-layer lists, tied heads, dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
"""Where configurations keep the number of blocks."""

PARTS = {
    "text_model": "text_config", "language_model": "text_config", "vision_model": "vision_config",
    "vision_tower": "vision_config", "visual": "vision_config", "audio_tower": "audio_config",
}  # fmt: skip
"""Modules of multi-part models, and the part of the configuration that describes them."""

SIDES = {
    "encoder": ("encoder_layers", "num_encoder_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
"""Layer counts of models that have an encoder and a decoder."""

_DTYPE_KEYS = ("torch_dtype", "dtype")


def layer_count_path(config: Mapping[str, Any] | None, stack: str) -> tuple[str, ...] | None:
    """Where a configuration counts the blocks of a stack.

    Args:
        config: ``config.json``.
        stack: name of the numbered list, for example ``"model.layers"``.

    Returns:
        The keys that lead there, or None.

    Example:
        >>> layer_count_path({"num_layers": 2, "num_decoder_layers": 3}, "decoder.block")
        ('num_decoder_layers',)
        >>> layer_count_path({"text_config": {"num_hidden_layers": 2}}, "text_model.encoder.layers")
        ('text_config', 'num_hidden_layers')
    """
    config = config or {}
    words = stack.split(".")
    inner = [PARTS[word] for word in words if isinstance(config.get(PARTS.get(word, "")), dict)]
    if (
        not inner
        and isinstance(config.get("text_config"), dict)
        and not any(key in config for key in LAYER_COUNTS)
    ):
        inner = ["text_config"]
    part = config[inner[0]] if inner else config
    keys = [key for word in words for key in SIDES.get(word, ())] + list(LAYER_COUNTS)
    key = next((key for key in keys if type(part.get(key)) is int), None)
    return (*inner[:1], key) if key is not None else None


def at_path(config: Mapping[str, Any] | None, path: Sequence[str]) -> Any:
    """Look a nested value up.

    Args:
        config: ``config.json``.
        path: keys, outermost first.

    Returns:
        The value, or None.
    """
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def sides_of(stack: str) -> list[str]:
    """Which side of an encoder-decoder model a stack may be, by its name.

    Args:
        stack: name of the numbered list.

    Returns:
        ``["encoder"]``, ``["decoder"]``, or an empty list for neither.

    Example:
        >>> sides_of("model.encoder.layers"), sides_of("model.layers")
        (['encoder'], [])
    """
    return [side for side in SIDES if side in stack.split(".")]


def count_both_sides(config: dict[str, Any], stacks: Iterable[str]) -> None:
    """Give the decoder a layer count of its own where one number counts for both sides, in place.

    T5's ``num_layers`` is also the decoder's until there is ``num_decoder_layers``: changing it for
    a new encoder would change the decoder too.

    Args:
        config: ``config.json`` of the output, its counts still those of the models.
        stacks: names of the output's numbered lists.

    Example:
        >>> config = {"num_layers": 2}
        >>> count_both_sides(config, ["encoder.block", "decoder.block"])
        >>> config
        {'num_layers': 2, 'num_decoder_layers': 2}
    """
    counted = {side: layer_count_path(config, stack) for stack in stacks for side in sides_of(stack)}
    if counted == {"encoder": ("num_layers",), "decoder": ("num_layers",)}:
        config["num_decoder_layers"] = config["num_layers"]


def restack(
    config: dict[str, Any], stack: str, blocks: Sequence[tuple[Mapping[str, Any] | None, int]]
) -> None:
    """Make a configuration describe a new stack of blocks, in place.

    Args:
        config: ``config.json`` of the output.
        stack: name of the numbered list.
        blocks: for each block of the output, its model's configuration and its number there.
    """
    path = layer_count_path(config, stack)
    if path is None:
        return
    part = at_path(config, path[:-1])
    before = part[path[-1]]
    part[path[-1]] = len(blocks)
    for key, value in list(part.items()):
        if not (isinstance(value, list) and "layer" in key and len(value) == before):
            continue
        lists = [at_path(origin, (*path[:-1], key)) for origin, _ in blocks]
        if all(
            isinstance(items, list) and number < len(items)
            for items, (_, number) in zip(lists, blocks, strict=True)
        ):
            part[key] = [items[number] for items, (_, number) in zip(lists, blocks, strict=True)]


def set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Name the stored dtype wherever a configuration names one, in place.

    Args:
        config: ``config.json``, or a part of it.
        dtype: for example ``"bfloat16"``.
    """
    for part in _parts(config):
        for key in _DTYPE_KEYS:
            if key in part and (part[key] is None or isinstance(part[key], str)):
                part[key] = dtype


def match_dtype(config: dict[str, Any], dtypes: Iterable[torch.dtype]) -> None:
    """Name the dtype that all weights are stored in, if a configuration names another one, in place.

    Args:
        config: ``config.json``.
        dtypes: of the stored tensors.

    Example:
        >>> config = {"dtype": "bfloat16"}
        >>> match_dtype(config, [torch.float32, torch.int64])
        >>> config
        {'dtype': 'float32'}
    """
    stored = {str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.is_floating_point}
    stated = {part[key] for part in _parts(config) for key in _DTYPE_KEYS if isinstance(part.get(key), str)}
    if len(stored) == 1 and stated - stored:
        set_dtype(config, stored.pop())


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # The configuration and those of its parts, in a loop: a hostile one may nest them deeply.
    waiting = [config]
    while waiting:
        part = waiting.pop()
        yield part
        inner = (value for key, value in part.items() if key.endswith("_config"))
        waiting += [value for value in inner if isinstance(value, dict)]
