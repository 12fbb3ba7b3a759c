"""GGUF files, the quantised format of llama.cpp, as a network with its checkpoint."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from mergescope.errors import CheckpointError
from mergescope.models.architecture import find_gguf
from mergescope.models.loading import load_model
from mergescope.weights import Checkpoint

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
