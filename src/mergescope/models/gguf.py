"""GGUF files, the quantised format of llama.cpp, as a network with its checkpoint."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mergescope.errors import CheckpointError
from mergescope.models.architecture import find_gguf
from mergescope.models.loading import load_model
from mergescope.models.quiet import quiet_transformers
from mergescope.weights import Checkpoint
from mergescope.weights.files import atomic_directory, disk_errors

WHOLE = ("F64", "F32", "F16", "BF16")
"""Types of tensors that are not quantised."""


def load_gguf(
    source: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Checkpoint]:
    """Read a GGUF file as a network and a checkpoint of its dequantised weights.

    What is measured then is the quantised model. Quantising moves weights, often further than a
    short fine-tuning does: compare files of one quantisation with each other.

    Args:
        source: a ``.gguf`` file, or a directory whose only weights are in one.
        dtype: of the dequantised weights, as for [`load_model`][mergescope.models.load_model].
        device: of the network; the checkpoint is a copy in memory.

    Returns:
        The network in eval mode, and the checkpoint, whose name says what it was:
        ``SmolLM2-135M (dequantised from Q4_1)``.

    Raises:
        CheckpointError: there is no such file, or it can't be read (packages ``gguf`` and
            ``accelerate`` are needed).
        MismatchError: it does not fill the network.
    """  # noqa: DOC502 (raised by what this calls)
    path = find_gguf(source)
    if path is None:
        raise CheckpointError(f"{os.fspath(source)!r} is neither a .gguf file nor a directory with just one.")
    network = load_model(path, dtype=dtype, device=device)
    tensors: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for key, value in network.state_dict().items():
        if value.data_ptr() not in places:  # of tied weights the first name is enough
            places.add(value.data_ptr())
            tensors[key] = value
    return network, Checkpoint(tensors, name=described(path))


def dequantise(path: Path, out: Path | None = None) -> Path:
    """Write a GGUF file as an ordinary directory: dequantised weights, configuration, tokenizer if there is one.

    Args:
        path: the file.
        out: the directory; by default one in the user's cache, which is used again next time.

    Returns:
        The directory.

    Raises:
        CheckpointError: the file can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    stat = path.stat()
    if out is None:
        key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        out = cache / "mergescope" / "gguf" / key / described(path).replace("/", "-")
    if out.is_dir():
        return out
    network: Any = load_model(path)
    with (
        contextlib.suppress(FileExistsError),  # another process was faster
        disk_errors(out), atomic_directory(out) as folder, quiet_transformers(),
    ):  # fmt: skip
        # transformers does not save what it read from GGUF: the same network, without that in its configuration.
        config = copy.deepcopy(network.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = type(network)(config)
        plain.load_state_dict(network.state_dict())
        plain.save_pretrained(folder)
        from transformers import AutoTokenizer

        # A file may hold none, or one that transformers can't build: then the user gives another.
        with contextlib.suppress(ValueError):
            tokenizer = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
            tokenizer.save_pretrained(folder)
    return out


def described(path: Path) -> str:
    """What a dequantised file is called.

    Args:
        path: the file, for instance ``SmolLM2-135M.Q4_1.gguf``.

    Returns:
        Its name and the quantisation that its header gives, else that of most of its weights.
    """
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(path)
    field = reader.fields.get("general.file_type")
    known = {int(value): value.name for value in LlamaFileType if value.name != "GUESSED"}
    kind = re.sub("^(ALL|MOSTLY)_", "", known.get(int(field.contents()) if field else -1, ""))
    if not kind:
        counts: Counter[str] = Counter()
        for tensor in reader.tensors:
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
        kind = counts.most_common(1)[0][0]
    name = re.sub(rf"[.\-_]{re.escape(kind)}$", "", path.stem, flags=re.IGNORECASE)
    return f"{name} ({'GGUF in' if kind in WHOLE else 'dequantised from'} {kind})"
