"""``mergescope equations``: CTL, averaging, addition and negation in feature space, per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--tests", "--alphas", "--layers")


def equations(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    tests: Annotated[list[str] | None, typer.Option(help="ctl, eq1, eq2, eq3; several. Default: all.")] = None,
    lam: Annotated[float, typer.Option("--lambda", help="Coefficient of Eq. 2 and 3.")] = 0.4,
    alphas: Annotated[list[float] | None, typer.Option(help="Interpolation weights of CTL (0.5).")] = None,
    size: Annotated[int | None, typer.Option(help="Eq. 1 of all subsets of so many models (default: of all).")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Suffix patterns of layers (see mergescope layers).")] = None,
    features: Annotated[str, typer.Option(help="auto, all, mean, last, cls or each (token).")] = "auto",
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 512,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Is each layer's feature of a merged model the mix of the models' features?

    CTL of every pair; Eq. 1, averages; Eq. 2, two task vectors added; Eq. 3, a
    task vector subtracted: cos, coef and gap per layer, beside the baseline.

    [bold]Example:[/] mergescope equations --family runs/family --regime full --out tested/
    """
    from mergescope.protocols.equations import EquationSettings
    from mergescope.protocols.measure import Settings
    from mergescope.reports import build_report
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run
    from mergescope.studies.tested_equations import (
        STUDY,
        plan_equations,
        run_equations,
        to_dict,
        write_equations,
    )

    require_family(family, regime)
    standard = EquationSettings()
    settings = EquationSettings(
        tuple(tests) if tests else standard.kinds, tuple(alphas) if alphas else standard.alphas, lam, size,
        tuple(layers) if layers else "blocks", features, linearized, executor, device, seed,
    )  # fmt: skip
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed, **rows
    )
    opened = open_models(
        family,
        regime,
        base,
        models or (),
        wanted,
        Settings(executor=executor, device=device, seed=seed),
        dtype,
    )
    if dry_run:
        plan = plan_equations(opened, settings)
        print_plan(plan, as_json, f"at most {max(plan['points'].values()):,} points on a data set")
        return
    report = None
    with running(run):
        found = run_equations(opened, settings)
        if run is not None:
            write_equations(run, opened, found, settings)
            report = build_report(run.path)
    print_found(found, to_dict(opened, found), as_json, report, (*found.notes, *opened.given.notes))
