"""``mergescope evaluate``: accuracy and loss of models and of points between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.family_options import FAMILY, REGIME, require_family

VARIADIC = ("--models", "--data", "--points")


def evaluate(
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several. NAME: whose task.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    points: Annotated[list[str] | None, typer.Option(help='"base + 0.3*sum", [NAME=]merged directory ...')] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory for results.parquet and run.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of texts, or two with a comma.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of the tokenizer or image processor.")] = None,
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
    from mergescope.protocols.tuning import ArithmeticSettings
    from mergescope.studies.arithmetic import EVALUATE, evaluate_given, open_run, to_dict, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.named_points import open_points
    from mergescope.studies.search_plans import open_given, plan_evaluation

    require_family(family, regime)
    run = None if out is None or dry_run else open_run(out, EVALUATE)
    settings = ArithmeticSettings(linearized=linearized, executor=executor, device=device, seed=seed)
    wanted = DataOptions(
        tuple(data or ()), split, text_column=text_column, image_column=image_column, label_column=label_column,
        limit=limit or None, batch_size=batch_size, processor=tokenizer, seed=seed,
    )  # fmt: skip
    given = open_given(family, regime, base, tuple(models or ()), wanted, settings, dtype)
    extra = open_points(tuple(points or ()), given)
    if dry_run:
        print_plan(plan_evaluation(given, extra, settings), as_json)
        return
    if run is None:
        found = evaluate_given(given, extra, settings)
    else:
        with run.locked():
            found = evaluate_given(given, extra, settings)
            write_result(run, EVALUATE, found, regime or "given", settings, {"test": given})
    if as_json:
        print_json(to_dict(found, regime or "given"))
        return
    typer.echo(str(found))


def print_plan(plan: dict[str, Any], as_json: bool) -> None:
    """Print what a command will do.

    Args:
        plan: points, samples, forward passes.
        as_json: for scripts.
    """
    if as_json:
        print_json(plan)
        return
    for part, samples in plan["samples"].items():
        typer.echo(f"{part}: {', '.join(f'{count:,} of {task}' for task, count in samples.items())}")
    names = plan["points"]
    shown = names if len(names) <= 8 else [*names[:4], "...", *names[-2:]]
    typer.echo(
        f"{len(names):,} points: {'; '.join(shown)}\n{plan['forward_passes']:,} forward passes of a batch"
    )


def print_json(content: dict[str, Any]) -> None:
    """Print for scripts.

    Args:
        content: plain values.
    """
    import json

    typer.echo(json.dumps(content, indent=1, allow_nan=False))
