"""Passes that are finished, kept on disk until the whole run is: a killed run does not make them again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mergescope._version import __version__
from mergescope.models.nets import NETS, net_config
from mergescope.models.with_head import WithHead
from mergescope.protocols.which_data import fingerprint_of
from mergescope.weights import Point
from mergescope.weights.files import atomic_file
from mergescope.weights.stores import bytes_digest

if TYPE_CHECKING:
    from mergescope.protocols.measure import HeldOut

Arrays = dict[str, np.ndarray]
"""What a pass left: names to arrays of numbers or text."""

NOT_COMPUTED = frozenset({"transformers_version", "dtype", "torch_dtype", "name_or_path", "problem_type"})
"""What configurations say beside what a network computes; its precision is that of its weights."""

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
    folder, data = _FOLDER.get(), fingerprint_of(held.batches)
    if folder is None or data is None:
        return None
    state = held.model.state_dict()
    first = next((value for value in state.values() if value.is_floating_point()), None)
    head = [(name, bytes_digest(state[name].cpu())) for name in sorted(held.fixed) if name in state]
    cut = getattr(held.batches, "size", None), len(held.batches)  # type: ignore[arg-type]  # BatchNorm may see it
    described = [
        __version__, what, data, cut, held.classes, type(held.model).__name__, _settings(held.model),
        str(getattr(first, "dtype", None)), head,
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


def _settings(model: nn.Module) -> list[Any]:
    # What a corrected config.json changes, though all weights stay. Kernels, whose names begin with _, compute the
    # same.
    body = model.backbone if isinstance(model, WithHead) else model
    config: Any = getattr(body, "config", None)
    found: Any = None
    if getattr(body, "model_type", None) in NETS:
        found = net_config(body)
    elif hasattr(config, "to_dict"):
        found = _computed(config.to_dict())
    return [found, model.head.normalise if isinstance(model, WithHead) else None]


def _computed(value: Any) -> Any:
    if isinstance(value, Mapping):
        named = {str(name): item for name, item in value.items()}
        kept = sorted(name for name in named if not name.startswith("_") and name not in NOT_COMPUTED)
        return {name: _computed(named[name]) for name in kept}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return [_computed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _said(point: Point) -> list[tuple[str, str]]:
    return [(source.identity, str(value)) for source, value in point.terms if value]
