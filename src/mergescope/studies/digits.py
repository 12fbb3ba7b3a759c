"""The demo: pretrain on digits, fine-tune a family, measure its linearity, merge, evaluate.

CTL's Rotated MNIST (Figs 2 and 3) with two networks and two learning rates.
Every checkpoint and every family's measures are artefacts of the run directory: a run that was
killed goes on where it was, and one that is complete only reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from math import comb
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from mergescope._version import __version__
from mergescope.data import Task, class_pairs, digits, rotated
from mergescope.merging import save
from mergescope.models import MLP, ViT, net_config
from mergescope.studies.family import SAMPLE_COLUMNS, Family, Measured, Settings, measure_family
from mergescope.studies.rundir import (
    RESULTS,
    SAMPLES,
    RunDirectory,
    digest_of,
    open_run,
    read_rows,
    read_table,
    write_rows,
    write_table,
)
from mergescope.tracing.engines import engine_or_processes
from mergescope.training import Recipe, fit, full
from mergescope.weights import Checkpoint

Network = Literal["mlp", "vit"]


class DigitsConfig(BaseModel):
    """Everything that decides the demo's results.

    Attributes:
        data: ``"embedded"``, a hub id or a directory with full MNIST.
        tasks: ``"rotations"`` (pretrain upright, fine-tune on four angles) or ``"class-pairs"``
            (pretrain on 0/1, fine-tune on the other four pairs).
        networks: which networks.
        vit: settings of the small vision transformer.
        pretraining: how each network is pretrained.
        regimes: how each network is fine-tuned, by regime name.
        settings: what is measured.
        seed: of initialisation and order of samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "embedded"
    tasks: Literal["rotations", "class-pairs"] = "rotations"
    networks: tuple[Network, ...] = ("mlp", "vit")
    vit: dict[str, Any] = Field(default_factory=dict)
    pretraining: dict[str, Recipe] = Field(
        default_factory=lambda: {
            "mlp": Recipe("sgd", lr=0.05, epochs=20),
            "vit": Recipe("adamw", lr=1e-3, epochs=10, weight_decay=0.01),
        }
    )
    regimes: dict[str, dict[str, Recipe]] = Field(
        default_factory=lambda: {
            "moderate": {"mlp": Recipe("sgd", lr=0.01, epochs=5), "vit": Recipe("adamw", lr=2e-4, epochs=4)},
            "high": {"mlp": Recipe("sgd", lr=0.1, epochs=5), "vit": Recipe("adamw", lr=1e-3, epochs=4)},
        }
    )
    settings: Settings = Settings(line_alphas=(0.1, 0.25, 0.5, 0.75, 0.9), test_limit=400)
    seed: int = 0

    @property
    def fine_tunings(self) -> list[tuple[Network, str]]:
        """Every network with every regime, slow networks first."""
        return [(network, regime) for network in self.networks[::-1] for regime in self.regimes]


def preset(name: str) -> DigitsConfig:
    """A named configuration.

    Args:
        name: ``"quick"`` (seconds, for a first look and tests), ``"default"`` or ``"full"``
            (longer training, all test digits).

    Returns:
        The configuration.
    """
    if name == "quick":
        return DigitsConfig(
            vit={"width": 32, "depth": 2},
            pretraining={"mlp": Recipe("sgd", lr=0.05, epochs=8), "vit": Recipe("adamw", lr=2e-3, epochs=3)},
            regimes={
                "moderate": {
                    "mlp": Recipe("sgd", lr=0.01, epochs=2),
                    "vit": Recipe("adamw", lr=1e-4, epochs=1),
                },
                "high": {"mlp": Recipe("sgd", lr=0.1, epochs=2), "vit": Recipe("adamw", lr=2e-3, epochs=1)},
            },
            settings=Settings(line_alphas=(0.25, 0.5, 0.75), test_limit=200),
        )
    if name == "full":
        return DigitsConfig(
            pretraining={
                "mlp": Recipe("sgd", lr=0.05, epochs=40),
                "vit": Recipe("adamw", lr=1e-3, epochs=40, weight_decay=0.01),
            },
            regimes={
                "moderate": {
                    "mlp": Recipe("sgd", lr=0.01, epochs=20),
                    "vit": Recipe("adamw", lr=1e-4, epochs=12),
                },
                "high": {"mlp": Recipe("sgd", lr=0.1, epochs=20), "vit": Recipe("adamw", lr=1e-3, epochs=12)},
            },
            settings=Settings(line_alphas=tuple(i / 20 for i in range(1, 20)), test_limit=0),
        )
    return DigitsConfig()


def run_preset(
    preset_name: str, path: str | Path, *, data: str, tasks: str, workers: int | None = None
) -> RunDirectory:
    """Run the demo by preset, as the command line does.

    Args:
        preset_name: ``"quick"``, ``"default"`` or ``"full"``.
        path: the run directory.
        data: ``"embedded"``, a hub id or a directory.
        tasks: ``"rotations"`` or ``"class-pairs"``.
        workers: processes; by default one a core.

    Returns:
        The run directory.
    """
    return run_digits(_resolved(preset_name, data, tasks), path, preset_name, workers)


def plan_lines(preset_name: str, path: str | Path, *, data: str, tasks: str) -> list[str]:
    """What a run would do, in words.

    Args:
        preset_name: ``"quick"``, ``"default"`` or ``"full"``.
        path: the run directory.
        data: ``"embedded"``, a hub id or a directory.
        tasks: ``"rotations"`` or ``"class-pairs"``.

    Returns:
        One line a step.
    """
    del path  # the plan is of a whole run
    config = _resolved(preset_name, data, tasks)
    pretraining, tuned = tasks_of(data, tasks)
    settings = config.settings
    test = [min(settings.test_limit or len(task.test), len(task.test)) for task in tuned]
    lines = [
        f"pretrain {network} on {pretraining.name} ({len(pretraining.train)} digits), 2 initialisations: {recipe}"
        for network, recipe in config.pretraining.items()
        if network in config.networks
    ]
    lines += [
        f"fine-tune {network}, {regime}, on {', '.join(task.name for task in tuned)}: {recipes[network]}"
        for regime, recipes in config.regimes.items()
        for network in config.networks
    ]
    lines.append(
        f"measure {len(config.fine_tunings)} families on {sum(test)} test digits: all {comb(len(tuned), 2)} pairs at "
        f"alpha {', '.join(f'{a:g}' for a in settings.alphas)}; Eq. 1 to 3 at lambda {settings.lam:g}; barriers on "
        f"{len(settings.line_alphas)} interior points; null baselines"
    )
    lines.append(
        f"choose lambda of {len(settings.grid)} on {sum(len(task.validation) for task in tuned)} validation digits"
    )
    return lines


def _resolved(preset_name: str, data: str, tasks: str) -> DigitsConfig:
    return preset(preset_name).model_copy(update={"data": data, "tasks": tasks})


@lru_cache(maxsize=2)
def tasks_of(data: str, kind: str) -> tuple[Task, tuple[Task, ...]]:
    """The pretraining task and the fine-tuning tasks.

    Args:
        data: as in [`DigitsConfig`][].
        kind: ``"rotations"`` or ``"class-pairs"``.

    Returns:
        Pretraining task, fine-tuning tasks.
    """
    everything = digits(data, name="0°")
    if kind == "class-pairs":
        first, *others = class_pairs(everything)
        return first, tuple(others)
    return everything, tuple(rotated(everything))


def run_digits(
    config: DigitsConfig, path: str | Path, preset_name: str, workers: int | None = None
) -> RunDirectory:
    """Run the demo, or what is left of it.

    Args:
        config: the configuration.
        path: the run directory.
        preset_name: recorded in ``run.yaml``.
        workers: processes; by default one a core.

    Returns:
        The run directory with ``run.yaml``, ``results.parquet`` and ``samples.parquet``.
    """
    tasks_of(config.data, config.tasks)  # data that can't be read leave no directory behind
    run = open_run(path, "digits")
    with run.locked():
        _complete(config, run, preset_name, workers)
    return run


def _complete(config: DigitsConfig, run: RunDirectory, preset_name: str, workers: int | None) -> None:
    pretraining, tasks = tasks_of(config.data, config.tasks)
    prints = {task.name: task.fingerprint for task in (pretraining, *tasks)}
    plan = _Plan(config, run, prints, pretraining.name, tuple(task.name for task in tasks))
    bases = [
        _Job(plan, network, "", pretraining.name, seed)
        for network in config.networks[::-1]
        for seed in (0, 1)
    ]
    tuned = [job for network, regime in config.fine_tunings for job in plan.fine_tunes(network, regime)]
    with engine_or_processes(workers) as engine:
        for jobs, label in ((bases, "pretraining"), (tuned, "fine-tuning")):
            missing = [job for job in jobs if not job.path.is_dir()]
            engine.map(_train, missing, label)
        families = [_FamilyJob(plan, network, regime) for network, regime in config.fine_tunings]
        engine.map(_measure, [job for job in families if not job.done], "measuring")
    ordered = sorted(families, key=lambda job: config.networks.index(job.network))
    write_rows(run.path / RESULTS, [row for job in ordered for row in read_rows(job.rows)])
    samples = [line for job in ordered for line in read_table(job.samples)]
    write_table(run.path / SAMPLES, {name: [line[name] for line in samples] for name in SAMPLE_COLUMNS})
    provenance = {
        "data": {"source": config.data, "fingerprints": prints},
        "checkpoints": {job.path.name: Checkpoint(job.path).digest for job in (*bases, *tuned)},
    }
    run.write_run("digits", preset_name, config.model_dump(mode="json"), provenance)


class _Plan:
    """Configuration with where everything goes; picklable."""

    def __init__(
        self,
        config: DigitsConfig,
        run: RunDirectory,
        prints: dict[str, str],
        first: str,
        names: tuple[str, ...],
    ) -> None:
        self.config, self.run, self.prints, self.first, self.names = config, run, prints, first, names

    def task(self, name: str) -> Task:
        pretraining, tasks = tasks_of(self.config.data, self.config.tasks)
        return next(task for task in (pretraining, *tasks) if task.name == name)

    def fine_tunes(self, network: Network, regime: str) -> list[_Job]:
        # One job a task from the base, and one from the other initialisation: the stranger.
        jobs = [_Job(self, network, regime, name, 0) for name in self.names]
        return [*jobs, _Job(self, network, regime, self.names[1], 1)]


class _Job:
    """One training: a base (no regime) or a fine-tune of the base with the same seed."""

    def __init__(self, plan: _Plan, network: Network, regime: str, task: str, seed: int) -> None:
        self.plan, self.network, self.regime, self.task, self.seed = plan, network, regime, task, seed

    def __str__(self) -> str:
        return f"training {self.path.name}"

    @property
    def base(self) -> _Job | None:
        return _Job(self.plan, self.network, "", self.plan.first, self.seed) if self.regime else None

    @property
    def recipe(self) -> Recipe:
        config = self.plan.config
        return config.regimes[self.regime][self.network] if self.regime else config.pretraining[self.network]

    @property
    def key(self) -> str:
        config = self.plan.config
        base = self.base.key if self.base else net_config(self.new_model())
        seeds = (config.seed, self.seed)
        return digest_of(__version__, base, asdict(self.recipe), self.plan.prints[self.task], seeds)

    @property
    def path(self) -> Path:
        task = self.task.replace("/", "-").removesuffix("°")
        name = "-".join(part for part in (self.network, self.regime or "base", task) if part)
        return self.plan.run.checkpoint(name + ("-stranger" if self.seed else ""), self.key)

    def new_model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1000 * self.plan.config.seed + self.seed)
            return MLP() if self.network == "mlp" else ViT(**self.plan.config.vit)

    def model(self) -> nn.Module:
        model = self.new_model()  # for a fine-tune, the weights are replaced by the base's
        if self.base is not None:
            model.load_state_dict(Checkpoint(self.base.path).state_dict())
        return model


class _FamilyJob:
    def __init__(self, plan: _Plan, network: Network, regime: str) -> None:
        self.plan, self.network, self.regime = plan, network, regime
        keys = [job.key for job in plan.fine_tunes(network, regime)]
        prints = [plan.prints[name] for name in plan.names]
        key = digest_of(__version__, keys, prints, asdict(plan.config.settings))
        stem = plan.run.measures(f"{network}-{regime}", key)
        self.rows, self.samples = (
            stem.with_name(f"{stem.name}.{part}.parquet") for part in ("rows", "samples")
        )

    def __str__(self) -> str:
        return f"measuring {self.network}, {self.regime}"

    @property
    def done(self) -> bool:
        return self.rows.is_file() and self.samples.is_file()


def _train(job: _Job) -> None:
    model, task = job.model(), job.plan.task(job.task)
    seed = 1000 * job.plan.config.seed + job.seed
    fit(model, task.train, job.recipe, seed=seed, classes=task.classes, trainable=full(model), progress=False)
    trained = Checkpoint(model.state_dict(), name=job.path.name)
    metadata = {"mergescope.task": job.task, "mergescope.regime": job.regime or "pretraining"}
    save(trained, job.path, config=net_config(model), metadata=metadata)


def _measure(job: _FamilyJob) -> None:
    plan = job.plan
    *tuned, stranger = plan.fine_tunes(job.network, job.regime)
    base = tuned[0].base
    assert base is not None
    names = dict(zip(plan.names, _named(tuned), strict=True))
    family = Family(
        job.network,
        job.regime,
        base.new_model(),
        Checkpoint(base.path, name="base"),
        names,
        [plan.task(name) for name in plan.names],
        Checkpoint(stranger.path, name="stranger"),
    )
    measured: Measured = measure_family(family, plan.config.settings)
    write_table(job.samples, measured.samples)
    write_rows(job.rows, measured.rows)


def _named(jobs: list[_Job]) -> Iterator[Checkpoint]:
    for job in jobs:
        yield Checkpoint(job.path, name=job.task)
