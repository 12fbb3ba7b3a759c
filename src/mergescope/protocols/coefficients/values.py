"""What points of a coefficient space make of validation data, kept sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn

from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.protocols.coefficients.objectives import LABELLED, utility
from mergescope.protocols.coefficients.space import CoefficientSpace
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.readings import NextTokenLoss
from mergescope.readings.logits import Logits
from mergescope.tracing import trace
from mergescope.weights import Point

DECIMALS = 4
"""Coefficients are rounded to this, so that points are those that a recipe says."""


class CoefficientValues:
    """Logits (or losses of texts) at evaluated coefficients; each is passed through the data once.

    Args:
        space: the coefficients.
        held: task to its validation data, in the space's order.
        objective: what samples are worth (see [`utility`][mergescope.protocols.coefficients.objectives.utility]).
        around: evaluate in the network linearised around this point; None for the ordinary one.
        executor: as for [`trace`][mergescope.trace].
        device: of the streamed executor.
        memory: bytes that logits may take, all points and tasks together.
        progress: show bars on a terminal.

    Raises:
        MergescopeError: a network predicts no classes and no next tokens, or the objective needs classes.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        held: Mapping[str, HeldOut],
        objective: str,
        *,
        around: Point | None,
        executor: str,
        device: str,
        memory: int,
        progress: bool,
    ) -> None:
        self.space, self.held, self.objective, self.around = space, held, objective, around
        self.executor, self.device, self.memory, self.progress = executor, device, memory, progress
        self.positions = np.zeros((0, len(space.axes)))
        self.forward_passes, self.seconds = 0, 0.0
        self._labels: dict[str, torch.Tensor | None] = {}
        self._values: dict[str, torch.Tensor] = {}
        self._keep: dict[str, torch.Tensor] = {}
        for task, data in held.items():
            reading = data.reading()
            if reading is None:
                raise MergescopeError(
                    f"{task}: {type(data.model).__name__} predicts no classes and no next tokens, so there is nothing "
                    "to choose coefficients by. Give models with a head."
                )
            if isinstance(reading, NextTokenLoss) and objective != "loss":
                raise MergescopeError(
                    f"{task}: of texts only losses are kept, since logits are as wide as the vocabulary, so the "
                    f"objective can't be {objective}. Choose loss."
                )

    def __len__(self) -> int:
        return len(self.positions)

    def evaluate(self, positions: Iterable[np.ndarray]) -> list[int]:
        """Pass the data through points that were not evaluated yet.

        Args:
            positions: ``(axes,)`` coefficients each; rounded to [`DECIMALS`][].

        Returns:
            The number of each, for the other methods.

        Raises:
            DataError: there are no labels where they are needed, or logits take more than the memory allowed.
        """  # noqa: DOC502 (raised by what this calls)
        wanted = [tuple(np.round(np.asarray(position, float), DECIMALS) + 0.0) for position in positions]
        known = {tuple(position): number for number, position in enumerate(self.positions)}
        new = [position for position in dict.fromkeys(wanted) if position not in known]
        if new:
            points = [self.space.point(position) for position in new]
            for task, data in self.held.items():
                self._pass(task, data, points)
            self.positions = np.concatenate([self.positions, np.array(new)])
        numbers = {tuple(position): number for number, position in enumerate(self.positions)}
        return [numbers[position] for position in wanted]

    def _pass(self, task: str, data: HeldOut, points: list[Point]) -> None:
        used = sum(values.nbytes for values in self._values.values())
        texts = isinstance(data.reading(), NextTokenLoss)

        def passed() -> Arrays:
            reading = NextTokenLoss() if texts else Logits(data.classes, self.memory - used)
            network: AbstractContextManager[nn.Module] = nullcontext(data.model)
            if self.around is not None:
                network = linearized_in_place(data.model, self.around, data.fixed)
            with network as model:
                traced = trace(
                    points, data.batches, model, layers="output", readings=[reading], executor=self.executor,
                    device=self.device, fixed=data.fixed, check=task not in self._values, progress=self.progress,
                )  # fmt: skip
            made = {"passes": np.array(traced.forward_passes), "seconds": np.array(traced.seconds)}
            if isinstance(reading, NextTokenLoss):
                return made | {"values": np.stack([reading.losses(point)[:, None] for point in points])}
            if reading.labels is not None:
                made["labels"] = reading.labels.numpy()
            return made | {"values": torch.stack([reading.values(point) for point in points]).numpy()}

        left = once("coefficients", data, points, self.around, self.executor, passed)
        self.forward_passes += int(left["passes"])
        self.seconds += float(left["seconds"])
        found = torch.from_numpy(left["values"]).float()
        if task not in self._values:
            self._keep[task] = torch.isfinite(found[0]).all(
                -1
            )  # texts without a token that counts have no loss
            if not self._keep[task].any():
                raise DataError(
                    f"{task}: no sample has a finite output at the base. Check the data and the base."
                )
            labels = torch.from_numpy(left["labels"]) if "labels" in left else None
            if labels is None and not texts and self.objective in LABELLED:
                raise DataError(
                    f"{task}: the data have no labels, and the objective {self.objective} needs them. Yield "
                    "(inputs, labels), or choose entropy or agreement."
                )
            self._labels[task] = None if labels is None else labels[self._keep[task]]
        found = found[:, self._keep[task]]
        before = self._values.get(task)
        self._values[task] = found if before is None else torch.cat([before, found])

    def samples(self, task: str) -> int:
        """How many samples a task has.

        Args:
            task: its name.

        Returns:
            Their number, those without a value left out.
        """
        return self._values[task].shape[1]

    def values(self, task: str) -> torch.Tensor:
        """All that was evaluated.

        Args:
            task: its name.

        Returns:
            ``(points, samples, classes)``, or ``(points, samples, 1)`` losses.
        """
        return self._values[task]

    def labels(self, task: str) -> torch.Tensor | None:
        """What is right: the data's labels, or what the task's own model says, for agreement.

        Args:
            task: its name.

        Returns:
            ``(samples,)``, or None for texts and for entropy.
        """
        if self.objective == "agreement":
            return self._values[task][self.single(task)].argmax(-1)
        return None if self.objective == "entropy" else self._labels[task]

    def single(self, task: str) -> int:
        """The number of a task's own model, which must have been evaluated.

        Args:
            task: its name.

        Returns:
            Its place among the positions.
        """
        return int(np.flatnonzero((self.positions == self.space.single(task)).all(1))[0])

    def own(self, task: str, *, soft: bool = False) -> float:
        """What a task's figures are divided by: its own model's accuracy (ATTN Eq. 5), else 1.

        Args:
            task: its name.
            soft: for soft utilities; then agreement is divided as well, as no model agrees fully with itself.

        Returns:
            The mean over samples.

        Raises:
            PointError: the accuracy is zero.
        """
        if self.objective != "accuracy" and not (soft and self.objective == "agreement"):
            return 1.0
        at = self._values[task][self.single(task)]
        mean = float(utility(self.objective, at, self.labels(task), soft=soft).mean())
        if not mean:
            raise PointError(
                f"No normalised accuracy: the model of {task} gets none of its validation samples right. Check that "
                "data and model belong together, or choose the objective loss."
            )
        return mean

    def utilities(self, task: str, number: int) -> np.ndarray:
        """What each sample is worth at an evaluated point, normalised.

        Args:
            task: its name.
            number: the point's.

        Returns:
            ``(samples,)``, float64; more is better.
        """
        return self.worth(task, self._values[task][number])

    def worth(self, task: str, values: torch.Tensor) -> np.ndarray:
        """What each sample is worth, normalised.

        Args:
            task: its name.
            values: ``(samples, classes)``, evaluated or predicted.

        Returns:
            ``(samples,)``, float64; more is better.
        """
        found = utility(self.objective, values, self.labels(task))
        return found.double().numpy() / self.own(task)

    def score(self, number: int, part: Mapping[str, np.ndarray] | None = None) -> float:
        """Mean over tasks of what samples are worth.

        Args:
            number: of an evaluated point.
            part: task to the samples that count; all by default.

        Returns:
            The score; more is better.
        """
        found = {task: self.utilities(task, number) for task in self.held}
        return float(np.mean([(v if part is None else v[part[task]]).mean() for task, v in found.items()]))
