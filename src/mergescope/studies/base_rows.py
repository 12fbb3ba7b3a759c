"""Fine-tunes whose vocabulary has other rows than their base's, seen with the base's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from mergescope.merging.vocabulary import embedding_keys
from mergescope.weights.point import TensorSpec
from mergescope.weights.sources import Source


class BaseRows(Source):
    """A view of a fine-tune in which some tensors have as many rows as the base's.

    Fine-tunes of language models often know a token more than their base (for padding), so that embedding
    and head have other shapes and the two can't be combined. No text holds that token: rows beyond the
    base's are left out. Rows that the fine-tune lacks are the base's, so that its task vector is 0 there.

    Args:
        source: the fine-tune.
        base: the base.
        keys: tensors that may differ in their first dimension, and in nothing else.

    Example:
        >>> from mergescope import Checkpoint
        >>> base = Checkpoint({"embed.weight": torch.zeros(2, 3)}, name="base")
        >>> tuned = Checkpoint({"embed.weight": torch.ones(3, 3)}, name="tuned")
        >>> (BaseRows(tuned, base, ["embed.weight"]) - base).tensor("embed.weight").shape
        torch.Size([2, 3])
    """

    def __init__(self, source: Any, base: Any, keys: Collection[str]) -> None:
        self.source, self.base, self.keys = source, base, frozenset(keys)
        self.name: str = source.name
        self.spec: Mapping[str, TensorSpec] = MappingProxyType({
            key: TensorSpec(base.spec[key].shape, spec.dtype) if key in self.keys else spec
            for key, spec in source.spec.items()
        })
        rows = hashlib.sha256(repr(sorted((key, self.spec[key].shape) for key in self.keys)).encode())
        self._rows = rows.hexdigest()

    def __getattr__(self, name: str) -> Any:
        # Configuration, directory, commit ...: they are the fine-tune's.
        return getattr(self.__dict__["source"], name)

    def __reduce__(self) -> tuple[type[BaseRows], tuple[Any, ...]]:
        return BaseRows, (self.source, self.base, self.keys)  # a mapping proxy can't be pickled

    @property
    def identity(self) -> str:
        """Equal for the same rows of the same fine-tune and base."""
        return f"{self.source.identity} with rows {self._rows} of {self.base.identity}"

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            key: its name.

        Returns:
            The tensor, with the base's rows; treat it as read-only.
        """
        return self.rows(key, 0, self.spec[key].shape[0]) if key in self.keys else self.source.tensor(key)

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read some rows of one tensor.

        Args:
            key: its name.
            start: index of the first row.
            stop: one past the last.

        Returns:
            ``(stop - start, ...)``.
        """
        if key not in self.keys:
            return self.source.rows(key, start, stop)
        own = self.source.spec[key].shape[0]
        found = self.source.rows(key, min(start, own), min(stop, own))
        if stop <= own:
            return found
        return torch.cat([found, self.base.rows(key, max(start, own), stop).to(found.dtype)])

    def __repr__(self) -> str:
        return f"BaseRows({self.name!r}, {len(self.spec)} tensors)"


def with_base_rows(base: Any, models: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Models of one base, with its vocabulary's rows where theirs has others.

    Rows are matched by number: that the tokenizers agree on the base's tokens is what ``mergescope check`` tells.

    Args:
        base: the base's checkpoint.
        models: fine-tunes.

    Returns:
        Each fine-tune, or a [`BaseRows`][] of it; and a sentence for each of those.

    Example:
        >>> from mergescope import Checkpoint
        >>> base, tuned = (Checkpoint({"wte.weight": torch.ones(n, 2)}, name=f"of{n}") for n in (4, 5))
        >>> with_base_rows(base, [base, tuned])[1]
        ['of5 has 5 rows for tokens and of4 has 4: those beyond them are left out']
    """
    seen, notes = [], []
    for model in models:
        keys = [key for key in embedding_keys(model) if _other_rows(base.spec.get(key), model.spec[key])]
        seen.append(BaseRows(model, base, keys) if keys else model)
        if keys:
            ours, theirs = (source.spec[keys[0]].shape[0] for source in (model, base))
            told = (
                "those beyond them are left out" if ours > theirs else f"{base.name}'s stand for the others"
            )
            notes.append(f"{model.name} has {ours} rows for tokens and {base.name} has {theirs}: {told}")
    return seen, notes


def _other_rows(of_base: TensorSpec | None, own: TensorSpec) -> bool:
    return of_base is not None and of_base.shape[1:] == own.shape[1:] and of_base.shape != own.shape
