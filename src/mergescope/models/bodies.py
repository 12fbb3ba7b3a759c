"""The body that models with different heads share.

Fine-tunes of one base often end in different heads: a language-model head in the base, classifiers
of 2, 12 and 20 classes in the fine-tunes. Their bodies can be combined and measured; each task's
head stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mergescope.errors import MismatchError
from mergescope.models.layers import OUTPUT
from mergescope.models.loading import matching_keys
from mergescope.weights.selection import Selection


@dataclass(frozen=True)
class Body:
    """What models have in common.

    Attributes:
        models: the models, each as a view of its body under the network's names.
        fixed: entries of the network's state dict that are no part of it: its head.
        left_out: model name to its tensors that are no part of it.
    """

    models: tuple[Selection, ...]
    fixed: frozenset[str]
    left_out: dict[str, tuple[str, ...]]


def shared_body(network: nn.Module, models: Sequence[Any], layers: Sequence[str]) -> Body:
    """Find the tensors that all models have, under a network's names.

    A head that differs in one tensor is a head as a whole: its other tensors are no part of the
    body either, even if their shapes agree.

    Args:
        network: one model's network; its head is kept as it is.
        models: checkpoints.
        layers: the network's blocks; everything before their end must be common.

    Returns:
        The body.

    Raises:
        MismatchError: a tensor of the blocks, or before them, is missing or of another shape, or a model has
            more blocks; all kinds of such tensors are named.

    Example:
        >>> from mergescope import Checkpoint
        >>> nets = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, classes)) for classes in (2, 5)]
        >>> models = [Checkpoint(net.state_dict(), name=name) for net, name in zip(nets, "ab")]
        >>> body = shared_body(nets[0], models, ["0"])
        >>> list(body.models[0].spec), sorted(body.fixed)
        (['0.weight', '0.bias'], ['1.bias', '1.weight'])
    """
    entries = network.state_dict(keep_vars=True)
    found = [matching_keys(network, model) for model in models]
    maps = [
        {name: key for name, key in keys.items() if model.spec[key].shape == tuple(entries[name].shape)}
        for model, keys in zip(models, found, strict=True)
    ]
    tied = _tied(entries, models, maps)
    blocks = tuple(f"{layer}." for layer in layers if layer != OUTPUT)
    last = max((place for place, name in enumerate(entries) if name.startswith(blocks)), default=-1)
    body = list(entries)[: last + 1]
    problems = []
    for model, keys, fitting in zip(models, found, maps, strict=True):
        lacking = [name for name in body if name not in fitting and name not in tied]
        problems += _lacking(network, model, keys, lacking)
        problems += _further(model, keys, blocks)
    if problems or last < 0:
        raise MismatchError(
            f"{', '.join(model.name for model in models)} have no common body in {type(network).__name__}:",
            problems or ["its blocks hold no tensors"],
            "Measure models that were fine-tuned from one base, with the same vocabulary.",
        )
    common = {name for name in entries if name not in tied and all(name in fitting for fitting in maps)}
    heads = {_top(name) for name in entries if name not in common and name not in tied}
    heads -= {_top(name) for name in body}
    common = {name for name in common if _top(name) not in heads}
    views = tuple(
        Selection(model, {name: fitting[name] for name in entries if name in common})
        for model, fitting in zip(models, maps, strict=True)
    )
    left_out = {}
    for model, view, fitting in zip(models, views, maps, strict=True):
        used = {*view.names.values(), *(fitting[name] for name in tied if name in fitting)}
        left_out[model.name] = tuple(key for key in model.spec if key not in used)
    return Body(
        views,
        frozenset(entries) - common - tied,
        {name: keys for name, keys in left_out.items() if keys},
    )


def _tied(
    entries: Mapping[str, torch.Tensor], models: Sequence[Any], maps: Sequence[Mapping[str, str]]
) -> set[str]:
    """Entries that follow from another one, as a head that is the embedding: models save them or not.

    Returns:
        Their names, without the first of each group, which all models must have.
    """
    firsts: dict[int, str] = {}
    tied = set()
    for name, entry in entries.items():
        first = firsts.setdefault(id(entry), name)
        if first != name and all(_same(*both, first, name) for both in zip(models, maps, strict=True)):
            tied.add(name)
    return tied


def _same(model: Any, fitting: Mapping[str, str], first: str, name: str) -> bool:
    if first not in fitting:
        return False
    one, two = fitting[first], fitting.get(name, fitting[first])
    return one == two or torch.equal(model.tensor(one), model.tensor(two))


def _lacking(network: nn.Module, model: Any, keys: Mapping[str, str], names: Sequence[str]) -> list[str]:
    entries = network.state_dict()
    if not keys:
        has = next(iter(model.spec), "nothing")
        return [
            f"{model.name} shares no tensor with the network: it has {has} ..., and no {next(iter(entries))}"
        ]
    return _one_a_kind({
        name: f"{list(model.spec[keys[name]].shape) if name in keys else 'missing'} in {model.name}, "
        f"{list(entries[name].shape)} in the network"
        for name in names
    })


def _further(model: Any, keys: Mapping[str, str], blocks: tuple[str, ...]) -> list[str]:
    """More blocks than the network has: without them the model is another one.

    Returns:
        A line for each kind of tensor.
    """
    known = set(keys.values())
    kinds = {_starred(key) for name, key in keys.items() if name.startswith(blocks)}
    more = {key: spec for key, spec in model.spec.items() if key not in known and _starred(key) in kinds}
    return _one_a_kind({
        key: f"{list(spec.shape)} in {model.name}, not in the network" for key, spec in more.items()
    })


def _one_a_kind(problems: Mapping[str, str]) -> list[str]:
    # Blocks are alike: a line stands for those of all of them.
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, problem in problems.items():
        kinds.setdefault((_starred(name), problem), []).append(name)
    return [
        f"{names[0]}: {problem}{f' (and {len(names) - 1} alike)' if len(names) > 1 else ''}"
        for (_, problem), names in kinds.items()
    ]


def _starred(name: str) -> str:
    return re.sub(r"[0-9]+", "*", name)


def _top(name: str) -> str:
    return name.partition(".")[0]
