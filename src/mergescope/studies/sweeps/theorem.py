"""Theorem 5.1 as in CTL's C.2: is the gap of the loss explained by curvature times squared distance?

A ResNet-20 is pretrained several times, for different lengths and from different initial weights, and each of these
fine-tuned on the same data with several settings; all pairs of models of one checkpoint are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mergescope._version import __version__
from mergescope.data import batches
from mergescope.models import net_config
from mergescope.models.loading import usable_device
from mergescope.models.resnet import ResNet
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem import TheoremSettings, check_theorem
from mergescope.protocols.theorem_result import RESPONSES, TheoremCheck, TheoremPair, fitted
from mergescope.readings import Summary
from mergescope.studies.claims import Claim, said
from mergescope.studies.rundir import (
    RESULTS,
    Row,
    RunDirectory,
    digest_of,
    measures_path,
    open_run,
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
from mergescope.tracing.engines import engine_or_processes
from mergescope.training import Recipe
from mergescope.weights.files import atomic_file

STUDY = "theorem-5.1"

PLACES = ("midpoint", "base")
"""Where lambda and the exact term are taken: two runs of the check."""


@dataclass(frozen=True)
class TheoremConfig:
    """Everything that decides the results.

    Attributes:
        images: all classes of a data set in one part.
        width: of the ResNet.
        stages: of the ResNet; (3, 3, 3) is ResNet-20.
        pretraining: recipe of the pretrained checkpoints.
        checkpoints: epochs of pretraining, one a checkpoint; each has its own initial weights.
        tunings: recipes of fine-tuning; all pairs of them are compared.
        batch: samples a batch of the loss and its Hessian; BatchNorm takes its statistics.
        settings: conventions of the check; where lambda is taken is [`PLACES`][].
    """

    images: Images = Images(parts=1, train=100, test=20)
    width: int = 8
    stages: tuple[int, ...] = (3, 3, 3)
    pretraining: Recipe = Recipe("sgd", lr=0.1, batch=64)
    checkpoints: tuple[int, ...] = (3, 8, 20)
    tunings: tuple[Recipe, ...] = (
        Recipe("sgd", lr=0.01, batch=64, epochs=2),
        Recipe("sgd", lr=0.03, batch=64, epochs=4),
        Recipe("sgd", lr=0.05, batch=128, epochs=4),
        Recipe("sgd", lr=0.1, batch=64, epochs=3),
    )
    batch: int = 200
    settings: TheoremSettings = TheoremSettings(tolerance=0.01, max_steps=40, progress=False)

    @cached_property
    def network(self) -> dict[str, Any]:
        """Configuration of the network for these images."""
        (task,) = self.images.tasks()
        _, channels, side, _ = task.train.inputs.shape
        return net_config(
            ResNet(
                image=side, channels=channels, width=self.width, stages=self.stages, classes=1 + max(task.classes)
            )
        )  # fmt: skip


PRESETS = {
    "quick": TheoremConfig(
        images=Images(parts=1, train=20, test=10), width=4, stages=(1, 1, 1), checkpoints=(1, 3),
        tunings=(Recipe("sgd", lr=0.01, epochs=1), Recipe("sgd", lr=0.05, epochs=1), Recipe("sgd", lr=0.1, epochs=2)),
        batch=100, settings=TheoremSettings(tolerance=0.05, max_steps=15, progress=False),
    ),
    "cpu": TheoremConfig(),
    "paper": TheoremConfig(
        images=Images("cifar10", parts=1), width=16, checkpoints=(10, 20, 40, 80),
        tunings=tuple(
            Recipe("sgd", lr=lr, batch=batch, epochs=10) for lr in (0.01, 0.03, 0.1) for batch in (64, 128)
        ),
        batch=500,
    ),
}  # fmt: skip
"""By name: seconds for a look, minutes, and the size of CTL's C.2."""


@dataclass(frozen=True)
class Group:
    """The models of one checkpoint, and where lambda is taken.

    Attributes:
        base: the checkpoint.
        models: fine-tuned from it, by name.
        at: one of [`PLACES`][].
        config: of the run.
        found: file of the figures of its pairs.
    """

    base: Trained
    models: tuple[tuple[str, Trained], ...]
    at: str
    config: TheoremConfig
    found: Path

    def __str__(self) -> str:
        return f"pairs of {self.base.training.name}, lambda at {self.at}"


@dataclass
class Plan:
    """All trainings and checks of a run.

    Args:
        config: what to do.
        run: directory.
        device: of trainings and passes.
    """

    config: TheoremConfig
    run: Path
    device: str = "cpu"
    trainings: list[Training] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        c = self.config
        network, data = json.dumps(c.network), Mixture(c.images, 0)
        for seed, epochs in enumerate(c.checkpoints):
            base = Training(
                f"base{seed}",
                self.run,
                network,
                data,
                c.pretraining,
                seed,
                keep=(epochs,),
                device=self.device,
            )
            tuned = [
                Training(
                    f"base{seed}-tuned{number}", self.run, network, data, recipe, 100 * (number + 1) + seed,
                    base.after(epochs), (recipe.epochs,), self.device,
                )
                for number, recipe in enumerate(c.tunings)
            ]  # fmt: skip
            self.trainings += [base, *tuned]
            models = tuple((_name(it.recipe), it.after(it.recipe.epochs)) for it in tuned)
            for at in PLACES:
                keys = [(it.training.key, it.epochs) for _, it in models]
                said = [asdict(c.settings), c.batch, data.split("test").fingerprint]
                key = digest_of(__version__, STUDY, at, base.key, epochs, keys, said)
                found = measures_path(self.run, f"checkpoint{seed}-{at}", key)
                self.groups.append(
                    Group(base.after(epochs), models, at, c, found.with_name(f"{found.name}.json"))
                )


def _name(recipe: Recipe) -> str:
    return f"lr {recipe.lr:g}, batch {recipe.batch}, {recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"


def check_group(group: Group) -> None:
    """Check the theorem on all pairs of one checkpoint and write what was found.

    Args:
        group: whose models are trained.
    """
    c, base = group.config, group.base
    split = base.training.data.split("test")
    held = HeldOut(base.training.data.name, batches(split, c.batch), base.training.model())
    pairs = {
        f"{base.training.name}: {one} + {other}": (base.checkpoint, a.checkpoint, b.checkpoint)
        for (one, a), (other, b) in combinations(group.models, 2)
    }
    check = check_theorem(pairs, held, replace(c.settings, at=group.at, term=group.at, progress=False))
    content = {
        "pairs": [asdict(pair) for pair in check.pairs], "data": check.data, "samples": check.samples,
        "conventions": check.conventions, "notes": check.notes,
    }  # fmt: skip
    with atomic_file(group.found) as temporary:
        temporary.write_text(json.dumps(content))


def together(groups: Sequence[Group], *, resamples: int, seed: int) -> TheoremCheck:
    """The checks of all checkpoints as one: regressions are over all their pairs.

    Args:
        groups: that were checked, with lambda taken at the same place.
        resamples: of the bootstrap over pairs.
        seed: of the bootstrap.

    Returns:
        The check.
    """
    stored = [json.loads(group.found.read_text()) for group in groups]
    pairs = [
        TheoremPair(**{**pair, "gap": Summary(**pair["gap"]), "losses": tuple(pair["losses"])})
        for each in stored
        for pair in each["pairs"]
    ]
    # That lambda is one number is said of a checkpoint by itself, and there are several.
    alone = "all pairs share one base"
    notes = dict.fromkeys(note for each in stored for note in each["notes"] if not note.startswith(alone))
    first = stored[0]
    regressions = fitted(pairs, resamples=resamples, seed=seed)
    return TheoremCheck(
        tuple(pairs), regressions, first["data"], first["samples"], tuple(first["conventions"]), tuple(notes)
    )


def claims(check: TheoremCheck, *, resamples: int, seed: int) -> list[Claim]:
    """What C.2 says, tested: verdicts follow from a bootstrap over pairs, of the bound from the worst pair.

    Args:
        check: of all pairs.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The claims.
    """
    gaps = np.array([abs(pair.gap.mean) for pair in check.pairs])
    signed = np.array([pair.gap.mean for pair in check.pairs])
    lam, square, term = (
        np.array([getattr(pair, name) for pair in check.pairs]) for name in ("eigenvalue", "distance", "term")
    )
    picks = np.random.default_rng(seed).integers(len(gaps), size=(resamples, len(gaps)))

    def tested(says: str, of: Any, source: str = "CTL C.2") -> Claim:
        value = float(of(np.arange(len(gaps))))
        every = np.array([of(pick) for pick in picks])
        every = every[np.isfinite(every)]
        known = len(every) and math.isfinite(value)
        low, high = np.quantile(every, [0.025, 0.975]) if known else (-np.inf, np.inf)
        return Claim(says, value, float(low), float(high), len(gaps), source)

    def r2(x: np.ndarray, y: np.ndarray) -> float:
        if np.ptp(x) <= 1e-12 * np.abs(x).max() or np.ptp(y) == 0:
            return float("nan")
        return float(np.corrcoef(x, y)[0, 1] ** 2)

    product = lam * square
    found = [
        _bounded(check.pairs),
        tested("the gap grows with lambda |d|^2 (correlation)", lambda p: _correlation(product[p], gaps[p])),
        tested("lambda |d|^2 explains more of the gap than |d|^2 alone (difference of R^2)",
               lambda p: r2(product[p], gaps[p]) - r2(square[p], gaps[p])),
        tested("the exact second-order term explains more of the signed gap than lambda |d|^2 (difference of R^2)",
               lambda p: r2(term[p], signed[p]) - r2(product[p], signed[p]), "second-order expansion"),
    ]  # fmt: skip
    if np.ptp(lam) > 1e-12 * np.abs(lam).max():
        found.insert(2, tested("lambda |d|^2 explains more of the gap than lambda alone (difference of R^2)",
                               lambda p: r2(product[p], gaps[p]) - r2(lam[p], gaps[p])))  # fmt: skip
    return found


def _bounded(pairs: Sequence[TheoremPair]) -> Claim:
    # One gap above its bound is enough, so nothing is resampled: the ends are what eigenvalues are known to.
    # A pair that has no value may be anywhere.
    low, value, high = np.array([_rooms(pair) for pair in pairs]).T
    lowest = float(np.where(np.isnan(low), -np.inf, low).min())
    highest = float(np.where(np.isnan(high), np.inf, high).min())
    says = "the bound is above the gap for every pair (smallest log10 of their ratio)"
    return Claim(says, float(np.fmin.reduce(value)), lowest, highest, len(pairs), "CTL Thm 5.1")


def _rooms(pair: TheoremPair) -> tuple[float, float, float]:
    # With the eigenvalue lower by its residual, as it is, and higher.
    gap = abs(pair.gap.mean)
    if pair.eigenvalue:
        reach = abs(pair.bound / pair.eigenvalue) * pair.residual
    else:
        reach = math.inf if pair.residual else 0.0
    low, value, high = (_room(bound, gap) for bound in (pair.bound - reach, pair.bound, pair.bound + reach))
    return low, value, high


def _room(bound: float, gap: float) -> float:
    if math.isnan(bound) or math.isnan(gap):
        return math.nan
    if gap == 0:
        return math.inf if bound >= 0 else -math.inf
    return math.log10(bound) - math.log10(gap) if bound > 0 else -math.inf


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float("nan") if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


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
        A line for data, trainings and checks.

    Raises:
        StudyError: there is no such preset.
    """  # noqa: DOC502 (raised by what this calls)
    config = chosen(STUDY, PRESETS, preset, data, root)
    plan = Plan(config, Path(path))
    pairs = len(list(combinations(config.tunings, 2)))
    (task,) = config.images.tasks()
    return [
        *described(plan.trainings, config.images),
        f"check {pairs * len(config.checkpoints)} pairs of {len(config.checkpoints)} checkpoints on {len(task.test)} "
        f"images, with lambda at {' and at '.join(PLACES)}: at most {config.settings.max_steps} Hessian products for "
        "each lambda",
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
    usable_device(device)
    config, run = chosen(STUDY, PRESETS, preset, data, root), open_run(path, STUDY)
    with run.locked():
        plan = Plan(config, run.path, device)
        with engine_or_processes(workers or (None if device == "cpu" else 1)) as engine:
            train_all(plan.trainings, engine)
            engine.map(
                check_group, [group for group in plan.groups if not group.found.is_file()], "curvature"
            )
        s = config.settings
        checks = {
            at: together([it for it in plan.groups if it.at == at], resamples=s.resamples, seed=s.seed)
            for at in PLACES
        }
        network = f"ResNet-{2 + 2 * sum(config.stages)}, width {config.width}"
        rows = [Row(network, at, **row) for at, check in checks.items() for row in check.rows()]
        rows += [
            claim.row(network, at)
            for at, check in checks.items()
            for claim in claims(check, resamples=s.resamples, seed=s.seed)
        ]
        write_rows(run.path / RESULTS, rows)
        (task,) = config.images.tasks()
        provenance = {
            "data": {"source": config.images.data, "fingerprints": {task.name: task.fingerprint}},
            "cost": f"{cost_of(plan.trainings)}; {len(plan.groups)} checks of {len(checks['base'].pairs)} pairs in all",
            "conventions": {at: list(check.conventions) for at, check in checks.items()},
            "notes": {at: list(check.notes) for at, check in checks.items()},
            "says": "\n\n".join([said(rows), *(str(check) for check in checks.values())]),
            "regressions": [
                {"at": at, "response": response, "regressor": regressor, "r2": line.r2}
                for at, check in checks.items()
                for (response, regressor), line in check.regressions.items()
                if response in RESPONSES and np.isfinite(line.r2)
            ],
        }  # fmt: skip
        run.write_run(STUDY, preset, json.loads(json.dumps(asdict(config))), provenance)
    return run
