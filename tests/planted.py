"""A network whose accuracy along a task vector is what a test wants it to be.

The weights are ``(p, q, -1)`` and a sample is ``(1, 0, t)`` or ``(0, 1, t)``: it is of class 1 where ``p`` (or
``q``) is above ``t``. So samples of class 1 are right from ``t`` on, and those of class 0 up to ``t``.
"""

import torch

import mergescope as ms
from mergescope.protocols import HeldOut

SIDES = {"a": 0, "b": 1}


def net():
    return ms.MLP((3, 2)).eval()


def checkpoint(name, p=0.0, q=0.0):
    (weight, bias) = net().state_dict()
    values = {weight: torch.tensor([[0.0, 0.0, 0.0], [p, q, -1.0]]), bias: torch.zeros(2)}
    return ms.Checkpoint(values, name=name)


def family(at=1.0):
    """A base at (0, 0), and models that moved ``at`` along one side each."""
    return checkpoint("base"), {"a": checkpoint("a", p=at), "b": checkpoint("b", q=at)}


def held(task, right_from=(), right_up_to=(), size=4):
    """Samples of one side: those right above some coefficients, and those right up to others."""
    rows = [(t, 1) for t in right_from] + [(t, 0) for t in right_up_to]
    x = torch.zeros(len(rows), 3)
    x[:, SIDES[task]] = 1.0
    x[:, 2] = torch.tensor([t for t, _ in rows])
    y = torch.tensor([label for _, label in rows])
    return HeldOut(task, list(zip(x.split(size), y.split(size), strict=True)), net())


def peak(task, at, width=0.1, count=4):
    """Samples that are right within ``width`` of a coefficient, and one that always is."""
    return held(task, [at - width] * count + [-9.0], [at + width] * count)
