"""What makes features linear between fine-tuned models: training lengths and shared samples (CTL Figs 11, 12).

A narrow ResNet-18 is pretrained on the first part of a data set's classes and fine-tuned on others, as in Split
CIFAR-100. One thing varies at a time; every repetition has its own initial weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mergescope._version import __version__
from mergescope.data import Split, batches
from mergescope.errors import StudyError
from mergescope.models import net_config
from mergescope.models.loading import usable_device
from mergescope.models.resnet import ResNet
from mergescope.protocols import ctl, linearity
from mergescope.protocols.scores import as_fields
from mergescope.readings import InnerProducts, Outputs, Reading
from mergescope.studies.claims import said
from mergescope.studies.rundir import (
    RESULTS,
    Row,
    RunDirectory,
    digest_of,
    measures_path,
    open_run,
    read_rows,
    write_rows,
)
from mergescope.studies.sweeps.trainings import (
    Images,
    Mixture,
    Trained,
    Training,
    chosen,
    cost_of,
    described,
    train_all,
)
from mergescope.tracing import Trace, trace
from mergescope.tracing.engines import engine_or_processes
from mergescope.training import Recipe
from mergescope.weights import Point

STUDY = "root-causes"
KIND = "root-cause"
"""Of the rows of measures."""

PRETRAINING, FINE_TUNING = "pretraining epochs", "fine-tuning epochs"
TO_PRETRAINING, TO_EACH_OTHER = "similarity to the pretraining data", "similarity of both fine-tuning sets"
SWEEPS = (PRETRAINING, FINE_TUNING, TO_PRETRAINING, TO_EACH_OTHER)
"""What varies: Fig. 11, left and right; Fig. 12, left and right."""


@dataclass(frozen=True)
class RootCausesConfig:
    """Everything that decides the results.

    Attributes:
        images: parts of a data set; the first is for pretraining.
        similar: of another data set, for the sweeps of replaced samples (Fig. 12); None for the same.
        tuned: numbers of the parts for fine-tuning; all pairs of them are measured.
        width: of the ResNet.
        stages: of the ResNet.
        recipe: of both trainings; its rate is that of pretraining.
        tuning_lr: learning rate of fine-tuning.
        epochs: of pretraining and of fine-tuning, where they don't vary.
        pretraining_epochs: the sweep.
        fine_tuning_epochs: the sweep.
        shares: of replaced samples, the sweep of similarity to the pretraining data.
        tuned_shares: the sweep of similarity of both fine-tuning sets.
        seeds: repetitions.
        batch: samples a batch of measuring; BatchNorm takes its statistics.
    """

    images: Images = Images(train=250, test=100)
    tuned: tuple[int, ...] = (1, 2)
    width: int = 8
    stages: tuple[int, ...] = (2, 2, 2, 2)
    recipe: Recipe = Recipe("sgd", lr=0.1, batch=64)
    tuning_lr: float = 0.05
    epochs: tuple[int, int] = (10, 5)
    pretraining_epochs: tuple[int, ...] = (0, 1, 3, 10, 20)
    fine_tuning_epochs: tuple[int, ...] = (1, 2, 5, 10)
    shares: tuple[float, ...] = (0.0, 0.5, 0.9, 1.0)
    tuned_shares: tuple[float, ...] = (0.0, 0.5, 1.0)
    seeds: int = 4
    batch: int = 200
    similar: Images | None = None

    def network(self, images: Images) -> str:
        """The network for a data set.

        Args:
            images: of the data set.

        Returns:
            Its configuration as JSON.
        """
        first = images.tasks()[0]
        classes = 1 + max(label for task in images.tasks() for label in task.classes)
        _, channels, side, _ = first.train.inputs.shape
        net = ResNet(image=side, channels=channels, width=self.width, stages=self.stages, classes=classes)
        return json.dumps(net_config(net))

    @property
    def shown_layers(self) -> tuple[str, str]:
        """The first blocks of the last two stages, which CTL shows as blocks 3-1 and 4-1."""
        return tuple(f"blocks.{sum(self.stages[:count])}" for count in (-2, -1))  # type: ignore[return-value]


PRESETS = {
    "quick": RootCausesConfig(
        images=Images(train=60, test=20), tuned=(1, 2), width=4, epochs=(2, 2), pretraining_epochs=(0, 2),
        fine_tuning_epochs=(1, 2), shares=(0.0, 1.0), tuned_shares=(0.0, 1.0), seeds=2, batch=40,
    ),
    "cpu": RootCausesConfig(),
    "paper": RootCausesConfig(
        images=Images("cifar100", parts=20), tuned=(1, 2, 3, 4), width=20, epochs=(10, 10),
        pretraining_epochs=tuple(range(0, 21, 2)), fine_tuning_epochs=tuple(range(1, 21)),
        shares=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), tuned_shares=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
        seeds=3, batch=500, similar=Images("tiny-imagenet", parts=20),
    ),
}  # fmt: skip
"""By name: seconds for a look, minutes, and CTL's setting."""


@dataclass(frozen=True)
class Place:
    """One value of what varies, in one repetition: models to compare.

    Attributes:
        sweep: what varies.
        value: its value.
        seed: of the repetition.
        pairs: pairs of models with the data that each was made for.
        base: what all were fine-tuned from.
        network: configuration as JSON.
        batch: samples a batch.
        rows: file of the results.
    """

    sweep: str
    value: float
    seed: int
    pairs: tuple[tuple[Trained, Trained], ...]
    base: Trained
    network: str
    batch: int
    rows: Path

    def __str__(self) -> str:
        return f"{self.sweep} {self.value:g}, repetition {self.seed}"


@dataclass
class Plan:
    """All trainings and measurements of a run.

    Args:
        config: what to do.
        run: directory.
        device: of trainings and passes.
    """

    config: RootCausesConfig
    run: Path
    device: str = "cpu"
    trainings: list[Training] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    _networks: dict[Images, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c = self.config
        similar = c.similar or c.images
        parts = min(c.images.parts, similar.parts)
        if max((0, *c.tuned)) >= parts or 0 in c.tuned or len(c.tuned) < 2:
            raise StudyError(
                f"Fine-tuning is on two or more of the parts 1 to {parts - 1} (0 is for pretraining), got "
                f"{list(c.tuned)}."
            )
        for seed in range(c.seeds):
            for epochs in c.pretraining_epochs:
                self._add(c.images, PRETRAINING, epochs, seed, before=epochs)
            for epochs in c.fine_tuning_epochs:
                self._add(c.images, FINE_TUNING, epochs, seed, after=epochs)
            for share in c.shares:
                self._add(similar, TO_PRETRAINING, share, seed, share=share)
            for share in c.tuned_shares:
                self._add(similar, TO_EACH_OTHER, share, seed, shared=share)

    def _base(self, images: Images, seed: int, epochs: int) -> Trained:
        training = Training(
            f"{self._prefix(images)}base-seed{seed}", self.run, self._network(images), Mixture(images, 0),
            self.config.recipe, seed, keep=(epochs,), device=self.device,
        )  # fmt: skip
        self.trainings.append(training)
        return training.after(epochs)

    def _tuned(self, base: Trained, data: Mixture, seed: int, epochs: int) -> Trained:
        c = self.config
        recipe = Recipe(**{**asdict(c.recipe), "lr": c.tuning_lr})
        mixed = "" if data.other is None or not data.share else f"-with-{data.share:g}-of-{data.other}"
        # Each part has its own order of samples, or models of equal data would be equal.
        training = Training(
            f"{self._prefix(data.images)}part{data.part}{mixed}-seed{seed}-from{base.epochs}", self.run,
            self._network(data.images), data, recipe, 100 * (data.part + 1) + seed, base, (epochs,), self.device,
        )  # fmt: skip
        self.trainings.append(training)
        return training.after(epochs)

    def _network(self, images: Images) -> str:
        if images not in self._networks:
            self._networks[images] = self.config.network(images)
        return self._networks[images]

    def _prefix(self, images: Images) -> str:
        return "" if images == self.config.images else "similar-"

    def _add(
        self,
        images: Images,
        sweep: str,
        value: float,
        seed: int,
        *,
        before: int | None = None,
        after: int | None = None,
        share: float = 0.0,
        shared: float = 0.0,
    ) -> None:
        c = self.config
        base = self._base(images, seed, c.epochs[0] if before is None else before)
        epochs = c.epochs[1] if after is None else after

        def tuned(part: int, other: int, replaced: float) -> Trained:
            mixture = Mixture(images, part, other, replaced) if replaced else Mixture(images, part)
            return self._tuned(base, mixture, seed, epochs)

        pairs = tuple(
            (tuned(a, 0, share), tuned(b, a, shared) if shared else tuned(b, 0, share))
            for a, b in combinations(c.tuned, 2)
        )
        keys = [(one.training.key, other.training.key) for one, other in pairs]
        start = base.training.key, base.epochs
        mixtures = dict.fromkeys(it.training.data for pair in pairs for it in pair)
        tests = [mixture.split("test").fingerprint for mixture in mixtures]
        key = digest_of(__version__, "root-cause", sweep, value, epochs, keys, start, c.batch, tests)
        name = f"{sweep.replace(' ', '-')}-{value:g}-seed{seed}"
        rows = measures_path(self.run, name, key)
        rows = rows.with_name(f"{rows.name}.rows.parquet")  # names have dots: 0.5
        self.places.append(Place(sweep, value, seed, pairs, base, self._network(images), c.batch, rows))


def measure_place(place: Place) -> None:
    """Measure CTL of all pairs of a place and write the rows.

    Args:
        place: whose models are trained.
    """
    write_rows(place.rows, list(_rows(place)))


def _rows(place: Place) -> Iterator[Row]:
    model = place.base.training.model()
    base = Point.of(place.base.checkpoint)
    weights = {it: Point.of(it.checkpoint) for pair in place.pairs for it in pair}
    tests = {pair: ctl(weights[pair[0]], weights[pair[1]], 0.5, base) for pair in place.pairs}
    traced = {}
    for mixture in dict.fromkeys(it.training.data for it in weights):
        mine = [test for pair, test in tests.items() if mixture in _mixtures(pair)]
        readings: list[Reading] = [InnerProducts([test.points for test in mine]), Outputs(mixture.classes)]
        points = [point for test in mine for point in test.points]
        split: Split = mixture.split("test")
        traced[mixture] = trace(points, batches(split, place.batch), model, readings=readings, progress=False)
    for pair, test in tests.items():
        passes = [traced[mixture] for mixture in _mixtures(pair)]
        found = linearity(passes, test)
        names = [_name(it) for it in pair]
        common: dict[str, Any] = {
            "network": _network(place.network), "regime": place.sweep, "kind": KIND, "parameter": place.value,
            "points": f"{' + '.join(names)}, seed {place.seed}", "data": " ∪ ".join(names),
        }  # fmt: skip
        cost: dict[str, Any] = {
            "seconds": round(sum(part.seconds for part in passes), 3),
            "forward_passes": sum(part.forward_passes for part in passes),
            "peak_bytes": max(part.peak_bytes for part in passes),
        }
        for layer in found.layers:
            for measure, summary in layer.measures.items():
                yield Row(
                    **common, measure=measure, layer=layer.layer, trivial=layer.trivial, **as_fields(summary), **cost
                )  # fmt: skip
        for measure, value in _accuracies(test.left, [weights[it] for it in pair], passes).items():
            yield Row(**common, measure=measure, mean=value, **cost)


def _accuracies(merged: Point, models: Sequence[Point], passes: Sequence[Trace]) -> dict[str, float]:
    # Each model on its own data; models of the same data share a pass.
    outputs = [part.reading(Outputs) for part in passes]
    own = [outputs[min(place, len(outputs) - 1)].correct(model).mean() for place, model in enumerate(models)]
    return {
        "accuracy of the average": float(np.mean([said.correct(merged).mean() for said in outputs])),
        "accuracy of the fine-tuned models": float(np.mean(own)),
    }


def _mixtures(pair: tuple[Trained, Trained]) -> list[Mixture]:
    return list(dict.fromkeys(it.training.data for it in pair))


def _name(it: Trained) -> str:
    return it.training.data.name


def _network(config: str) -> str:
    said = json.loads(config)
    layers = 2 + 2 * sum(said["stages"])
    return f"ResNet-{layers}, width {said['width']}"


def _passes(rows: Sequence[Row]) -> int:
    each = {(row.regime, row.parameter, row.points): row.forward_passes for row in rows if row.kind == KIND}
    return sum(each.values())


def plan_lines(
    preset: str, path: str | Path, *, data: str = "embedded", root: Path | None = None
) -> list[str]:
    """What a run would do, in words; nothing is trained or written.

    Args:
        preset: one of [`PRESETS`][].
        path: the run directory.
        data: as for [`chosen`][mergescope.studies.sweeps.trainings.chosen].
        root: likewise.

    Returns:
        A line for data, trainings and measuring.

    Raises:
        StudyError: there is no such preset.
    """  # noqa: DOC502 (raised by what this calls)
    config = chosen(STUDY, PRESETS, preset, data, root)
    plan = Plan(config, Path(path))
    due = [place for place in plan.places if not place.rows.is_file()]
    return [
        *described(plan.trainings, config.images, *([] if config.similar is None else [config.similar])),
        f"measure CTL at alpha 0.5 of {len(plan.places[0].pairs)} pair(s) at {len(plan.places)} places, of which "
        f"{len(due)} are to be measured: {len(config.pretraining_epochs)} lengths of pretraining, "
        f"{len(config.fine_tuning_epochs)} of fine-tuning, {len(config.shares)} and {len(config.tuned_shares)} shares "
        f"of replaced samples, {config.seeds} repetitions",
    ]


def run_preset(
    preset: str,
    path: str | Path,
    *,
    data: str = "embedded",
    root: Path | None = None,
    workers: int | None = None,
    device: str = "cpu",
) -> RunDirectory:
    """Run the study, or what is left of it.

    Args:
        preset: one of [`PRESETS`][].
        path: the run directory.
        data: as for [`chosen`][mergescope.studies.sweeps.trainings.chosen].
        root: likewise.
        workers: processes; by default one a core, or a single one on another device.
        device: of trainings and passes, such as ``"cuda"``.

    Returns:
        The run directory with ``run.yaml`` and ``results.parquet``.

    Raises:
        StudyError: there is no such preset, or the directory holds something else.
        MergescopeError: there is no such device.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.studies.sweeps.trends import trends

    usable_device(device)
    config, run = chosen(STUDY, PRESETS, preset, data, root), open_run(path, STUDY)
    with run.locked():
        plan = Plan(config, run.path, device)
        with engine_or_processes(workers or (None if device == "cpu" else 1)) as engine:
            train_all(plan.trainings, engine)
            engine.map(measure_place, [it for it in plan.places if not it.rows.is_file()], "measuring")
        rows = [row for place in plan.places for row in read_rows(place.rows)]
        rows += trends(rows, config.shown_layers)
        write_rows(run.path / RESULTS, rows)
        tasks = config.images.tasks()
        provenance = {
            "data": {"source": config.images.data, "fingerprints": {task.name: task.fingerprint for task in tasks}},
            "parts": [task.name for task in tasks],
            "shown layers": list(config.shown_layers),
            "cost": f"{cost_of(plan.trainings)}; {_passes(rows):,} forward passes of a batch to measure",
            "says": said(rows),
        }  # fmt: skip
        run.write_run(STUDY, preset, json.loads(json.dumps(asdict(config))), provenance)
    return run
