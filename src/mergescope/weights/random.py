"""Random checkpoints that serve as null baselines: a number means something only beside them."""

from __future__ import annotations

import hashlib

import torch

from mergescope.weights.checkpoint import Checkpoint
from mergescope.weights.point import Point, TensorSource


def random_neighbour(
    base: Point | TensorSource, like: Point | TensorSource, seed: int, name: str = "random"
) -> Checkpoint:
    """A model as far from ``base`` as ``like`` is, in a random direction, tensor by tensor.

    For every floating-point tensor ``w``: ``w(base) + |w(like) - w(base)| * z / |z|`` with
    ``z ~ N(0, 1)`` seeded by the key (BatchNorm variances are kept positive). A fine-tuned model
    that is no more linear than this one owes its linearity to being close to the base, not to what
    fine-tuning learned.

    Args:
        base: the pretrained model.
        like: the fine-tuned model whose distance is copied.
        seed: chooses the direction.
        name: what to call it.

    Returns:
        The checkpoint, in memory.

    Example:
        >>> base = Checkpoint({"w": torch.zeros(4)}, name="base")
        >>> tuned = Checkpoint({"w": torch.tensor([3.0, 4.0, 0.0, 0.0])}, name="tuned")
        >>> random_neighbour(base, tuned, seed=0).tensor("w").norm()
        tensor(5.)
    """
    base = Point.of(base)
    direction = Point.of(like) - base
    tensors = {}
    for key, spec in base.spec.items():
        tensors[key] = base.tensor(key)
        if not spec.dtype.is_floating_point:
            continue
        key_seed = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:7], "big")
        noise = torch.randn(
            spec.shape, generator=torch.Generator().manual_seed(key_seed), dtype=torch.float64
        )
        length = direction.tensor(key).double().norm()
        moved = tensors[key].double() + noise * (length / noise.norm())
        tensors[key] = (moved.abs() if key.endswith("running_var") else moved).to(spec.dtype)
    return Checkpoint(tensors, name=name)
