"""Guessing the blocks of an unknown network: the longest run of equal modules side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn


@dataclass(frozen=True)
class _Run:
    place: str
    names: tuple[str, ...]
    composed: bool
    parameters: int

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        depth = self.names[0].count(".")
        return self.composed, len(self.names), -depth, self.parameters


def longest_run(model: nn.Module) -> list[str]:
    """The longest run of sibling modules of one class, as a guess at the network's blocks.

    Siblings are the modules of a list or sequence (of lists in a list, all of them), or attributes
    with numbered names (``conv1``, ``conv2``). Two sequences are equal if they are made of the same
    classes. A list that other members of a run around it have as well (experts in every block, blocks
    in every stage) is no candidate, since it is a small part of the network; single operations are
    candidates for want of composed modules. Of equally long runs the outermost wins, then the one
    with more parameters.

    Args:
        model: the network.

    Returns:
        Full names of two or more modules, or an empty list.

    Example:
        >>> block = lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        >>> longest_run(nn.ModuleDict({"body": nn.Sequential(block(), block()), "head": nn.Linear(3, 1)}))
        ['body.0', 'body.1']
    """
    lists = [found for name, module in model.named_modules() for found in _lists(name, module)]
    places = {place for place, _ in lists}
    runs = [
        run
        for place, siblings in lists
        for _, group in groupby(siblings, key=lambda item: _kind(item[1]))
        for run in _run(place, list(group))
    ]
    around = {name: run for run in runs for name in run.names}
    unique = [run for run in runs if not _repeated(run.place, around, places)]
    return list(max(unique, key=lambda run: run.rank).names) if unique else []


def _run(place: str, members: list[tuple[str, nn.Module]]) -> Iterator[_Run]:
    parameters = [sum(entry.numel() for entry in module.parameters()) for _, module in members]
    if len(members) > 1 and all(parameters):
        composed = any(members[0][1].children())
        yield _Run(place, tuple(name for name, _ in members), composed, sum(parameters))


def _repeated(place: str, around: dict[str, _Run], places: set[str]) -> bool:
    parts = place.split(".")
    for end in range(1, len(parts) + 1):
        member = ".".join(parts[:end])
        others = around[member].names if member in around else ()
        if any(other != member and other + place[len(member) :] in places for other in others):
            return True
    return False


def _lists(name: str, module: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    prefix = f"{name}." if name else ""
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        yield name, list(_flat(prefix, module))
        return
    numbered: dict[str, list[tuple[str, nn.Module]]] = {}
    for child, value in module.named_children():
        stem = re.fullmatch(r"(.*?)\d+", child)
        if stem and not isinstance(value, (nn.ModuleList, nn.ModuleDict)):
            numbered.setdefault(f"{prefix}{stem[1]}", []).append((prefix + child, value))
    yield from numbered.items()


def _flat(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # A list is never called itself, so of a list of lists the inner modules are what runs.
    for child, value in module.named_children():
        if isinstance(value, nn.ModuleList):
            yield from _flat(f"{prefix}{child}.", value)
        elif not isinstance(value, nn.ModuleDict):
            yield prefix + child, value


def _kind(module: nn.Module) -> Any:
    if isinstance(module, nn.Sequential):
        return type(module), frozenset(_kind(child) for child in module)
    return type(module)
