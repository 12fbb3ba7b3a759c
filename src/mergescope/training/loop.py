"""The training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.data import Split
from mergescope.errors import DataError, MergescopeError
from mergescope.progress import progress_bar


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: learning rate.
        epochs: passes over the data.
        batch: samples a step.
        momentum: of SGD (MC-SGD uses 0.8).
        weight_decay: of either optimizer.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    epochs: int = 5
    batch: int = 64
    momentum: float = 0.8
    weight_decay: float = 0.0

    def __str__(self) -> str:
        name = {"sgd": f"SGD (momentum {self.momentum:g})", "adamw": "AdamW"}[self.optimizer]
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return f"{name}, lr {self.lr:g}{decay}, {self.epochs} epochs, batch {self.batch}"


def fit(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    classes: Sequence[int] | None = None,
    trainable: Sequence[nn.Parameter] | None = None,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Train a network in place with cross-entropy; it is left in eval mode.

    A BatchNorm none of whose parameters may change keeps its running statistics too.

    Args:
        model: the network.
        split: training samples.
        recipe: optimizer, learning rate, epochs.
        seed: of the order of samples and of dropout; the result depends on nothing else on one
            machine. The global random state is left as it was.
        classes: the task's classes; the loss is over these logits only (one shared head).
        trainable: the parameters a regime lets change; by default all.
        label: what the progress bar says.
        progress: show it on a terminal.

    Returns:
        Mean loss of each epoch.

    Raises:
        DataError: the split is empty or its labels don't fit the network.
        MergescopeError: the loss became NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from mergescope import MLP
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 1, 2, 2); y = (x.sum((1, 2, 3)) > 0).long()
        >>> losses = fit(MLP((4, 16, 2)), Split(x, y, np.arange(64)), Recipe(lr=0.1, epochs=20), seed=0)
        >>> losses[-1] < losses[0]
        True
    """
    if not len(split):
        raise DataError("There is nothing to train on: the training split is empty.")
    parameters = list(model.parameters()) if trainable is None else list(trainable)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        decay, momentum = recipe.weight_decay, recipe.momentum
        optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=momentum, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    chosen = {id(parameter) for parameter in parameters}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    history = []
    model.train()
    try:
        for parameter in required:
            parameter.requires_grad_(id(parameter) in chosen)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and own and not any(id(p) in chosen for p in own):
                module.eval()
        with torch.random.fork_rng(), progress_bar(label, recipe.epochs, progress) as advance:
            torch.manual_seed(seed)
            for epoch in range(recipe.epochs):
                total = torch.zeros(())
                for places in torch.randperm(len(split), generator=generator).split(recipe.batch):
                    logits, labels = model(split.inputs[places]), split.labels[places]
                    _require_labels(labels, logits.shape[-1], classes)
                    loss = F.cross_entropy(_masked(logits, classes), labels)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    total += loss.detach() * len(places)
                mean = float(total) / len(split)
                if not torch.isfinite(torch.tensor(mean)):
                    raise MergescopeError(
                        f"Training diverged in epoch {epoch + 1}: the loss is {mean}. Lower the learning "
                        f"rate (now {recipe.lr:g})."
                    )
                history.append(mean)
                advance(1)
    finally:
        for parameter, needed in required.items():
            parameter.requires_grad_(needed)
        model.eval()
    return history


def _require_labels(labels: torch.Tensor, outputs: int, classes: Sequence[int] | None) -> None:
    known = set(range(outputs)) if classes is None else set(classes) & set(range(outputs))
    wrong = sorted(set(labels.tolist()) - known)
    if wrong:
        task = "" if classes is None else f", and the task's classes are {sorted(classes)}"
        raise DataError(f"Labels {wrong} can't be learned: the network has {outputs} outputs{task}.")


def _masked(logits: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
    if classes is None or len(classes) == logits.shape[-1]:
        return logits
    mask = torch.full((logits.shape[-1],), float("-inf"), device=logits.device)
    mask[list(classes)] = 0.0
    return logits + mask
