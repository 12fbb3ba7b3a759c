"""Protocols on somebody's models: opening them, what passes cost, and the run directory of the results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mergescope.data import parse_data_option
from mergescope.errors import DataError, MergescopeError, StudyError
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features
from mergescope.plain import plain
from mergescope.protocols.forgetting import CONTROL
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut, Settings
from mergescope.protocols.resume import resumable
from mergescope.protocols.which_data import own_data
from mergescope.studies.families import is_family, read_family
from mergescope.studies.given import DataOptions, Given, Options, prepare
from mergescope.studies.given_family import prepare_family
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, write_rows
from mergescope.weights import Point

JVP_COST = 3.0
"""A pass through a linearised network takes about as long as so many through the ordinary one."""


@dataclass(frozen=True)
class Opened:
    """Models and data, opened for a protocol.

    Attributes:
        given: everything opened.
        family: what ``--family`` said, or None.
        regime: how the models were fine-tuned: the label of a family's regime, else ``"given"``.
    """

    given: Given
    family: str | None = None
    regime: str = "given"

    @cached_property
    def base(self) -> Point:
        """The base.

        Raises:
            MergescopeError: there is none.
        """
        if self.given.base is None:
            raise MergescopeError("Task vectors are differences from the base. Give a base: --base.")
        return Point.of(self.given.base)

    @cached_property
    def models(self) -> dict[str, Point]:
        """Name to fine-tune."""
        return {name: Point.of(model) for name, model in self.given.models.items()}

    @cached_property
    def data(self) -> dict[str, HeldOut]:
        """Name of the fine-tune whose task it is, else of the data set, to the data."""
        named = {held.name: held for held in self.given.held}
        tasks = {name: task for task, name in own_data(named).items()}
        return {tasks.get(name, name): held for name, held in named.items()}

    @cached_property
    def tasks(self) -> dict[str, HeldOut]:
        """Name of each fine-tune to the data of its own task.

        Raises:
            MergescopeError: data and fine-tunes don't belong together one by one.
        """
        if any(held.owner is None for held in self.given.held) or set(self.data) != set(self.models):
            raise MergescopeError(
                "This needs the data of every fine-tune's task: name data like models (--data NAME=...), one for each "
                f"of {', '.join(self.models)}."
            )
        return {name: self.data[name] for name in self.models}

    @property
    def samples(self) -> dict[str, int]:
        """Name of a data set to its samples."""
        return {name: self.given.batches[held.name].samples for name, held in self.data.items()}

    @property
    def batches(self) -> dict[str, int]:
        """Name of a data set to its number of batches."""
        return {name: len(self.given.batches[held.name]) for name, held in self.data.items()}

    def linear(self, wanted: bool | None) -> tuple[bool, list[str]]:
        """Whether models are run in the network linearised around their base.

        Args:
            wanted: what the user says of it.

        Returns:
            Whether, and what the user should know.
        """
        base = None if self.given.base is None else self.base
        return in_linear_model(base, self.models, wanted)

    def seconds_a_pass(self, data: str) -> float:
        """How long a forward pass of a batch takes here, by trying.

        Args:
            data: whose network and batches.

        Returns:
            Seconds, of the second of two passes of the first batch; NaN where the network has no memory of its own.
        """
        held, taken = self.data[data], math.nan
        if any(entry.is_meta for entry in held.model.parameters()):
            return taken
        inputs, _ = split_batch(next(iter(held.batches)))
        features = Features.of(held.model)
        place = next((entry.device for entry in held.model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            for _ in range(2):
                started = time.perf_counter()
                features.call(held.model, to_device(inputs, place))
                taken = time.perf_counter() - started
        return taken


def open_models(
    family: str | None,
    regime: str | None,
    base: str | None,
    models: Sequence[str],
    data: DataOptions,
    settings: Settings,
    dtype: str = "float32",
) -> Opened:
    """Open a family, or models that are named one by one, with their data.

    Args:
        family: a family directory, or a published family.
        regime: of the family.
        base: reference of the base.
        models: references of the fine-tunes.
        data: which data.
        settings: executor, device, seed and whether the network is linearised.
        dtype: what networks compute in.

    Returns:
        Models and data.

    Raises:
        MergescopeError: something can't be opened, or does not fit.
    """  # noqa: DOC502 (raised by what this calls)
    options = Options(base, tuple(models), data, settings, dtype)
    if family is None:
        return Opened(prepare(options))
    given = prepare_family(family, regime, options)
    if regime is None and is_family(Path(family)):
        regime = read_family(Path(family)).choose(None)[0].regime
    return Opened(given, family, regime or "given")


def open_parts(
    family: str | None,
    regime: str | None,
    base: str | None,
    models: Sequence[str],
    data: DataOptions,
    splits: tuple[str, str | None],
    settings: Settings,
    dtype: str = "float32",
) -> dict[str, Opened]:
    """Open models with the data to choose by and the data to report of, in the same networks.

    Args:
        family: as for [`open_models`][].
        regime: as for [`open_models`][].
        base: as for [`open_models`][].
        models: as for [`open_models`][].
        data: as for [`open_models`][], but for the split.
        splits: of validation and test data.
        settings: as for [`open_models`][].
        dtype: as for [`open_models`][].

    Returns:
        ``validation`` and ``test``.

    Raises:
        MergescopeError: something can't be opened, or validation and test data are the same.
    """  # noqa: DOC502 (raised by what this calls)
    test = open_models(family, regime, base, models, replace(data, split=splits[1]), settings, dtype)
    found = open_models(family, regime, base, models, replace(data, split=splits[0]), settings, dtype)
    held = [replace(part, model=test.data[name].model) for name, part in found.data.items()]
    validation = replace(found, given=replace(found.given, held=held))
    require_apart(validation, test)
    return {"validation": validation, "test": test}


def open_control(parts: Mapping[str, Opened], spec: str) -> dict[str, Opened]:
    """Open control data of negation: what a model shall still do when it has forgotten a task.

    Args:
        parts: ``validation`` and ``test``, whose models, splits and options for data these have too.
        spec: the data, ``NAME=hub id or path`` or without a name.

    Returns:
        ``validation control`` and ``test control``, each with one data set, in the base's network.

    Raises:
        DataError: the data can't be read, don't fit the models, or have a task's name.
        MergescopeError: tasks have heads of their own, none of which is one for control data.
    """  # noqa: DOC502 (raised by what this calls)
    name, place = parse_data_option(spec)
    found = {}
    for part, opened in parts.items():
        if set(opened.given.homes.values()) != {next(iter(opened.given.sources))}:  # the base's network
            raise MergescopeError(
                "Control data run through the base's network, and these tasks have heads of their own: leave "
                "--control-data out, and the other tasks are what is kept up."
            )
        if name in opened.data:
            raise DataError(
                f"The control data are called like the task {name!r}. Give them a name of their own: NAME={place}."
            )
        options = replace(
            opened.given.options, data=replace(opened.given.options.data, specs=(spec,), tasks={})
        )
        given = prepare(options)
        held = replace(given.held[0], model=opened.given.held[0].model, owner=None)
        found[f"{part} {CONTROL}"] = replace(opened, given=replace(given, held=[held]))
    return found


def require_apart(validation: Opened, test: Opened) -> None:
    """Refuse to choose by the samples that figures are reported of.

    Args:
        validation: the data to choose by.
        test: the data to report of.

    Raises:
        StudyError: data of a task are the same.
    """
    prints = [
        {name: part.given.batches[held.name].fingerprint for name, held in part.data.items()}
        for part in (validation, test)
    ]
    same = [name for name, found in prints[0].items() if prints[1].get(name) == found]
    if same:
        raise StudyError(
            f"Validation and test data are the same for {', '.join(same)}: coefficients would be chosen on what they "
            "are judged by. Give the data a test split, or choose other splits (--validation-split, --split)."
        )


def cost(
    parts: Mapping[str, Opened], passes: Mapping[str, Mapping[str, float]], *, linear: bool = False
) -> dict[str, Any]:
    """What passes will cost.

    Args:
        parts: ``validation`` and ``test``, or one of them, to models and data.
        passes: part to data set to passes of a batch, or what takes as long.
        linear: in the linearised network.

    Returns:
        Samples of each part and data set, forward passes of a batch, and an estimate of seconds (None where nothing
        can be tried).
    """
    seconds = {name: part.seconds_a_pass(name) for part in parts.values() for name in part.data}
    whole = estimate = 0.0
    for part, counts in passes.items():
        batches = parts[part].batches
        for name, count in counts.items():
            whole += count * batches[name]
            estimate += count * batches[name] * seconds[name] * (JVP_COST if linear else 1.0)
    return {
        "samples": {part: opened.samples for part, opened in parts.items()},
        "forward_passes": int(whole) if whole == int(whole) else whole,
        "estimated_seconds": round(estimate, 1) if math.isfinite(estimate) else None,
    }


@contextmanager
def running(run: RunDirectory | None) -> Iterator[None]:
    """Work in a run directory: nobody else does, and passes that a killed run finished are not made again.

    Args:
        run: the directory; None to keep nothing.

    Yields:
        Nothing.

    Raises:
        StudyError: another process works there.
    """  # noqa: DOC502 (raised by what this calls)
    if run is None:
        yield
        return
    with run.locked(), resumable(run.path / "passes"):
        yield


def write_protocol_run(
    run: RunDirectory,
    study: str,
    rows: Sequence[Row],
    parts: Mapping[str, Opened],
    settings: Any,
    about: Mapping[str, Any],
) -> None:
    """Write ``results.parquet`` and ``run.yaml``.

    Args:
        run: the run directory.
        study: what ``run.yaml`` calls it.
        rows: the results.
        parts: ``validation`` and ``test``, or one of them, to models and data.
        settings: of the protocol; a dataclass.
        about: cost, notes, and whatever else is to be told.
    """
    write_rows(run.path / RESULTS, rows)
    first = next(iter(parts.values()))
    said = {name: value for name, value in asdict(settings).items() if name != "progress"}
    config = {"family": first.family, "regime": first.regime, "settings": said}
    run.write_run(
        study, "", plain({**config, **{name: part.given.config() for name, part in parts.items()}}),
        plain({**{name: part.given.provenance() for name, part in parts.items()}, **about}),
    )  # fmt: skip
