"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mergescope.data import Split
from mergescope.errors import DataError, MergescopeError
from mergescope.models.calling import to_device
from mergescope.progress import progress_bar
from mergescope.training.objective import Objective
from mergescope.training.processes import add_up, average_statistics, totals, unwrapped
from mergescope.training.recipe import Recipe
from mergescope.training.runner import OneProcess, Runner
from mergescope.weights.files import atomic_file

SHORT = 60.0
"""Seconds of work that are sooner done again than saved when a run ends."""


class TrainingData(Protocol):
    """Samples that can be taken out in any order."""

    def __len__(self) -> int: ...

    def batch(self, places: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
        """Inputs and labels of some samples.

        Args:
            places: ``(batch,)`` positions.
        """


@dataclass(frozen=True)
class SplitData:
    """A split in memory as training data."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of some samples.

        Args:
            places: ``(batch,)`` positions.

        Returns:
            Both, in that order.
        """
        return self.split.inputs[places], self.split.labels[places]


@dataclass
class History:
    """What happened.

    Attributes:
        steps: one entry an optimizer step: step, epoch, loss, lr, gradient norm.
        evaluations: one entry an evaluation: step, loss, accuracy.
        best: the evaluation with the highest accuracy (then the lowest loss), or None.
        seconds: wall time, over all runs if it was resumed.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    seconds: float = 0.0

    def epoch_losses(self) -> list[float]:
        """Mean loss over the samples of each epoch.

        Returns:
            One number an epoch.
        """
        sums: dict[float, list[float]] = {}
        for entry in self.steps:
            total = sums.setdefault(entry["epoch"], [0.0, 0.0])
            total[0] += entry["loss"] * entry["samples"]
            total[1] += entry["samples"]
        return [loss / samples for loss, samples in sums.values()]


def train(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    *,
    seed: int,
    trainable: Sequence[nn.Parameter] | None = None,
    classes: Sequence[int] | None = None,
    evaluation: TrainingData | None = None,
    runner: Runner | None = None,
    like: nn.Module | None = None,
    state: Path | None = None,
    key: str = "",
    on_best: Callable[[], None] | None = None,
    on_log: Callable[[str, Mapping[str, float]], None] | None = None,
    label: str = "training",
    progress: bool = True,
) -> History:
    """Train a network in place with cross-entropy; it is left in eval mode.

    The order of samples and dropout follow from the seed. A run that was interrupted goes on from
    its last saved state and ends, on a CPU, in the same weights bit for bit. A BatchNorm none of
    whose parameters may change keeps its running statistics too. Several processes share each batch and
    take the steps that one would, rounding aside; but a BatchNorm that trains sees its process's share only.

    Args:
        model: the network, on the runner's device.
        data: training samples.
        recipe: optimizer, schedule, length.
        seed: the result depends on nothing else on one machine. The global random state is left as it was.
        trainable: the parameters a regime lets change; by default all.
        classes: the task's classes; the loss is over these logits only (one shared head).
        evaluation: held-out samples.
        runner: an ``accelerate.Accelerator`` that has prepared the model, or None.
        like: the network inside, if the model is a wrapper; says how batches are passed to it.
        state: file of the state to go on from; saved every ``recipe.save_every`` steps, and at the end if more
            than a minute would be lost.
        key: what is trained on what; a state of another key is refused.
        on_best: called after an evaluation that is the best so far.
        on_log: called with ``"train"`` or ``"evaluation"`` and the numbers.
        label: what the progress bar says.
        progress: show it on a terminal.

    Returns:
        The history.

    Raises:
        DataError: there are no samples, or labels don't fit the network.
        MergescopeError: the loss became NaN or infinite, or the state is of another run.
    """  # noqa: DOC502 (raised by what this calls)
    if not len(data):
        raise DataError("There is nothing to train on: the training split is empty.")
    model = unwrapped(model)
    parameters = list(model.parameters()) if trainable is None else list(trainable)
    if not parameters:
        raise MergescopeError("There is nothing to train: no parameter may change.")
    runner = runner or OneProcess(parameters[0].device)
    run = _Run(model, data, recipe, seed, parameters, classes, evaluation, runner, like or model, state, key)
    with torch.random.fork_rng(), _training_mode(model, parameters):
        torch.manual_seed(seed)
        run.resume()
        with progress_bar(label, run.total, progress) as advance:
            advance(run.step)
            for numbers in run.steps():
                advance(1, f"loss {numbers['loss']:.3g}")
                if on_log is not None:
                    on_log("train", numbers)
                found = run.evaluate_if_due()
                if found is not None:
                    if on_log is not None:
                        on_log("evaluation", found)
                    if found is run.history.best and on_best is not None:
                        on_best()
                run.save_if_due()
    return run.history


class _Run:
    """One training run at some step."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        recipe: Recipe,
        seed: int,
        parameters: list[nn.Parameter],
        classes: Sequence[int] | None,
        evaluation: TrainingData | None,
        runner: Runner,
        like: nn.Module,
        state: Path | None,
        key: str,
    ) -> None:
        self.model, self.data, self.recipe, self.parameters = model, data, recipe, parameters
        self.seed = seed
        self.evaluation, self.runner, self.state, self.key = evaluation, runner, state, key
        self.objective = Objective(like, classes, recipe.label_smoothing)
        self.measured = Objective(like, classes)
        self.optimizer = runner.prepare(_optimizer(parameters, recipe))
        self.generator = torch.Generator().manual_seed(seed)
        self.total = recipe.total_steps(len(data))
        self.step, self.epoch, self.position = 0, 0, 0
        self.begun = self.generator.get_state()  # the order of an epoch follows from this
        self.history = History()
        self.clock = time.perf_counter()
        self.saved = 0.0  # seconds of the history that the state holds

    def steps(self) -> Iterator[dict[str, float]]:
        """Take all steps that are left.

        Yields:
            The numbers of each.
        """
        while self.step < self.total:
            self.generator.set_state(self.begun)
            order = torch.randperm(len(self.data), generator=self.generator)
            ended = self.generator.get_state()
            for places in order.split(self.recipe.batch)[self.position :]:
                yield self._step(places)
                if self.step == self.total:
                    return
            self.begun, self.epoch, self.position = ended, self.epoch + 1, 0

    def _step(self, places: torch.Tensor) -> dict[str, float]:
        recipe = self.recipe
        rate = recipe.rate(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.runner.device)
        process, workers = self.runner.process_index, self.runner.num_processes
        if process:  # dropout of its own, which follows from the step: a state holds that of the first only
            torch.manual_seed(hash((self.seed, self.step, process)))
        mine = places[process::workers]  # of a small batch, none for some
        parts, count = mine.chunk(recipe.accumulate) if len(mine) else (), 0
        weighted = workers > 1 or len(parts) > 1
        for part in parts:
            inputs, labels = (to_device(value, self.runner.device) for value in self.data.batch(part))
            with self.runner.autocast():
                mean, _, predictions = self.objective(self.model, inputs, labels)
            if weighted and not predictions:  # texts without a token to predict: their mean is NaN
                continue
            share = predictions / len(places) if weighted else 1
            self.runner.backward(mean * share if share != 1 else mean)
            loss += mean.detach() * share
            count += predictions
        if workers > 1:
            loss, count = add_up(self.runner, self.parameters, loss, count)
            average_statistics(self.runner, self.model)
        if weighted and count != len(places):  # tokens: how many there are is known only now
            loss = self._rescale(loss, len(places) / max(count, 1))
        norm = (
            float("nan")
            if recipe.clip is None
            else float(self.runner.clip_grad_norm_(self.parameters, recipe.clip))
        )
        self.optimizer.step()
        if not torch.isfinite(loss):
            raise MergescopeError(
                f"Training diverged in epoch {self.epoch + 1}, step {self.step + 1}: the loss is {float(loss)}. "
                f"Lower the learning rate (now {recipe.lr:g})."
            )
        self.step += 1
        self.position += 1
        numbers = {
            "step": self.step, "epoch": self.epoch, "samples": len(places), "loss": float(loss), "lr": rate,
            "gradient_norm": norm,
        }  # fmt: skip
        self.history.steps.append(numbers)
        return numbers

    def _rescale(self, loss: torch.Tensor, factor: float) -> torch.Tensor:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return loss * factor

    def evaluate_if_due(self) -> dict[str, float] | None:
        """Evaluate after an epoch, after ``evaluate_every`` steps, and at the end.

        Returns:
            Step, loss and accuracy; None if it was not due.
        """
        if self.evaluation is None:
            return None
        ends = self.position * self.recipe.batch >= len(self.data)
        every = self.recipe.evaluate_every
        if not (self.step == self.total or (ends if every is None else self.step % every == 0)):
            return None
        loss, accuracy = evaluate(self.model, self.evaluation, self.measured, self.runner, self.recipe.batch)
        found = {"step": self.step, "loss": loss, "accuracy": accuracy}
        self.history.evaluations.append(found)
        best = self.history.best
        if best is None or (accuracy, -loss) > (best["accuracy"], -best["loss"]):
            self.history.best = found
        return found

    def save_if_due(self) -> None:
        """Save the state after every ``save_every`` steps, and at the end of a run that took long since then.

        It is several times as large as the model, which is written next: a short run is sooner made again.
        """
        ended, due = self.step == self.total, self.step % self.recipe.save_every == 0
        if ended or due:
            self._tick()
        if not due and not (ended and self.history.seconds - self.saved > SHORT):
            return
        if self.state is None or self.runner.process_index:
            return
        self.saved = self.history.seconds
        content = {
            "key": self.key, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(), **self._of_device(), "begun": self.begun, "history": asdict(self.history),
            "places": (self.step, self.epoch, self.position),
        }  # fmt: skip
        with atomic_file(self.state) as temporary:
            torch.save(content, temporary)

    def _of_device(self) -> dict[str, Any]:
        # What a GPU has beside its weights: dropout's random state, the scale of float16's loss.
        kind, scaler = self.runner.device.type, getattr(self.runner, "scaler", None)
        own = None if kind == "cpu" else torch.get_device_module(kind).get_rng_state(self.runner.device)
        return {"device_random": own, "scaler": None if scaler is None else scaler.state_dict()}

    def _to_device(self, content: Mapping[str, Any]) -> None:
        kind, scaler = self.runner.device.type, getattr(self.runner, "scaler", None)
        own, scale = content.get("device_random"), content.get("scaler")
        if own is not None and kind != "cpu":
            torch.get_device_module(kind).set_rng_state(own.cpu(), self.runner.device)
        if scale and scaler is not None:
            scaler.load_state_dict(scale)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now

    def resume(self) -> None:
        """Go on from the saved state, if there is one.

        Raises:
            MergescopeError: it is of another run, damaged, or does not fit the network.
        """
        if self.state is None or not self.state.is_file():
            return
        try:
            content = torch.load(self.state, map_location="cpu", weights_only=True)
            key = content["key"]
        except Exception as error:
            raise MergescopeError(
                f"{self.state}, the state of an interrupted training, can't be read ({error}). Delete it to begin anew."
            ) from error
        if key != self.key:
            raise MergescopeError(
                f"{self.state} is the state of a training with another configuration, base or data set. Nothing was "
                "changed. Choose another output directory, or delete that file to begin anew."
            )
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            torch.set_rng_state(content["random"].cpu())
            self._to_device(content)
            self.begun = content["begun"].cpu()
            self.step, self.epoch, self.position = content["places"]
            self.history = History(**content["history"])
            self.saved = self.history.seconds
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise MergescopeError(
                f"{self.state}, the state of an interrupted training, does not fit {type(self.model).__name__} "
                f"({str(error).splitlines()[0]}). Delete it to begin anew."
            ) from error


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TrainingData, objective: Objective, runner: Runner | None = None, batch: int = 64
) -> tuple[float, float]:
    """Mean loss and accuracy on held-out samples, in eval mode.

    Args:
        model: the network.
        data: the samples.
        objective: the loss.
        runner: as for [`train`][].
        batch: samples at once.

    Returns:
        Loss (mean over predictions) and accuracy.
    """
    runner, model = runner or OneProcess(next(model.parameters()).device), unwrapped(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    loss = right = count = 0.0
    try:
        for places in torch.arange(len(data)).split(batch)[runner.process_index :: runner.num_processes]:
            inputs, labels = (to_device(value, runner.device) for value in data.batch(places))
            with runner.autocast():
                mean, hits, predictions = objective(model, inputs, labels)
            loss += float(mean) * predictions
            right += int(hits)
            count += predictions
    finally:
        for module, mode in modes.items():
            module.training = mode
    if runner.num_processes > 1:
        loss, right, count = totals(runner, (loss, right, count))
    return (loss / count, right / count) if count else (float("nan"), float("nan"))


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
    """Train a network in place on a split in memory; it is left in eval mode.

    Args:
        model: the network.
        split: training samples.
        recipe: optimizer, learning rate, epochs.
        seed: of the order of samples and of dropout.
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
    """  # noqa: DOC502 (raised by what this calls)
    history = train(
        model,
        SplitData(split),
        recipe,
        seed=seed,
        classes=classes,
        trainable=trainable,
        label=label,
        progress=progress,
    )
    return history.epoch_losses()


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        decay, momentum = recipe.weight_decay, recipe.momentum
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=momentum, weight_decay=decay)
    # One pass over each tensor; on other devices torch chooses.
    fused = all(entry.device.type == "cpu" for entry in parameters) or None
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


@contextmanager
def _training_mode(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    chosen = {id(parameter) for parameter in parameters}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.train()
    try:
        for parameter in required:
            parameter.requires_grad_(id(parameter) in chosen)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and own and not any(id(p) in chosen for p in own):
                module.eval()
        yield
    finally:
        for parameter, needed in required.items():
            parameter.requires_grad_(needed)
        model.eval()
