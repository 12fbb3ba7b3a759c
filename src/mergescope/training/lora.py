"""LoRA on a network through PEFT, and the weights that come of it (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError
from mergescope.training.selectors import attention_stems

ADAPTER = "default"
"""What PEFT calls the one adapter."""


def adapted_modules(model: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """The linear layers that get factors.

    Args:
        model: the network.
        targets: ends of their names, ``*`` for a part of a name; W_q, W_k, W_v and W_o by default.

    Returns:
        Names of modules.

    Raises:
        LayerError: nothing matches, or something that takes no factors.

    Example:
        >>> from mergescope import ViT
        >>> adapted_modules(ViT(width=8, depth=1, heads=2), ["mlp.*"])
        ['blocks.0.mlp.0', 'blocks.0.mlp.2']
    """
    modules = dict(model.named_modules())
    stems = attention_stems(model, targets)
    # It reads its projections' weights itself, past any wrapper.
    torchs = [
        stem for stem in stems if isinstance(modules.get(stem.rpartition(".")[0]), nn.MultiheadAttention)
    ]
    if torchs:
        raise LayerError(
            f"{torchs[0]} of {type(model).__name__} belongs to a torch.nn.MultiheadAttention, which LoRA does not "
            "adapt. Give other layers as targets=['mlp.*', ...], or train attention-1."
        )
    for stem in stems:
        if not (isinstance(modules.get(stem), nn.Linear) or type(modules.get(stem)).__name__ == "Conv1D"):
            kind = type(modules[stem]).__name__ if stem in modules else "parameter of its own"
            raise LayerError(
                f"{stem} of {type(model).__name__} is a {kind}; LoRA factors go on linear layers. Choose targets "
                "that match linear layers only."
            )
    return stems


def with_lora(
    model: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    rslora: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Put LoRA factors on linear layers: ``W x + s B A x``, with B zero at first.

    Args:
        model: the network; its layers are wrapped in place.
        targets: full names of modules.
        rank: of the factors.
        alpha: ``s = alpha / rank``, or ``alpha / sqrt(rank)`` with ``rslora``.
        rslora: rank-stabilised scaling (Kalajdzievski 2023).
        dropout: on the inputs of A.
        seed: of A's random start. The global random state is left as it was.

    Returns:
        PEFT's wrapper. Only the factors have ``requires_grad``.
    """
    import peft

    modules = dict(model.named_modules())
    config = peft.LoraConfig(
        r=rank, use_rslora=rslora, lora_dropout=dropout, target_modules=list(targets), bias="none",
        lora_alpha=alpha,  # type: ignore[arg-type]  # fractions work as well
        fan_in_fan_out=any(type(modules[name]).__name__ == "Conv1D" for name in targets),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config, adapter_name=ADAPTER)


def merged_state(trained: Any) -> dict[str, torch.Tensor]:
    """The network's weights with the factors' products added.

    Args:
        trained: PEFT's wrapper.

    Returns:
        Every weight and buffer under the network's own names; nothing is changed in the wrapper.

    Example:
        >>> from mergescope import ViT
        >>> _ = torch.manual_seed(0)
        >>> net = ViT(width=8, depth=1, heads=2)
        >>> before = {name: value.clone() for name, value in net.state_dict().items()}
        >>> after = merged_state(with_lora(net, adapted_modules(net), rank=2, alpha=4))
        >>> list(after) == list(before), all(torch.equal(after[name], before[name]) for name in before)
        (True, True)
    """
    network = trained.get_base_model()
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "get_delta_weight")}
    merged = {}
    for name, value in network.state_dict().items():
        if any(name.startswith(f"{layer}.") and ".base_layer." not in name for layer in layers):
            continue  # a factor
        own = base_name(name)
        merged[own] = value.detach()
        layer = layers.get(own.removesuffix(".weight"))
        if layer is not None and own.endswith(".weight"):
            wide = torch.promote_types(value.dtype, torch.float32)
            merged[own] = (value.to(wide) + layer.get_delta_weight(ADAPTER).to(wide)).to(value.dtype).detach()
    return merged


def base_name(name: str) -> str:
    """A parameter's name in the network, from its name among PEFT's wrappers.

    Args:
        name: with or without the wrappers' parts.

    Returns:
        The name without them.

    Example:
        >>> base_name("base_model.model.blocks.0.attn.q_proj.base_layer.weight")
        'blocks.0.attn.q_proj.weight'
    """
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def scaling(rank: int, alpha: float, rslora: bool) -> float:
    """The factor ``s`` before ``B A``.

    Args:
        rank: of the factors.
        alpha: as configured.
        rslora: rank-stabilised.

    Returns:
        ``alpha / rank`` or ``alpha / sqrt(rank)``.

    Example:
        >>> scaling(16, 32, False), scaling(16, 32, True)
        (2.0, 8.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank
