"""Fine-tuning a whole family: everything is opened and checked before the first model is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mergescope.errors import MergescopeError, StudyError
from mergescope.models.features import kind_of_model
from mergescope.models.towers import headless
from mergescope.studies.families import Base, FamilyDirectory, Member, Task, is_family, read_family
from mergescope.studies.family_config import FamilyConfig, located_model
from mergescope.studies.finetune import Prepared, finetune, prepare, require_precision
from mergescope.studies.finetuned import COLUMNS_OF_TASKS, Status, read_record, status_of
from mergescope.studies.rundir import RunDirectory
from mergescope.studies.tensorboard import Log, require_tensorboard
from mergescope.studies.training_data import FineTune, TaskData, open_task
from mergescope.tracing.engines import Engine, LocalEngine
from mergescope.training.processes import processes
from mergescope.training.recipe import Recipe
from mergescope.training.regimes import TrainableRow, trainable_table
from mergescope.weights import Checkpoint
from mergescope.weights.files import is_left_over

KEPT = 2**30
"""Bytes of prepared data that stay in memory between the check and the training; others are prepared again."""


@dataclass(frozen=True)
class Planned:
    """One model that is to be there in the end.

    Attributes:
        regime: label of its regime.
        task: name of its task.
        tune: what to do.
        status: what is there of it.
        key: of its training.
        steps: of its training.
        samples: split to number of samples.
        classes: names of the classes, or None.
        head: policy of the head, or None.
        fingerprints: of the samples of each split.
    """

    regime: str
    task: str
    tune: FineTune
    status: Status
    key: str
    steps: int
    samples: Mapping[str, int]
    classes: tuple[str, ...] | None
    head: str | None
    fingerprints: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.status.found == "finished"


@dataclass
class FamilyPlan:
    """What fine-tuning a family means, checked.

    Attributes:
        family: what is on disk, or will be.
        base: the pretrained model, open.
        models: every model asked for.
        tasks: name to task.
        tables: regime label to what it trains.
        data: name to data that are still in memory.
    """

    family: FamilyDirectory
    base: Checkpoint
    models: list[Planned]
    tasks: dict[str, Task]
    tables: dict[str, list[TrainableRow]]
    data: dict[str, TaskData] = field(default_factory=dict)

    def run(
        self,
        *,
        progress: bool = True,
        tensorboard: Path | None = None,
        device: str | None = None,
        on_log: Log | None = None,
        engine: Engine | None = None,
        threads: int = 1,
    ) -> FamilyDirectory:
        """Train what is not finished; ``family.yaml`` grows with every model.

        Processes that ``accelerate launch`` started train each model together; the first of them writes.

        Args:
            progress: show bars on a terminal.
            tensorboard: directory of TensorBoard logs, one in it for each model.
            device: ``"cpu"`` or what accelerate finds.
            on_log: called with ``"train"`` or ``"evaluation"`` and the numbers of each step.
            engine: trains several models at a time, each in a worker; by default one after the other.
            threads: of torch, on a CPU, without an engine: workers have their own. Weights depend on it.

        Returns:
            The family.

        Raises:
            StudyError: another process works on it, or steps are to be logged from several processes, or workers
                are asked for in several processes.
            MergescopeError: the device does not have a recipe's precision, or training diverged.
        """  # noqa: DOC502 (raised by what this calls)
        if tensorboard is not None:
            require_tensorboard()
        if engine is not None and (tensorboard is not None or on_log is not None):
            raise StudyError("Steps are logged by this process only. Leave the workers or the logs out.")
        state = processes(device)
        if engine is not None and state.num_processes > 1:
            raise StudyError(
                f"{state.num_processes} processes train each model together, so none is left for workers. Leave "
                "--workers and --engine out, or start one process."
            )
        if engine is None or isinstance(engine, LocalEngine):  # other workers may have other devices
            for model in self.models:
                if not model.finished:
                    require_precision(model.tune.recipe.precision, state.device)
        if engine is not None:
            train_together([self], engine, device)
            return self.family
        if self.is_on_disk:
            return self.family
        state.wait_for_everyone()  # all have looked at what is there, before the first changes it
        with RunDirectory(self.family.path).locked() if state.is_main_process else nullcontext():
            state.wait_for_everyone()  # none begins where another command is at work
            self._begin(state.is_main_process)
            for place, model in enumerate(self.models):
                if not model.finished:
                    prepared = prepare(model.tune, base=self.base, data=self.data.get(model.task))
                    if not any(other.task == model.task for other in self.models[place + 1 :]):
                        self.data.pop(model.task, None)
                    logs = None if tensorboard is None else tensorboard / model.regime / model.task
                    finetune(
                        prepared, self._folder(model), progress=progress, tensorboard=logs, device=device,
                        on_log=on_log, threads=threads,
                    )  # fmt: skip
                self._add(model, state.is_main_process)
        return self.family

    @property
    def is_on_disk(self) -> bool:
        """Whether nothing is left to do."""
        known = {(member.regime, member.task): member.key for member in self.family.members}
        return all(
            model.finished and known.get((model.regime, model.task)) == model.key for model in self.models
        ) and all(name in self.family.tasks for name in self.tasks)

    def _folder(self, model: Planned) -> Path:
        return self.family.folder(model.regime, model.task)

    def _begin(self, writes: bool = True) -> None:
        self.family = self.family.with_models(self.tasks, ())
        if writes:
            self.family.write()

    def _add(self, model: Planned, writes: bool = True) -> None:
        self.family = self.family.with_models({}, [_member(model, self._folder(model))])
        if writes:
            self.family.write()

    def _items(self, device: str | None) -> list[_Item]:
        size = sum(spec.numel for spec in self.base.spec.values())
        return [
            _Item(model.tune, self._folder(model), device, size * model.steps, model.fingerprints)
            for model in self.models
            if not model.finished
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan for scripts.

        Returns:
            Plain values: base, models, and for each regime what trains.
        """
        return {
            "family": str(self.family.path),
            "base": {"reference": self.family.base.reference, "digest": self.base.digest},
            "models": [
                {
                    "regime": model.regime, "task": model.task, "status": model.status.found, "steps": model.steps,
                    "samples": dict(model.samples), "classes": None if model.classes is None else len(model.classes),
                    "head": model.head, "recipe": str(model.tune.recipe), "data": model.tune.task,
                }
                for model in self.models
            ],
            "trains": {
                label: [{**vars(row), "shape": list(row.shape)} for row in rows] for label, rows in self.tables.items()
            },
        }  # fmt: skip


@dataclass(frozen=True)
class _Item:
    tune: FineTune
    folder: Path
    device: str | None
    work: int
    fingerprints: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def cost(self) -> float:
        # A step of the linearised network is a product with its Jacobian, forwards and backwards.
        return self.work * self.tune.recipe.batch * (2.5 if self.tune.regime == "linearized" else 1.0)


def train_together(plans: Sequence[FamilyPlan], engine: Engine, device: str | None = None) -> None:
    """Train what is missing of several families, the longest first: workers rarely wait for each other.

    Args:
        plans: of families in different directories. Data that they keep in memory are let go.
        engine: trains the models, each in a worker.
        device: ``"cpu"`` or what accelerate finds.

    Raises:
        StudyError: another process works on a family.
        MergescopeError: training diverged. What is done stays and is found by the next run.
    """  # noqa: DOC502 (raised by what this calls)
    plans = [plan for plan in plans if not plan.is_on_disk]
    if not plans:
        return
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(RunDirectory(plan.family.path).locked())
            plan._begin()
            plan.data.clear()  # of no use to other processes
        missing = sorted((item for plan in plans for item in plan._items(device)), key=lambda it: -it.cost)
        label = plans[0].family.path.name if len(plans) == 1 else f"{len(plans)} families"
        try:
            engine.map(_train_one, missing, f"fine-tuning {label}")
        finally:
            _OPENED.clear()  # of this process, if it was the worker
        for plan in plans:
            for model in plan.models:
                plan._add(model)


_OPENED: dict[str, TaskData] = {}
"""In a worker: data of the tasks that it trained on last, [`KEPT`][] bytes at most, by all that they depend on."""


def _train_one(item: _Item) -> None:
    from mergescope.models import load_model
    from mergescope.weights.references import open_model

    base = open_model(item.tune.base)
    network = load_model(base)
    same = replace(item.tune, regime="full", options={}, recipe=Recipe(), keep="last")
    data = _opened(repr((base.digest, item.fingerprints, same)), lambda: open_task(item.tune, base, network))
    prepared = prepare(item.tune, base=base, network=network, data=data)
    finetune(prepared, item.folder, progress=False, device=item.device, threads=torch.get_num_threads())


def _opened(key: str, open_data: Callable[[], TaskData]) -> TaskData:
    if key in _OPENED:
        return _OPENED[key]
    data = open_data()
    if _bytes(data) <= KEPT:
        while sum(map(_bytes, _OPENED.values())) + _bytes(data) > KEPT:
            del _OPENED[next(iter(_OPENED))]  # the oldest
        _OPENED[key] = data
    return data


def plan_family(config: FamilyConfig, out: Path) -> FamilyPlan:
    """Open base and data, and look at what is there already. Nothing is trained or written.

    Args:
        config: what to do.
        out: directory of the family.

    Returns:
        The plan.

    Raises:
        CheckpointError: the base can't be opened.
        MismatchError: the directory holds a family of another base.
        DataError: data can't be read or don't fit.
        LayerError: a regime does not fit the network.
        StudyError: the directory holds something else, or models of another configuration; all are named.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.models import load_model
    from mergescope.weights.references import open_model

    family = _existing(out)
    place = located_model(config.base)
    base = open_model(place)
    if family is not None:
        family.require_base(base, config.base)
    network = load_model(base)
    kind = kind_of_model(headless(network))
    if family is None:
        family = FamilyDirectory(out, Base(place, base.digest, base.commit, kind))
    plan = FamilyPlan(family, base, [], {}, {})
    tunes = config.fine_tunes(kind)
    found = {
        name: _problem(plan, name, {label: it for (label, of), it in tunes.items() if of == name}, network)
        for name in config.tasks
    }
    _require_none({name: problem for name, problem in found.items() if problem is not None})
    _require_unchanged(plan)
    return plan


def _existing(out: Path) -> FamilyDirectory | None:
    if is_family(out):
        return read_family(out)
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file. Choose another --out.")
    names = sorted(item.name for item in out.iterdir()) if out.exists() else []
    held = [name for name in names if name != ".lock" and not is_left_over(name)]
    if held:
        raise StudyError(
            f"{out} holds other files ({', '.join(held[:4])}{', ...' * (len(held) > 4)}) and no family. Nothing was "
            "written. Choose another --out."
        )
    return None


def _problem(
    plan: FamilyPlan, name: str, tunes: Mapping[str, FineTune], network: nn.Module
) -> MergescopeError | None:
    try:
        _open(plan, name, tunes, network)
    except MergescopeError as error:  # so that all tasks' problems are told at once
        return error
    return None


def _require_none(problems: Mapping[str, MergescopeError]) -> None:
    if len(problems) > 1:
        told = _listed(f"{name}: {problem}" for name, problem in problems.items())
        raise StudyError(f"{len(problems)} tasks can't be trained:\n{told}")
    for name, problem in problems.items():
        problem.args = (f"The task {name} can't be trained: {problem}",)  # of its kind as before
        raise problem


def _open(plan: FamilyPlan, name: str, tunes: Mapping[str, FineTune], network: nn.Module) -> None:
    data = open_task(next(iter(tunes.values())), plan.base, network)
    for label, tune in tunes.items():
        prepared = prepare(tune, base=plan.base, network=network, data=data)
        if label not in plan.tables:
            plan.tables[label] = trainable_table(prepared.network, prepared.regime)
        plan.models.append(
            Planned(
                label, name, tune, status_of(prepared, plan.family.folder(label, name)), prepared.key, prepared.steps,
                {split: part.samples for split, part in prepared.parts.items()}, prepared.classes,
                None if prepared.head is None else prepared.head.policy,
                tuple(part.fingerprint for part in prepared.parts.values()),
            )
        )  # fmt: skip
        plan.tasks[name] = _task(prepared)
    if sum(map(_bytes, plan.data.values())) + _bytes(data) <= KEPT:
        plan.data[name] = data


def _task(prepared: Prepared) -> Task:
    tune, parts = prepared.tune, prepared.parts
    columns = {name: getattr(tune, name) for name in COLUMNS_OF_TASKS if getattr(tune, name) is not None}
    if tune.classes is not None:
        columns["classes"] = list(tune.classes)
    held = parts.get("test", parts["validation"])
    return Task(tune.task, columns, prepared.classes, held.fingerprint, prepared.mask)


def _bytes(data: TaskData) -> int:
    # Of all batches, from the first of each: samples are of nearly one size.
    first = {name: next(iter(part)) for name, part in data.parts.items()}
    return sum(sum(v.nbytes for v in batch.values()) * len(data.parts[name]) for name, batch in first.items())


def _require_unchanged(plan: FamilyPlan) -> None:
    others = {
        name: _difference(plan.family.tasks[name], task)
        for name, task in plan.tasks.items()
        if name in plan.family.tasks
    }
    problems = [f"the task {name} is another one there: {told}" for name, told in others.items() if told]
    where: dict[str, list[str]] = {}
    for model in plan.models:
        for change in model.status.changes if not others.get(model.task) else ():
            where.setdefault(change, []).append(str(model.status.where.relative_to(plan.family.path)))
    problems += [f"{change} ({', '.join(places)})" for change, places in where.items()]
    if problems:
        raise StudyError(
            f"{plan.family.path} holds a family with another configuration:\n{_listed(problems)}\nNothing was "
            "overwritten. Go on with the old configuration, give the regime or the task another name, choose another "
            "--out, or remove those directories."
        )


def _difference(old: Task, new: Task) -> str:
    if (old.test, old.classes) == (new.test, new.classes):
        return ""
    told = [
        f"{name} {old.columns.get(name)!r}, now {new.columns.get(name)!r}"
        for name in dict.fromkeys((*old.columns, *new.columns))
        if old.columns.get(name) != new.columns.get(name)
    ]
    if old.classes != new.classes:
        told.append("its classes are others")
    return "; ".join(told or ["its held-out samples are others"])


def _listed(problems: Any) -> str:
    return "\n".join(f"  - {problem}" for problem in problems)


def _member(model: Planned, folder: Path) -> Member:
    record = read_record(folder) or {}
    return Member(
        model.regime, model.task, model.tune.regime, model.key, Checkpoint(folder).digest, record.get("results", {}),
        record.get("seconds", 0.0), record.get("steps", 0), record.get("regime", {}).get("trained_parameters", 0),
    )  # fmt: skip
