"""Family directories: a base and its fine-tunes, one for each task and regime, that every command can open.

DIR/family.yaml            the base and its digest, the tasks and their data, every model
DIR/REGIME/TASK/           a fine-tuned checkpoint, as ``finetune`` writes it
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mergescope.display import Cell, Table, View, as_html, as_pandas, as_pretty, as_text, figure, number
from mergescope.documents import DocumentError, read_yaml
from mergescope.errors import MismatchError, StudyError, did_you_mean, near_paths
from mergescope.studies.finetuned import write_record
from mergescope.weights import Checkpoint

FILE = "family.yaml"
"""What makes a directory a family."""

VERSION = 1
"""Of the layout."""


@dataclass(frozen=True)
class Base:
    """The pretrained model.

    Attributes:
        reference: as for [`open_model`][mergescope.weights.references.open_model].
        digest: of its weights.
        commit: of the hub, if it came from there.
        kind: as [`kind_of_model`][mergescope.models.features.kind_of_model] says it.
    """

    reference: str
    digest: str
    commit: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Task:
    """What the models of a task were fine-tuned on.

    Attributes:
        source: of the data, as for [`task_spec`][mergescope.data.registry.task_spec].
        columns: settings that turn rows into samples: ``text_column``, ``template``, ``max_length`` ...
        classes: their names, or None for language models.
        test: fingerprint of the test samples, or of the validation samples where there are none.
        mask: the outputs of the network's own head that count, if not all do.
    """

    source: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    test: str = ""
    mask: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Member:
    """A fine-tuned model.

    Attributes:
        regime: label of its regime.
        task: name of its task.
        kind: the regime.
        key: of its training.
        digest: of its weights.
        results: split to loss and accuracy.
        seconds: of training.
        steps: of training.
        trained_parameters: how many weights could change.
    """

    regime: str
    task: str
    kind: str
    key: str
    digest: str
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    trained_parameters: int = 0


@dataclass(frozen=True)
class FamilyDirectory:
    """A family on disk.

    Attributes:
        path: its directory.
        base: the pretrained model.
        tasks: name to task.
        members: the models, those of a regime after each other.
    """

    path: Path
    base: Base
    tasks: Mapping[str, Task] = field(default_factory=dict)
    members: tuple[Member, ...] = ()

    @property
    def regimes(self) -> tuple[str, ...]:
        """The labels of its regimes."""
        return tuple(dict.fromkeys(member.regime for member in self.members))

    def folder(self, regime: str, task: str) -> Path:
        """Where a model is, or will be.

        Args:
            regime: label of its regime.
            task: name of its task.

        Returns:
            A directory.
        """
        return self.path / regime / task

    def choose(self, regime: str | None = None) -> list[Member]:
        """The models of a regime.

        Args:
            regime: its label; may be left out if there is only one.

        Returns:
            One model a task.

        Raises:
            StudyError: there is no such regime, or several and none is chosen.
        """
        told = "; ".join(f"{label} ({', '.join(self._tasks_of(label))})" for label in self.regimes)
        if not self.members:
            raise StudyError(
                f"The family {self.path} has no model yet: its fine-tuning was interrupted. Run the same mergescope "
                "finetune again."
            )
        if regime is None and len(self.regimes) > 1:
            raise StudyError(f"The family {self.path} has several regimes: {told}. Choose one with --regime.")
        if regime is not None and regime not in self.regimes:
            raise StudyError(
                f"The family {self.path} has no regime {regime!r}.{did_you_mean(regime, self.regimes)} It has: {told}."
            )
        return [member for member in self.members if regime in (None, member.regime)]

    def _tasks_of(self, regime: str) -> list[str]:
        return [member.task for member in self.members if member.regime == regime]

    def rows(self) -> list[dict[str, Any]]:
        """The models as lines of a table.

        Returns:
            One line a model: regime, task, training, and loss and accuracy of every split.
        """
        return [
            {
                "regime": it.regime, "task": it.task, "kind": it.kind, "steps": it.steps, "seconds": it.seconds,
                "trained_parameters": it.trained_parameters,
                **{f"{split} {name}": value for split, said in it.results.items() for name, value in said.items()},
            }
            for it in self.members
        ]  # fmt: skip

    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def _view(self) -> View:
        figures = list(dict.fromkeys(
            f"{split} {name}" for it in self.members for split, said in it.results.items() for name in said
        ))  # fmt: skip
        lines = tuple(
            (
                f"{row['regime']}: {row['task']}",
                *(Cell(number(row[name])) for name in ("trained_parameters", "steps")),
                *(figure(row.get(name, float("nan"))) for name in figures),
            )
            for row in self.rows()
        )
        said = f"Fine-tuned from {Path(self.base.reference).name} on {', '.join(self.tasks)}: {', '.join(self.regimes)}"
        heads = ("model", "trained parameters", "steps", *figures)
        return View(said, (Table(f"Family {self.path.name}", heads, lines),))

    def open_base(self, reference: str | None = None) -> Checkpoint:
        """Open the base, and make sure that it is the one that the models come from. Reads its weights.

        Args:
            reference: where it is now, if not where it was.

        Returns:
            The base.

        Raises:
            MismatchError: its weights are others.
            CheckpointError: it can't be opened.
        """  # noqa: DOC502 (raised by what this calls)
        from mergescope.weights.references import open_model

        place = self.base.reference if reference is None else reference
        base = open_model(place)
        self.require_base(base, place)
        return base

    def require_base(self, base: Checkpoint, place: str) -> None:
        """Refuse another base.

        Args:
            base: what should be it.
            place: how it is named, for the message.

        Raises:
            MismatchError: its weights are others.
        """
        if base.digest != self.base.digest:
            raise MismatchError(
                f"{place} is not the base of the family {self.path}:",
                [
                    f"digest {base.digest[:12]} of its weights, {self.base.digest[:12]} ({self.base.reference}) of the "
                    "family's"
                ],
                "Name the base that the family was fine-tuned from with --base, or choose another family directory.",
            )

    def with_models(self, tasks: Mapping[str, Task], members: Iterable[Member]) -> FamilyDirectory:
        """The family with more models, or newer ones.

        Args:
            tasks: their tasks.
            members: the models.

        Returns:
            Another description; [`write`][] puts it on disk.
        """
        found = {(member.regime, member.task): member for member in (*self.members, *members)}
        labels = list(dict.fromkeys(label for label, _ in found))
        ordered = sorted(found.values(), key=lambda member: labels.index(member.regime))
        return replace(self, tasks={**self.tasks, **tasks}, members=tuple(ordered))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values.

        Returns:
            What ``family.yaml`` says.
        """
        models = [
            {"regime": member.regime, "task": member.task, "path": f"{member.regime}/{member.task}"}
            | {name: value for name, value in asdict(member).items() if name not in ("regime", "task")}
            for member in self.members
        ]
        tasks = {
            name: {
                key: list(value) if isinstance(value, tuple) else value for key, value in asdict(task).items()
            }
            for name, task in self.tasks.items()
        }
        return {"family": VERSION, "base": asdict(self.base), "tasks": tasks, "models": models}

    def write(self) -> None:
        """Write ``family.yaml``, atomically."""
        write_record(self.path / FILE, self.to_dict())


def is_family(path: Path) -> bool:
    """Whether a directory is a family that was fine-tuned here.

    Args:
        path: any path.

    Returns:
        True if it has a ``family.yaml``.
    """
    return (path / FILE).is_file()


def read_family(path: Path) -> FamilyDirectory:
    """Read ``family.yaml``.

    Args:
        path: the directory.

    Returns:
        The family. Neither its base nor its models are opened.

    Raises:
        StudyError: there is none, it is damaged, or a newer version wrote it.
    """
    file = path / FILE
    if not file.is_file():
        near = "" if path.exists() else near_paths(path)
        raise StudyError(
            f"{path} is no family: it has no {FILE}.{near} Name a directory that mergescope finetune --out made."
        )
    try:
        found = read_yaml(file)
        if found["family"] > VERSION:
            raise StudyError(f"{file} was written by a newer mergescope. Update this one.")
        tasks = {name: _made(Task, said) for name, said in found["tasks"].items()}
        members = tuple(_made(Member, said) for said in found["models"])
        return FamilyDirectory(path, _made(Base, found["base"]), tasks, members)
    except (DocumentError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{file} can't be read ({type(error).__name__}: {error}). Run the mergescope finetune that made it again, "
            "with another --out."
        ) from error


def training_seconds(families: Mapping[Path, Collection[str]]) -> float:
    """How long models of families took to train, with the bases that were trained as families themselves.

    Args:
        families: directory of a family to labels of its regimes. Families may share a base, which counts once.

    Returns:
        Seconds.

    Raises:
        StudyError: a family can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    total, bases = 0.0, set()
    for path, regimes in families.items():
        family = read_family(path)
        total += sum(member.seconds for member in family.members if member.regime in regimes)
        bases.add(Path(family.base.reference).parent.parent)
    return total + sum(
        member.seconds for base in bases if is_family(base) for member in read_family(base).members
    )


def _made(kind: Any, said: Mapping[str, Any]) -> Any:
    known = {each.name for each in fields(kind)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return kind(**{name: value for name, value in given.items() if name in known})
