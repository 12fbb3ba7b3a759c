"""Where a tensor belongs, by its name alone: which block, which kind of module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OUTSIDE = ("embedding", "norm", "head", "other")
"""Names of the groups of tensors outside the blocks, by kind."""

KINDS: tuple[tuple[str, str], ...] = (
    # The first that fits counts. Every pattern is searched in the tensor's name.
    ("norm", r"(?i)norm|layrnorm|(^|\.)(ln|bn)(_?\w)?(?=[.\d])"),
    ("mlp", r"DenseReluDense"),
    ("attention qkv", r"\.(c_attn|qkv|qkv_proj|query_key_value|Wqkv|W_pack|in_proj)(\.|_weight|_bias)"),
    ("attention q", r"\.(q|q_proj|q_lin|q_a_proj|q_b_proj|query|wq|to_q|in_proj_q)\."),
    ("attention k", r"\.(k|k_proj|k_lin|key|wk|to_k)\."),
    ("attention v", r"\.(v|v_proj|v_lin|value|wv|to_v|kv_a_proj_with_mqa|kv_b_proj)\."),
    ("attention o", r"\.(o|o_proj|out_proj|out_lin|wo|to_out)\.|att\w*\.(output\.dense|dense|proj|c_proj)\."),
    ("mlp", r"(?i)(^|[._])(mlp|ffn|ff|feed_forward|feedforward|intermediate|experts|moe|fc[12]|lin[12])[._]"),
    ("mlp", r"\.(w[123]|c_fc|dense_h_to_4h|dense_4h_to_h|(up|gate|down|gate_up)_proj)\."),
    ("mlp", r"layers?\.\d+\.output\.dense\."),
    ("head", r"lm_head|embed_out|classifier|pooler|(visual|text)_projection|logit_scale|qa_outputs"),
    ("head", r"(^|\.)(head|heads|score|fc|cls|predictions|pre_logits|vocab_transform|vocab_projector)\."),
    ("embedding", r"(?i)embed|(^|\.)(wte|wpe|shared|patch)|(cls|class|mask|dist|distillation)_token"),
)
"""Kind of module and what its tensors are called, over the families of transformers, timm and open_clip."""

KIND_NAMES = (
    "embedding", "attention q", "attention k", "attention v", "attention qkv", "attention o", "mlp", "norm", "head",
    "other",
)  # fmt: skip
"""All kinds, in the order in which tables show them."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of names of BatchNorm's statistics: they are re-estimated on data, so they are in no task vector."""

DERIVED = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "original_inv_freq",
    "masked_bias",
    "relative_position_index",
)
"""Ends of names of buffers that follow from the configuration; some versions of transformers store them."""

_COPY = re.compile(r"(en|de)coder\.embed_tokens\.weight$")
"""Of encoder-decoders whose two sides share one embedding."""

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor follows from the configuration, so that a checkpoint may lack it.

    Args:
        name: the tensor's name.
        shape: its shape.

    Returns:
        True for position numbers, rotary frequencies and causal masks.

    Example:
        >>> is_derived("embeddings.position_ids", (1, 512)), is_derived("h.0.attn.bias", (1, 1, 8, 8))
        (True, True)
        >>> is_derived("h.0.attn.c_attn.bias", (24,))
        False
    """
    mask = name.endswith(("attn.bias", "attention.bias")) and len(shape) == 4 and shape[:2] == (1, 1)
    return mask or name.rpartition(".")[2] in DERIVED


def copy_of(name: str, spec: Mapping[str, Any]) -> str | None:
    """The tensor that another one repeats, by their names and shapes.

    Encoder-decoders as T5 and BART have one embedding for both sides; old versions of transformers saved it for each.

    Args:
        name: the tensor's name.
        spec: of the model: name to shape and dtype.

    Returns:
        The shared embedding, for that of an encoder or decoder beside it; else None.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> names = ("shared.weight", "encoder.embed_tokens.weight", "lm_head.weight")
        >>> model = Checkpoint({name: torch.ones(4, 2) for name in names})
        >>> [copy_of(name, model.spec) for name in names]
        [None, 'shared.weight', None]
    """
    shared = _COPY.sub("shared.weight", name)
    return shared if shared != name and shared in spec and spec[shared].shape == spec[name].shape else None


def kind_of(name: str) -> str:
    """The kind of module that a tensor belongs to.

    Args:
        name: the tensor's name.

    Returns:
        A kind of [`KINDS`][mergescope.weights.kinds.KINDS], or ``"other"``.

    Example:
        >>> [kind_of(name) for name in ("model.layers.3.self_attn.q_proj.weight", "h.0.attn.c_attn.weight",
        ...     "encoder.layer.1.output.dense.bias", "encoder.layer.1.output.LayerNorm.weight", "lm_head.weight")]
        ['attention q', 'attention qkv', 'mlp', 'norm', 'head']
    """
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "other")


def layer_of(name: str) -> str:
    """The block that a tensor belongs to: its name up to the first number.

    Args:
        name: the tensor's name.

    Returns:
        The block, or the tensor's kind (one of [`OUTSIDE`][mergescope.weights.kinds.OUTSIDE]) outside
        the blocks.

    Example:
        >>> [layer_of(name) for name in ("model.layers.3.mlp.up_proj.weight", "wte.weight", "ln_f.bias")]
        ['model.layers.3', 'embedding', 'norm']
    """
    found = _NUMBERED.match(name)
    if found:
        return found[1]
    kind = kind_of(name)
    return kind if kind in OUTSIDE else "other"


def layer_order(layer: str) -> tuple[int, str, int]:
    """Sort key of layers: embeddings, blocks by number, then norms, heads and the rest.

    Args:
        layer: from [`layer_of`][mergescope.weights.kinds.layer_of].

    Returns:
        The key.

    Example:
        >>> sorted(["head", "h.10", "h.9", "embedding"], key=layer_order)
        ['embedding', 'h.9', 'h.10', 'head']
    """
    if layer in OUTSIDE:
        return (0 if layer == "embedding" else 1 + OUTSIDE.index(layer), "", 0)
    stack, _, number = layer.rpartition(".")
    return (1, stack, int(number))
