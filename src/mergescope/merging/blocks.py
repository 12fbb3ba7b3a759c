"""Which tensors belong to which block of a network, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.errors import MergescopeError
from mergescope.merging.configs import at_path, layer_count_path, sides_of
from mergescope.merging.vocabulary import BIASES, HEADS, ends_with

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.+)$")

EARLY = ("embed", "wte", "wpe", "shared", "conv_in", "patch", "class_token", "cls_token", "position")
"""Parts of names that come before the blocks; everything else outside comes after."""

SHARED = ("relative_attention_bias", "rel_attn_embed")
"""Parts of names of what the first block holds for its whole stack, in T5 and WavLM for example."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        stack: name of the numbered list it is in, for example ``"model.layers"``; empty if none.
        index: its block's number.
        rest: its name within the block.
    """

    stack: str
    index: int
    rest: str


def place_of(name: str) -> Place:
    """Read a tensor's place off its name: the first number in it is the block's.

    Args:
        name: the tensor's name.

    Returns:
        Its place.

    Example:
        >>> place_of("model.layers.3.mlp.up_proj.weight")
        Place(stack='model.layers', index=3, rest='mlp.up_proj.weight')
        >>> place_of("lm_head.weight").stack
        ''
    """
    found = _NUMBERED.match(name)
    return Place(found[1], int(found[2]), found[3]) if found else Place("", -1, name)


def stacks(names: Iterable[str]) -> dict[str, int]:
    """How many blocks each numbered list has.

    Args:
        names: tensor names.

    Returns:
        List name to number of blocks.

    Example:
        >>> stacks(["h.0.w", "h.1.w", "ln.weight"])
        {'h': 2}
    """
    counts: dict[str, int] = {}
    for name in names:
        place = place_of(name)
        if place.stack:
            counts[place.stack] = max(counts.get(place.stack, 0), place.index + 1)
    return counts


def depth_of(name: str, counts: Mapping[str, int]) -> float:
    """Relative depth of a tensor, for layer gradients.

    Args:
        name: the tensor's name.
        counts: from [`stacks`][].

    Returns:
        ``index / (blocks - 1)``; 1 in a list of one block; 0 outside the blocks.
    """
    place = place_of(name)
    if not place.stack:
        return 0.0
    count = counts[place.stack]
    return place.index / (count - 1) if count > 1 else 1.0


def main_stack(names: Iterable[str], config: Mapping[str, Any] | None, model: str) -> str:
    """The numbered list that ``layer_range`` speaks of.

    Args:
        names: tensor names.
        config: ``config.json``; its layer count decides between lists of different length.
        model: for the error.

    Returns:
        The list's name.

    Raises:
        MergescopeError: there is none, or several fit (an encoder and a decoder).
    """
    counts = stacks(names)
    paths = {stack: layer_count_path(config, stack) for stack in counts}
    fitting = {
        stack: counts[stack]
        for stack, path in paths.items()
        if path and at_path(config, path) == counts[stack]
    }
    counts = fitting or counts
    if not counts:
        raise MergescopeError(
            f"{model} has no numbered blocks, so layer_range means nothing there. Use models."
        )
    longest = [stack for stack, count in counts.items() if count == max(counts.values())]
    if len({side for stack in counts for side in sides_of(stack)}) > 1:
        longest = [stack for stack in counts if sides_of(stack)]  # whatever their lengths
    if len(longest) > 1:
        raise MergescopeError(
            f"{model} has several stacks of blocks ({', '.join(sorted(longest))}), so layer_range is ambiguous. "
            "Put slices under modules with the prefix of one of them, and the rest of the model under other modules."
        )
    return longest[0]


def shared_by_blocks(blocks: Mapping[int, Iterable[str]]) -> set[str]:
    """What the first block of a stack holds for all of its blocks.

    Args:
        blocks: number of a block to the names of its tensors within it.

    Returns:
        Names within the first block, of tensors that no other block has.

    Example:
        >>> shared_by_blocks({0: ["q.weight", "relative_attention_bias.weight"], 1: ["q.weight"]})
        {'relative_attention_bias.weight'}
    """
    others = {name for number, names in blocks.items() if number for name in names}
    return {name for name in blocks.get(0, ()) if name not in others and any(part in name for part in SHARED)}


def comes_before_blocks(name: str) -> bool:
    """Whether a tensor outside the blocks belongs to the input side (embeddings).

    Args:
        name: its name.

    Returns:
        True for embeddings and the like, False for final norms and heads.

    Example:
        >>> [comes_before_blocks(name) for name in ("gpt_neox.embed_in.weight", "embed_out.weight", "norm.weight")]
        [True, False, False]
    """
    return any(part in name for part in EARLY) and not ends_with(name, (*HEADS, *BIASES))
