"""What a fine-tuned checkpoint's directory says of its training, and whether it is the training asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mergescope.documents import DocumentError, read_yaml
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.rundir import digest_of
from mergescope.weights.files import atomic_file

if TYPE_CHECKING:
    from mergescope.studies.finetune import Prepared

RECORD = "finetune.yaml"
"""What a fine-tuned checkpoint's directory says of its training."""

LOG = "training.parquet"
"""One row an optimizer step."""

COLUMNS = ("step", "epoch", "samples", "loss", "lr", "gradient_norm")
"""Of the log."""

STARTED, STATE = "started.yaml", "state.pt"
"""The same of a training that is under way, and what it goes on from."""

COLUMNS_OF_TASKS = (
    "text_column", "label_column", "image_column", "answer_column", "template", "prompt", "max_length",
)  # fmt: skip
"""Settings that turn rows into samples."""

_INCIDENTAL = (
    "base.reference", "base.commit", "task.source", "task.samples", "task.notes", "task.limit",
    "regime.trained_parameters", "recipe.save_every", *(f"task.{name}" for name in COLUMNS_OF_TASKS),
)  # fmt: skip
"""What does not change the result, or is in the data's fingerprints."""

_WORDS = {
    "base.digest": "the base's weights", "task.fingerprints.train": "the training samples",
    "task.fingerprints.validation": "the validation samples", "task.fingerprints.test": "the test samples",
    "head_digest": "the head at the start", "kept": "keep",
}  # fmt: skip
_QUIET = ("base.reference", "base.commit", "task.samples", "task.notes", "regime.trained_parameters",
          "recipe.save_every")  # fmt: skip


@dataclass(frozen=True)
class Status:
    """What is there of a training.

    Attributes:
        found: ``"new"`` (nothing), ``"interrupted"``, ``"finished"``, or ``"changed"``: something that
            another configuration made.
        where: its directory.
        changes: one line each, if it is changed.
    """

    found: Literal["new", "interrupted", "finished", "changed"]
    where: Path
    changes: tuple[str, ...] = ()

    def require(self) -> None:
        """Refuse to go on from, or to replace, what another configuration made.

        Raises:
            MergescopeError: that is so; what differs is named.
        """
        if self.found == "changed":
            raise MergescopeError(f"{self}\n{ADVICE}")

    def __str__(self) -> str:
        listing = "".join(f"\n  - {change}" for change in self.changes)
        return f"{self.where} is not the result of this training:{listing}"


ADVICE = (
    "Nothing was overwritten. Train with the old configuration, choose another directory, or remove that one."
)


def description(prepared: Prepared) -> dict[str, Any]:
    """Everything that a result depends on, and where it came from.

    Args:
        prepared: what will run.

    Returns:
        The beginning of ``finetune.yaml``: base, task, regime, head, recipe, kept, seed.
    """
    tune, base, head = prepared.tune, prepared.base, prepared.head
    told = {name: getattr(tune, name) for name in (*COLUMNS_OF_TASKS, "limit")} | {"mask": tune.classes}
    chosen: Any = prepared.regime
    options = {
        each.name: getattr(chosen, each.name)
        for each in fields(chosen)
        if each.init and each.name not in ("limits", "name")
    }
    return _plain({
        "base": {"reference": tune.base, "digest": base.digest, "commit": base.commit},
        "task": {
            "name": tune.name, "source": tune.task, "classes": list(prepared.classes or ()) or None,
            "samples": {name: part.samples for name, part in prepared.parts.items()},
            "fingerprints": {name: part.fingerprint for name, part in prepared.parts.items()},
            "notes": sorted({note for part in prepared.parts.values() for note in part.notes}),
            **{name: value for name, value in told.items() if value},
        },
        "regime": {"name": chosen.name, **options},
        "head": None if head is None else head.policy, "head_digest": None if head is None else head.digest,
        "recipe": asdict(tune.recipe), "kept": tune.keep, "seed": tune.seed,
    })  # fmt: skip


def key_of(described: Mapping[str, Any]) -> str:
    """A short key for a training: equal if the results are.

    Data count by their samples, wherever they lie. The version of this package does not count, so that
    a family can grow after an update.

    Args:
        described: of [`description`][].

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> one = {"base": {"reference": "a", "digest": "1"}, "seed": 0}
        >>> key_of(one) == key_of({"base": {"reference": "b", "digest": "1"}, "seed": 0}) != key_of({**one, "seed": 1})
        True
    """
    return digest_of({name: value for name, value in _flat(described) if name not in _INCIDENTAL})


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two trainings, in words.

    Args:
        old: of [`description`][], with or without what was found out since.
        new: of [`description`][].

    Returns:
        One line each.

    Example:
        >>> changes({"recipe": {"lr": 0.1}, "seed": 0}, {"recipe": {"lr": 0.2}, "seed": 0})
        ['recipe.lr: 0.1, now 0.2']
    """
    before, now = dict(_flat({name: old.get(name) for name in new})), dict(_flat(new))
    found = []
    for name in dict.fromkeys((*before, *now)):
        one, other = before.get(name), now.get(name)
        if one == other or name in _QUIET:
            continue
        if name.startswith("task.fingerprints.") or name.endswith("digest"):
            found.append(f"{_WORDS.get(name, name)}: others than before")
        else:
            found.append(f"{_WORDS.get(name, name)}: {_short(one)}, now {_short(other)}")
    return found


def workplace(out: Path) -> Path:
    """Where a training keeps what it goes on from if it is interrupted.

    Args:
        out: directory of the result.

    Returns:
        A hidden directory beside it.
    """
    return out.parent / f".{out.name}.training"


def status_of(prepared: Prepared, out: Path) -> Status:
    """What is there of a training.

    Args:
        prepared: what will run.
        out: directory of the result.

    Returns:
        The status.

    Raises:
        StudyError: a record can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    if out.exists():
        record = read_record(out)
        if record is not None and record.get("key") == prepared.key:
            return Status("finished", out)
        unlike = ["it holds other files"] if record is None else changes(record, description(prepared))
        return Status("changed", out, tuple(unlike))
    work = workplace(out)
    if not (work / STATE).is_file():  # it broke off before anything was worth keeping
        return Status("new", out)
    begun = read_record(work, STARTED)
    if begun is None or begun.get("key") == prepared.key:
        return Status("interrupted", work)
    return Status("changed", work, tuple(changes(begun, description(prepared))))


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Read the record of a training.

    Args:
        folder: a fine-tuned checkpoint's directory.
        name: of the file.

    Returns:
        Its content; None if there is none.

    Raises:
        StudyError: it is damaged.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        found = read_yaml(path)
    except DocumentError as error:
        raise StudyError(f"{path} is not valid YAML: {error}. Remove {folder} and train again.") from error
    if not isinstance(found, dict):
        raise StudyError(f"{path} says nothing of a training. Remove {folder} and train again.")
    return found


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record.

    Args:
        path: the file.
        record: plain values.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(
            yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
