"""Checkpoints: the named tensors of one model, on disk or in memory, read only when asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from mergescope.errors import CheckpointError, did_you_mean
from mergescope.weights.files import Located, locate
from mergescope.weights.point import Number, Point, TensorSource, TensorSpec

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Checkpoint:
    """The named tensors of one model, read lazily.

    Shapes and dtypes come from the file headers; data are read (memory-mapped) one tensor at a
    time. A state dict is copied, so that training on does not change the checkpoint.
    Checkpoints add, subtract and scale like the [`Point`][mergescope.Point] that they are.

    Args:
        source: a ``.safetensors`` file, a Hugging Face directory, a hub id
            ``org/name[@revision]``, or a state dict.
        name: what to call it in results; by default the last part of the path.
        revision: branch, tag or commit of a hub id.
        dtype: read every floating-point tensor as this type (``"float32"`` or a torch dtype).

    Raises:
        CheckpointError: the files are absent, truncated or no safetensors checkpoint.

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
        store: _Store
        if isinstance(source, Mapping):
            store = _MemoryStore(source, name or "state_dict")
        else:
            store = _FileStore(locate(source, revision), name)
        self._store = store
        self._cast = _float_dtype(dtype)
        self.name: str = store.name
        self.directory: Path | None = store.directory
        self.commit: str | None = store.commit
        self._digest: str | None = None
        self._spec: Mapping[str, TensorSpec] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spec": None}  # a mapping proxy can't be pickled; it is made again

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files (none for a state dict)."""
        return self._store.files

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Key to shape and dtype; reads headers only."""
        if self._spec is None:
            cast = self._cast
            self._spec = MappingProxyType(
                {
                    key: TensorSpec(item.shape, cast if cast and item.dtype.is_floating_point else item.dtype)
                    for key, item in self._store.spec.items()
                }
            )
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
        """``config.json`` of the directory, or None."""
        path = self.directory / "config.json" if self.directory else None
        if path is None or not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}.") from error

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
        """
        if key not in self.spec:
            raise CheckpointError(f"{self.name} has no tensor {key!r}.{did_you_mean(key, self.spec)}")
        value = self._store.tensor(key)
        return value.to(self._cast) if self._cast and value.is_floating_point() else value

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor at once.

        Returns:
            Key to tensor.
        """
        return {key: self.tensor(key) for key in self.keys()}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over names, dtypes, shapes and bytes, whatever the sharding. Reads all."""
        if self._digest is None:
            self._digest = _content_digest((key, self.tensor(key)) for key in sorted(self.keys()))
        return self._digest

    def require_finite(self) -> None:
        """Refuse NaN and infinite weights, which would spread to every combination. Reads all.

        Raises:
            CheckpointError: some weights are not finite; every such tensor is named.
        """
        bad = []
        for key in self.keys():
            value = self.tensor(key)
            if value.is_floating_point() and not torch.isfinite(value).all():
                count = int((~torch.isfinite(value)).sum())
                bad.append(f"{key} ({count} of {value.numel()})")
        if bad:
            where = f" ({self.directory})" if self.directory else ""
            raise CheckpointError(
                f"{self.name}{where} has NaN or infinite weights in {', '.join(bad)}. Training diverged or the "
                "file is damaged: leave this model out or fetch it again."
            )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Checkpoint):
            return self.identity == other.identity
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self.spec)} tensors)"

    def __add__(self, other: Point | TensorSource) -> Point:
        return Point.of(self) + other

    def __radd__(self, other: Any) -> Point:
        return other + Point.of(self)

    def __sub__(self, other: Point | TensorSource) -> Point:
        return Point.of(self) - other

    def __rsub__(self, other: Any) -> Point:
        return other - Point.of(self)

    def __mul__(self, factor: Number) -> Point:
        return Point.of(self) * factor

    __rmul__ = __mul__

    def __truediv__(self, divisor: Number) -> Point:
        return Point.of(self) / divisor

    def __neg__(self) -> Point:
        return -Point.of(self)


class _Store(Protocol):
    name: str
    directory: Path | None
    commit: str | None
    files: tuple[Path, ...]
    spec: dict[str, TensorSpec]
    metadata: dict[str, str]
    identity: str

    def tensor(self, key: str) -> torch.Tensor: ...


class _MemoryStore:
    directory: Path | None = None
    commit: str | None = None
    files: tuple[Path, ...] = ()

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        wrong = [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
        if wrong or not tensors:
            what = f"entries that are no tensors: {', '.join(map(str, wrong))}" if wrong else "no tensors"
            raise CheckpointError(f"The state dict {name!r} has {what}. Pass model.state_dict().")
        self.name = name
        self.metadata: dict[str, str] = {}
        self._tensors = {key: value.detach().cpu().clone() for key, value in tensors.items()}
        self.spec = {key: TensorSpec(tuple(t.shape), t.dtype) for key, t in self._tensors.items()}
        self.identity = "memory:" + _content_digest((key, self._tensors[key]) for key in sorted(self._tensors))

    def tensor(self, key: str) -> torch.Tensor:
        return self._tensors[key]


class _FileStore:
    def __init__(self, located: Located, name: str | None) -> None:
        self.name = name or located.name
        self.directory = located.directory
        self.commit = located.commit
        self.files = located.shards
        self.spec: dict[str, TensorSpec] = {}
        self.metadata: dict[str, str] = {}
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        stamps = []
        for shard in located.shards:
            self._read_header(shard)
            stat = shard.stat()
            stamps.append(f"{shard.resolve()}:{stat.st_size}:{stat.st_mtime_ns}")
        self.identity = "file:" + "|".join(stamps)
        if not self.spec:
            raise CheckpointError(f"{self.name} ({located.directory or located.shards[0]}) holds no tensors.")
        if located.index is not None:
            self._check_index(located.index)

    def _read_header(self, shard: Path) -> None:
        handle = self._handle(shard)
        for key in handle.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            if key in self.spec:
                raise CheckpointError(
                    f"{self.name}: the tensor {key!r} is in both {self._where[key]} and {shard}. Files of two "
                    "checkpoints are mixed in one directory: keep one set."
                )
            part = handle.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{shard}: the tensor {key!r} has the dtype {part.get_dtype()}, which is not supported. "
                    f"Supported: {', '.join(_DTYPES)}."
                )
            self.spec[key] = TensorSpec(tuple(part.get_shape()), dtype)
            self._where[key] = shard
        self.metadata |= handle.metadata() or {}

    def _check_index(self, index: dict[str, Path]) -> None:
        absent = sorted(key for key, shard in index.items() if self._where.get(key) != shard)
        unlisted = sorted(set(self._where) - set(index))
        if absent or unlisted:
            raise CheckpointError(
                f"{self.name}: the index and the shards disagree. Listed but not in their shard: "
                f"{', '.join(absent) or 'none'}. In a shard but not listed: {', '.join(unlisted) or 'none'}. "
                "Shards of two checkpoints are mixed: fetch the model again."
            )

    def _handle(self, shard: Path) -> Any:
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(shard, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                size = shard.stat().st_size if shard.exists() else 0
                raise CheckpointError(
                    f"{shard} ({size:,} bytes) of model {self.name} can't be read as safetensors: {error}. "
                    "The file is truncated or damaged: fetch or save it again."
                ) from error
        return self._open[shard]

    def tensor(self, key: str) -> torch.Tensor:
        try:
            return self._handle(self._where[key]).get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"Reading {key!r} of {self.name} from {self._where[key]} failed: {error}."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # handles don't cross process borders; paths do


def _content_digest(items: Any) -> str:
    whole = hashlib.sha256()
    for key, tensor in items:
        whole.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        whole.update(hashlib.sha256(memoryview(flat.numpy())).digest())
    return whole.hexdigest()


def _float_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    value = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise CheckpointError(
            f"dtype={dtype!r} is not a floating-point type. Use 'float32', 'float16', 'bfloat16' or 'float64'."
        )
    return value
