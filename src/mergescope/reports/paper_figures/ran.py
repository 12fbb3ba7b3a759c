"""What the steps of a study left behind, as figures of all of them look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError
from mergescope.reports.protocol_view import AGAIN, Stored, load_stored
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, read_rows


@dataclass(frozen=True)
class Ran:
    """One command of a study, in one regime and repetition.

    Attributes:
        number: of the step, from 0.
        regime: label of the regime.
        seed: of the repetition.
        folder: its run directory.
    """

    number: int
    regime: str
    seed: int
    folder: Path

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows of its results; none if it wrote no such table (as ``mergescope geometry``)."""
        return read_rows(self.folder / RESULTS) if (self.folder / RESULTS).is_file() else ()

    @cached_property
    def stored(self) -> Stored:
        """The results of a protocol, with settings."""
        return load_stored(self.folder, RunDirectory(self.folder).read_run())

    def of(self, **having: Any) -> list[Row]:
        """Rows with these fields.

        Args:
            **having: field to value.

        Returns:
            The rows, in order.
        """
        return [
            row for row in self.rows if all(getattr(row, name) == value for name, value in having.items())
        ]


def read_ran(steps: Sequence[Mapping[str, Any]]) -> list[Ran]:
    """The steps of a study, from its ``run.yaml``.

    Args:
        steps: as ``provenance: steps`` lists them.

    Returns:
        One a command, regime and repetition.

    Raises:
        StudyError: a run directory is gone.
    """
    found = [Ran(step["number"], step["regime"], step["seed"], Path(step["run"])) for step in steps]
    for each in found:
        if not each.folder.is_dir():
            raise StudyError(f"The run directory {each.folder} of a step is gone. {AGAIN}")
    return found


def by_regime(ran: Sequence[Ran]) -> dict[str, list[Ran]]:
    """Steps of the same regime.

    Args:
        ran: the steps.

    Returns:
        Label of a regime to its steps, in order.

    Example:
        >>> list(by_regime([Ran(0, "full", 0, Path()), Ran(0, "lora", 0, Path()), Ran(0, "full", 1, Path())]))
        ['full', 'lora']
    """
    found: dict[str, list[Ran]] = {}
    for each in ran:
        found.setdefault(each.regime, []).append(each)
    return found


def repetitions(ran: Sequence[Ran]) -> int:
    """How often the models were trained.

    Args:
        ran: the steps.

    Returns:
        How many seeds there are.
    """
    return len({each.seed for each in ran})


def times(count: int, what: str, seeds: int = 1) -> str:
    """A number of things, in words.

    Args:
        count: how many.
        what: one of them.
        seeds: how often each was repeated.

    Returns:
        Such as ``3 pairs``.

    Example:
        >>> times(1, "pair"), times(28, "pair", 3)
        ('1 pair', '28 pairs in 3 repetitions')
    """
    told = f"{count} {what}{'s' * (count != 1)}"
    return f"{told} in {times(seeds, 'repetition')}" if seeds > 1 else told
