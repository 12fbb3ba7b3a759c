"""What coefficients are searched by: accuracy or loss, and without labels entropy or agreement."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mergescope.errors import MergescopeError, did_you_mean

OBJECTIVES: dict[str, tuple[str, int]] = {
    "accuracy": ("normalised accuracy", 1),
    "loss": ("loss", -1),
    "entropy": ("entropy", -1),
    "agreement": ("agreement", 1),
}
"""Name to the measure it is told in, and 1 or -1: whether large or small values are wanted.

``accuracy`` (over that of the single-task model, ATTN Eq. 5) and ``loss`` need labels, of which next tokens
are some; ``entropy`` (of the predicted classes) and ``agreement`` (with the single-task model, on its task's
data) need none.
"""

LABELLED = ("accuracy", "loss")
"""Objectives that need labels."""
UNLABELLED = tuple(name for name in OBJECTIVES if name not in LABELLED)
"""Objectives that need none."""


def require_objective(name: str) -> None:
    """Refuse an unknown objective.

    Args:
        name: what the user wrote.

    Raises:
        MergescopeError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise MergescopeError(
            f"There is no objective {name!r}.{did_you_mean(name, OBJECTIVES)} Choose one of {', '.join(OBJECTIVES)}."
        )


def utility(
    objective: str, values: torch.Tensor, labels: torch.Tensor | None, *, soft: bool = False
) -> torch.Tensor:
    """What each sample is worth; more is better.

    Args:
        objective: one of [`OBJECTIVES`][].
        values: ``(samples, classes)`` logits; or ``(samples, 1)`` losses of texts, whose negative is taken.
        labels: ``(samples,)``: the right classes; those that the single-task model says, for agreement.
        soft: in place of right and wrong, the probability of the right class, which has a gradient.

    Returns:
        ``(samples,)``.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> utility("accuracy", logits, torch.tensor([0, 0])), utility("loss", torch.tensor([[1.5]]), None)
        (tensor([1., 0.]), tensor([-1.5000]))
        >>> utility("accuracy", logits, torch.tensor([0, 0]), soft=True)
        tensor([0.8808, 0.1192])
    """
    if values.shape[-1] == 1 and labels is None:
        return -values[:, 0]
    if objective == "entropy":
        logs = F.log_softmax(values, -1)
        return (logs.exp() * logs).sum(-1)
    assert labels is not None  # what comes here was checked when it was evaluated
    if objective == "loss":
        return -F.cross_entropy(values, labels, reduction="none")
    if soft:
        return F.softmax(values, -1).gather(1, labels[:, None])[:, 0]
    return (values.argmax(-1) == labels).to(values.dtype)
