"""Around which weights a checkpoint was linearised: what its header says, and that it is heeded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergescope.errors import MismatchError
from mergescope.weights import Checkpoint, Point
from mergescope.weights.point import TensorSource
from mergescope.weights.selection import Selection

PREFIX = "mergescope."
"""Of this package's entries in a checkpoint's header."""


def origin_of(source: Any) -> str | None:
    """Around which weights a checkpoint was trained in the linearised regime.

    Args:
        source: a checkpoint, or a view of one.

    Returns:
        The content digest of th_0, or None for a checkpoint of another regime.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> origin_of(Checkpoint({"w": torch.zeros(2)})) is None
        True
    """
    # As finetune writes them, or as the regime gives them.
    metadata = {
        key.removeprefix(PREFIX): text for key, text in getattr(_whole(source), "metadata", {}).items()
    }
    return metadata.get("base_digest") if metadata.get("linearized") == "true" else None


def require_origin(point: Point | TensorSource, base: Point | TensorSource) -> None:
    """Refuse to evaluate checkpoints of the linearised regime around another base than their own.

    Args:
        point: any point.
        base: th_0. Its contents are read if one of the checkpoints was linearised.

    Raises:
        MismatchError: a checkpoint was linearised around other weights.
    """
    origins = {source.name: origin_of(source) for source in Point.of(point).checkpoints}
    origins = {name: digest for name, digest in origins.items() if digest is not None}
    wrong = set(origins.values())
    digests = []
    for digest in _digests(Point.of(base)) if wrong else ():
        digests.append(digest)
        wrong.discard(digest)
        if not wrong:
            return
    if wrong:
        raise MismatchError(
            f"The model is to be linearised around {Point.of(base)} (digest {digests[-1]}), but some checkpoints were "
            "trained around other weights:",
            [f"{name}: linearised around {digest}" for name, digest in origins.items() if digest in wrong],
            "Give the base that they were fine-tuned from.",
        )


def _whole(source: Any) -> Any:
    return source.source if isinstance(source, Selection) else source


def _digests(base: Point) -> Iterator[str]:
    """What headers may call a base: what is seen of it, or the whole file that it is read from.

    Yields:
        Digests; files are read for the later ones.
    """
    yield base.checkpoints[0].digest if base.is_checkpoint else base.digest
    if not base.is_checkpoint:
        return
    source = _whole(base.checkpoints[0])
    if source is not base.checkpoints[0]:
        yield source.digest
    if type(source) is Checkpoint and source.files:  # it may be read as another type than it is stored in
        place = source.files[0] if len(source.files) == 1 else source.directory
        if place is not None:
            yield Checkpoint(place).digest
