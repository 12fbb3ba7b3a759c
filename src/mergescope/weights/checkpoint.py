"""Checkpoints: the named tensors of one model, on disk or in memory, read only when asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from mergescope.display import Cell, Table, View, as_html, as_pretty, frame, number
from mergescope.documents import read_settings
from mergescope.errors import CheckpointError, did_you_mean
from mergescope.weights.chunks import all_finite
from mergescope.weights.files import locate
from mergescope.weights.pickles import PickleStore
from mergescope.weights.point import Point, TensorSpec
from mergescope.weights.sources import Source
from mergescope.weights.stores import FileStore, MemoryStore, Store


class Checkpoint(Source):
    """The named tensors of one model, read lazily.

    Shapes and dtypes come from the file headers; data are read (memory-mapped) one tensor at a
    time. A state dict is copied, so that training on does not change the checkpoint.
    Checkpoints add, subtract and scale like the [`Point`][mergescope.Point] that they are.

    Args:
        source: a ``.safetensors`` file, a Hugging Face directory, a hub id
            ``org/name[@revision]``, or a state dict. Where there are no safetensors,
            ``pytorch_model.bin`` and other files of ``torch.save`` are read without running code.
        name: what to call it in results; by default the last part of the path.
        revision: branch, tag or commit of a hub id.
        dtype: read every floating-point tensor as this type (``"float32"`` or a torch dtype).

    Raises:
        CheckpointError: the files are absent, truncated or no checkpoint, or need code to be read.

    Example:
        >>> theta = Checkpoint({"w": torch.ones(2, 3)}, name="theta")
        >>> theta.spec["w"]
        TensorSpec(shape=(2, 3), dtype=torch.float32)
        >>> (theta - theta).tensor("w").sum()
        tensor(0.)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        *,
        name: str | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        store: Store
        if isinstance(source, Mapping):
            store = MemoryStore(source, name or "state_dict")
        else:
            located = locate(source, revision)
            store = (PickleStore if located.pickled else FileStore)(located, name)
        self._use(store, dtype)

    def _use(self, store: Store, dtype: str | torch.dtype | None) -> None:
        self._store = store
        self._cast = _float_dtype(dtype)
        self.name: str = store.name
        self.directory: Path | None = store.directory
        self.commit: str | None = store.commit
        self._finite = False
        self._spec: Mapping[str, TensorSpec] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spec": None}  # a mapping proxy can't be pickled; it is made again

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors (none for a state dict)."""
        return self._store.files

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Key to shape and dtype; reads headers only."""
        if self._spec is None:
            cast = self._cast
            self._spec = MappingProxyType({
                key: TensorSpec(item.shape, cast if cast and item.dtype.is_floating_point else item.dtype)
                for key, item in self._store.spec.items()
            })
        return self._spec

    @property
    def identity(self) -> str:
        """Equal for checkpoints known to hold the same tensors without reading them.

        For files: paths, sizes and modification times. For state dicts: the content digest.
        """
        return self._store.identity + (f" as {self._cast}" if self._cast else "")

    @property
    def metadata(self) -> Mapping[str, str]:
        """The string metadata in the file header (empty for a state dict)."""
        return self._store.metadata

    @property
    def config(self) -> dict[str, Any] | None:
        """``config.json`` of the directory, or None.

        Raises:
            CheckpointError: it is not valid JSON, or no mapping.
        """  # noqa: DOC502 (raised by what this calls)
        path = self.directory / "config.json" if self.directory else None
        if path is None or not path.is_file():
            return None
        return read_settings(path)

    def keys(self) -> Iterator[str]:
        """The tensor names.

        Returns:
            An iterator in file order.
        """
        return iter(self.spec)

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor. Treat it as read-only: it may be a view of a mapped file.

        Args:
            key: the tensor's name.

        Returns:
            The tensor.

        Raises:
            CheckpointError: no such key, or the file can't be read.
        """  # noqa: DOC502 (raised by what this calls)
        self._known(key)
        value = self._store.tensor(key)
        return value.to(self._cast) if self._cast and value.is_floating_point() else value

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read some rows of one tensor: a slice along its first dimension.

        Only these rows are read.

        Args:
            key: the tensor's name.
            start: index of the first row.
            stop: one past the last. A scalar counts as one row.

        Returns:
            ``(stop - start, ...)``, in the dtype that ``spec`` says.

        Raises:
            CheckpointError: no such key, no such rows, or the file can't be read.

        Example:
            >>> Checkpoint({"w": torch.arange(6.0).view(3, 2)}).rows("w", 1, 2)
            tensor([[2., 3.]])
        """
        shape = self._known(key).shape
        count = shape[0] if shape else 1
        if not 0 <= start <= stop <= count:
            raise CheckpointError(
                f"{self.name}: the tensor {key!r} of shape {list(shape)} has {count} row(s); rows {start} to "
                f"{stop} were asked for."
            )
        store = self._store
        value = store.rows(key, start, stop) if shape else store.tensor(key).reshape(1)[start:stop]
        return value.to(self._cast) if self._cast and value.is_floating_point() else value

    def _known(self, key: str) -> TensorSpec:
        if key not in self.spec:
            raise CheckpointError(f"{self.name} has no tensor {key!r}.{did_you_mean(key, self.spec)}")
        return self.spec[key]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor at once.

        Returns:
            Key to tensor.
        """
        return {key: self.tensor(key) for key in self.keys()}

    def require_finite(self) -> None:
        """Refuse NaN and infinite weights, which would spread to every combination. Reads all, once.

        Raises:
            CheckpointError: some weights are not finite; every such tensor is named.
        """
        if self._finite:
            return
        bad = []
        for key in self.keys():
            value = self.tensor(key)
            if value.is_floating_point() and not all_finite(value):
                count = int((~torch.isfinite(value)).sum())
                bad.append(f"{key} ({count} of {value.numel()})")
        if bad:
            where = f" ({self.directory})" if self.directory else ""
            raise CheckpointError(
                f"{self.name}{where} has NaN or infinite weights in {', '.join(bad)}. Training diverged or "
                "the file is damaged: leave this model out or fetch it again."
            )
        self._finite = True

    def reopened(self, source: Path | None = None) -> Checkpoint:
        """The same files opened anew: in another process, on another machine, or from another place.

        Args:
            source: file or directory; by default where they were.

        Returns:
            A checkpoint of the same name and type.

        Raises:
            CheckpointError: nothing is there, or no checkpoint.
        """  # noqa: DOC502 (raised by what this calls)
        # One file is opened as such: beside it there may be another, which its directory would stand for.
        place = self.files[0] if len(self.files) == 1 else self.directory or self.files[0]
        return Checkpoint(source or place, name=self.name, dtype=self._cast)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Checkpoint):
            return self.identity == other.identity
        return NotImplemented

    def __hash__(self) -> int:
        return hash(Point.of(self))  # equal to the point that it is, so the two find each other in tables

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self.spec)} tensors)"

    _repr_html_, _repr_pretty_ = as_html, as_pretty

    def to_pandas(self) -> Any:
        """The tensors as a pandas table: key, shape, dtype, entries and bytes. Reads headers only.

        Returns:
            One line a tensor.

        Raises:
            MergescopeError: pandas is not installed.
        """  # noqa: DOC502 (raised by what this calls)
        return frame(
            {
                "tensor": key, "shape": spec.shape, "dtype": str(spec.dtype).removeprefix("torch."),
                "entries": spec.numel, "bytes": spec.nbytes,
            }
            for key, spec in self.spec.items()
        )  # fmt: skip

    def _view(self) -> View:
        entries, size = (sum(getattr(s, of) for s in self.spec.values()) for of in ("numel", "nbytes"))
        lines = tuple((key, str(spec), Cell(number(spec.numel))) for key, spec in self.spec.items())
        said = f"{len(lines):,} tensors, {entries:,} entries, {size / 1e6:,.1f} MB"
        return View(
            said, (Table(f"Checkpoint {self.name}", ("tensor", "shape and dtype", "entries"), lines),)
        )


def _float_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise CheckpointError(
            f"dtype={dtype!r} is not a floating-point type. Use 'float32', 'float16', 'bfloat16' or "
            "'float64'."
        )
    return value
