"""Models of a published family as they are compared with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mergescope.weights.selection import Selection


class Part:
    """A view of a checkpoint with what is asked of a checkpoint when models are compared.

    Args:
        view: the chosen tensors.
        name: of the model.
        whole: whether they are the whole model, so that its configuration and tokenizer count, too.
        config: of the network that these tensors are the whole of, if it is another one than the checkpoint's.
    """

    def __init__(
        self, view: Selection, name: str, *, whole: bool = False, config: dict[str, Any] | None = None
    ) -> None:
        self.view, self.name, self.spec = view, name, view.spec
        self.identity, self.commit = view.identity, view.source.commit
        self.config: dict[str, Any] | None = view.source.config if whole and config is None else config
        self.directory: Path | None = view.source.directory if whole else None

    @property
    def digest(self) -> str:
        """Content digest (hex) of the chosen tensors. Reads them."""
        return self.view.digest

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            key: its name.

        Returns:
            The tensor; treat it as read-only.
        """
        return self.view.tensor(key)

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read some rows of one tensor.

        Args:
            key: its name.
            start: index of the first row.
            stop: one past the last. A scalar counts as one row.

        Returns:
            ``(stop - start, ...)``.
        """
        return self.view.source.rows(self.view.names[key], start, stop)
