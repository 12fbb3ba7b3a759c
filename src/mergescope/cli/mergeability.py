"""``mergescope mergeability``: does anything known before a merge tell how good it will be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.printing import JSON, print_json

VARIADIC = ("--family", "--regime")


def mergeability(
    family: Annotated[list[str], typer.Option(help="Directories of mergescope finetune; several.")],
    out: Annotated[Path | None, typer.Option(help="Run directory for cases, rules and report.")] = None,
    regime: Annotated[
        list[str] | None, typer.Option(help="Only these, or FAMILY/REGIME. Default: all.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=8, help="Validation and test samples of each task; features: half.")
    ] = 256,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs of models a regime. Default: all.")] = None,
    groups: Annotated[int, typer.Option(min=0, help="Groups of 3, 4 and 8 models, of each size.")] = 4,
    scales: Annotated[
        str, typer.Option(help="Of merged task vectors, in units of the average's.")
    ] = "0.5,1,1.5,2,3",
    derivatives: Annotated[
        int, typer.Option(min=0, help="Samples of a task to take derivatives on; 0: none.")
    ] = 16,
    rules: Annotated[Path | None, typer.Option(help="Write the rule file here as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of pairs, groups and samples.")] = 0,
) -> None:
    """Merge many pairs and groups of trained models, and find out what would have told the result.

    For every regime of every family: what is known before a merge (from
    weights; from features and derivatives on validation data), and the
    normalised accuracy of the average, of task arithmetic and of TIES on test
    data. Rules of one figure are judged on tasks that they did not see,
    against a constant, the number of models and the base's own accuracy.

    Cases of a regime are kept in the run directory as soon as they are
    complete: a killed run goes on.

    [bold]Example:[/] mergescope mergeability --family families/a families/b --limit 128 --out mergeability/
    """
    from mergescope.protocols.mergeability import MergeabilitySettings, analyse, content, write_rules
    from mergescope.protocols.mergeability.told import findings, headline, table_lines
    from mergescope.studies.given import DataOptions
    from mergescope.studies.mergeable import STUDY, collect_units, find_units, plan_units
    from mergescope.studies.mergeable_results import to_dict, write_mergeability
    from mergescope.studies.rundir import open_run

    settings = MergeabilitySettings(
        groups=groups, pairs=pairs, scales=_numbers(scales), features=max(limit // 2, 8), derivatives=derivatives,
        seed=seed,
    )  # fmt: skip
    data = DataOptions((), limit=limit, batch_size=batch_size, seed=seed, answers=True)
    units = find_units(family, regime)
    # A plan makes no directory, but looks into one that is there.
    run = None if out is None or (dry_run and not out.is_dir()) else open_run(out, STUDY)
    if dry_run:
        _print_plan(plan_units(run, units, data, settings), as_json)
        return
    if run is None:
        cases, notes = collect_units(None, units, data, settings)
        found = analyse(cases, seed=seed)
    else:
        from mergescope.reports import build_report

        with run.locked():
            cases, notes = collect_units(run, units, data, settings)
            found = analyse(cases, seed=seed)
            write_mergeability(run, units, cases, found, data, settings, [*found.notes, *notes])
            report = build_report(run.path)
    if rules is not None:
        write_rules(content(found), rules)
    if as_json:
        print_json(to_dict(found, [*found.notes, *notes]))
        return
    for line in (headline(found), *findings(found), "", *table_lines(found)):
        typer.echo(line)
    for note in (*found.notes, *notes):
        typer.echo(f"Note: {note}")
    if run is not None:
        typer.echo(f"Report: {report}")


def _numbers(text: str) -> tuple[float, ...]:
    from mergescope.errors import MergescopeError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise MergescopeError(
            f"The scales {text!r} are no numbers. Write them with commas: --scales 0.5,1,2."
        ) from None


def _print_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    for line in plan["units"]:
        there = (
            "there already"
            if line["there"]
            else f"{line['forward_passes']:,} forward passes of a batch, about {line['estimated_seconds']:,.0f} s here"
        )
        typer.echo(f"{line['family']} {line['regime']}: {line['cases']} cases, {there}")
    typer.echo(f"{plan['cases']:,} cases, about {plan['estimated_seconds'] / 60:,.0f} min here")
