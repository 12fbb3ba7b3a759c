"""Which parameters are attention matrices and linear layers, by name.

A parameter's *stem* is its name without the ending that says weight or bias, so that packed and
separate forms read alike: ``attn.q_proj.weight`` and ``attn.q_proj_weight`` are ``attn.q_proj``,
``attn.in_proj_bias`` is the bias of ``attn.in_proj``. Adding an architecture is adding a line to
[`PROJECTIONS`][].
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from mergescope.errors import LayerError, did_you_mean
from mergescope.models.layers import OUTPUT, find_layers


@dataclass(frozen=True)
class Projections:
    """What a family calls the projections within an attention module.

    Attributes:
        family: which networks do so.
        query: ends of stems that hold W_q; all must be there. Packed matrices stand in several places.
        key: of W_k.
        value: of W_v.
        output: of W_o.
    """

    family: str
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them, once."""
        return tuple(dict.fromkeys(self.query + self.key + self.value + self.output))


def _separate(family: str, query: str, key: str, value: str, output: str) -> Projections:
    return Projections(family, (query,), (key,), (value,), (output,))


def _packed(family: str, qkv: str, output: str) -> Projections:
    return Projections(family, (qkv,), (qkv,), (qkv,), (output,))


PROJECTIONS: tuple[Projections, ...] = (
    # An attention module belongs to the first line of which it has every projection.
    _separate("GPT-2 cross-attention", "q_attn", "c_attn", "c_attn", "c_proj"),
    _packed("GPT-2", "c_attn", "c_proj"),
    _separate(
        "CLIP, SigLIP, BART, OPT, Whisper, GPT-J, mergescope ViT", "q_proj", "k_proj", "v_proj", "out_proj"
    ),
    _separate("Llama, Qwen, Mistral, Gemma, ViT (transformers 5)", "q_proj", "k_proj", "v_proj", "o_proj"),
    _separate("Phi", "q_proj", "k_proj", "v_proj", "dense"),
    _separate("BERT, RoBERTa, ELECTRA, ViT (transformers 4)", "query", "key", "value", "output.dense"),
    _separate("ALBERT", "query", "key", "value", "dense"),
    _separate("DeBERTa", "query_proj", "key_proj", "value_proj", "output.dense"),
    _separate("DistilBERT", "q_lin", "k_lin", "v_lin", "out_lin"),
    _separate("T5, MPNet", "q", "k", "v", "o"),
    _packed("open_clip, torch.nn.MultiheadAttention", "in_proj", "out_proj"),
    _packed("timm", "qkv", "proj"),
    _packed("mergescope ViT, packed", "qkv", "out_proj"),
    _packed("GPT-NeoX, Bloom, Falcon", "query_key_value", "dense"),
    _packed("Phi-3", "qkv_proj", "o_proj"),
    _packed("ModernBERT", "Wqkv", "Wo"),
    _packed("MPT", "Wqkv", "out_proj"),
    Projections(
        "DeepSeek", ("q_a_proj", "q_b_proj"), ("kv_a_proj_with_mqa", "kv_b_proj"), ("kv_b_proj",), ("o_proj",)
    ),
)
"""Names of W_q, W_k, W_v and W_o, over the families of transformers, timm and open_clip."""

_WEIGHT = re.compile(r"(.+?)(?:[._]weight)?")
_BIAS = re.compile(r"(.+)[._]bias")
_ATTENTION = re.compile(r"(?i)att|mha")
_STARTS = frozenset(end for line in PROJECTIONS for end in line.query + line.key + line.value)
_EXPERTS = re.compile(r"experts\.(gate_up_proj|down_proj)$")  # of all experts in one parameter


def stem_of(name: str) -> tuple[str, bool]:
    """A parameter's stem, and whether it is a bias.

    Args:
        name: the parameter's name.

    Returns:
        Stem and whether the parameter is its bias.

    Example:
        >>> stem_of("attn.in_proj_weight"), stem_of("self_attn.q_proj.bias")
        (('attn.in_proj', False), ('self_attn.q_proj', True))
    """
    bias = _BIAS.fullmatch(name)
    if bias:
        return bias[1], True
    weight = _WEIGHT.fullmatch(name)
    return (weight[1] if weight else name), False


def attention_stems(model: nn.Module, patterns: Sequence[str] = ()) -> list[str]:
    """Stems of W_q, W_k, W_v and W_o of every attention module (ATTN section 3).

    Attention modules outside the numbered blocks (attention pooling in a head) don't count where
    there are some inside.

    Args:
        model: the network; on any device, also meta.
        patterns: ends of stems to take in place of the table, ``*`` for a part of a name.

    Returns:
        The stems, in the network's order.

    Raises:
        LayerError: nothing matches, or an attention module lacks one of the four; its names are told.

    Example:
        >>> from mergescope import ViT
        >>> attention_stems(ViT(width=8, depth=1, heads=2, packed=True))
        ['blocks.0.attn.qkv', 'blocks.0.attn.out_proj']
    """
    stems = list(dict.fromkeys(stem for stem, bias in map(stem_of, _names(model)) if not bias))
    if patterns:
        return _by_patterns(model, stems, patterns)
    modules: dict[str, list[str]] = {}
    for stem in stems:
        module = _attention_of(stem)
        if module is not None:
            modules.setdefault(module, []).append(stem)
    attending = {
        module: held for module, held in modules.items()
        if any(_ends(stem, module, start) for stem in held for start in _STARTS)
    }  # fmt: skip
    inside = {module: held for module, held in attending.items() if re.search(r"(^|\.)\d+\.", module)}
    found: set[str] = set()
    for module, held in (inside or attending).items():
        found.update(_projections(model, module, held))
    if not found:
        raise LayerError(
            f"No attention matrices are known in {type(model).__name__}. Its weights include {_sample(stems)}. "
            "Name the attention matrices by patterns=['attn.*_proj', ...], or train another regime."
        )
    return [stem for stem in stems if stem in found]


def attention_family(model: nn.Module) -> str:
    """How a network names its attention matrices, for people to read.

    Args:
        model: the network.

    Returns:
        The lines of [`PROJECTIONS`][] that its attention modules belong to.

    Example:
        >>> from mergescope import ViT
        >>> attention_family(ViT(width=8, depth=1, heads=2, packed=True))
        'mergescope ViT, packed'
    """
    modules: dict[str, list[str]] = {}
    for stem in attention_stems(model):
        modules.setdefault(_attention_of(stem) or "", []).append(stem)
    return " + ".join(dict.fromkeys(_line(module, held).family for module, held in modules.items()))  # type: ignore[union-attr]


def linear_stems(model: nn.Module, *, literal: bool) -> list[str]:
    """Stems of linear layers: of the blocks' attention modules and MLPs, or of the whole network.

    Linear layers are ``nn.Linear``, GPT-2's ``Conv1D``, packed ``in_proj`` matrices and the stacked
    matrices of experts; embeddings and convolutions are not.

    Args:
        model: the network.
        literal: take every linear layer, projections, poolers and heads too; otherwise those in
            blocks only (the two readings of ATTN's paradigms 3 and 4).

    Returns:
        The stems, in the network's order.

    Raises:
        LayerError: there are none, or the network's blocks aren't known.

    Example:
        >>> from mergescope import ViT
        >>> net = ViT(width=8, depth=1, heads=2, packed=True)
        >>> linear_stems(net, literal=False)
        ['blocks.0.attn.qkv', 'blocks.0.attn.out_proj', 'blocks.0.mlp.0', 'blocks.0.mlp.2']
        >>> linear_stems(net, literal=True)[-1]
        'head'
    """
    modules = dict(model.named_modules())
    linear = [
        stem
        for stem in dict.fromkeys(stem for stem, bias in map(stem_of, _names(model)) if not bias)
        if _is_linear(modules.get(stem)) or stem.endswith(".in_proj") or _EXPERTS.search(stem)
    ]
    if not literal:
        blocks = _blocks(model)
        linear = [stem for stem in linear if stem.startswith(blocks)]
    if not linear:
        where = "" if literal else " within its blocks"
        raise LayerError(f"{type(model).__name__} has no linear layers{where}. Train the regime 'full'.")
    return linear


def with_stems(model: nn.Module, stems: Iterable[str], *, biases: bool) -> set[str]:
    """Parameters that belong to stems.

    Args:
        model: the network.
        stems: from [`attention_stems`][] or [`linear_stems`][].
        biases: take biases as well as weights.

    Returns:
        Names of parameters.

    Example:
        >>> sorted(with_stems(nn.ModuleDict({"q": nn.Linear(2, 2)}), ["q"], biases=True))
        ['q.bias', 'q.weight']
    """
    wanted = set(stems)
    found = ((name, *stem_of(name)) for name in _names(model))
    return {name for name, stem, bias in found if stem in wanted and (biases or not bias)}


def named(model: nn.Module, names: Collection[str], option: str) -> set[str]:
    """Parameters that names of parameters or of modules stand for.

    Args:
        model: the network.
        names: of parameters, or of modules for all parameters in them.
        option: where the names come from, for the error.

    Returns:
        Names of parameters.

    Raises:
        LayerError: a name is neither.

    Example:
        >>> sorted(named(nn.ModuleDict({"head": nn.Linear(2, 2)}), ["head"], "frozen"))
        ['head.bias', 'head.weight']
    """
    parameters = _names(model)
    found: set[str] = set()
    for name in names:
        held = {each for each in parameters if each == name or each.startswith(f"{name}.")}
        if not held:
            modules = [each for each, _ in model.named_modules() if each]
            raise LayerError(
                f"{option}={name!r} is no parameter of {type(model).__name__} and no module with parameters."
                f"{did_you_mean(name, [*modules, *parameters])}"
            )
        found |= held
    return found


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _blocks(model: nn.Module) -> tuple[str, ...]:
    try:
        return tuple(f"{name}." for name in find_layers(model, "blocks") if name != OUTPUT)
    except LayerError as error:
        raise LayerError(
            f"The blocks of {type(model).__name__} aren't known, so the linear layers of its attention modules and "
            "MLPs can't be told from others. Take all linear layers: attention-3-literal or attention-4-literal."
        ) from error


def _attention_of(stem: str) -> str | None:
    # The outermost one within its block.
    segments = stem.split(".")
    numbers = [place for place, segment in enumerate(segments[:-1]) if segment.isdigit()]
    for place in range(numbers[-1] + 1 if numbers else 0, len(segments) - 1):
        if _ATTENTION.search(segments[place]):
            return ".".join(segments[: place + 1])
    return None


def _ends(stem: str, module: str, end: str) -> bool:
    return f".{stem.removeprefix(f'{module}.')}".endswith(f".{end}")


def _line(module: str, held: Sequence[str]) -> Projections | None:
    return next(
        (
            line
            for line in PROJECTIONS
            if all(any(_ends(stem, module, end) for stem in held) for end in line.ends)
        ),
        None,
    )


def _projections(model: nn.Module, module: str, held: Sequence[str]) -> list[str]:
    line = _line(module, held)
    if line is None:
        names = ", ".join(stem.removeprefix(f"{module}.") for stem in held)
        raise LayerError(
            f"The attention module {module!r} of {type(model).__name__} has weights {names}, which don't make W_q, "
            "W_k, W_v and W_o of any known family. Name them all by patterns=['attn.*_proj', ...]."
        )
    return [stem for stem in held if any(_ends(stem, module, end) for end in line.ends)]


def _by_patterns(model: nn.Module, stems: Sequence[str], patterns: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for pattern in patterns:
        test = re.compile(r"(?:.*\.)?" + re.escape(pattern).replace(r"\*", "[^.]*"))
        held = {stem for stem in stems if test.fullmatch(stem)}
        if not held:
            tails = {
                ".".join(stem.split(".")[start:]) for stem in stems for start in range(stem.count(".") + 1)
            }
            raise LayerError(
                f"The pattern {pattern!r} matches no weight of {type(model).__name__}."
                f"{did_you_mean(pattern, sorted(tails))} Its weights include {_sample(stems)}."
            )
        found |= held
    return [stem for stem in stems if stem in found]


def _is_linear(module: nn.Module | None) -> bool:
    # GPT-2's Conv1D is a linear layer whose matrix is stored transposed.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sample(stems: Sequence[str], limit: int = 10) -> str:
    shown = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", stem) for stem in stems))
    return ", ".join(shown[:limit]) + (", ..." if len(shown) > limit else "")
