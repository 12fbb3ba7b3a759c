"""``mergescope study list | show | run``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergescope.cli.commands import INTERRUPTED, InnerInterrupt, command, last_interruption
from mergescope.cli.engine_options import takes_engine
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_json
from mergescope.errors import MergescopeError, StudyError, did_you_mean, near_paths
from mergescope.studies import Study, default_directory, find_study

if TYPE_CHECKING:
    from mergescope.studies.papers.spec import PaperStudy
    from mergescope.tracing.engines import Engine

app = typer.Typer(help="The papers' experiments: list, show, run, publish.", no_args_is_help=True)


@command(app, "list")
def list_studies(as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False) -> None:
    """One line for each study: the papers' figures and tables, and protocols for families of your own.

    [bold]Example:[/] mergescope study list
    """
    if as_json:
        from mergescope.cli.study_content import listed_content

        print_json(listed_content())
        return
    from mergescope.cli.study_lines import listed

    typer.echo(listed())


@command(app, "show")
def show(
    name: Annotated[str, typer.Argument(help="A study's name, or a YAML file of your own.")],
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """What a study claims, its setting and source, models, cost, and the source's own numbers.

    [bold]Example:[/] mergescope study show ctl-fig7
    """
    if as_json:
        from mergescope.cli.study_content import shown_content

        print_json(shown_content(name))
        return
    from mergescope.cli.study_lines import shown

    typer.echo(shown(name))


def _is_paper(name: str) -> bool:
    from mergescope.studies.papers.spec import named_studies

    return name in named_studies(name)


@command(app, "run")
@takes_engine
def run(
    name: Annotated[str | None, typer.Argument(help="A study's name, or a YAML file of your own.")] = None,
    preset: Annotated[str | None, typer.Option(help="See 'mergescope study show NAME'.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/NAME-PRESET).")] = None,
    data: Annotated[str, typer.Option(help="'embedded', a hub id or a directory.")] = "embedded",
    tasks: Annotated[
        str, typer.Option(help="'rotations' or 'class-pairs', of the study digits.")
    ] = "rotations",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: one a core, 8 at most; one on a GPU).")
    ] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " For studies of families.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            help="Directory of data sets (cifar10, cars ...) and models/, for studies of figures and tables."
        ),
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, help="Of every model trained for a figure or table: a quick try.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for studies of figures and tables.")] = "cpu",
    work: Annotated[
        Path, typer.Option(help="Directory of families and passes that studies of figures and tables share.")
    ] = Path("runs/studies"),
    every: Annotated[bool, typer.Option("--all", help="All studies of figures and tables.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Run a study, or what is left of it, and write its report.

    [bold]Example:[/] mergescope study run addition --family runs/family --regime full
    """  # noqa: DOC501 (typer shows this text to users)
    if every is (name is not None):
        raise StudyError("Name a study, or give --all. The studies: mergescope study list.")
    require_family(family, regime)
    if every or _is_paper(str(name)):
        if (data, tasks) != ("embedded", "rotations"):
            raise StudyError(
                "Studies of figures and tables take data from --data-root DIR, or from a family: leave --data and "
                "--tasks out."
            )
        if family is not None and train_steps is not None:
            raise StudyError(f"--family {family} is trained already: leave --train-steps out.")
        _run_papers(
            name,
            preset or "cpu",
            out,
            data_root,
            work,
            family,
            regime,
            dry_run,
            workers,
            device,
            train_steps,
            as_json,
        )
        return
    assert name is not None
    known = find_study(name)
    name = known.name
    preset = preset or ("default" if "default" in known.presets else "cpu")
    study = _checked(name, preset, tasks)
    if data_root is not None and "root" not in study.takes:
        raise StudyError(f"--data-root is for studies of figures and tables; {name} takes --data.")
    if train_steps is not None:
        raise StudyError(f"{name} takes no --train-steps. For a quick try: --preset quick.")
    if device != "cpu" and "device" not in study.takes:
        raise StudyError(f"{name} takes no --device: leave it out.")
    if bool(study.command) != (family is not None):
        raise StudyError(
            f"The study {name} runs on a family: give --family DIR."
            if study.command
            else f"The study {name} makes its own models: leave --family {family} out."
        )
    if study.command:
        if (data, tasks, workers) != ("embedded", "rotations", None):
            raise StudyError(f"The study {name} takes data and models from the family: leave --data, --tasks and "
                             "--workers out.")  # fmt: skip
        _run_command(study, preset, out, family, regime, dry_run, as_json)
        return
    if "tasks" not in study.takes and tasks != "rotations":
        raise StudyError(f"The study {name} has its own tasks: leave --tasks out.")
    if dry_run:
        told = describe_plan(name, preset, out, data, tasks, data_root)
    else:
        told = run_study(name, preset, out, data, tasks, workers, device, data_root, as_json)
    if as_json:
        print_json(told)


@command(app, "publish")
def publish_pages(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run directories of studies that end in claims.")],
    out: Annotated[Path, typer.Option(help="Directory of the pages.")] = Path("docs/results"),
    name: Annotated[str | None, typer.Option(help="Of the page (default: the study's); for one run.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: compare with what is published, by intervals.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Write results pages: claims with verdicts, figures, numbers; and the index of all.

    [bold]Example:[/] mergescope study publish runs/root-causes-cpu
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.reports.publish import differences, publish

    if name is not None and len(run_dirs) > 1:
        raise StudyError(
            f"--name {name} names one page, and there are {len(run_dirs)} runs. Publish them one by one."
        )
    if not check:
        pages = [publish(run_dir, out, name) for run_dir in run_dirs]
        for page in pages:
            typer.echo(f"Page: {page}")
        if as_json:
            print_json({"pages": [str(page) for page in pages]})
        return
    found = {run_dir: differences(run_dir, out, name) for run_dir in run_dirs}
    for run_dir, lines in found.items():
        typer.echo(f"{run_dir.name}: " + ("as published" if not lines else f"{len(lines)} claims differ"))
        for line in lines:
            typer.echo(f"  {line}")
    if as_json:
        print_json({"differences": {str(run_dir): lines for run_dir, lines in found.items()}})
    if any(found.values()):
        raise StudyError(
            f"{sum(map(bool, found.values()))} of {len(found)} runs differ from what is published."
        )


def _run_papers(
    name: str | None, preset: str, out: Path | None, data_root: Path | None, work: Path, family: str | None,
    regime: str | None, dry_run: bool, workers: int | None, device: str, train_steps: int | None, as_json: bool,
) -> None:  # fmt: skip
    from mergescope.cli.study_lines import SWEEPS
    from mergescope.studies.papers.data_sets import Sources
    from mergescope.studies.papers.runner import Where, find_paper_study, plan_lines, run_steps, run_study
    from mergescope.studies.papers.spec import paper_studies
    from mergescope.tracing.engines import engine_or_processes

    if data_root is not None and not data_root.is_dir():
        raise StudyError(
            f"There is no directory {data_root}.{near_paths(data_root)} Leave --data-root out, or name one that exists."
        )
    if out is not None and name is None:
        raise StudyError("--out is of one study. With --all, every study has a directory under --work.")
    studies = paper_studies() if name is None else [find_paper_study(name)]
    sources = Sources(None if data_root is None else data_root.resolve())
    problems, told, chosen, reported = [], [], [], []
    made: dict[Any, Any] = {}
    # Several networks at a time may be too many for the memory of another device.
    with engine_or_processes(workers or (None if device == "cpu" else 1)) as engine:
        for study in studies:
            if (
                name is None
                and preset not in study.family
                and not (preset == "quick" and "cpu" in study.family)
            ):
                typer.echo(f"{study.name}: no models for the preset {preset}")
                continue
            target = out or (work if name is None else Path("runs")) / f"{study.name}-{preset}"
            where = Where(
                target, work.resolve(), _run_step, sources, family, regime, engine,
                device=device, train_steps=train_steps, made=made,
            )  # fmt: skip
            chosen.append((study, where))
        if len(chosen) > 1 and not dry_run:
            typer.echo(f"Training models and running commands of {len(chosen)} studies; then their results.")
            run_steps(chosen, preset)
        for study, where in chosen:
            if dry_run:
                lines = plan_lines(study, preset, where)
                typer.echo(f"{study.name} ({preset}):")
                for line in lines:
                    typer.echo(f"  {line}")
                told.append({
                    "study": study.name, "preset": preset, "directory": str(where.out), "plan": lines
                })  # fmt: skip
                continue
            try:
                run_study(study, preset, where)
            except MergescopeError as error:
                if name is not None:
                    raise
                problems.append(f"{study.name}: {error}")  # the others may do without what is missing
                typer.echo(f"{study.name}: left out. {error}")
                continue
            reported.append((study, where.out))
        told += _reported_together(reported, engine, as_json)
    if name is None:
        if train_steps is None:
            told += _run_sweeps(preset, work, data_root, workers, device, dry_run, as_json, problems)
        else:
            left_out = " and ".join(SWEEPS)
            typer.echo(
                f"{left_out}: left out, since --train-steps can't shorten them. For a quick try: --preset quick."
            )
    if as_json:
        print_json(told[0] if name is not None else {"studies": told, "left_out": problems})
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        count = len(studies) + len(SWEEPS) * (name is None)
        raise StudyError(f"{len(problems)} of {count} studies did not run:\n{listing}")


def _reported(run_dir: Path, as_json: bool, path: Path | None = None) -> dict[str, Any]:
    from mergescope.cli.report import report_content, show_report

    if as_json:
        return report_content(run_dir, path)
    show_report(run_dir, path)
    return {}


def _reported_together(
    runs: Sequence[tuple[PaperStudy, Path]], engine: Engine, as_json: bool
) -> list[dict[str, Any]]:
    from mergescope.reports import build_report

    paths = engine.map(build_report, [run_dir for _, run_dir in runs], f"drawing {len(runs)} reports")
    told = []
    for (study, run_dir), path in zip(runs, paths, strict=True):
        typer.echo(f"{study.name}: {study.title}")
        told.append(_reported(run_dir, as_json, path))
    return told


def _run_sweeps(
    preset: str,
    work: Path,
    data_root: Path | None,
    workers: int | None,
    device: str,
    dry_run: bool,
    as_json: bool,
    problems: list[str],
) -> list[dict[str, Any]]:
    # Figures whose studies train networks of their own.
    from mergescope.cli.study_lines import SWEEPS

    root, told = None if data_root is None else data_root.resolve(), []
    for name in SWEEPS:
        out = work / f"{name}-{preset}"
        if dry_run:
            told.append(describe_plan(name, preset, out, "embedded", "rotations", root))
            continue
        typer.echo(f"{name}: {find_study(name).title}")
        try:
            told.append(run_study(name, preset, out, "embedded", "rotations", workers, device, root, as_json))
        except MergescopeError as error:  # noqa: PERF203 (a study takes far longer)
            problems.append(f"{name}: {error}")
            typer.echo(f"Left out. {error}")
    return told


def _run_command(
    study: Study,
    preset: str,
    out: Path | None,
    family: str | None,
    regime: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    words = [*study.command, "--family", str(family), *study.options[preset]]
    if regime is not None:
        words += ["--regime", regime]
    if not (dry_run and study.command[0] == "geometry"):
        words += ["--dry-run"] if dry_run else ["--out", str(out or default_directory(study.name, preset))]
    typer.echo(f"mergescope {shlex.join(words)}")
    if not dry_run or "--dry-run" in words:
        _run_words([*words, "--json"] if as_json else words)
    elif as_json:
        print_json({"study": study.name, "preset": preset, "plan": [f"mergescope {shlex.join(words)}"]})


def _run_words(words: Sequence[str]) -> None:
    from mergescope.cli import app as commands

    if commands(list(words), standalone_mode=False) == INTERRUPTED:
        raise InnerInterrupt(last_interruption())


def _run_step(words: Sequence[str]) -> None:
    from mergescope.reports.html import without_reports

    with without_reports():  # mergescope report makes that of a step
        try:
            _run_words(words)
        except InnerInterrupt:
            raise KeyboardInterrupt from None  # the study goes on at this step, whatever its command keeps


def _checked(name: str, preset: str, tasks: str) -> Study:
    study = find_study(name)
    if preset not in study.presets:
        hint = did_you_mean(preset, study.presets)
        raise StudyError(f"{name} has no preset {preset!r}.{hint} Presets: {', '.join(study.presets)}.")
    if tasks not in ("rotations", "class-pairs"):
        hint = did_you_mean(tasks, ("rotations", "class-pairs"))
        raise StudyError(f"There are no tasks {tasks!r}.{hint} Tasks: rotations, class-pairs.")
    return study


def run_study(
    name: str, preset: str, out: Path | None, data: str, tasks: str, workers: int | None, device: str = "cpu",
    root: Path | None = None, as_json: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a study, print its summary and where the report is.

    Args:
        name: the study.
        preset: its preset.
        out: run directory, or None for the default one.
        data: data source.
        tasks: which tasks.
        workers: processes.
        device: where networks are, of studies that take it.
        root: directory of data sets, of studies that take it.
        as_json: leave the summary to the caller, and return it.

    Returns:
        As [`report_content`][mergescope.cli.report.report_content], if asked for.
    """
    study = _checked(name, preset, tasks)
    started = time.perf_counter()
    directory = out or default_directory(name, preset)
    given = {"data": data, "tasks": tasks, "workers": workers, "device": device, "root": root}
    study.load()(preset, directory, **{option: given[option] for option in study.takes})
    told = _reported(directory, as_json)
    typer.echo(f"{time.perf_counter() - started:.0f} s")
    return told


def describe_plan(
    name: str, preset: str, out: Path | None, data: str, tasks: str, root: Path | None = None
) -> dict[str, Any]:
    """Print what a study would do, without doing it.

    Args:
        name: the study.
        preset: its preset.
        out: run directory, or None for the default one.
        data: data source.
        tasks: which tasks.
        root: directory of data sets, of studies that take it.

    Returns:
        The same for scripts.
    """
    study = _checked(name, preset, tasks)
    what = f"{tasks} of {data} digits" if "tasks" in study.takes else f"data {data}"
    typer.echo(f"{study.name} ({preset}, {study.presets[preset]}), {what}:")
    given = {"data": data, "tasks": tasks, "root": root}
    options = {option: given[option] for option in study.takes if option in given}
    directory = out or default_directory(name, preset)
    lines = list(study.load("planner")(preset, directory, **options))
    for line in lines:
        typer.echo(f"  {line}")
    return {"study": study.name, "preset": preset, "directory": str(directory), "plan": lines}
