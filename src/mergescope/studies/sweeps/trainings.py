"""Trainings of a sweep: each starts anew or where another one was, and keeps its weights after some epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mergescope._version import __version__
from mergescope.data import Split, Task
from mergescope.data.digits import EMBEDDED
from mergescope.data.image_tasks import balanced, consecutive_parts, image_task, replaced
from mergescope.data.task_splits import SPLITS
from mergescope.errors import StudyError, did_you_mean
from mergescope.merging import save
from mergescope.models import net_config
from mergescope.models.nets import net_from_config
from mergescope.studies.papers.data_sets import Sources
from mergescope.studies.rundir import checkpoint_path, digest_of
from mergescope.tracing.engines import Engine
from mergescope.training import Recipe, full
from mergescope.training.loop import SplitData, train
from mergescope.weights import Checkpoint

Config = TypeVar("Config")


@dataclass(frozen=True)
class Images:
    """Where the images of a sweep come from.

    Attributes:
        data: ``"embedded"``, a directory or a hub id.
        parts: how many parts of consecutive classes; 1 for all classes together.
        train: images a class to train on; None for all.
        test: images a class to measure on; None for all.
    """

    data: str = "embedded"
    parts: int = 5
    train: int | None = None
    test: int | None = None

    def tasks(self) -> tuple[Task, ...]:
        """The parts, kept in memory.

        Returns:
            One task a part.

        Raises:
            DataError: the data can't be read.
        """  # noqa: DOC502 (raised by what this calls)
        return _tasks(self)


@lru_cache(maxsize=2)
def _tasks(images: Images) -> tuple[Task, ...]:
    whole = image_task(images.data, train=images.train, test=images.test)
    if images.parts == 1:
        return (whole,)
    # Samples of one part stand for those of another: parts are of one size, whatever was held out of each class.
    train, validation, test = (balanced(getattr(whole, name)) for name in SPLITS)
    equal = replace(whole, train=train, validation=validation, test=test)
    return tuple(consecutive_parts(equal, images.parts))


@dataclass(frozen=True)
class Mixture:
    """The samples of one part, some of them replaced by another part's.

    Attributes:
        images: where all parts come from.
        part: number of the part.
        other: number of the part that samples come from.
        share: of samples that are replaced.
    """

    images: Images
    part: int
    other: int | None = None
    share: float = 0.0

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that occur; the others' logits are masked."""
        tasks = self.images.tasks()
        own = tasks[self.part].classes if self.share < 1 or self.other is None else ()
        new = () if self.other is None or not self.share else tasks[self.other].classes
        return tuple(sorted({*own, *new}))

    def split(self, name: str) -> Split:
        """The samples.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Returns:
            Training or held-out samples, replaced in the same share.
        """
        tasks = self.images.tasks()
        own: Split = getattr(tasks[self.part], name)
        if self.other is None or not self.share:
            return own
        return replaced(own, getattr(tasks[self.other], name), self.share)

    @property
    def name(self) -> str:
        """For tables and directories, for example ``"2/3"``."""
        return self.images.tasks()[self.part].name


@dataclass(frozen=True)
class Trained:
    """A training after some epochs: a checkpoint that is there or will be."""

    training: Training
    epochs: int

    @property
    def path(self) -> Path:
        """Its directory; exists only if it is complete."""
        training = self.training
        name = f"{training.name.replace('/', '-')}-epoch{self.epochs}"
        return checkpoint_path(training.run, name, digest_of(training.key, self.epochs))

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights."""
        return Checkpoint(self.path, name=f"{self.training.name}, {self.epochs} epochs")


@dataclass(frozen=True)
class Training:
    """One network on one mixture of samples.

    Attributes:
        name: readable; different trainings of a run have different names.
        run: directory that keeps the checkpoints.
        network: configuration as JSON, as written by [`net_config`][mergescope.models.net_config].
        data: what to train on.
        recipe: how; its length is what ``keep`` asks for.
        seed: of the order of samples and, for a start from nothing, of the initial weights.
        start: the checkpoint to go on from; None for random weights.
        keep: after how many epochs weights are kept; 0 for those it starts from.
        device: where the network is trained and measured.
    """

    name: str
    run: Path
    network: str
    data: Mixture
    recipe: Recipe
    seed: int
    start: Trained | None = None
    keep: tuple[int, ...] = field(default=(), compare=False)
    device: str = field(default="cpu", compare=False)

    def __str__(self) -> str:
        return f"training {self.name}"

    @property
    def key(self) -> str:
        """Digest of all that decides the weights after any number of epochs."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "epochs"}
        start = None if self.start is None else (self.start.training.key, self.start.epochs)
        data = [self.data.split("train").fingerprint, self.data.classes]
        return digest_of(__version__, self.network, data, recipe, self.seed, start)

    def after(self, epochs: int) -> Trained:
        """The weights after so many epochs.

        Args:
            epochs: one of ``keep``.

        Returns:
            Where they are, or will be.
        """
        return Trained(self, epochs)

    @property
    def done(self) -> bool:
        """Whether all weights that are asked for are there."""
        return all(self.after(epochs).path.is_dir() for epochs in self.keep)

    def model(self) -> nn.Module:
        """The network at its start.

        Returns:
            A new one, on its device.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = net_from_config(json.loads(self.network))
        if self.start is not None:
            model.load_state_dict(Checkpoint(self.start.path).state_dict())
        return model.to(self.device)

    def carry_out(self) -> None:
        """Train, and write what is to be kept."""
        model, split = self.model(), self.data.split("train")
        recipe = replace(self.recipe, epochs=max(self.keep, default=0))
        ends = {epochs * -(-len(split) // recipe.batch): epochs for epochs in self.keep}

        def keep(step: int) -> None:
            if step in ends and not (target := self.after(ends[step])).path.is_dir():
                weights = Checkpoint(
                    {key: value.to("cpu", copy=True) for key, value in model.state_dict().items()},
                    name=target.path.name,
                )
                save(weights, target.path, config=net_config(model))

        keep(0)
        if recipe.epochs:
            train(
                model, SplitData(split), recipe, seed=self.seed, classes=self.data.classes, trainable=full(model),
                progress=False, on_log=lambda kind, numbers: keep(int(numbers["step"])),
            )  # fmt: skip


def merge_keeps(trainings: Sequence[Training]) -> list[Training]:
    """The same training asked for with different epochs is one training.

    Args:
        trainings: any.

    Returns:
        Each once, with all its epochs.

    Example:
        >>> it = Training("a", Path("."), "{}", Mixture(Images(), 1), Recipe(), 0)
        >>> [one.keep for one in merge_keeps([replace(it, keep=(3,)), replace(it, keep=(1, 3))])]
        [(1, 3)]
    """
    keeps: dict[Training, set[int]] = {}
    for training in trainings:
        keeps.setdefault(training, set()).update(training.keep)
    return [replace(training, keep=tuple(sorted(keep))) for training, keep in keeps.items()]


def train_all(trainings: Sequence[Training], engine: Engine) -> None:
    """Train what is missing, each after what it starts from; the longest first.

    Args:
        trainings: of a sweep.
        engine: runs them.
    """
    wanted = merge_keeps(trainings)
    for label, begins in (("pretraining", True), ("fine-tuning", False)):
        due = [it for it in wanted if (it.start is None) is begins and not it.done]
        due.sort(key=lambda it: -max(it.keep))
        engine.map(_carry_out, due, label)


def _carry_out(training: Training) -> None:
    training.carry_out()


def described(trainings: Sequence[Training], *images: Images) -> list[str]:
    """What data there are and what is to be trained, in words.

    Args:
        trainings: of a sweep.
        images: their data sets.

    Returns:
        A line a data set, and one of the trainings.
    """
    wanted = merge_keeps(trainings)
    due = [it for it in wanted if not it.done]
    passed = sum(max(it.keep) * len(it.data.split("train")) for it in due)
    found = [(each.data, each.tasks()) for each in images]
    return [
        *(
            f"{len(tasks)} part(s) of {data}: {', '.join(task.name for task in tasks)}; {len(tasks[0].train)} images "
            f"to train on and {len(tasks[0].test)} to measure on in each"
            for data, tasks in found
        ),
        f"{sum(len(it.keep) for it in wanted)} checkpoints of {len(wanted)} trainings, of which {len(due)} are to be "
        f"trained: {passed:,} images",
    ]


def cost_of(trainings: Sequence[Training]) -> str:
    """What all trainings of a sweep cost, wherever they were made.

    Args:
        trainings: of a sweep.

    Returns:
        Networks, and images passed forward and backward.
    """
    wanted = merge_keeps(trainings)
    passed = sum(max(it.keep) * len(it.data.split("train")) for it in wanted)
    return f"{len(wanted)} trainings, {passed:,} images passed forward and backward"


def chosen(
    study: str, presets: Mapping[str, Config], preset: str, data: str, root: Path | None = None
) -> Config:
    """A preset of a sweep on some data.

    Args:
        study: its name.
        presets: by name; each has ``images``, and perhaps ``similar``.
        preset: one of them.
        data: a directory or a hub id for all sweeps; ``"embedded"`` for the preset's own data.
        root: directory of data sets, whose copies stand for the preset's own; ``cifar10`` for the embedded ones.

    Returns:
        The configuration.

    Raises:
        StudyError: there is no such preset.
    """
    if preset not in presets:
        raise StudyError(
            f"{study} has no preset {preset!r}.{did_you_mean(preset, presets)} Presets: {', '.join(presets)}."
        )
    config: Any = presets[preset]
    if data != EMBEDDED:
        own = {"images": replace(config.images, data=data)}
        return replace(config, **own, **({"similar": None} if hasattr(config, "similar") else {}))
    sources = Sources(root)
    found: dict[str, Images] = {}
    for name in ("images", "similar"):
        images = getattr(config, name, None)
        if images is not None:
            here = sources.folder("cifar10") if images.data == EMBEDDED else None
            known = images.data if images.data == EMBEDDED else sources.task(images.data)
            found[name] = replace(images, data=known if here is None else str(here))
    return replace(config, **found)
