"""Running a study of a figure or table: its family, its steps, its claims; what is there is not made again."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergescope._version import __version__
from mergescope.errors import MergescopeError, StudyError, did_you_mean
from mergescope.studies.claims import said
from mergescope.studies.families import is_family, read_family, training_seconds
from mergescope.studies.papers.checks import Result, claims_of
from mergescope.studies.papers.data_sets import FASHION, Sources, files_in
from mergescope.studies.papers.families import FAMILIES, family_named, local_data, tasks_of
from mergescope.studies.papers.spec import PaperStudy, Step, named_studies
from mergescope.studies.papers.workshop import Workshop
from mergescope.studies.rundir import (
    DISTRIBUTIONS,
    RESULTS,
    Row,
    RunDirectory,
    digest_of,
    open_run,
    read_rows,
    read_table,
    write_rows,
)
from mergescope.tracing.engines import Engine, LocalEngine

Command = Callable[[Sequence[str]], object]
"""Runs a command of mergescope from its words."""

PRESETS = ("quick", "cpu", "paper")
"""Smallest form of everything; sized for two cores, offline; the papers' models and data."""

GEOMETRY = "geometry.parquet"
"""What ``mergescope geometry`` writes in place of a run directory's results."""

SEEDS = {"quick": 1, "cpu": 3, "paper": 1}
"""Repetitions of families that are trained here, for the steps that ask for them."""


@dataclass(frozen=True)
class Where:
    """Directories and data of a run.

    Attributes:
        out: run directory of the study.
        work: directory that studies share: families and steps.
        sources: of the data.
        family: somebody's own family, in place of the preset's.
        regime: of somebody's own family, in place of the steps' regimes.
        command: runs a command from its words, as the command line does; this room does not know it.
        engine: trains models and runs steps, several at a time.
        progress: show bars on a terminal.
        device: of trainings and passes.
        train_steps: optimizer steps of every model that is trained here, in place of what its recipe says.
        made: families that are known to be complete, with their regimes; studies that share it don't look again.
    """

    out: Path
    work: Path
    command: Command
    sources: Sources = Sources(None, FASHION)
    family: str | None = None
    regime: str | None = None
    engine: Engine = field(default_factory=lambda: LocalEngine(1))
    progress: bool = True
    device: str = "cpu"
    train_steps: int | None = None
    made: dict[Hashable, tuple[str, frozenset[str]]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Job:
    """One step in one regime and repetition.

    Attributes:
        number: of the step, from 0.
        step: what is run.
        regime: label of the regime.
        seed: of the repetition.
        limit: samples of a data set.
    """

    number: int
    step: Step
    regime: str
    seed: int
    limit: int

    def words(
        self, family: str, regime: bool = True, data: Sequence[str] = (), device: str = "cpu"
    ) -> list[str]:
        """The command, as a user would type it after ``mergescope``.

        Args:
            family: what ``--family`` takes.
            regime: whether the family has regimes to choose from.
            data: where a published family's data are, ``task=directory``.
            device: of passes.

        Returns:
            Its words, without ``--out``.
        """
        said = [self.step.command, "--family", family, *(["--regime", self.regime] if regime else [])]
        if self.step.command == "geometry":
            return [*said, *self.step.options]
        given = ["--data", *data] if data else []
        place = [] if device == "cpu" else ["--device", device]
        return [*said, *given, *self.step.options, "--limit", str(self.limit), *place]


def find_paper_study(name: str) -> PaperStudy:
    """The study of a figure or table, or one of somebody's own.

    Args:
        name: as listed, or a YAML file.

    Returns:
        The study.

    Raises:
        StudyError: there is none, near matches are suggested; or the file is not as it should be.

    Example:
        >>> find_paper_study("ctl-fig7").source
        'CTL Fig. 7'
    """
    known = named_studies(name)
    if name not in known:
        raise StudyError(
            f"There is no study {name!r}.{did_you_mean(name, known)} Studies: {', '.join(known)}."
        )
    return known[name]


def jobs(study: PaperStudy, preset: str, where: Where) -> list[Job]:
    """What a study will run.

    Args:
        study: the study.
        preset: of [`PRESETS`][].
        where: directories and data.

    Returns:
        One job a step, regime and repetition.

    Raises:
        StudyError: there is no such preset, or the study has no models for it.
    """
    if preset not in PRESETS:
        raise StudyError(
            f"{study.name} has no preset {preset!r}.{did_you_mean(preset, PRESETS)} Presets: {', '.join(PRESETS)}."
        )
    if where.family is None and family_of(study, preset) is None:
        raise StudyError(
            f"{study.name} has no models for the preset {preset}. It has some for {', '.join(study.family)}; or give "
            "models of your own: --family DIR."
        )
    trained = where.family is None and family_of(study, preset) in FAMILIES
    found = []
    for number, declared in enumerate(study.steps):
        step = declared.model_copy(update={"options": (*declared.options, *declared.more.get(preset, ()))})
        regimes = (where.regime,) if where.family is not None and where.regime is not None else step.regimes
        for regime in dict.fromkeys(regimes):
            repetitions = SEEDS[preset] if step.seeds and trained else 1
            found += [
                Job(number, step, regime, seed, step.limits.get(preset, 0)) for seed in range(repetitions)
            ]
    return found


def family_of(study: PaperStudy, preset: str) -> str | None:
    """The models that a preset takes.

    Args:
        study: the study.
        preset: of [`PRESETS`][].

    Returns:
        Name of the family; None if the study has none for it.
    """
    return study.family.get(preset, study.family.get("cpu") if preset == "quick" else None)


def plan_lines(study: PaperStudy, preset: str, where: Where) -> list[str]:
    """What a run would do, in words; nothing is trained or written.

    Args:
        study: the study.
        preset: of [`PRESETS`][].
        where: directories and data.

    Returns:
        A line for the family, and one a command.

    Raises:
        StudyError: as for [`jobs`][].
    """  # noqa: DOC502 (raised by what this calls)
    family = where.family or family_of(study, preset)
    lines = [f"family: {family}"]
    return lines + [
        f"mergescope {shlex.join(job.words(str(family), device=where.device))}"
        + (f"  (seed {job.seed})" if job.seed else "")
        for job in jobs(study, preset, where)
    ]


def run_steps(studies: Sequence[tuple[PaperStudy, Where]], preset: str) -> None:
    """Train all models of a family at once, and run the steps of all studies at once, so that workers rarely wait.

    Args:
        studies: what [`run_study`][] will be asked for afterwards, with one engine. What is wrong with one of them is
            left for it to tell.
        preset: of [`PRESETS`][].
    """
    planned: list[tuple[PaperStudy, Where, list[Job]]] = []
    wanted: dict[tuple[str, int], list[str]] = {}
    for study, where in studies:
        with contextlib.suppress(MergescopeError):
            todo = jobs(study, preset, where)
            planned.append((study, where, todo))
            for job in todo if where.family is None else ():
                wanted.setdefault((str(family_of(study, preset)), job.seed), []).append(job.regime)
    with contextlib.suppress(MergescopeError):
        _make_together(wanted, preset, studies[0][1])
    missing: dict[Path, _Item] = {}
    for study, where, todo in planned:
        with contextlib.suppress(MergescopeError):
            places = _places(todo, _families(study, preset, where, todo), where)
            missing |= {
                folder: _Item(where.command, words, folder) for words, folder in places if not _done(folder)
            }
    if missing:
        with contextlib.suppress(MergescopeError):
            label = f"{len(studies)} studies, {len(missing)} commands"
            studies[0][1].engine.map(_try_step, list(missing.values()), label)


def run_study(study: PaperStudy, preset: str, where: Where) -> RunDirectory:
    """Run a study, or what is left of it.

    Args:
        study: the study.
        preset: of [`PRESETS`][].
        where: directories and data.

    Returns:
        The run directory with ``run.yaml`` and ``results.parquet``: the rows of all steps, and claims.

    Raises:
        StudyError: the study can't be run so.
    """  # noqa: DOC502 (raised by what this calls)
    todo = jobs(study, preset, where)
    run = open_run(where.out, study.name)
    with run.locked():
        results: list[Result] = []
        steps: list[dict[str, Any]] = []
        families = _families(study, preset, where, todo)
        places = _places(todo, families, where)
        missing = [_Item(where.command, words, folder) for words, folder in places if not _done(folder)]
        where.engine.map(_run_step, missing, f"{study.name}, {len(missing)} commands")
        for job, (words, folder) in zip(todo, places, strict=True):
            found = _rows(job, folder)
            results.append(Result(job.number, job.regime, job.seed, found))
            steps.append({
                "number": job.number, "regime": job.regime, "seed": job.seed, "run": str(folder),
                "command": f"mergescope {shlex.join(_public(words))}",
                "seconds": _seconds(folder),
            })  # fmt: skip
        claims = claims_of(study, results)
        network = next((row.network for result in results for row in result.rows if row.network), "")
        rows = [claim.row(network) for claim in claims]
        write_rows(run.path / RESULTS, rows)
        passes = sum(step["seconds"] or 0.0 for step in steps)
        regimes = {
            Path(family): {job.regime for job in todo if job.seed == seed}
            for seed, family in families.items()
            if where.family is None and is_family(Path(family))
        }
        training = training_seconds(regimes)
        source = str(family_of(study, preset) if where.family is None else where.family)
        provenance = {
            "data": {"source": f"{_public([source])[0]}: {', '.join(tasks_of(families[todo[0].seed]))}"},
            "steps": steps,
            "cost": f"{len(steps)} command{'s' * (len(steps) > 1)}, {passes:,.0f} s of passes"
            + (f"; models trained in {training:,.0f} s, for all studies that share them" if training else "")
            + _shortened(study, preset, where),
            "seconds": {"passes": round(passes, 1), "training": round(training, 1)},
            "says": said(rows),
            "here": [claim.here for claim in claims],
            "family": None if where.family is None else _public([where.family])[0],
            "root": None if where.sources.root is None else where.sources.root.name,
        }
        run.write_run(study.name, preset, json.loads(study.model_dump_json()), provenance)
    return run


def _shortened(study: PaperStudy, preset: str, where: Where) -> str:
    trained = where.family is None and family_of(study, preset) in FAMILIES
    return f"; models trained for {where.train_steps} steps only" if trained and where.train_steps else ""


def _families(study: PaperStudy, preset: str, where: Where, todo: Sequence[Job]) -> dict[int, str]:
    seeds = sorted({job.seed for job in todo})
    if where.family is not None:
        return dict.fromkeys(seeds, where.family)
    name = str(family_of(study, preset))
    return {
        seed: _make(name, preset, where, seed, [job.regime for job in todo if job.seed == seed])
        for seed in seeds
    }


def _places(todo: Sequence[Job], families: Mapping[int, str], where: Where) -> list[tuple[list[str], Path]]:
    return [_place(job, families[job.seed], where) for job in todo]


def _make(name: str, preset: str, where: Where, seed: int, labels: Iterable[str]) -> str:
    shop = _shop(preset, where, seed, labels)
    path, there = where.made.get(_key(name, shop), ("", frozenset()))
    if not path or not there.issuperset(shop.regimes):
        path = family_named(name, shop)
        where.made[_key(name, shop)] = path, there.union(shop.regimes)
    return path


def _make_together(wanted: Mapping[tuple[str, int], Iterable[str]], preset: str, where: Where) -> None:
    shops = [
        (name, _shop(preset, where, seed, labels))
        for (name, seed), labels in wanted.items()
        if name in FAMILIES
    ]
    if not shops:
        return
    made = shops[0][1].make([FAMILIES[name](shop) for name, shop in shops])
    for (name, shop), path in zip(shops, made, strict=True):
        if not isinstance(path, MergescopeError):  # the study that needs it tells what is wrong
            where.made[_key(name, shop)] = str(path), frozenset(shop.regimes)


def _shop(preset: str, where: Where, seed: int, labels: Iterable[str]) -> Workshop:
    regimes = tuple(dict.fromkeys(label for label in labels if label != "post-hoc"))
    return Workshop(
        where.work / "families",
        where.sources,
        preset,
        regimes,
        seed,
        where.progress,
        where.engine,
        where.device,
        where.train_steps,
    )


def _key(name: str, shop: Workshop) -> tuple[Any, ...]:
    return name, shop.size, shop.seed, shop.work, shop.sources, shop.device, shop.train_steps


@dataclass(frozen=True)
class _Item:
    command: Command
    words: list[str]
    folder: Path

    def __str__(self) -> str:
        return f"mergescope {shlex.join(self.words)}"


def _place(job: Job, family: str, where: Where) -> tuple[list[str], Path]:
    own = is_family(Path(family))
    theirs = where.engine.device  # of workers that have one of their own
    data = local_data(family, where.sources)
    words = job.words(family, own, data, theirs or where.device)
    copies = [Path(text.partition("=")[2]) for text in (family, *data) if not own and "=" in text]
    digests: Any = [family, [files_in(folder) for folder in copies]] if copies else family
    if own:
        described = read_family(Path(family))
        digests = [described.base.digest, [member.digest for member in described.choose(job.regime)]]
    plain = [word for word in words if word != family]
    key = digest_of(__version__, plain, digests)
    return words, where.work / "steps" / f"{job.step.command}-{job.regime}-{key}"


def _run_step(item: _Item) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # what a command prints is in its report
        item.command([*item.words, "--out", str(item.folder)])
    if not _done(item.folder):
        raise StudyError(f"A step of the study wrote no results to {item.folder}. Run the study again.")


def _try_step(item: _Item) -> None:
    with contextlib.suppress(
        MergescopeError
    ):  # the others finish; the study that needs it runs it again, and tells
        _run_step(item)


def _done(folder: Path) -> bool:
    if folder.name.startswith("equations-") and not (folder / DISTRIBUTIONS).is_file():
        return False  # an earlier version's; figures need them
    if (folder / GEOMETRY).is_file():
        return True
    # A command writes what it is about after its results, and may have been killed in between.
    return (folder / RESULTS).is_file() and (folder / "run.yaml").is_file()


def unmoved(table: Sequence[Mapping[str, Any]]) -> set[str]:
    """Models that equal the base: their task vectors have no direction, and 0 in the table is no cosine.

    Args:
        table: lines of [`GEOMETRY`][].

    Returns:
        Their names.
    """
    return {
        line["model"]
        for line in table
        if line["scope"] == "model" and line["measure"] == "unchanged" and line["value"] == 1
    }


def _rows(job: Job, folder: Path) -> list[Row]:
    if (folder / RESULTS).is_file():
        return read_rows(folder / RESULTS)
    table = read_table(folder / GEOMETRY)
    still = unmoved(table)
    return [
        Row(
            "",
            job.regime,
            "geometry",
            f"{line['model']} + {line['other']}",
            "",
            line["measure"],
            line["value"] if still.isdisjoint((line["model"], line["other"])) else math.nan,
        )
        for line in table
        if line["scope"] == "model" and line["other"]
    ]


def _seconds(folder: Path) -> float | None:
    if not (folder / "run.yaml").is_file():
        return None  # nothing was passed through a network
    found = RunDirectory(folder).read_run()["provenance"].get("cost", {}).get("seconds")
    return None if found is None else float(found)


def _public(words: Sequence[str]) -> list[str]:
    # Where somebody keeps a family is nobody's business.
    found = []
    for word in words:
        name, equals, place = word.rpartition("=")
        found.append(f"{name}{equals}{Path(place).name}" if Path(place).is_absolute() else word)
    return found
