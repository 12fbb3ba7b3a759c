"""Are second derivatives by forward mode those of the reverse mode?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mergescope.errors import MergescopeError
from mergescope.tracing.derivatives import OTHERWISE, Derivatives, Direction, Rows
from mergescope.training.kernels import differentiable_kernels

WRONG = 0.02
"""Second derivatives may differ by this share from those of the reverse mode."""

ROUNDING = 1e-3
"""And by this share of the first ones, where they are small."""


def require_right(made: Derivatives, inputs: Any) -> None:
    """Refuse a network whose second derivatives by forward mode are not those of the reverse mode.

    An operation's forward-mode derivative may take for constant what is not, when it is differentiated
    again (torch's layer_norm did): the result is wrong, and nothing says so. So a random sum of all
    features is differentiated backward, twice, along two task vectors. Networks that can't be
    differentiated backward twice are not checked.

    Args:
        made: the derivatives.
        inputs: a few samples.

    Raises:
        MergescopeError: they differ.
    """
    moving = [found for name in made.vectors if (found := made.direction(name))][:2]
    if not moving:
        return
    first, second = moving[0], moving[-1]
    with torch.no_grad(), differentiable_kernels(type(made.model).__name__, OTHERWISE):
        slope, curvature = made.twice(inputs, first, second)
        generator = torch.Generator().manual_seed(0)
        probes = {at: torch.randn(rows.shape, generator=generator).to(rows) for at, rows in curvature.items()}
        try:
            backward = backward_twice(made, inputs, first, second, probes)
        except RuntimeError:
            return
        wrong = [
            at
            for at, value in backward.items()
            if abs(value - float((probes[at] * curvature[at]).sum()))
            > WRONG * float((probes[at] * curvature[at]).norm())
            + ROUNDING * float((probes[at] * slope[at]).norm())
        ]
    if wrong:
        raise MergescopeError(
            f"The second derivatives of {type(made.model).__name__} come out wrong, from the layer {wrong[0]!r} on: an "
            f"operation's forward-mode derivative can't be differentiated again. {OTHERWISE}"
        )


def backward_twice(
    made: Derivatives, inputs: Any, first: Direction, second: Direction, probes: Rows
) -> dict[str, float]:
    """``<probe, f''[first, second]>`` by layer, by reverse mode applied twice.

    Args:
        made: the derivatives.
        inputs: of a batch.
        first: a direction.
        second: a direction.
        probes: layer to what its rows are multiplied by and summed.

    Returns:
        Layer to the sum.
    """
    places = list(dict.fromkeys([*first, *second]))
    found = {}
    with torch.enable_grad():
        weights = [made.base[place].clone().requires_grad_() for place in places]
        rows = made.run(inputs, dict(zip(places, weights, strict=True)))
        for at, probe in probes.items():
            value = (rows[at] * probe).sum()
            for direction in (first, second):
                slopes: Sequence[torch.Tensor | None] = [None]
                if value.requires_grad:
                    slopes = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
                parts = [
                    (slope * direction[place]).sum()
                    for slope, place in zip(slopes, places, strict=False)
                    if slope is not None and place in direction
                ]
                value = sum(parts, torch.zeros(()))
            found[at] = float(value.detach())
    return found
