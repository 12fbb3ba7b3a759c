"""``mergescope theorems``: do CTL's theorems say something about these models?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.disentangle import parse_pairs
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--pairs", "--coefficients", "--layers")


def theorems(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    pairs: Annotated[list[str] | None, typer.Option(help="Pairs of Theorem 3.3, a:b; several. Default: all.")] = None,
    coefficients: Annotated[list[float] | None, typer.Option(help="Of Theorem 4.3 (1/2k and 0.4).")] = None,
    gap: Annotated[float | None, typer.Option(help="A gap up to this counts as none (0.329).")] = None,
    loss: Annotated[float | None, typer.Option(help="Losses count as equal, barriers as none (0.1 nats).")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Suffix patterns of layers (see mergescope layers).")] = None,
    linearized: Annotated[
        bool | None, typer.Option(help="In the linearised network; --no-linearized: never.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples of each data set, drawn with the seed.")] = 128,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Check CTL's theorems on trained models: premises beside conclusions.

    3.3: equal losses and linear outputs leave no barrier. 4.2: CTL of pairs
    gives CTL of all models. 4.3: CTL far out gives one part a task. And the
    transitivity that 4.2 takes for granted: if i and j are linear to each
    other, and j and k, are i and k? The last lines count for how many cases
    the premises hold, and for how many the conclusion does.

    [bold]Example:[/] mergescope theorems --family runs/family --regime full --out theorems/
    """
    from mergescope.protocols.family_theorems import TheoremsSettings
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.tallies import GAP_HOLDS, LOSS_HOLDS
    from mergescope.reports import build_report
    from mergescope.studies.checked_theorems import (
        STUDY,
        plan_theorems,
        run_theorems,
        to_dict,
        write_theorems,
    )
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run

    require_family(family, regime)
    settings = TheoremsSettings(
        parse_pairs(pairs), tuple(coefficients) if coefficients else None, GAP_HOLDS if gap is None else gap,
        LOSS_HOLDS if loss is None else loss,
        tuple(layers) if layers and layers != ["blocks"] else "blocks", linearized, seed,
    )  # fmt: skip
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(
        layers=settings.layers, executor="resident", linearized=linearized, device=device, seed=seed
    )
    opened = open_models(family, regime, base, models or (), wanted, own, dtype)
    if dry_run:
        plan = plan_theorems(opened, settings)
        where = "the linearised network" if plan["linearized"] else "the ordinary network"
        values = ", ".join(f"{value:.3g}" for value in plan["coefficients"])
        first = f"{len(plan['pairs'])} pairs in {where}; coefficients of Theorem 4.3: {values}"
        print_plan(plan, as_json, first)
        return
    report = None
    with running(run):
        found = run_theorems(opened, settings)
        if run is not None:
            write_theorems(run, opened, found)
            report = build_report(run.path)
    print_found(found, to_dict(opened, found), as_json, report, (*found.notes, *opened.given.notes))
