"""``mergescope measure``: how linear features are between given models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_json

VARIADIC = ("--models", "--data", "--layers", "--alphas")


def measure(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory for results, figures and the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    alphas: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Interpolation weights (0.5).")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Suffix patterns of layers (see mergescope layers).")] = None,
    features: Annotated[str, typer.Option(help="auto, all, mean, last, cls or each (token).")] = "auto",
    centred: Annotated[bool, typer.Option("--centred", help="Subtract the base's mean feature.")] = False,
    local: Annotated[bool, typer.Option(help="Also feed every layer the base's input.")] = True,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Re-estimate BatchNorm on a share of data.")] = False,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; the error is told.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Measure how linear features are between models, and where linearity breaks.

    For every two fine-tunes, and for the base and each, at every layer: cos and
    coef between the features of the interpolated model and the interpolation of
    the models' features (CTL), with intervals; loss barrier, accuracy and
    agreement of predictions where the data allow it.

    Where models end in different heads, their common body is measured. Data named
    like a model (--data spam=...) then run through that model's own head.

    A family that mergescope finetune made has models and data: --family DIR.

    [bold]Example:[/] mergescope measure --base org/base --models org/a org/b --data org/texts
    """
    from mergescope.protocols.measure import Settings
    from mergescope.studies.expected_merges import expected_of_measurement
    from mergescope.studies.given import DataOptions, Options, prepare
    from mergescope.studies.measured import STUDY, write_measurement
    from mergescope.studies.rundir import open_run

    require_family(family, regime)
    run = None if out is None or dry_run else open_run(out, STUDY)  # not after an hour of measuring
    settings = Settings(
        alphas=tuple(alphas or (0.5,)), layers=tuple(layers) if layers and layers != ["blocks"] else "blocks",
        features=features, local=local, centred=centred, executor=executor, device=device, seed=seed,
        linearized=linearized,
    )  # fmt: skip
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed, **rows
    )
    options = Options(base, tuple(models or ()), wanted, settings, dtype)
    if family is None:
        given = prepare(options, calibrate=calibrate)
    else:
        from mergescope.studies.given_family import prepare_family

        given = prepare_family(family, regime, options, calibrate=calibrate)
    if dry_run:
        _print_plan(given.plan(), as_json)
        return
    if run is None:
        found = given.run()
    else:
        from mergescope.reports import build_report
        from mergescope.studies.protocol_runs import running

        with running(run):
            found = given.run()
            write_measurement(run, found, given.config(), given.provenance())
            report = build_report(run.path)
    said = expected_of_measurement(given, found)
    if as_json:
        from mergescope.studies.measured import to_dict

        print_json({**to_dict(found), "expected": None if said is None else said.to_dict()})
        return
    from rich.console import Console

    from mergescope.reports.measurement import measurement_parts

    console = Console(highlight=False, markup=False, emoji=False)
    for part in measurement_parts(found):
        console.print(part)
    if said is not None:
        console.print(f"\n{said.text}", markup=False)
    if run is not None:
        typer.echo(f"Report: {report}")


def _print_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    samples = ", ".join(f"{count} of {name}" for name, count in plan["samples"].items())
    local = f", and {plan['local_passes']:,} through the layers alone" if plan["local_passes"] else ""
    typer.echo(
        f"{plan['models']} models, {_count(plan['pairs'], 'pair')}; at most {plan['points']} points in a pass; "
        f"{_count(plan['layers'], 'layer')} (features: {plan['features']})\nSamples: {samples}\n"
        f"{plan['forward_passes']:,} forward passes of a batch{local}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
