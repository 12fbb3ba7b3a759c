"""What a protocol's run directory holds, as its page looks at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import StudyError
from mergescope.protocols.forgetting import CONTROL
from mergescope.reports.tables import Grid
from mergescope.studies.rundir import RESULTS, Row, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGAIN = "Run the command again into the same directory."


@dataclass(frozen=True)
class Stored:
    """A protocol's results and how they were made.

    Attributes:
        path: the run directory.
        rows: of ``results.parquet``, in its order.
        settings: of the protocol.
        provenance: under this name in ``run.yaml``.
    """

    path: Path
    rows: Sequence[Row]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def of(self, **having: Any) -> list[Row]:
        """Rows with these fields.

        Args:
            **having: field to value.

        Returns:
            The rows, in order.

        Example:
            >>> row = Row("net", "full", "soup", "best: a", "data", "test accuracy", 0.5)
            >>> Stored(Path("run"), [row], {}, {}).of(kind="soup")[0].mean
            0.5
        """
        return [
            row for row in self.rows if all(getattr(row, name) == value for name, value in having.items())
        ]

    def one(self, **having: Any) -> Row:
        """The row with these fields.

        Args:
            **having: field to value.

        Returns:
            The first such row.

        Raises:
            StudyError: there is none.
        """  # noqa: DOC502 (raised by what this calls)
        found = self.of(**having)
        if not found:
            raise self.lacks(", ".join(f"{name} {value!r}" for name, value in having.items()))
        return found[0]

    @property
    def tested(self) -> bool:
        """Whether there were test data to report of, so that there must be test figures."""
        return isinstance(self.provenance.get("test"), dict)

    def lacks(self, what: str) -> StudyError:
        """The error that results are not complete.

        Args:
            what: is lacking.

        Returns:
            The error, to be raised.
        """
        return StudyError(f"{self.path / RESULTS} is not complete. It lacks a row of {what}. {AGAIN}")

    def setting(self, name: str) -> Any:
        """A setting of the protocol.

        Args:
            name: of the setting.

        Returns:
            Its value.

        Raises:
            StudyError: ``run.yaml`` does not tell it.
        """
        if name not in self.settings:
            raise StudyError(f"{self.path / 'run.yaml'} lacks {name!r} under 'config: settings'. {AGAIN}")
        return self.settings[name]


def load_stored(path: Path, about: Mapping[str, Any]) -> Stored:
    """Read a protocol's run directory.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Rows, settings and provenance.

    Raises:
        StudyError: something is missing or damaged.
    """
    settings, provenance = about["config"].get("settings"), about["provenance"]
    if not isinstance(settings, dict):
        raise StudyError(f"{path / 'run.yaml'} lacks 'settings' under 'config'. {AGAIN}")
    if (
        not isinstance(cost := provenance.get("cost"), dict)
        or not {"forward_passes", "seconds"} <= cost.keys()
    ):
        raise StudyError(f"{path / 'run.yaml'} lacks the cost under 'provenance'. {AGAIN}")
    if "says" not in provenance:
        raise StudyError(f"{path / 'run.yaml'} lacks 'says', the printed table, under 'provenance'. {AGAIN}")
    parts = parts_of(provenance)
    if not parts or not all(
        isinstance(part.get(what), dict) for part in parts.values() for what in ("models", "data")
    ):
        raise StudyError(
            f"{path / 'run.yaml'} lacks the models and data under 'provenance: test' (or validation). {AGAIN}"
        )
    rows = read_rows(path / RESULTS)
    if not rows:
        raise StudyError(f"{path / RESULTS} is empty. {AGAIN}")
    return Stored(path, rows, settings, provenance)


def parts_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was given: models and data to choose by, and to report of.

    Args:
        provenance: of ``run.yaml``.

    Returns:
        Part to what is told of it: ``validation`` and ``test``, or one of them; of negation perhaps
        ``validation control`` and ``test control`` too.
    """
    names = [f"{part}{more}" for more in ("", f" {CONTROL}") for part in ("validation", "test")]
    return {name: provenance[name] for name in names if isinstance(provenance.get(name), dict)}


@dataclass(frozen=True)
class Scores:
    """Models on tasks.

    Attributes:
        names: of the models, in order.
        tasks: of the data, in order.
        found: measure, model and task (empty: over all tasks) to the row.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    found: Mapping[tuple[str, str, str], Row]

    @property
    def whole(self) -> str:
        """What is told over all tasks: ``normalised accuracy``, or ``mean accuracy`` without single-task models."""
        kinds = [
            name
            for name in ("normalised accuracy", "mean accuracy")
            if (name, self.names[0], "") in self.found
        ]
        return kinds[0]

    def accuracy(self, name: str, task: str) -> Row:
        """Accuracy of a model on a task.

        Args:
            name: of the model.
            task: of the data.

        Returns:
            The row.
        """
        return self.found["accuracy", name, task]

    def overall(self, name: str) -> Row:
        """What a model is worth over all tasks.

        Args:
            name: of the model.

        Returns:
            The row of the measure [`whole`][mergescope.reports.protocol_view.Scores.whole].
        """
        return self.found[self.whole, name, ""]


def scores_in(stored: Stored, kind: str, *, normalised: bool = False) -> Scores:
    """Scores of models from their rows.

    Args:
        stored: of the run.
        kind: of the rows.
        normalised: whether there must be normalised accuracies.

    Returns:
        The scores.

    Raises:
        StudyError: a model lacks a task.
    """  # noqa: DOC502 (raised by what this calls)
    rows = stored.of(kind=kind)
    by_task = [row for row in rows if row.measure == "accuracy"]
    names = tuple(dict.fromkeys(row.points for row in by_task))
    tasks = tuple(dict.fromkeys(row.data for row in by_task))
    if not names:
        raise stored.lacks(f"kind {kind!r}, measure 'accuracy'")
    found = {(row.measure, row.points, row.data): row for row in rows if row.measure in ("accuracy", "loss")}
    over = ("mean accuracy", "normalised accuracy")
    found |= {(row.measure, row.points, ""): row for row in rows if row.measure in over}
    wanted = [("accuracy", name, task) for name in names for task in tasks]
    # All models have a normalised accuracy, or none has.
    present = [measure for measure in over if any(key[0] == measure for key in found)] or ["mean accuracy"]
    present += ["normalised accuracy"] * normalised
    wanted += [(measure, name, "") for measure in present for name in names]
    for measure, name, task in wanted:
        if (measure, name, task) not in found:
            raise stored.lacks(f"{measure} of {name!r}" + (f" on {task!r}" if task else ""))
    return Scores(names, tasks, found)


@dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
        figure: the figure.
        alt: what it shows, for those who can't see it.
        caption: how to read it.
        table: what is drawn, as lines of a tidy table; none if the results are that already.
    """

    figure: Figure
    alt: str
    caption: str
    table: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Shown:
    """What a page shows of a protocol.

    Attributes:
        title: a question.
        lead: what it is about.
        headline: the answer, from the numbers.
        sentences: what stands behind it.
        drawings: file name without suffix to figure.
        grids: tables.
        terms: what is defined, names of [`TERMS`][mergescope.reports.protocol_words.TERMS].
        caveat: whether something keeps the answer from being final, such as a grid's end.
        small: what small numbers in the tables are; empty if there are none.
    """

    title: str
    lead: str
    headline: str
    sentences: Sequence[str]
    drawings: Mapping[str, Drawing]
    grids: Sequence[Grid]
    terms: Sequence[str]
    caveat: bool = False
    small: str = "Small numbers: 95 % bootstrap interval over samples."
