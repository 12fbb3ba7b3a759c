"""``mergescope evaluate``: accuracy and loss of models and of points between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--points")


def evaluate(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    points: Annotated[list[str] | None, typer.Option(help='"base + 0.3*sum", [NAME=]merged directory ...')] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory for results.parquet and run.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Accuracy and loss of base, fine-tunes, their average and further points, task by task.

    Each data set is passed once through all of them. Points are combinations of
    the models ("mean", "base + 0.3*sum" for all task vectors, "base - 0.5*(a -
    base)") or merged models: NAME=directory. Normalised accuracy is relative to
    each task's own fine-tune.

    [bold]Example:[/] mergescope evaluate --family runs/family --regime full --points "base + 0.3*sum" ties=merged/
    """
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.tuning import ArithmeticSettings
    from mergescope.reports import build_report
    from mergescope.studies.arithmetic import EVALUATE, evaluate_opened, to_dict, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.named_points import open_points
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run
    from mergescope.studies.search_plans import plan_evaluation

    require_family(family, regime)
    run = None if out is None or dry_run else open_run(out, EVALUATE)
    settings = ArithmeticSettings(linearized=linearized, executor=executor, device=device, seed=seed)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(linearized=linearized, executor=executor, device=device, seed=seed)
    opened = open_models(family, regime, base, models or (), wanted, own, dtype)
    extra = open_points(tuple(points or ()), opened.given)
    if dry_run:
        print_plan(plan_evaluation(opened, extra, settings), as_json)
        return
    report = None
    with running(run):
        found = evaluate_opened(opened, extra, settings)
        if run is not None:
            write_result(run, EVALUATE, found, {"test": opened}, settings)
            report = build_report(run.path)
    print_found(found, to_dict(found, opened.regime), as_json, report)
