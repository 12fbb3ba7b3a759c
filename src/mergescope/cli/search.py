"""``mergescope search``: coefficients and merge methods, chosen on validation data, judged on test data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergescope.cli.evaluate import print_json, print_plan
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.errors import MergescopeError

if TYPE_CHECKING:
    from mergescope.studies.arithmetic import Result

VARIADIC = ("--models", "--data", "--grid", "--methods")


def search(
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="NAME=hub id or path, one a model.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    negate: Annotated[bool, typer.Option("--negate", help="Forget each task, and keep the others up.")] = False,
    methods: Annotated[list[str] | None, typer.Option(help="Compare ties:density=0.2, tsv ..., or usual.")] = None,
    grid: Annotated[list[float] | None, typer.Option(help="Coefficients (0, 0.05 ... 1).")] = None,
    extend: Annotated[bool, typer.Option(help="Go on while the grid's end is the best.")] = True,
    up_to: Annotated[float, typer.Option(help="Largest coefficient to go to.")] = 3.0,
    control: Annotated[float, typer.Option(min=0, max=1, help="Control accuracy that --negate keeps.")] = 0.95,
    out: Annotated[Path | None, typer.Option(help="Run directory for results.parquet and run.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split that figures are of (default: test).")] = None,
    validation_split: Annotated[str, typer.Option(help="Split that coefficients are chosen on.")] = "validation",
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of samples, intervals and random methods.")] = 0,
) -> None:  # fmt: skip
    """Find the coefficient of task arithmetic on validation data, and report test accuracy.

    Addition (the default): base + lambda * sum of task vectors, lambda by mean
    normalised accuracy. --negate: base - lambda * task vector, each task's accuracy
    as low as 95 % of the pretrained control accuracy on the other tasks allows.
    --methods: merge methods in the same protocol, each as it is and tuned.

    Linearised families are passed through their checkpoints only, whatever the grid.

    [bold]Example:[/] mergescope search --family runs/family --regime attention-1 --methods usual --out runs/methods
    """
    from mergescope.protocols.arithmetic import task_addition
    from mergescope.protocols.compare import DEFAULT_METHODS, Way, compare_methods
    from mergescope.protocols.forgetting import task_negation
    from mergescope.protocols.tuning import ArithmeticSettings
    from mergescope.studies.arithmetic import SEARCH, open_run, to_dict, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.search_plans import open_given, plan_search, require_apart, tasks_of

    require_family(family, regime)
    _require_one(negate, methods)
    names = [name for text in methods or () for name in (DEFAULT_METHODS if text == "usual" else [text])]
    ways = [Way.parse(name) for name in names] if methods else None
    settings = ArithmeticSettings(
        extend=extend, limit=up_to, control_share=control, linearized=linearized, executor=executor, device=device,
        seed=seed,
    )  # fmt: skip
    settings = replace(settings, grid=tuple(grid)) if grid else settings
    settings.parts()  # before anything is opened
    run = None if out is None or dry_run else open_run(out, SEARCH)
    wanted = DataOptions(
        tuple(data or ()), validation_split, limit=limit or None, batch_size=batch_size, seed=seed
    )
    parts = {
        name: open_given(family, regime, base, tuple(models or ()), replace(wanted, split=which), settings)
        for name, which in (("validation", validation_split), ("test", split))
    }
    chosen, reported = parts["validation"], parts["test"]
    validation, test = tasks_of(chosen), tasks_of(reported)
    require_apart(chosen, reported)
    for way in ways or ():
        way.check(len(chosen.models))
    if dry_run:
        print_plan(plan_search(chosen, reported, settings, negate=negate, ways=ways), as_json)
        return

    def found() -> Result:
        if ways is not None:
            return compare_methods(chosen.base, chosen.models, validation, test, ways, settings)
        protocol = task_negation if negate else task_addition
        return protocol(chosen.base, chosen.models, validation, test, settings)

    if run is None:
        result = found()
    else:
        with run.locked():
            result = found()
            write_result(run, SEARCH, result, regime or "given", settings, parts)
    if as_json:
        print_json(to_dict(result, regime or "given"))
        return
    typer.echo(str(result))


def _require_one(negate: bool, methods: list[str] | None) -> None:
    if negate and methods:
        raise MergescopeError("--negate and --methods are two searches: run one after the other.")
