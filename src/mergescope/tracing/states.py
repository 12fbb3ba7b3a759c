"""Where the streamed executor keeps hidden states."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from mergescope.errors import MergescopeError


class States:
    """Hidden states by kind, point and batch: in memory up to a budget, then in files.

    Args:
        budget: bytes kept in memory.
        device: where states read from files go.

    Example:
        >>> with States(budget=0, device=torch.device("cpu")) as states:
        ...     states.put("hidden", 0, 0, torch.ones(2, dtype=torch.bfloat16))
        ...     states.get("hidden", 0, 0)
        tensor([1., 1.], dtype=torch.bfloat16)
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self._left, self._device = budget, device
        self._held: dict[tuple[str, int, int], torch.Tensor] = {}
        self._filed: dict[tuple[str, int, int], tuple[torch.Size, torch.dtype]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> States:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, kind: str, point: int, batch: int, value: torch.Tensor) -> None:
        """Keep a state, in place of an older one.

        Args:
            kind: what it is.
            point: position of the point.
            batch: number of the batch.
            value: the state.

        Raises:
            MergescopeError: there is no room for it on disk.
        """
        key = (kind, point, batch)
        old = self._held.pop(key, None)
        if old is not None:
            self._left += old.nbytes
        value = value.detach()
        if value.nbytes <= self._left:
            # A view would keep the whole of what it is a view of.
            self._held[key] = value.clone() if value.nbytes < value.untyped_storage().nbytes() else value
            self._left -= value.nbytes
            return
        self._filed[key] = (value.shape, value.dtype)
        path = self._path(key)
        try:
            value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(path)
        except OSError as error:
            raise MergescopeError(
                f"Hidden states can't be kept in {path.parent}: {error}. Set TMPDIR to a larger disk, or trace "
                "fewer samples or points at once."
            ) from error

    def get(self, kind: str, point: int, batch: int) -> torch.Tensor:
        """Look a state up.

        Args:
            kind: what it is.
            point: position of the point.
            batch: number of the batch.

        Returns:
            The state; not to be changed in place.
        """
        key = (kind, point, batch)
        if key in self._held:
            return self._held[key]
        shape, dtype = self._filed[key]
        return (
            torch.from_numpy(np.fromfile(self._path(key), np.uint8)).view(dtype).view(shape).to(self._device)
        )

    def _path(self, key: tuple[str, int, int]) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mergescope-")
        return Path(self._folder.name) / "-".join(map(str, key))
