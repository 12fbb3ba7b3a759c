"""Where a checkpoint's tensors are: resolving names to files, and atomic writes.

A checkpoint is named by a ``.safetensors`` file, a directory with ``model.safetensors`` or
``model.safetensors.index.json`` and its shards (the Hugging Face layout), or a hub id
``org/name[@revision]``. A path that exists always wins over a hub id. Where there are no
safetensors, ``pytorch_model.bin``, its shards or one other file of ``torch.save`` will do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergescope.documents import DocumentError, read_json, usable_path
from mergescope.errors import CheckpointError, MergescopeError, near_paths

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER_CONFIG = "adapter_config.json"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
TEMPORARY = r"\..+\.[a-z0-9_]{8}\.tmp(\..+)?"
"""Names of what [`atomic_file`][] and [`atomic_directory`][] write to until it is complete."""

_NO_MODEL = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*")
_TEMPORARY = re.compile(r"\..+\.\w{8}\.tmp(\.\w+)?")


@dataclass(frozen=True)
class Located:
    """A checkpoint on disk.

    Attributes:
        name: what the user called it, shortened to the last part of a path.
        directory: where config and tokenizer are; None for a lone file.
        shards: the files that hold the tensors.
        index: tensor name to shard, if an index says so.
        commit: the hub commit, if it came from a hub.
    """

    name: str
    directory: Path | None
    shards: tuple[Path, ...]
    index: dict[str, Path] | None = None
    commit: str | None = None

    @property
    def pickled(self) -> bool:
        """Whether the files come from ``torch.save``."""
        return any(shard.suffix != ".safetensors" for shard in self.shards)


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Located:
    """Find the files of a checkpoint.

    Args:
        source: file, directory or ``org/name[@revision]``.
        revision: branch, tag or commit of a hub id.

    Returns:
        The files, unread.

    Raises:
        CheckpointError: nothing there, or something there that is no checkpoint.
    """
    path = usable_path(source, CheckpointError)
    if path.is_file():
        if path.suffix not in {".safetensors", *PICKLES}:
            raise CheckpointError(
                f"{path} is no checkpoint file: expected .safetensors, or one of {', '.join(PICKLES)} "
                "written by torch.save."
            )
        whole = path.name in {SINGLE, PICKLED_SINGLE}
        name = path.parent.name if whole and path.parent.name else path.stem
        return Located(name, path.parent if whole else None, (path,))
    if path.is_dir():
        return _in_directory(path, path.resolve().name)
    repo, _, pinned = os.fspath(source).partition("@")
    wanted = revision or pinned or None
    snapshot, commit = find_directory(repo, wanted)
    found = _in_directory(snapshot, repo, f"{repo}@{wanted}" if wanted else repo)
    return Located(repo, found.directory, found.shards, found.index, commit)


def find_directory(source: str | os.PathLike[str], revision: str | None = None) -> tuple[Path, str | None]:
    """Find a local directory, or fetch the snapshot of a hub id.

    Args:
        source: a directory or ``org/name``.
        revision: branch, tag or commit of a hub id.

    Returns:
        The directory, and the commit if it came from a hub.

    Raises:
        CheckpointError: there is neither.
    """
    path = usable_path(source, CheckpointError)
    if path.is_dir():
        return path, None
    text = os.fspath(source)
    if _looks_local(text):
        raise CheckpointError(f"There is no file or directory {text!r}.{near_paths(path)}")
    snapshot = _download(text, revision)
    return snapshot, snapshot.name


def _looks_local(text: str) -> bool:
    return (
        text.startswith((".", "/", "~")) or text.count("/") != 1 or text.endswith((".safetensors", *PICKLES))
    )


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [
            "*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "bpe.codes", "*.jinja", "*.md",
            "*.py", "[0-9]_*/pytorch_model.bin",
        ]  # fmt: skip
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            wanted = ["pytorch_model*.bin", "adapter_model.bin"]
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{repo!r} is neither a local path nor a model that the hub gave us{at} "
            f"({type(error).__name__}).{near_paths(repo)} Check the spelling, your network and your access; "
            "with HF_HUB_OFFLINE=1 only models already in the cache are found."
        ) from error


def _in_directory(directory: Path, name: str, written: str | None = None) -> Located:
    if (directory / SINGLE).is_file():  # before an index, which is a leftover then: as transformers does it
        return Located(name, directory, (directory / SINGLE,))
    if (directory / INDEX).is_file():
        return _from_index(directory / INDEX, name, ".safetensors")
    if (directory / ADAPTER_CONFIG).is_file():
        base, adapter = _base_of(directory), written or str(directory)
        stated = f" ({directory / ADAPTER_CONFIG} names {base!r})" if base else ""
        raise CheckpointError(
            f"{directory} holds a PEFT adapter, which is no model by itself. Apply it to its base{stated}: "
            f"LoraCheckpoint(base, {adapter!r}), or write {_as_written(base)}+{adapter} where a model is named."
        )
    others = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    if len(others) == 1:
        return Located(name, directory, (others[0],))
    files = sorted(path for path in directory.iterdir() if path.is_file())
    if not others:
        if (directory / PICKLED_INDEX).is_file():
            return _from_index(directory / PICKLED_INDEX, name, ".bin")
        if (directory / PICKLED_SINGLE).is_file():
            return Located(name, directory, (directory / PICKLED_SINGLE,))
        pickles = [p for p in files if p.suffix in PICKLES and not _NO_MODEL.fullmatch(p.name)]
        if len(pickles) == 1:
            return Located(name, directory, (pickles[0],))
    seen = ", ".join(path.name for path in files[:10]) or "nothing"
    why = f"several safetensors files and no {INDEX}" if others else f"no {SINGLE} and no {INDEX}"
    raise CheckpointError(
        f"{directory} holds {why} (it holds: {seen}). Expected a directory written by save_pretrained."
    )


def _base_of(directory: Path) -> str | None:
    try:
        found = read_json(directory / ADAPTER_CONFIG)
    except DocumentError:
        return None
    named = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return named if isinstance(named, str) and named else None


def _as_written(base: str | None) -> str:
    # Old ids such as "gpt2" have no organisation, and would be taken for paths here.
    if base is None:
        return "BASE"
    return base if "/" in base or Path(base[:60]).exists() else "ORG/NAME"


def _from_index(index: Path, name: str, suffix: str) -> Located:
    directory = index.parent
    try:
        weight_map = read_json(index, unique=True)["weight_map"]
        items = {str(key): str(shard) for key, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a valid {suffix[1:]} index: {error!r}.") from error
    shards = sorted(set(items.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(suffix) or not _plain_name(shard):
            raise CheckpointError(
                f"{index} points to {shard!r:.300}; shards must be {suffix} files beside the index."
            )
        if not (directory / shard).is_file():
            raise CheckpointError(
                f"{index} names the shard {shard!r}, but it is not in {directory}. "
                "The download is incomplete: fetch it again."
            )
    where = {key: directory / shard for key, shard in items.items()}
    return Located(name, directory, tuple(directory / shard for shard in shards), where)


def _plain_name(name: str) -> bool:
    return name.isprintable() and len(os.fsencode(name)) <= 255


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file so that it is either complete or absent.

    Args:
        path: the file to appear.

    Yields:
        A temporary path beside it to write to; it is flushed to disk and renamed at the end.

    Raises:
        MergescopeError: the disk is full, or does not take the file for another reason.
    """  # noqa: DOC502 (raised by what this calls)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def is_left_over(name: str) -> bool:
    """Whether a file is what [`atomic_file`][] leaves of a process that is killed.

    Args:
        name: of the file, without its directory.

    Returns:
        True for a name that no finished file has.

    Example:
        >>> is_left_over(".family.yaml.vrzvexc8.tmp.yaml"), is_left_over("family.yaml")
        (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say which file or directory a disk refused, where the system only says why.

    Args:
        path: what is written.

    Yields:
        Nothing.

    Raises:
        MergescopeError: the disk is full, the place is read-only, or it does not take the file for another reason.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MergescopeError) or (why := refused_by_disk(error)) is None:
            raise
        raise MergescopeError(
            f"{path} can't be written: {why}. Nothing was left under that name, and what was finished before it is "
            "kept. Make room or correct the permissions, and run the same command again."
        ) from error


def refused_by_disk(error: BaseException) -> str | None:
    """What a disk said, where it refused to be written.

    Args:
        error: of the system, or of a library that writes.

    Returns:
        The reason; None for other errors.

    Example:
        >>> refused_by_disk(OSError(28, "No space left on device")), refused_by_disk(ValueError("no"))
        ('No space left on device', None)
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return os.strerror(error.errno)
    # torch and safetensors say it in errors of their own.
    torn = re.search(r"inline_container|PytorchStreamWriter|iostream error|I/?O error|os error", str(error))
    return f"only a part of it was taken, as by a full disk ({str(error).splitlines()[0]})" if torn else None


@contextlib.contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a directory so that it is either complete or absent.

    Args:
        path: the directory to appear.
        overwrite: replace an existing one; the old one stays until the new one is complete.

    Yields:
        A temporary sibling to fill.

    Raises:
        FileExistsError: the directory exists and may not be replaced.
    """
    path = Path(os.path.realpath(path))  # what a link names is replaced, not the link
    recover(path)
    if path.exists() and not overwrite:
        raise FileExistsError(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                with item.open("rb") as written:
                    os.fsync(written.fileno())
        temporary.chmod(0o777 & ~_umask())
        appear(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def appear(folder: Path, target: Path) -> None:
    """Give a complete directory its name, in place of what is there: one of both has it at any moment.

    Where the system can't exchange two directories, there is a moment without one; [`recover`][] mends that.

    Args:
        folder: the directory, beside the other.
        target: its name.

    Raises:
        OSError: a rename fails; what was there is there still.
    """
    if target.exists():
        if not _exchange(folder, target):
            retired = _retired(target)
            shutil.rmtree(retired, ignore_errors=True)
            target.rename(retired)
            try:
                folder.rename(target)
            except OSError:
                retired.rename(target)
                raise
            folder = retired
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.rename(target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def recover(target: Path) -> None:
    """Give a directory its name back, if a process that was to replace it died between two renames.

    Args:
        target: the directory that was to be replaced.

    Raises:
        OSError: it can't be renamed.
    """  # noqa: DOC502 (raised by what this calls)
    if _retired(target).is_dir() and not target.exists():
        _retired(target).rename(target)


def _retired(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _exchange(a: Path, b: Path) -> bool:
    # Swap two directories in one step, so that there is always one under either name.
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = -100
    if rename(here, os.fsencode(a), here, os.fsencode(b), 2) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
