"""Shards: the output's safetensors files, written in place, any tensor in any order.

A safetensors file is eight bytes of header length, a JSON header with dtype, shape and byte
offsets of each tensor, and the tensors' bytes. Shapes are known from the plan, so headers are
written first and every chunk goes straight to its place.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from mergescope.errors import CheckpointError
from mergescope.weights.files import INDEX, SINGLE
from mergescope.weights.point import TensorSpec
from mergescope.weights.stores import DTYPES

TAGS = {dtype: tag for tag, dtype in DTYPES.items() if dtype.itemsize > 1 or not dtype.is_floating_point}
"""The format's names of dtypes. Floats of 8 bits are read only: their scales are other tensors."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor goes.

    Attributes:
        file: the shard's name.
        offset: first byte in the file.
        nbytes: length.
    """

    file: str
    offset: int
    nbytes: int


class Shards:
    """Open output files with a place for every tensor.

    Args:
        folder: where to write.
        specs: name, shape and dtype of every tensor, in order.
        metadata: strings for each header, beside ``{"format": "pt"}``.
        max_shard_bytes: a new file begins before this is exceeded; None for a single file.
        keep: leave what the files hold already (when resuming).

    Raises:
        CheckpointError: a dtype that can't be written.
        OSError: the disk is full or can't be written.
    """  # noqa: DOC502 (raised by what this calls)

    def __init__(
        self,
        folder: Path,
        specs: Iterable[tuple[str, TensorSpec]],
        metadata: Mapping[str, str],
        max_shard_bytes: int | None,
        keep: bool = False,
    ) -> None:
        self.folder = folder
        self.slots: dict[str, Slot] = {}
        self._files: dict[str, int] = {}
        groups: list[list[tuple[str, TensorSpec]]] = [[]]
        size = 0
        for name, spec in specs:
            if spec.dtype not in TAGS:
                raise CheckpointError(
                    f"The tensor {name!r} has the dtype {spec.dtype}, which can't be written."
                )
            if groups[-1] and max_shard_bytes is not None and size + spec.nbytes > max_shard_bytes:
                groups.append([])
                size = 0
            groups[-1].append((name, spec))
            size += spec.nbytes
        self.total = sum(spec.nbytes for group in groups for _, spec in group)
        try:
            for number, group in enumerate(groups, 1):
                file = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
                self._open(file, group, {"format": "pt", **metadata}, keep)
        except OSError:
            self.close(flush=False)
            raise
        if len(groups) > 1:
            index = {
                "metadata": {"total_size": self.total},
                "weight_map": {name: slot.file for name, slot in self.slots.items()},
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _open(
        self, file: str, group: list[tuple[str, TensorSpec]], metadata: Mapping[str, str], keep: bool
    ) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name, spec in group:
            header[name] = {
                "dtype": TAGS[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [end, end + spec.nbytes],
            }
            end += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        flags = os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC)
        self._files[file] = os.open(self.folder / file, flags, 0o666)
        write_all(self._files[file], struct.pack("<Q", len(text)) + text, 0)
        os.truncate(self._files[file], begin + end)
        offset = begin
        for name, spec in group:
            self.slots[name] = Slot(file, offset, spec.nbytes)
            offset += spec.nbytes

    def write(self, name: str, at: int, values: torch.Tensor) -> None:
        """Write some of a tensor's values.

        Args:
            name: the tensor.
            at: byte position within the tensor.
            values: contiguous, of the tensor's dtype, on the CPU.
        """
        slot = self.slots[name]
        write_all(self._files[slot.file], raw_bytes(values), slot.offset + at)

    def digest(self, name: str) -> str:
        """Digest of what a tensor's place holds now.

        Args:
            name: the tensor.

        Returns:
            XXH3-128 (hex).
        """
        slot, state = self.slots[name], xxhash.xxh3_128()
        for at in range(0, slot.nbytes, 1 << 20):
            state.update(os.pread(self._files[slot.file], min(1 << 20, slot.nbytes - at), slot.offset + at))
        return state.hexdigest()

    def close(self, flush: bool = True) -> None:
        """Close the files.

        Args:
            flush: have the disk hold them first.
        """
        for handle in self._files.values():
            if flush:
                os.fsync(handle)
            os.close(handle)
        self._files = {}


def raw_bytes(values: torch.Tensor) -> memoryview:
    """A tensor's bytes, not copied.

    Args:
        values: contiguous, on the CPU.

    Returns:
        The bytes.
    """
    return values.reshape(-1).view(torch.uint8).numpy().data


def replace_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite tensors of a checkpoint in place, in the dtypes that they have there.

    Args:
        folder: holds safetensors files.
        tensors: name to new values.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("r+b") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            for name in header.keys() & tensors.keys():
                values = tensors[name].detach().cpu().to(DTYPES[header[name]["dtype"]]).contiguous()
                write_all(stream.fileno(), raw_bytes(values), 8 + length + header[name]["data_offsets"][0])
            os.fsync(stream.fileno())


def write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write bytes at a position, however many calls it takes.

    Args:
        handle: file descriptor.
        data: the bytes.
        offset: where.
    """
    view = memoryview(data)
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
