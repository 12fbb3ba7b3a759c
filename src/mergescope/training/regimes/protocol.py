"""What a fine-tuning regime is, and what all regimes share: which parameters may change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.errors import LayerError, MergescopeError
from mergescope.models.batchnorm import hold_statistics
from mergescope.training.selectors import named


class Regime(Protocol):
    """A way to fine-tune: what may change, what is trained, and what is saved of it."""

    @property
    def name(self) -> str:
        """What users call it."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make a network ready to train, in place.

        Args:
            model: the network, with the pretrained weights.

        Returns:
            What is trained: the network itself or a wrapper of it. Exactly the parameters with
            ``requires_grad`` may change.
        """

    def state(self, trained: nn.Module) -> dict[str, torch.Tensor]:
        """Read theta off what was trained.

        Args:
            trained: what [`prepare`][] returned.

        Returns:
            All weights under the network's own state-dict names.
        """

    def metadata(self) -> dict[str, str]:
        """What a checkpoint of this regime says of itself in its header."""

    def extra_files(self, trained: nn.Module, folder: Path) -> None:
        """Write what the regime leaves beside the checkpoint.

        Args:
            trained: what [`prepare`][] returned.
            folder: the checkpoint's directory.
        """


@dataclass(frozen=True)
class Limits:
    """What is decided outside a regime.

    Attributes:
        frozen: parameters, or modules, that are never trained: usually the task head.
        also: parameters, or modules, that always are: a head that is trained with the body.
        base_digest: content digest of the pretrained checkpoint.
    """

    frozen: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    base_digest: str | None = None

    def apply(self, model: nn.Module, chosen: Collection[str]) -> set[str]:
        """A regime's choice within these limits.

        Args:
            model: the network.
            chosen: names of parameters.

        Returns:
            Names of those that train.

        Raises:
            LayerError: a name is unknown, both frozen and trained, or nothing is left to train.

        Example:
            >>> net = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
            >>> sorted(Limits(frozen=("head",)).apply(net, ["body.weight", "head.weight"]))
            ['body.weight']
        """
        never, always = named(model, self.frozen, "frozen"), named(model, self.also, "also")
        if never & always:
            raise LayerError(
                f"{', '.join(sorted(never & always))} of {type(model).__name__}: both frozen and also to be trained. "
                "Leave one out."
            )
        trains = (set(chosen) - never) | always
        if not trains:
            raise LayerError(
                f"Nothing of {type(model).__name__} is left to train: all that the regime would change is frozen "
                f"({', '.join(self.frozen)})."
            )
        return trains


def let_change(model: nn.Module, names: Collection[str], *, only: bool) -> None:
    """Let parameters change and no others, running statistics of frozen BatchNorms included.

    Args:
        model: the network; its ``requires_grad`` flags are set.
        names: of the parameters that may change.
        only: the choice is a narrow one, so that a BatchNorm without parameters is frozen as well.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> let_change(net, ["0.weight"], only=True)
        >>> _ = net.train()(torch.randn(5, 2))
        >>> net[1].running_mean
        tensor([0., 0.])
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            hold_statistics(module, not any(entry.requires_grad for entry in own) if own else only)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights and buffers.

    Args:
        model: the network.

    Returns:
        State-dict name to tensor, detached, sharing memory.
    """
    return {name: value.detach() for name, value in model.state_dict().items()}


def require_type(option: str, value: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Refuse an option of another type.

    Args:
        option: its name.
        value: what was given.
        kinds: the types.
        what: what it should be, in words.

    Raises:
        MergescopeError: it is of none of them.
    """
    # A flag is no number, although Python says so.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise MergescopeError(f"{option} must be {what}, got {value!r}.")
