"""The hidden directory in which a merge is written until it is complete, and its journal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from mergescope.errors import CheckpointError
from mergescope.weights.files import appear

JOURNAL = "merge.journal"


class PartialMerge:
    """The hidden sibling in which a merge is written until it is complete.

    It keeps a journal: a key that says what is being merged, and the digest of each finished
    tensor's bytes. If the process is killed or the disk is full, a later merge under the same key
    goes on from there. It reads the finished tensors again and trusts those alone whose bytes have
    the digest that the journal says, so neither a torn line nor a lost or changed file does harm.

    Args:
        target: the directory to appear.
        key: of what is merged and how it is laid out in files.
        resume: use what an interrupted merge under the same key left.

    Raises:
        CheckpointError: another process is merging into the same directory.
        OSError: the directory can't be made.
    """  # noqa: DOC502 (raised by what this calls)

    def __init__(self, target: Path, key: str, resume: bool) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.merging"
        self._key = key
        self._lock = threading.Lock()
        self._journal: int | None = None
        target.parent.mkdir(parents=True, exist_ok=True)
        self._held = self._hold()
        try:
            self.recorded = self._read_journal() if resume else {}
            if not self.recorded:
                _clear(self.folder)
        except BaseException:
            os.close(self._held)
            raise

    @property
    def resumed(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self.recorded)

    @property
    def begun(self) -> bool:
        """Whether tensors are being merged."""
        return self._journal is not None

    def _hold(self) -> int:
        while True:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise CheckpointError(
                    f"Another process is merging into {self.target}: wait for it, or choose another directory."
                ) from None
            except OSError:
                return handle  # a file system without locks
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), self.folder.stat()):
                    return handle
            os.close(handle)  # the other process has just published it

    def _read_journal(self) -> dict[str, str]:
        try:
            first, *lines = (self.folder / JOURNAL).read_text(errors="replace").split("\n")
        except OSError:
            return {}
        found = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # a torn line
                entry = json.loads(line)
                if isinstance(entry, list) and len(entry) == 2:
                    found[str(entry[0])] = str(entry[1])
        return found if first == self._key else {}

    def begin(self, digest: Callable[[str], str], names: set[str]) -> set[str]:
        """Find out what is done already, and start the journal anew with that.

        Args:
            digest: name to the digest of the bytes that are in the tensor's place now.
            names: the tensors of the output.

        Returns:
            The finished tensors.
        """
        done = {name for name, known in self.recorded.items() if name in names and digest(name) == known}
        lines = [self._key, *(json.dumps([name, self.recorded[name]]) for name in done), ""]
        fresh = self.folder / f"{JOURNAL}.new"
        fresh.write_text("\n".join(lines), encoding="utf-8")
        fresh.replace(self.folder / JOURNAL)
        self._journal = os.open(self.folder / JOURNAL, os.O_WRONLY | os.O_APPEND)
        return done

    def finished(self, name: str, digest: str) -> None:
        """Note that a tensor is complete.

        Args:
            name: the tensor.
            digest: of its bytes.
        """
        assert self._journal is not None
        with self._lock:
            os.write(self._journal, (json.dumps([name, digest]) + "\n").encode())

    def publish(self) -> None:
        """Let the directory appear under its name, in place of one that is there.

        Raises:
            OSError: a rename fails.
        """  # noqa: DOC502 (raised by what this calls)
        for path in (*self.folder.rglob("*"), self.folder):
            if path.suffix != ".safetensors" or path.parent != self.folder:  # these are on the disk already
                _sync(path)
        self._close_journal()
        (self.folder / JOURNAL).unlink()
        appear(self.folder, self.target)

    def abandon(self) -> None:
        """Remove everything."""
        self._close_journal()
        _remove(self.folder)

    def close(self) -> None:
        """Let go of the directory; what is in it stays."""
        self._close_journal()
        os.close(self._held)

    def _close_journal(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
