"""``mergescope stitch``: does the pretrained network understand mixed features?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--pairs", "--lambdas", "--layers")


def stitch(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="NAME=hub id or path, one a model.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    negate: Annotated[bool, typer.Option("--negate", help="Subtract each task, in place of adding pairs.")] = False,
    pairs: Annotated[list[str] | None, typer.Option(help="Pairs of tasks to add, a:b; several. Default: all.")] = None,
    lambdas: Annotated[list[float] | None, typer.Option(help="Coefficients (.1 to .5; --negate: 0 to 1).")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Suffix patterns of blocks (see mergescope layers).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each task; 0 for all.")] = 512,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Run the pretrained network from every block on, on mixed features of fine-tuned models.

    Adding: after each block, the mean of the features of base + 2 lambda tau_i
    and base + 2 lambda tau_j, on both tasks' data, next to the features of
    either alone. Negating: twice the base's features less those of base +
    lambda tau, next to those of base - lambda tau, on the task's data and on
    every other task's. If features add up as weights do, and the pretrained
    network understands the sum, accuracy stays high.

    [bold]Example:[/] mergescope stitch --family runs/family --regime full --out stitched/
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.cli.disentangle import parse_pairs
    from mergescope.errors import MergescopeError
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.stitching import StitchingSettings
    from mergescope.reports import build_report
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run
    from mergescope.studies.stitched import STUDY, plan_stitching, run_stitching, to_dict, write_stitching

    require_family(family, regime)
    if negate and pairs:
        raise MergescopeError(
            f"--negate subtracts one task at a time: leave --pairs {' '.join(pairs)} out, or --negate."
        )
    protocol = "negation" if negate else "addition"
    settings = StitchingSettings(
        tuple(lambdas) if lambdas else None, parse_pairs(pairs), tuple(layers) if layers else "blocks", seed
    )
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    opened = open_models(
        family,
        regime,
        base,
        models or (),
        wanted,
        Settings(executor="resident", device=device, seed=seed),
        dtype,
    )
    if dry_run:
        plan = plan_stitching(opened, protocol, settings)
        blocks, most = max(plan["layers"].values()), max(plan["points"].values())
        print_plan(plan, as_json, f"{blocks} blocks; at most {most:,} points on a task's data")
        return
    report = None
    with running(run):
        found = run_stitching(opened, protocol, settings)
        if run is not None:
            write_stitching(run, opened, found, settings)
            report = build_report(run.path)
    print_found(found, to_dict(opened, found), as_json, report, (*found.notes, *opened.given.notes))
