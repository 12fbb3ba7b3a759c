"""``mergescope soup``: models averaged, the best ones or all of them, against their ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan
from mergescope.errors import MergescopeError

VARIADIC = ("--models", "--data", "--layers")


def soup(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="[NAME=]hub id or path; several.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    size: Annotated[int, typer.Option(min=0, help="Measure all subsets of so many models; 0: make soups.")] = 0,
    subset_limit: Annotated[int, typer.Option(min=1, help="Subsets at most; more are drawn by chance.")] = 200,
    layers: Annotated[list[str] | None, typer.Option(help="Whose features subsets are measured by (blocks).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory for results.parquet and run.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
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
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.soups import SoupSettings, soups, subsets
    from mergescope.reports import build_report
    from mergescope.studies.arithmetic import SOUP, to_dict, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, open_parts, running
    from mergescope.studies.rundir import open_run
    from mergescope.studies.search_plans import plan_soup

    require_family(family, regime)
    of_subsets = SoupSettings()
    if size and validation_split != "validation":
        raise MergescopeError("--size K is of test data alone: leave --validation-split out.")
    if not size and (layers or subset_limit != of_subsets.limit):
        raise MergescopeError("--layers and --subset-limit are of subsets: give --size K, too.")
    run = None if out is None or dry_run else open_run(out, SOUP)
    settings = SoupSettings(
        layers=tuple(layers) if layers and layers != ["blocks"] else "blocks", limit=subset_limit,
        linearized=linearized, executor=executor, device=device, seed=seed,
    )  # fmt: skip
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit or None, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(linearized=linearized, executor=executor, device=device, seed=seed)
    given = (family, regime, base, models or (), wanted)
    parts = {"test": open_models(*given, own)} if size else open_parts(*given, (validation_split, split), own)
    if dry_run:
        print_plan(plan_soup(parts, size, subset_limit), as_json)
        return
    test = parts["test"]

    def found() -> Any:
        if size:
            return subsets(test.models, test.data, size, base=test.given.base, settings=settings)
        return soups(
            test.models, parts["validation"].data, test.data, base=test.given.base, settings=settings
        )

    report = None
    with running(run):
        result = found()
        if run is not None:
            write_result(run, SOUP, result, parts, settings)
            report = build_report(run.path)
    print_found(result, to_dict(result, test.regime), as_json, report)
