"""Protocols on a family: opening it, what a pass takes, and the run directory of the results."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergescope.errors import StudyError
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features
from mergescope.protocols.measure import HeldOut, Settings
from mergescope.studies.families import is_family, read_family
from mergescope.studies.given import DataOptions, Given, Options
from mergescope.studies.given_family import prepare_family
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows
from mergescope.weights.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FamilyTasks:
    """A family, opened for a protocol.

    Attributes:
        family: what ``--family`` said.
        regime: label of the regime; ``"given"`` of published models.
        given: everything opened.
        test: task to its held-out data.
    """

    family: str
    regime: str
    given: Given
    test: Mapping[str, HeldOut]

    @property
    def batches(self) -> dict[str, int]:
        """Task to its number of batches."""
        return {name: len(data) for name, data in self.given.batches.items()}

    def seconds_a_pass(self, task: str) -> float:
        """How long a forward pass of a batch takes here, by trying.

        Args:
            task: whose network and data.

        Returns:
            Seconds, of the second of two passes of its first batch.
        """
        held = self.test[task]
        inputs, _ = split_batch(next(iter(held.batches)))
        features, taken = Features.of(held.model), 0.0
        place = next((entry.device for entry in held.model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for _ in range(2):
                started = time.perf_counter()
                features.call(held.model, to_device(inputs, place))
                taken = time.perf_counter() - started
        return taken


def open_tasks(
    family: str,
    regime: str | None,
    *,
    limit: int | None,
    batch_size: int = 32,
    split: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
) -> FamilyTasks:
    """Open a family's models and its tasks' data.

    Args:
        family: what ``--family`` says.
        regime: label of a regime.
        limit: samples of each task, drawn with the seed; None for all.
        batch_size: samples at once.
        split: of the data; by default test, else validation.
        device: where networks compute.
        dtype: what they compute in.
        seed: of the choice of samples.

    Returns:
        The family.

    Raises:
        MergescopeError: it can't be opened.
    """  # noqa: DOC502 (raised by what this calls)
    data = DataOptions((), split=split, limit=limit, batch_size=batch_size, seed=seed)
    options = Options(None, (), data, Settings(executor="resident", device=device, seed=seed), dtype)
    given = prepare_family(family, regime, options)
    label = regime or "given"
    if regime is None and is_family(Path(family)):
        label = read_family(Path(family)).choose(None)[0].regime
    return FamilyTasks(family, label, given, {held.owner or held.name: held for held in given.held})


def open_protocol_run(path: str | os.PathLike[str], study: str) -> RunDirectory:
    """A run directory for a protocol: a new one, or that of an earlier run of it, whose results are replaced.

    Args:
        path: the directory.
        study: the protocol's name.

    Returns:
        The run directory.

    Raises:
        StudyError: it holds another study, or can't be used.
    """
    run = RunDirectory(path)
    if (run.path / "run.yaml").is_file() and (before := run.read_run()["study"]) != study:
        raise StudyError(
            f"{run.path} holds the results of the study {before!r}, which would be lost. Choose another --out."
        )
    return run


def write_protocol_run(
    run: RunDirectory,
    study: str,
    opened: FamilyTasks,
    rows: Sequence[Row],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    figures: Mapping[str, Figure],
) -> None:
    """Write ``results.parquet``, figures as SVG and PNG, and at last ``run.yaml``.

    Args:
        run: the run directory.
        study: the protocol's name.
        opened: the family.
        rows: the results.
        settings: of the protocol.
        about: cost and notes.
        figures: file name without suffix to figure.
    """
    from mergescope.reports.style import render

    write_rows(run.path / RESULTS, rows)
    for name, figure in figures.items():
        for format in ("svg", "png"):
            with atomic_file(run.path / "figures" / f"{name}.{format}") as temporary:
                temporary.write_bytes(render(figure, format))
    config = {
        "family": opened.family,
        "regime": opened.regime,
        "limit": opened.given.options.data.limit,
        **{name: value for name, value in settings.items() if name != "progress"},
    }
    provenance = opened.given.provenance()
    run.write_run(study, "", plain(config), {**provenance, **about})


def plain(value: Any) -> Any:
    """Values that JSON and YAML hold; NaN becomes None.

    Args:
        value: mappings, sequences and scalars.

    Returns:
        The same of dictionaries and lists.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def priced(opened: FamilyTasks, passes: Mapping[str, float], clock: Callable[[str], float]) -> dict[str, Any]:
    """What passes will cost.

    Args:
        opened: the family.
        passes: task to forward passes a batch, or what takes as long.
        clock: task to seconds of one.

    Returns:
        Samples and batches of each task, all passes, and an estimate of seconds.
    """
    counts = {task: passes[task] * opened.batches[task] for task in passes}
    return {
        "samples": {task: opened.given.batches[task].samples for task in passes},
        "batches": {task: opened.batches[task] for task in passes},
        "equivalent_passes": sum(counts.values()),
        "estimated_seconds": round(sum(count * clock(task) for task, count in counts.items()), 1),
    }
