"""Writing a point to disk as a checkpoint directory, one tensor at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergescope.documents import DocumentError, read_json
from mergescope.errors import CheckpointError, PointError
from mergescope.merging.configs import match_dtype
from mergescope.merging.shards import Shards
from mergescope.merging.vocabulary import TOKENIZER_FILES
from mergescope.weights import Point
from mergescope.weights.chunks import all_finite
from mergescope.weights.files import PICKLES, atomic_directory
from mergescope.weights.point import TensorSource

SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt",
    "*.model", "sentencepiece*", "bpe.codes", "added_tokens.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "processor_config.json", "chat_template*", "*.spm", "*.tiktoken",
    "tekken.json", "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
    "*_Pooling/config.json", "normalizer.json", "*.py",
)  # fmt: skip
"""Files beside the weights that make a Hugging Face directory load; copied from the base."""

_MODULE = re.compile(r"\d{1,3}_\w[\w.-]{0,99}", re.ASCII)


def save(
    point: Point | TensorSource,
    out: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a directory with ``model.safetensors`` and the files that make it load.

    Tensors are materialised one at a time, so memory stays at the size of the largest. The
    directory appears complete or not at all.

    Args:
        point: a point that is a model (its coefficients sum to 1), or a checkpoint.
        out: the directory to make.
        config: ``config.json``; by default it and the tokenizer files are copied from the first
            checkpoint of the point that has a directory, preferring the largest coefficient.
        metadata: strings for the file header, beside ``{"format": "pt"}`` and the formula.
        overwrite: replace an existing directory.

    Returns:
        The directory.

    Raises:
        PointError: the point is a direction or another combination that is no model.
        CheckpointError: the output exists, is or holds an input, a tensor is NaN or infinite, or
            the disk fails.

    Example:
        >>> import tempfile, torch
        >>> from mergescope import Checkpoint
        >>> a = Checkpoint({"w": torch.zeros(2)}, name="a")
        >>> b = Checkpoint({"w": torch.ones(2)}, name="b")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = save((a + b) / 2, folder + "/merged")
        ...     Checkpoint(out).tensor("w")
        tensor([0.5000, 0.5000])
    """
    point = Point.of(point)
    if not point.is_model:
        raise PointError(
            f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1. "
            "Add a task vector to a base before saving it."
        )
    target = Path(out)
    try:
        # Links in a circle: Python 3.13 finds them only if it is to be strict.
        here = target.resolve(strict=target.is_symlink() and target.resolve().is_symlink())
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{target} can't be a directory: {error}. Choose another one.") from error
    homes = [getattr(source, "directory", None) for source in _by_weight(point)]
    if any(home is not None and home.resolve() == here for home in homes):
        raise CheckpointError(f"{target} is one of the inputs: choose another output directory.")
    files = [file for source in point.checkpoints for file in getattr(source, "files", ())]
    inside = [
        str(f) for f in files if here in f.resolve().parents or here in (f.parent.resolve() / "_").parents
    ]
    if inside:
        raise CheckpointError(f"{target} holds the input {inside[0]}: choose another output directory.")
    require_replaceable(target, overwrite)
    try:
        with atomic_directory(target, overwrite) as folder:
            home = next((it for it in _by_weight(point) if getattr(it, "directory", None) is not None), None)
            if config is not None:
                (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
            elif home is not None:
                described = getattr(home, "config", None)
                if described is not None:
                    match_dtype(described, (spec.dtype for spec in point.spec.values()))
                write_side_files(home, folder, described)
            header = {"mergescope.point": str(point), **(metadata or {})}
            shards = Shards(folder, point.spec.items(), header, max_shard_bytes=None)
            try:
                _write_tensors(shards, point)
            finally:
                shards.close(flush=False)  # the directory is flushed before it appears
    except FileExistsError:  # another process was faster
        raise CheckpointError(f"{target} exists by now. Choose another directory.") from None
    except OSError as error:
        raise CheckpointError(
            f"Writing {target} failed, and nothing was left there: {error}. Check the disk's space "
            "and permissions, then run the same command again."
        ) from error
    return target


def require_replaceable(target: Path, overwrite: bool) -> None:
    """Refuse an output that is there already, unless it is a model that may be replaced.

    Args:
        target: the directory to make.
        overwrite: whether a model there may be replaced.

    Raises:
        CheckpointError: it is a file, may not be replaced, or holds something that is no model.
    """
    if target.exists() and not target.is_dir():
        raise CheckpointError(
            f"{target} is a file, but a model is a directory: choose another output directory."
        )
    if not target.exists():
        return
    if not overwrite:
        raise CheckpointError(
            f"{target} exists. Choose another directory, or overwrite it (overwrite=True, --overwrite)."
        )
    held = [path.name for path in target.iterdir()]
    if held and not any(name == "config.json" or name.endswith((".safetensors", ".bin")) for name in held):
        raise CheckpointError(
            f"{target} holds {', '.join(sorted(held)[:5])}, and no model: it is not overwritten. Choose another "
            "directory."
        )


def _write_tensors(shards: Shards, point: Point) -> None:
    for key in point.spec:
        tensor = point.tensor(key)
        if tensor.is_floating_point() and not all_finite(tensor):
            names = ", ".join(source.name for source in point.checkpoints)
            raise CheckpointError(
                f"The tensor {key!r} of {point!r} is NaN or infinite, so nothing was written. "
                f"Look for damaged weights in: {names}."
            )
        shards.write(key, 0, tensor.contiguous())


def _by_weight(point: Point) -> list[TensorSource]:
    return [source for source, _ in sorted(point.terms, key=lambda term: -abs(term[1]))]


def write_side_files(home: Any, folder: Path, config: Mapping[str, Any] | None) -> None:
    """Copy a model's configuration and tokenizer files, those of an adapter where it brings its own.

    Args:
        home: the checkpoint.
        folder: where to.
        config: ``config.json``, written if it is not what the file says; None leaves the file as it is.
    """
    if home.directory is not None:
        copy_side_files(home.directory, folder)
    own = getattr(home, "tokenizer_directory", None)
    if own is not None and own != home.directory:
        for name in TOKENIZER_FILES:
            if (own / name).is_file():
                shutil.copyfile(own / name, folder / name)
    file = folder / "config.json"
    if config is not None and not (file.is_file() and read_json(file) == dict(config)):
        file.write_text(json.dumps(dict(config), indent=2) + "\n")


def copy_side_files(home: Path, folder: Path) -> None:
    """Copy configuration and tokenizer files, and further modules of a sentence-transformers model.

    Args:
        home: a checkpoint's directory.
        folder: where to.
    """
    found = [path for pattern in SIDE_FILES for path in sorted(home.glob(pattern)) if path.is_file()]
    for path in (*found, *(file for module in _modules(home) for file in _files_in(module, home))):
        destination = folder / path.relative_to(home)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)


def modules_with_weights(home: Path) -> list[str]:
    """Further modules of a sentence-transformers model that have weights, such as a dense layer.

    Args:
        home: a checkpoint's directory.

    Returns:
        Names of their directories, as ``modules.json`` there gives them.
    """
    kinds = {".safetensors", *PICKLES}
    return [
        module.name
        for module in _modules(home)
        if any(path.suffix in kinds for path in _files_in(module, home))
    ]


def links_elsewhere(home: Path) -> list[str]:
    """What further modules of a sentence-transformers model have elsewhere, which is not copied.

    Args:
        home: a checkpoint's directory.

    Returns:
        Paths of links, relative to the directory.
    """
    found = [folder for folder in _named_modules(home) if folder.is_symlink()]
    for module in _modules(home):
        taken = set(_files_in(module, home))
        found += [path for path in sorted(module.rglob("*")) if path.is_file() and path not in taken]
    return [str(path.relative_to(home)) for path in found]


def _modules(home: Path) -> list[Path]:
    return [folder for folder in _named_modules(home) if folder.is_dir() and not folder.is_symlink()]


def _named_modules(home: Path) -> list[Path]:
    # The transformer's own directory is left out: its weights are those that are merged.
    try:
        listed = read_json(home / "modules.json") if (home / "modules.json").is_file() else []
    except DocumentError:
        return []
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    named = [item.get("path") for item in items if not _is_transformer(item.get("type"))]
    plain = [name for name in named if isinstance(name, str) and _MODULE.fullmatch(name)]
    return [home / name for name in dict.fromkeys(plain)]


def _is_transformer(kind: object) -> bool:
    return isinstance(kind, str) and kind.endswith("Transformer")


def _files_in(module: Path, home: Path) -> list[Path]:
    # Links may lead to where the hub's cache keeps all files, but not to whatever else is on this machine.
    root = home.resolve()
    places = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    return [
        path
        for path in sorted(module.rglob("*"))
        if path.is_file() and any(place in path.resolve().parents for place in places)
    ]
