"""Cases of merging from whole families, kept regime by regime, and what they say of merging to come."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergescope._version import __version__
from mergescope.errors import StudyError, did_you_mean
from mergescope.merging.merge import default_threads
from mergescope.progress import progress_bar
from mergescope.protocols.measure import Settings
from mergescope.protocols.mergeability import Case, MergeabilitySettings, collect
from mergescope.protocols.mergeability.collect import passes
from mergescope.studies.families import FamilyDirectory, read_family
from mergescope.studies.given import DataOptions
from mergescope.studies.protocol_runs import JVP_COST, Opened, open_parts
from mergescope.studies.published_parts import Part
from mergescope.studies.rundir import RunDirectory, digest_of
from mergescope.weights.files import atomic_file
from mergescope.weights.geometry import geometry
from mergescope.weights.selection import Selection
from mergescope.weights.sums import Sums

STUDY = "mergeability"
"""What ``run.yaml`` calls it."""


@dataclass(frozen=True)
class Unit:
    """A regime of a family: its cases are collected together, and kept.

    Attributes:
        family: the directory.
        regime: label of the regime.
    """

    family: FamilyDirectory
    regime: str

    @property
    def name(self) -> tuple[str, str]:
        """Name of the family and of the regime."""
        return self.family.path.resolve().name, self.regime

    @property
    def tasks(self) -> list[str]:
        """Names of the models."""
        return [member.task for member in self.family.choose(self.regime)]

    def key(self, data: DataOptions, settings: MergeabilitySettings) -> str:
        """A digest of what makes its cases.

        Args:
            data: which samples.
            settings: what to collect.

        Returns:
            Twelve hexadecimal digits.
        """
        members = self.family.choose(self.regime)
        tests = [self.family.tasks[member.task].test for member in members]
        said = {name: value for name, value in asdict(settings).items() if name != "progress"}
        of_data = [data.limit, data.batch_size, data.seed, data.split]
        # The key of a training has the data that it was given in it, those for validation too.
        digests = [self.family.base.digest, *((member.digest, member.key) for member in members)]
        return digest_of(__version__, self.name, digests, tests, of_data, said)


def find_units(families: Sequence[str], regimes: Sequence[str] | None = None) -> list[Unit]:
    """The regimes of some families.

    Args:
        families: directories that ``mergescope finetune`` made.
        regimes: labels, of all families, or ``FAMILY/LABEL`` of one; None for all.

    Returns:
        One unit a family and regime with two models or more.

    Raises:
        StudyError: there is no such family or regime, two families have one name, or nothing is left.
    """
    found = [read_family(Path(text).expanduser()) for text in dict.fromkeys(families)]
    names = [family.path.resolve().name for family in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(
            f"Several families are called {', '.join(twice)}, by their directories. Rename one: cases are told by it."
        )
    every = [Unit(family, label) for family in found for label in family.regimes]
    known = list(dict.fromkeys(name for unit in every for name in (unit.regime, "/".join(unit.name))))
    for regime in regimes or ():
        if regime not in known:
            hint = did_you_mean(regime, known)
            raise StudyError(f"No family has a regime {regime!r}.{hint} There are: {', '.join(known)}.")
    units = [
        unit for unit in every if not regimes or unit.regime in regimes or "/".join(unit.name) in regimes
    ]
    units = [unit for unit in units if len(unit.tasks) > 1]
    if not units:
        raise StudyError("No regime of these families has two models: there is nothing to merge.")
    return units


def collect_units(
    run: RunDirectory | None, units: Sequence[Unit], data: DataOptions, settings: MergeabilitySettings
) -> tuple[list[Case], list[str]]:
    """Collect the cases of all units; those that an earlier run finished are read.

    Cases of a family are of the same samples: where an earlier run read others than this one, it is collected again.

    Args:
        run: where they are kept; None to keep nothing.
        units: families and regimes.
        data: how many samples.
        settings: what to collect.

    Returns:
        All cases, and what the user should know.

    Raises:
        MergescopeError: a family can't be opened, or can't be merged so.
    """  # noqa: DOC502 (raised by what this calls)
    files = {unit.name: _file(run, unit, data, settings) for unit in units if run is not None}
    read = {name: _stored(path) for name, path in files.items()}
    stored = {name: found for name, found in read.items() if found is not None}
    kept = {name: found for name, found in stored.items() if not _of_other_data(stored, name[0], found)}
    fresh: dict[tuple[str, str], dict[str, Any]] = {}
    with progress_bar("families", len(units), settings.progress) as advance:
        advance(len(kept))
        while unit := next((it for it in units if it.name not in {**kept, **fresh}), None):
            found = fresh[unit.name] = _collected(unit, data, replace(settings, progress=False))
            others = _of_other_data(kept, unit.name[0], found)
            for name in others:  # first, so that not even a killed run leaves both
                del kept[name]
                files[name].unlink(missing_ok=True)
            if unit.name in files:
                with atomic_file(files[unit.name]) as temporary:
                    temporary.write_text(json.dumps(found, indent=1, allow_nan=False))
            advance(1 - len(others), " ".join(unit.name))
    whole = {**stored, **fresh}
    again = [" ".join(name) for name in stored if name in fresh]
    notes = [f"{', '.join(again)}: collected again, since an earlier run read other data"] if again else []
    notes += [note for unit in units for note in whole[unit.name]["notes"]]
    cases = [Case.of(said) for unit in units for said in whole[unit.name]["cases"]]
    return cases, list(dict.fromkeys(notes))


def plan_units(
    run: RunDirectory | None, units: Sequence[Unit], data: DataOptions, settings: MergeabilitySettings
) -> dict[str, Any]:
    """What collecting will take.

    Args:
        run: where cases are kept, or None.
        units: families and regimes.
        data: how many samples.
        settings: what to collect.

    Returns:
        Of each unit, its cases, whether they are there already, and forward passes of a batch; and an estimate of
        seconds, by trying one pass for each family.

    Raises:
        MergescopeError: a family can't be opened.
    """  # noqa: DOC502 (raised by what this calls)
    seconds: dict[str, float] = {}
    told: list[dict[str, Any]] = []
    limit = data.limit or 1
    for unit in units:
        counts = passes(unit.tasks, settings)
        samples = {
            "validation": limit, "test": limit, "features": min(settings.features, limit),
            "derivatives": min(settings.derivatives, limit),
        }  # fmt: skip
        batches = {part: math.ceil(many / data.batch_size) for part, many in samples.items()}
        whole, passes_of = (
            sum(sum(counts[part].values()) * many for part, many in each.items())
            for each in (samples, batches)
        )
        name = unit.name[0]
        there = run is not None and _file(run, unit, data, settings).is_file()
        if name not in seconds and not there:
            seconds[name] = _seconds_a_sample(unit, data)
        linear = unit.family.choose(unit.regime)[0].kind == "linearized"
        cost = 0.0 if there else whole * seconds[name] * (JVP_COST if linear else 1.0)
        told.append({
            "family": name, "regime": unit.regime, "cases": len(counts["groups"]), "there": there,
            "forward_passes": 0 if there else int(passes_of), "estimated_seconds": round(cost, 1),
        })  # fmt: skip
    return {
        "units": told,
        "cases": sum(line["cases"] for line in told),
        "forward_passes": sum(line["forward_passes"] for line in told),
        "estimated_seconds": round(sum(line["estimated_seconds"] for line in told), 1),
    }


def weight_sums(base: Any, models: Mapping[str, Any]) -> Sums:
    """Sums over the weights of a base and its fine-tunes, or of their bodies.

    Args:
        base: a checkpoint, or what is chosen of one.
        models: name to such.

    Returns:
        The sums of the whole model.

    Raises:
        CheckpointError: weights are NaN or can't be read.
    """  # noqa: DOC502 (raised by what this calls)
    named = {"base": base, **models}
    views = [Part(it, name) if isinstance(it, Selection) else it for name, it in named.items()]
    return geometry(views[0], views[1:], threads=default_threads()).total


def _open(unit: Unit, data: DataOptions) -> dict[str, Opened]:
    place = str(unit.family.path)
    return open_parts(place, unit.regime, None, (), data, ("validation", "test"), Settings(seed=data.seed))


def _collected(unit: Unit, data: DataOptions, settings: MergeabilitySettings) -> dict[str, Any]:
    started = time.perf_counter()
    parts = _open(unit, data)
    validation, test = parts["validation"], parts["test"]
    sums = weight_sums(test.given.base, test.given.models)
    cases, notes = collect(unit.name, test.base, test.models, validation.tasks, test.tasks, sums, settings)
    return {
        "cases": [case.to_dict() for case in cases], "notes": [*notes, *test.given.notes],
        "samples": {part: opened.samples for part, opened in parts.items()},
        "data": {part: _prints(opened) for part, opened in parts.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def _prints(opened: Opened) -> dict[str, str]:
    return {name: opened.given.batches[held.name].fingerprint for name, held in opened.data.items()}


def _of_other_data(
    units: Mapping[tuple[str, str], Mapping[str, Any]], family: str, found: Mapping[str, Any]
) -> list[tuple[str, str]]:
    # Regimes of a family may lack some tasks: those that both have must have the same samples.
    return [
        name
        for name, unit in units.items()
        if name[0] == family
        and any(
            unit["data"].get(part, {}).get(task, said) != said
            for part, prints in found["data"].items()
            for task, said in prints.items()
        )
    ]


def _file(run: RunDirectory, unit: Unit, data: DataOptions, settings: MergeabilitySettings) -> Path:
    return run.path / "units" / f"{'-'.join(unit.name)}-{unit.key(data, settings)}.json"


def _stored(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        return dict(found) if {"cases", "notes", "data"} <= found.keys() else None
    except (ValueError, AttributeError):
        return None  # damaged: it is collected again


def _seconds_a_sample(unit: Unit, data: DataOptions) -> float:
    opened = _open(unit, data)["test"]
    name = next(iter(opened.data))
    return opened.seconds_a_pass(name) * opened.batches[name] / opened.samples[name]
