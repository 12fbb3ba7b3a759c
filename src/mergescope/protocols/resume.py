"""Passes that are finished, kept on disk until the whole run is: a killed run does not make them again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergescope._version import __version__
from mergescope.weights import Point
from mergescope.weights.files import atomic_file
from mergescope.weights.stores import bytes_digest

if TYPE_CHECKING:
    from mergescope.protocols.measure import HeldOut

Arrays = dict[str, np.ndarray]
"""What a pass left: names to arrays of numbers or text."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder of finished passes", default=None)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Keep what [`once`][mergescope.protocols.resume.once] makes in a folder, which goes when all is done.

    Args:
        folder: of the run; what an earlier run left there is used.

    Yields:
        Nothing.
    """
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)
    shutil.rmtree(folder, ignore_errors=True)


def once(
    what: str,
    held: HeldOut,
    points: Iterable[Point],
    around: Point | None,
    settings: Any,
    make: Callable[[], Arrays],
) -> Arrays:
    """Make a pass, or read what it left if an earlier run finished it.

    Without a [`resumable`][mergescope.protocols.resume.resumable] run, and for batches that don't say what is in
    them (``fingerprint``), it is made.

    Args:
        what: kind of the pass.
        held: data and network.
        points: what is passed through, in order.
        around: what the network is linearised around, or None.
        settings: whatever else changes the result; anything JSON can hold.
        make: makes it.

    Returns:
        What the pass left.
    """
    place = place_of(what, held, points, around, settings)
    if place is None:
        return make()
    path = place.with_name(f"{place.name}.npz")
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # damaged: it is made again
    made = make()
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **made)  # type: ignore[arg-type]  # its own keywords are not names of ours
    return made


def place_of(
    what: str, held: HeldOut, points: Iterable[Point], around: Point | None, settings: Any
) -> Path | None:
    """Where a pass is kept: its name follows from all that changes the result.

    Args:
        what: as for [`once`][mergescope.protocols.resume.once].
        held: as for `once`.
        points: as for `once`.
        around: as for `once`.
        settings: as for `once`.

    Returns:
        A path in the folder of the [`resumable`][mergescope.protocols.resume.resumable] run; None without one, or for
        batches that don't say what is in them.
    """
    folder, data = _FOLDER.get(), getattr(held.batches, "fingerprint", None)
    if folder is None or data is None:
        return None
    state = held.model.state_dict()
    first = next((value for value in state.values() if value.is_floating_point()), None)
    head = [(name, bytes_digest(state[name].cpu())) for name in sorted(held.fixed) if name in state]
    cut = getattr(held.batches, "size", None), len(held.batches)  # type: ignore[arg-type]  # BatchNorm may see it
    described = [
        __version__, what, data, cut, held.classes, type(held.model).__name__, str(getattr(first, "dtype", None)), head,
        [_said(point) for point in points], None if around is None else _said(around), settings,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:16]
    return folder / f"{what}-{key}"


def kept_in(
    what: str, held: HeldOut, points: Iterable[Point], around: Point | None, settings: Any
) -> Path | None:
    """Where a trace keeps what it has seen of its batches (``keep`` of [`trace`][mergescope.trace]).

    Args:
        what: as for [`once`][mergescope.protocols.resume.once].
        held: as for `once`.
        points: as for `once`.
        around: as for `once`.
        settings: as for `once`.

    Returns:
        A directory, another one where batches are cut otherwise; None where nothing is kept.
    """
    if getattr(held.batches, "size", None) is None:
        return None
    return place_of(what, held, points, around, settings)


def _said(point: Point) -> list[tuple[str, str]]:
    return [(source.identity, str(value)) for source, value in point.terms if value]
