"""``mergescope soup``: models averaged, the best ones or all of them, against their ensemble."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergescope.cli.evaluate import print_json, print_plan
from mergescope.cli.family_options import FAMILY, REGIME, require_family

if TYPE_CHECKING:
    from mergescope.studies.given import Given

VARIADIC = ("--models", "--data", "--layers")

STUDY = "soup"
"""What ``run.yaml`` calls it."""


def soup(
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    size: Annotated[int, typer.Option(min=0, help="Measure all subsets of so many models; 0: make soups.")] = 0,
    subset_limit: Annotated[int, typer.Option(min=1, help="Subsets at most; more are drawn by chance.")] = 200,
    layers: Annotated[list[str] | None, typer.Option(help="Whose features subsets are measured by (blocks).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory for results.parquet and run.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split that figures are of (default: test).")] = None,
    validation_split: Annotated[str, typer.Option(help="Split that greedy soups are chosen on.")] = "validation",
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of samples, drawn subsets and intervals.")] = 0,
) -> None:  # fmt: skip
    """Average models, and compare the average with the ensemble of their logits.

    Soups (the default): the average of all models, and the greedy one, which takes
    models in the order of their validation accuracy as long as that does not fall;
    next to the best model and the ensemble, on test data.
    --size K: all subsets of K models on test data: accuracy of averaged weights
    and of averaged logits, their correlation, and linearity of every layer (Eq. 1).

    [bold]Example:[/] mergescope soup --models run1 run2 run3 run4 --data org/texts --size 3
    """
    from mergescope.protocols.soups import SoupSettings, soups, subsets
    from mergescope.protocols.tuning import ArithmeticSettings
    from mergescope.studies.arithmetic import open_run, to_dict, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.search_plans import open_given, require_apart

    require_family(family, regime)
    run = None if out is None or dry_run else open_run(out, STUDY)
    passes = ArithmeticSettings(linearized=linearized, executor=executor, device=device, seed=seed)
    settings = SoupSettings(
        layers=tuple(layers) if layers and layers != ["blocks"] else "blocks", limit=subset_limit,
        linearized=linearized, executor=executor, device=device, seed=seed,
    )  # fmt: skip
    wanted = DataOptions(tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed)
    given = (family, regime, base, tuple(models or ()))
    parts = {"test": open_given(*given, wanted, passes)}
    if not size:
        parts["validation"] = open_given(*given, replace(wanted, split=validation_split), passes)
        require_apart(parts["validation"], parts["test"])
    if dry_run:
        print_plan(_plan(parts, size, subset_limit), as_json)
        return
    held = {name: {data.name: data for data in part.held} for name, part in parts.items()}
    opened = parts["test"]

    def found() -> Any:
        if size:
            return subsets(opened.models, held["test"], size, base=opened.base, settings=settings)
        return soups(opened.models, held["validation"], held["test"], base=opened.base, settings=settings)

    if run is None:
        result = found()
    else:
        with run.locked():
            result = found()
            write_result(run, STUDY, result, regime or "given", passes, parts)
    if as_json:
        print_json(to_dict(result, regime or "given"))
        return
    typer.echo(str(result))


def _plan(parts: dict[str, Given], size: int, subset_limit: int) -> dict[str, Any]:
    from math import comb

    count = len(parts["test"].models)
    batches = {name: sum(map(len, part.batches.values())) for name, part in parts.items()}
    if size:
        averages = min(comb(count, size), subset_limit)
        names = [*parts["test"].models, f"{averages:,} averages of {size}"]
        passes = (count + averages + (parts["test"].base is not None)) * batches["test"]
    else:
        names = [*parts["test"].models, "uniform", f"up to {count - 1} steps of the greedy soup"]
        passes = 2 * count * batches["validation"] + (count + 2) * batches["test"]  # at most
    samples = {
        name: {task: data.samples for task, data in part.batches.items()} for name, part in parts.items()
    }
    return {"points": names, "samples": samples, "forward_passes": passes}
