"""``mergescope curvature``: how curved losses are, and what Theorem 5.1 makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.disentangle import parse_pairs
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--pairs")


def curvature(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    pairs: Annotated[list[str] | None, typer.Option(help="Pairs of models, a:b; several. Default: all.")] = None,
    at: Annotated[str, typer.Option(help="A pair's eigenvalue: at its midpoint, the base, or on a line.")] = "midpoint",
    end: Annotated[str, typer.Option(help="largest, or magnitude (in absolute value).")] = "largest",
    term: Annotated[str, typer.Option(help="The exact term's Hessian: at the base or the midpoint.")] = "base",
    alpha: Annotated[float, typer.Option(help="Weight of a pair's first model.")] = 0.5,
    tolerance: Annotated[float, typer.Option(help="Of eigenvalues, relative.")] = 0.01,
    max_steps: Annotated[int, typer.Option(min=1, help="Hessian products of an eigenvalue at most.")] = 60,
    batchnorm: Annotated[str, typer.Option(help="BatchNorm's running statistics: eval, or batch.")] = "eval",
    linearized: Annotated[
        bool | None, typer.Option(help="--no-linearized: also models that were trained linearised.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples of each data set, drawn with the seed.")] = 64,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of samples, eigenvalues and intervals.")] = 0,
) -> None:  # fmt: skip
    """Measure the curvature of losses, and what Theorem 5.1 bounds the gap by.

    Largest eigenvalues of the loss's Hessian by Lanczos, at the base, at every
    fine-tune and between every two; the curvature along each task vector; and
    the gap of the loss next to its bound, a(1-a)/2 lambda |th_i - th_j|^2, and
    to the exact second-order term, which needs no merged model.

    Each pair is judged on the data of both its tasks, one after the other:
    their heads differ, so there is no common loss.

    [bold]Example:[/] mergescope curvature --family runs/family --regime full --pairs a:b --out curved/
    """
    from mergescope.protocols.family_curvature import FamilyCurvatureSettings
    from mergescope.protocols.measure import Settings
    from mergescope.reports import build_report
    from mergescope.studies.curved import STUDY, plan_curvature, run_curvature, to_dict, write_curvature
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run

    require_family(family, regime)
    settings = FamilyCurvatureSettings(
        parse_pairs(pairs), alpha, at, end, term, tolerance, max_steps, batchnorm, linearized, seed
    )
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(executor="resident", linearized=linearized, device=device, seed=seed)
    opened = open_models(family, regime, base, models or (), wanted, own)
    if dry_run:
        plan = plan_curvature(opened, settings)
        first = (
            f"{len(plan['pairs'])} pairs; {sum(plan['eigenvalues'].values())} eigenvalues, of about "
            f"{plan['steps_an_eigenvalue']} steps each; {plan['products']:,} Hessian products of a batch. In all, or "
            "what takes as long:"
        )
        print_plan(plan, as_json, first)
        return
    report = None
    with running(run):
        found = run_curvature(opened, settings)
        if run is not None:
            write_curvature(run, opened, found)
            report = build_report(run.path)
    print_found(found, to_dict(opened, found), as_json, report, (*found.notes, *opened.given.notes))
