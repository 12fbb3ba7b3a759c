"""The errors a user can cause, each with what to do next in its message.

The command line prints the message of a [`MergescopeError`][] and exits 2. Any other
exception is a bug of ours: it keeps its traceback and exits 1.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class MergescopeError(Exception):
    """Something the user can put right. The message says what, where and how."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes: what a subclass is made of is not its message.
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[MergescopeError], args: tuple[Any, ...], state: dict[str, Any]) -> MergescopeError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class CheckpointError(MergescopeError):
    """A checkpoint can't be found, read or trusted."""


class DiskError(CheckpointError):
    """A merge can't be written now; a later one can go on from what is there."""


class MismatchError(CheckpointError):
    """Checkpoints (or a checkpoint and a model) differ in keys, shapes or dtypes.

    Attributes:
        problems: one line for each difference, all of them.
    """

    def __init__(self, headline: str, problems: Iterable[str], advice: str) -> None:
        self.problems = list(problems)
        listing = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{headline}\n{listing}\n{advice}")


class PointError(MergescopeError):
    """A point can't be formed or used as asked."""


class LayerError(MergescopeError):
    """A layer pattern matches nothing, or a layer gives no feature."""


class DataError(MergescopeError):
    """Data are missing, empty, malformed or differ from one pass to the next."""


class StudyError(MergescopeError):
    """A study, preset or run directory is unknown or unusable."""


class RecipeError(MergescopeError):
    """A merge recipe is wrong. All of its problems are told at once.

    Attributes:
        problems: one line for each, with the recipe's line number where there is one.
    """

    def __init__(self, headline: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]))


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Near matches of a mistyped name, as the end of an error message.

    Args:
        name: what the user wrote.
        known: what would have been understood.
        limit: how many suggestions at most.

    Returns:
        ``" Did you mean: a, b?"``, or an empty string if nothing is near.

    Example:
        >>> did_you_mean("averge", ["average", "addition"])
        ' Did you mean: average?'
        >>> did_you_mean("zzz", ["average"])
        ''
    """
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f" Did you mean: {', '.join(near)}?" if near else ""


def near_paths(path: str | os.PathLike[str], limit: int = 3) -> str:
    """Near matches of a path that does not exist, among what is next to it, as the end of an error message.

    Args:
        path: what the user wrote. If a directory on the way is missing, that one's near matches are told.
        limit: how many suggestions at most.

    Returns:
        As [`did_you_mean`][]; an empty string if the directory can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "models").mkdir()
        ...     near_paths(Path(folder) / "model" / "base").replace(folder, "DIR")
        ' Did you mean: DIR/models?'
    """
    try:
        here = Path(path).expanduser()
        while not here.parent.is_dir() and here != here.parent:
            here = here.parent
        names = [item.name for item in here.parent.iterdir()]
    except (OSError, ValueError, RuntimeError):  # it is too long, no path, or in nobody's home
        return ""
    near = difflib.get_close_matches(here.name, names, n=limit, cutoff=0.6)
    return f" Did you mean: {', '.join(str(here.parent / name) for name in near)}?" if near else ""


def printable(text: str) -> str:
    r"""A text with what a terminal would obey, or can't print, written out.

    Names out of files may hold sequences that move the cursor, and half characters.

    Args:
        text: any.

    Returns:
        The text; line ends stay.

    Example:
        >>> print(printable("w\x1b[2J\nb"))
        w\x1b[2J
        b
    """
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )
