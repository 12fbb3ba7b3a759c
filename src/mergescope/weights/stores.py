"""Where a checkpoint's tensors come from: a state dict in memory, or safetensors files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from mergescope.errors import CheckpointError
from mergescope.weights.files import Located
from mergescope.weights.point import TensorSpec

DTYPES = {
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

_OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Ends of names in checkpoints that come from TensorFlow, and what transformers reads them as."""


class Store(Protocol):
    """What a checkpoint needs of the place where its tensors are."""

    name: str
    directory: Path | None
    commit: str | None
    files: tuple[Path, ...]
    spec: dict[str, TensorSpec]
    metadata: dict[str, str]
    identity: str

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor."""

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of one tensor that has a first dimension."""


class MemoryStore:
    """A copied state dict."""

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
        self.identity = "memory:" + content_digest({
            key: (self.spec[key], bytes_digest(tensor)) for key, tensor in self._tensors.items()
        })

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            key: its name.

        Returns:
            The tensor.
        """
        return self._tensors[key]

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of one tensor.

        Args:
            key: its name.
            start: first row.
            stop: one past the last.

        Returns:
            The rows, a view.
        """
        return self._tensors[key][start:stop]


class FileStore:
    """Safetensors files, memory-mapped."""

    def __init__(self, located: Located, name: str | None) -> None:
        self.name = name or located.name
        self.directory = located.directory
        self.commit = located.commit
        self.files = located.shards
        self.metadata: dict[str, str] = {}
        self._begin: dict[str, int] = {}
        self._open: dict[Path, Any] = {}
        self._views: dict[str, torch.Tensor] = {}
        self._descriptors: dict[Path, BinaryIO] = {}
        self.spec, self._where, self._stored = read_shards(self.name, located, self._read_header)
        self.identity = files_identity(located.shards)

    def _read_header(self, shard: Path) -> dict[str, TensorSpec]:
        handle = self._handle(shard)
        offsets = _data_offsets(shard)
        spec = {}
        for key in handle.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            part = handle.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{shard}: the tensor {key!r} has the dtype {part.get_dtype()}, which is not supported. "
                    f"Supported: {', '.join(DTYPES)}."
                )
            spec[key] = TensorSpec(tuple(part.get_shape()), dtype)
            self._begin[key] = offsets[key]
        self.metadata |= handle.metadata() or {}
        return spec

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
        """Read one tensor.

        Args:
            key: its name.

        Returns:
            The tensor, a view of the mapped file.

        Raises:
            CheckpointError: the file can't be read.
        """
        # A view takes no memory, and making it takes longer than adding a small tensor.
        if key in self._views:
            return self._views[key]
        try:
            found = self._handle(self._where[key]).get_tensor(self._stored[key])
            return self._views.setdefault(key, found)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"Reading {key!r} of {self.name} from {self._where[key]} failed: {error}."
            ) from error

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of one tensor.

        Args:
            key: its name.
            start: first row.
            stop: one past the last.

        Returns:
            The rows, a copy: reading into a small buffer that stays in the cache is several times
            faster than faulting in the pages of a mapped file that are used once.

        Raises:
            CheckpointError: the file can't be read or has become shorter.
        """  # noqa: DOC501 (the OSError does not leave it)
        shape, dtype = self.spec[key]
        row = dtype.itemsize
        for size in shape[1:]:
            row *= size
        rows = torch.empty((stop - start, *shape[1:]), dtype=dtype)
        if not rows.numel():
            return rows
        shard = self._where[key]
        wanted = rows.view(-1).view(torch.uint8).numpy().data
        offset = self._begin[self._stored[key]] + start * row
        try:
            while len(wanted):
                count = os.preadv(self._descriptor(shard), [wanted], offset)
                if count == 0:
                    raise OSError("the file ends early")
                wanted, offset = wanted[count:], offset + count
        except OSError as error:
            raise CheckpointError(f"Reading {key!r} of {self.name} from {shard} failed: {error}.") from error
        return rows

    def _descriptor(self, shard: Path) -> int:
        if shard not in self._descriptors:
            # setdefault: two threads may come here at once, and both must end up with one file.
            self._descriptors.setdefault(shard, shard.open("rb", buffering=0))
        return self._descriptors[shard].fileno()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_open": {},
            "_views": {},
            "_descriptors": {},
        }  # handles don't cross process borders; paths do


def _data_offsets(shard: Path) -> dict[str, int]:
    # safetensors has validated the header; what it passes over is a name that occurs twice.
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(f"{shard}: its header names {', '.join(map(repr, twice))} more than once.")
        return dict(pairs)

    with shard.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length), object_pairs_hook=once)
    return {
        key: 8 + length + item["data_offsets"][0] for key, item in header.items() if key != "__metadata__"
    }


def read_shards(
    name: str, located: Located, read: Callable[[Path], Mapping[str, TensorSpec]]
) -> tuple[dict[str, TensorSpec], dict[str, Path], dict[str, str]]:
    """Put the headers of a checkpoint's files together.

    ``LayerNorm.gamma`` and ``LayerNorm.beta`` of old BERTs are named as transformers reads them: weight and bias.

    Args:
        name: the checkpoint's, for messages.
        located: where the files are.
        read: file to the specs of its tensors.

    Returns:
        Tensor name to spec, tensor name to file, and tensor name to its name in the file.

    Raises:
        CheckpointError: there are no tensors, one is in two files or can't be one, or index and files disagree.
    """
    spec: dict[str, TensorSpec] = {}
    where: dict[str, Path] = {}
    for shard in located.shards:
        for key, value in read(shard).items():
            if problem := _implausible(key, value):
                raise CheckpointError(
                    f"{shard}: the tensor {key!r:.300} {problem}. No network has such a tensor: the file is damaged, "
                    "or made to deceive. Fetch the model from a source that you trust."
                )
            if key in spec:
                raise CheckpointError(
                    f"{name}: the tensor {key!r} is in both {where[key]} and {shard}. Files of two checkpoints are "
                    "mixed in one directory: keep one set."
                )
            spec[key], where[key] = value, shard
    if not spec:
        raise CheckpointError(f"{name} ({located.directory or located.shards[0]}) holds no tensors.")
    index = where if located.index is None else located.index
    absent = sorted(key for key, shard in index.items() if where.get(key) != shard)
    unlisted = sorted(set(where) - set(index))
    if absent or unlisted:
        raise CheckpointError(
            f"{name}: the index and the shards disagree. Listed but not in their shard: "
            f"{', '.join(absent) or 'none'}. In a shard but not listed: {', '.join(unlisted) or 'none'}. "
            "Shards of two checkpoints are mixed: fetch the model again."
        )
    names = _names(spec)
    return (
        {name: spec[key] for name, key in names.items()},
        {name: where[key] for name, key in names.items()},
        names,
    )


def _names(stored: Collection[str]) -> dict[str, str]:
    names = {}
    for key in stored:
        end = next((end for end in _OLD_ENDS if key.endswith(end)), None)
        name = key if end is None else key.removesuffix(end) + _OLD_ENDS[end]
        names[key if name in stored else name] = key
    return names


def _implausible(key: str, spec: TensorSpec) -> str | None:
    if not key.isprintable():
        return "has control characters in its name"
    if len(spec.shape) > 64:
        return f"has {len(spec.shape):,} dimensions"
    # With an empty dimension, any others fit a file of no bytes, but no array.
    if math.prod(max(size, 1) for size in spec.shape) * spec.dtype.itemsize >= 1 << 62:
        return f"declares the shape {list(spec.shape)}"
    return None


def files_identity(files: Iterable[Path]) -> str:
    """What tells files from others without reading them.

    Args:
        files: the files of a checkpoint.

    Returns:
        Their paths, sizes and times of change.
    """
    stats = ((path.resolve(), path.stat()) for path in files)
    return "file:" + "|".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def content_digest(tensors: Mapping[str, tuple[TensorSpec, str]]) -> str:
    """Digest of a checkpoint from those of its tensors, whatever the sharding.

    Args:
        tensors: name to spec and digest of the bytes (see [`bytes_digest`][]).

    Returns:
        XXH3-128 (hex) over names, dtypes, shapes and digests, by name.
    """
    whole = xxhash.xxh3_128()
    for key in sorted(tensors):
        spec, digest = tensors[key]
        whole.update(f"{key} {spec.dtype} {spec.shape} {digest} ".encode())
    return whole.hexdigest()


def bytes_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bytes.

    Args:
        tensor: any.

    Returns:
        XXH3-128 (hex).
    """
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return xxhash.xxh3_128(flat.numpy().data).hexdigest()
