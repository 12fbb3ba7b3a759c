"""``mergescope predict``: what merges would do, before any is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.disentangle import parse_pairs
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--layers", "--pairs", "--alphas", "--lambdas", "--lams", "--checked")


def predict(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    pairs: Annotated[list[str] | None, typer.Option(help="Pairs of models, a:b; several. Default: all.")] = None,
    alphas: Annotated[list[float] | None, typer.Option(help="Interpolation weights (0.5).")] = None,
    lams: Annotated[
        list[float] | None, typer.Option("--lambdas", "--lams", help="Coefficients of addition and negation (0.4).")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run the merged models too, and compare.")] = False,
    checked: Annotated[
        list[float] | None, typer.Option(help="Coefficients of task addition that --measure runs (0.25 to 1).")
    ] = None,
    method: Annotated[str, typer.Option(help="jvp (exact), or differences (faster, less so).")] = "jvp",
    layers: Annotated[list[str] | None, typer.Option(help="Suffix patterns of layers (see mergescope layers).")] = None,
    features: Annotated[str, typer.Option(help="auto, all, mean, last, cls or each (token).")] = "auto",
    linearized: Annotated[
        bool | None, typer.Option(help="--no-linearized: expand models that were trained linearised as well.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples of each data set, drawn with the seed.")] = 256,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Predict how linear merges will be, how tasks interact, and what task addition will score.

    Features and outputs are expanded to second order around the base: from
    derivatives along the task vectors follow the gap of every pair and layer,
    of averages, additions and negations, the interaction that weight
    disentanglement asks to vanish, and the outputs for every coefficient. No
    merged model is run, unless --measure asks to compare.

    The prediction is good while task vectors are short: --measure tells the
    coefficient at which the third order takes over.

    [bold]Example:[/] mergescope predict --family runs/family --regime full --measure --out predicted/
    """
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.prediction.predict import PredictionSettings
    from mergescope.reports import build_report
    from mergescope.studies.expected_merges import expected_of_prediction
    from mergescope.studies.given import DataOptions
    from mergescope.studies.predicted import (
        STUDY,
        plan_prediction,
        run_prediction,
        to_dict,
        write_prediction,
    )
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run

    require_family(family, regime)
    settings = PredictionSettings(
        alphas=tuple(alphas or (0.5,)), lams=tuple(lams or (0.4,)), pairs=parse_pairs(pairs),
        layers=tuple(layers) if layers and layers != ["blocks"] else "blocks", features=features, samples=limit,
        measured=measure, checked=tuple(checked or (0.25, 0.5, 0.75, 1.0)), method=method, linearized=linearized,
        seed=seed,
    )  # fmt: skip
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(layers=settings.layers, features=features, linearized=linearized, device=device, seed=seed)
    opened = open_models(family, regime, base, models or (), wanted, own, dtype)
    if dry_run:
        plan = plan_prediction(opened, settings)
        run_too = max(plan["points"].values())
        more = f"; {run_too} models are run as well" if run_too else ""
        counts = f"{len(plan['pairs'])} pairs; {plan['derivatives']:,} second derivatives of a batch{more}"
        first = f"{counts}. In all, or what takes as long:"
        print_plan(plan, as_json, first)
        return
    report = None
    with running(run):
        found = run_prediction(opened, settings)
        if run is not None:
            write_prediction(run, opened, found)
            report = build_report(run.path)
    said = expected_of_prediction(opened, found)
    content = {**to_dict(opened, found), "expected": None if said is None else said.to_dict()}
    text = str(found) if said is None else f"{found}\n\n{said.text}"
    print_found(text, content, as_json, report, (*found.notes, *opened.given.notes))
