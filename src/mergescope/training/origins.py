"""Around which weights a checkpoint was linearised: what its header says, and that it is heeded."""

from __future__ import annotations

from typing import Any

from mergescope.errors import MismatchError
from mergescope.weights import Point
from mergescope.weights.point import TensorSource


def origin_of(source: Any) -> str | None:
    """Around which weights a checkpoint was trained in the linearised regime.

    Args:
        source: a checkpoint.

    Returns:
        The content digest of th_0, or None for a checkpoint of another regime.

    Example:
        >>> import torch
        >>> from mergescope import Checkpoint
        >>> origin_of(Checkpoint({"w": torch.zeros(2)})) is None
        True
    """
    metadata = getattr(source, "metadata", {})
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
    if not origins:
        return
    found = Point.of(base)
    own = found.checkpoints[0].digest if found.is_checkpoint else found.digest
    wrong = [f"{name}: linearised around {digest}" for name, digest in origins.items() if digest != own]
    if wrong:
        raise MismatchError(
            f"The model is to be linearised around {found} (digest {own}), but some checkpoints were trained "
            "around other weights:",
            wrong,
            "Give the base that they were fine-tuned from.",
        )
