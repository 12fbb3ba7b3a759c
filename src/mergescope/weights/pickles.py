"""Checkpoints pickled by ``torch.save``, read without running anything they contain.

A pickle is a program. ``torch.load(weights_only=True)`` interprets the part of the language that
builds tensors and refuses the rest, so a file that would run code is an error here and the code
isn't run. Archives (the format since torch 1.6) are memory-mapped; older files are read whole.
"""

from __future__ import annotations

import mmap
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from mergescope.errors import CheckpointError
from mergescope.weights.files import Located
from mergescope.weights.point import TensorSpec
from mergescope.weights.stores import DTYPES, files_identity, read_shards

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Names under which training scripts nest the weights beside epochs and optimiser states."""

MOST_UNPACKED = 100
"""A compressed archive may unpack to so many times its size; deflated zeros come to 1,000 times."""

SMALL = 1 << 24
"""What an archive may unpack to whatever its size."""

_ADVICE = "Load it where you trust it and save it again with save_pretrained or safetensors."


class PickleStore:
    """The tensors of ``pytorch_model.bin``, its shards, or one ``.bin``, ``.pt``, ``.pth`` or ``.ckpt``.

    Tensors that share storage (tied weights) are given under each of their names. A nested
    ``{"state_dict": ...}`` is unwrapped.

    Args:
        located: where the files are.
        name: what to call the checkpoint.

    Raises:
        CheckpointError: a file needs code, is damaged, or holds something that is no plain tensor;
            or the index and the shards disagree.
    """  # noqa: DOC502 (raised by what this calls)

    def __init__(self, located: Located, name: str | None = None) -> None:
        self.name = name or located.name
        self.directory = located.directory
        self.commit = located.commit
        self.files = located.shards
        self.metadata: dict[str, str] = {}
        self._open: dict[Path, dict[str, torch.Tensor]] = {}
        self.spec, self._where, self._stored = read_shards(self.name, located, self._read_specs)
        self.identity = files_identity(located.shards)

    def _read_specs(self, shard: Path) -> dict[str, TensorSpec]:
        return {key: TensorSpec(tuple(t.shape), t.dtype) for key, t in self._payload(shard).items()}

    def _payload(self, shard: Path) -> dict[str, torch.Tensor]:
        if shard not in self._open:
            self._open[shard] = read_pickle(shard, self.name)
        return self._open[shard]

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            key: its name.

        Returns:
            The tensor, a view of the mapped file.
        """
        return self._payload(self._where[key])[self._stored[key]]

    def rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of one tensor.

        Args:
            key: its name.
            start: first row.
            stop: one past the last.

        Returns:
            The rows, a view of the mapped file.
        """
        return self.tensor(key)[start:stop]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # mapped files don't cross process borders; paths do


def read_pickle(path: Path, model: str) -> dict[str, torch.Tensor]:
    """Read the tensors of one file written by ``torch.save``, and run none of its code.

    Args:
        path: the file.
        model: the model's name, for messages.

    Returns:
        Name to tensor.

    Raises:
        CheckpointError: the file needs code, is damaged, or holds other things than tensors.
    """
    payload, room = _load(path, model), path.stat().st_size
    for wrapper in WRAPPERS:
        if isinstance(payload, Mapping) and isinstance(payload.get(wrapper), Mapping):
            payload = payload[wrapper]
            break
    if not isinstance(payload, Mapping):
        raise CheckpointError(
            f"{path} of model {model} holds a {type(payload).__name__}, not a state dict. "
            "Save model.state_dict()."
        )
    problems = [
        f"{key!r} ({problem})" for key, value in payload.items() if (problem := _unusable(key, value, room))
    ]
    if problems:
        raise CheckpointError(
            f"{path} of model {model} has entries that are no plain named tensors: {', '.join(problems)}. "
            "Save model.state_dict() alone, or nest it as {'state_dict': ...}."
        )
    return {key: value.detach() for key, value in payload.items()}


def _unusable(key: object, value: object, room: int) -> str | None:
    if not isinstance(key, str):
        return f"a key of type {type(key).__name__}"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"a tensor with layout {value.layout} on {value.device}"
    if value.dtype not in DTYPES.values():
        return f"dtype {value.dtype}"
    # A stride of 0 lets one number stand for any number of them, and each merge would write them all.
    stored, declared = value.untyped_storage().nbytes(), value.numel() * value.itemsize
    return f"{declared:,} bytes by its shape, {stored:,} stored" if declared > max(stored, room) else None


def _load(path: Path, model: str) -> Any:
    size = path.stat().st_size
    try:
        mapped = _mappable(path, model)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        names = sorted(set(re.findall(r"GLOBAL (\S+)", str(error))))
        why = f"it asks for {', '.join(names)}" if names else "it asks for more than tensors"
        raise CheckpointError(
            f"{path} of model {model} contains code, which was not run: {why}. Weights don't need code. "
            + _ADVICE
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # torch's reader over foreign bytes may raise anything
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} of model {model} is a TorchScript archive: it contains code, which was not run. "
                + _ADVICE
            ) from error
        raise CheckpointError(
            f"{path} ({size:,} bytes) of model {model} can't be read as a torch checkpoint: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "The file is truncated or damaged: fetch or save it again."
        ) from error


def _mappable(path: Path, model: str) -> bool:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:  # the format before torch 1.6, or no checkpoint at all
            if path.stat().st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                    _refuse_buffers(text, path, model)
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
        if unpacked > max(MOST_UNPACKED * size, SMALL):
            raise CheckpointError(
                f"{path} ({size:,} bytes) of model {model} would unpack to {unpacked:,} bytes, more than "
                f"{MOST_UNPACKED} times its size, so it was not unpacked: weights can't be compressed so far. "
                "Fetch the model from a source that you trust."
            )
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                _refuse_buffers(archive.read(entry), path, model)
        # A mapped view of a compressed entry would be noise.
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _refuse_buffers(text: bytes | mmap.mmap, path: Path, model: str) -> None:
    # torch lets a pickle make a bytearray of any size, of which the file needs to hold nothing.
    if any(text.find(module + b"\nbytearray\n") >= 0 for module in (b"cbuiltins", b"c__builtin__")):
        raise CheckpointError(
            f"{path} of model {model} contains code, which was not run: it asks for a bytearray of any size. "
            f"Weights don't need it. {_ADVICE}"
        )
