"""How to train: optimizer, schedule, length; and the presets that the papers and the field use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mergescope.errors import MergescopeError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: learning rate, the highest of the schedule.
        epochs: passes over the data, unless ``steps`` says how long.
        batch: samples an optimizer step.
        momentum: of SGD (MC-SGD uses 0.8).
        weight_decay: of either optimizer; as in torch, AdamW's is decoupled.
        steps: optimizer steps; epochs don't count then.
        warmup: steps (or, below 1, the share of all steps) over which the rate rises linearly from 0.
        schedule: of the rate after that: ``"constant"``, ``"linear"`` or ``"cosine"`` down to 0.
        clip: largest norm of the gradient; None leaves it.
        accumulate: parts that a step's samples are passed in, to save memory.
        label_smoothing: of the cross-entropy, in [0, 1).
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast.
        evaluate_every: steps between evaluations; by default every epoch and at the end.
        save_every: steps between saved states that an interrupted run goes on from.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    epochs: int = 5
    batch: int = 64
    momentum: float = 0.8
    weight_decay: float = 0.0
    steps: int | None = None
    warmup: float = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: float | None = None
    accumulate: int = 1
    label_smoothing: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    evaluate_every: int | None = None
    save_every: int = 200

    def __post_init__(self) -> None:
        limits = {
            "lr": self.lr >= 0, "epochs": self.epochs >= 0, "batch": self.batch >= 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0, "steps": self.steps is None or self.steps >= 0,
            "warmup": self.warmup >= 0 and (self.warmup < 1 or self.warmup % 1 == 0),
            "clip": self.clip is None or self.clip > 0, "accumulate": self.accumulate >= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1, "save_every": self.save_every >= 1,
            "evaluate_every": self.evaluate_every is None or self.evaluate_every >= 1,
            "optimizer": self.optimizer in ("sgd", "adamw"),
            "schedule": self.schedule in ("constant", "linear", "cosine"),
            "precision": self.precision in ("no", "bf16", "fp16"),
        }  # fmt: skip
        wrong = [f"{name}={getattr(self, name)!r}" for name, fine in limits.items() if not fine]
        if wrong:
            warm = "" if limits["warmup"] else " A warm-up is a whole number of steps, or a share below 1."
            raise MergescopeError(f"The training recipe can't be followed: {', '.join(wrong)}.{warm}")

    def __str__(self) -> str:
        name = {"sgd": f"SGD (momentum {self.momentum:g})", "adamw": "AdamW"}[self.optimizer]
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        count, unit = (self.epochs, "epoch") if self.steps is None else (self.steps, "step")
        length = f"{count} {unit}{'' if count == 1 else 's'}"
        shape = "" if self.schedule == "constant" else f" {self.schedule}"
        warm = f", warm-up {self.warmup:g}" if self.warmup else ""
        return f"{name}, lr {self.lr:g}{shape}{warm}{decay}, {length}, batch {self.batch}"

    def total_steps(self, samples: int) -> int:
        """Optimizer steps on so many samples.

        Args:
            samples: size of the training split.

        Returns:
            ``steps``, or those of all epochs (the last batch of each may be smaller).
        """
        return self.epochs * math.ceil(samples / self.batch) if self.steps is None else self.steps

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step.

        Args:
            step: from 0.
            total: how many there are.

        Returns:
            ``lr`` times the schedule's factor.

        Example:
            >>> recipe = Recipe(lr=1.0, warmup=2, schedule="cosine")
            >>> [round(recipe.rate(step, 6), 2) for step in range(6)]
            [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
        """
        warm = self.warmup if self.warmup >= 1 else round(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(total - warm, 1)
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return self.lr * factor[self.schedule]


PRESETS = {
    "clip": Recipe(
        "adamw", lr=1e-5, batch=128, weight_decay=0.1, steps=2000, warmup=200, schedule="cosine", clip=1.0
    ),
    "mc-sgd": Recipe("sgd", lr=0.1, epochs=5, batch=64, momentum=0.8),
    "sentence-encoder": Recipe(
        "adamw", lr=5e-5, epochs=3, batch=32, weight_decay=0.01, warmup=0.1, schedule="linear", clip=1.0
    ),
    "lm": Recipe(
        "adamw",
        lr=1e-5,
        epochs=1,
        batch=16,
        accumulate=4,
        weight_decay=0.0,
        warmup=0.03,
        schedule="cosine",
        clip=1.0,
    ),
}
"""Protocols: ATTN and TANGENT for CLIP, MC-SGD for its networks, and what is usual
for sentence encoders and language models."""


def preset(name: str) -> Recipe:
    """A recipe by name.

    Args:
        name: one of [`PRESETS`][].

    Returns:
        The recipe.

    Raises:
        MergescopeError: there is none.
    """
    if name not in PRESETS:
        raise MergescopeError(
            f"There is no training preset {name!r}.{did_you_mean(name, PRESETS)} Choose one of {', '.join(PRESETS)}."
        )
    return PRESETS[name]
