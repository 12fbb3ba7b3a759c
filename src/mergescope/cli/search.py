"""``mergescope search``: coefficients and merge methods, chosen on validation data, judged on test data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan
from mergescope.errors import MergescopeError

if TYPE_CHECKING:
    from mergescope.protocols.compare import Way

VARIADIC = ("--models", "--data", "--grid", "--methods")


def search(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="NAME=hub id or path, one a model.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    coefficients: Annotated[bool, typer.Option("--coefficients", help="One coefficient a task.")] = False,
    groups: Annotated[int, typer.Option(min=1, help="Of layers, with coefficients of their own.")] = 1,
    objective: Annotated[str, typer.Option(help="accuracy, loss; unlabelled: entropy, agreement.")] = "auto",
    random: Annotated[bool, typer.Option("--random", help="Random search as well, at equal passes.")] = False,
    negate: Annotated[bool, typer.Option("--negate", help="Forget each task, and keep the others up.")] = False,
    control_data: Annotated[str | None, typer.Option(help="What --negate keeps up (default: other tasks).")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Compare ties:density=0.2, tsv ..., or usual.")] = None,
    grid: Annotated[list[float] | None, typer.Option(help="Coefficients (0, 0.05 ... 1).")] = None,
    extend: Annotated[bool, typer.Option(help="Go on while the grid's end is the best.")] = True,
    up_to: Annotated[float, typer.Option(help="Largest coefficient to go to.")] = 3.0,
    control: Annotated[float, typer.Option(min=0, max=1, help="Control accuracy that --negate keeps.")] = 0.95,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    split: Annotated[str | None, typer.Option(help="Split that figures are of (default: test).")] = None,
    validation_split: Annotated[str | None, typer.Option(help="Split to choose on (default: validation).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Samples of each data set; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    executor: Annotated[str, typer.Option(help="auto, resident, batched, or streamed (larger than memory).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of samples, intervals and random methods.")] = 0,
) -> None:  # fmt: skip
    """Find coefficients of task vectors on validation data, and report test accuracy.

    Addition (the default): base + lambda * sum of task vectors, lambda by mean
    normalised accuracy. --coefficients: one of each task's own, by a surrogate of the
    outputs that few points are passed through; the single lambda is kept unless they
    are clearly better. --negate: base - lambda * task vector, each task's accuracy
    as low as 95 % of the base's accuracy on control data allows: the other tasks, or
    --control-data, which a single task needs.
    --methods: merge methods in the same protocol, each as it is and tuned.

    Without labels: --coefficients --objective agreement (with the single-task models);
    then --split, if given, names labelled data to report of. Of language models on
    texts, --coefficients goes by loss, all else by the share of next tokens that are
    right. Linearised families are passed through their checkpoints only, whatever the
    grid.

    [bold]Example:[/] mergescope search --family runs/family --regime attention-1 --methods usual --out runs/methods
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.protocols.coefficients import SearchSettings
    from mergescope.protocols.coefficients.objectives import UNLABELLED
    from mergescope.protocols.compare import DEFAULT_METHODS, Way
    from mergescope.protocols.measure import Settings
    from mergescope.protocols.tuning import ArithmeticSettings
    from mergescope.reports import build_report
    from mergescope.studies.arithmetic import SEARCH, merge_command, to_dict, write_recipe, write_result
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_control, open_models, open_parts, running
    from mergescope.studies.rundir import open_run
    from mergescope.studies.search_plans import plan_coefficients, plan_search

    require_family(family, regime)
    _require_one(coefficients, negate, methods)
    if not coefficients and (groups > 1 or random or objective != "auto"):
        raise MergescopeError(
            "--groups, --objective and --random are of the search for --coefficients: give it too."
        )
    if coefficients and (not extend or up_to != ArithmeticSettings().limit):
        raise MergescopeError("--extend and --up-to are of the search for one coefficient: leave them out.")
    asked = {
        "--control": control != ArithmeticSettings().control_share,
        "--control-data": control_data is not None,
    }
    for option, said in asked.items():
        if said and not negate:
            raise MergescopeError(f"{option} is of --negate: give it too.")
    names = [name for text in methods or () for name in (DEFAULT_METHODS if text == "usual" else [text])]
    ways = [Way.parse(name) for name in names] if methods else None
    passes: dict[str, Any] = {"linearized": linearized, "executor": executor, "device": device, "seed": seed}
    settings: Any
    if coefficients:
        settings = SearchSettings(objective, groups, random=random, **passes)
    else:
        settings = ArithmeticSettings(extend=extend, limit=up_to, control_share=control, **passes)
    settings = replace(settings, grid=tuple(grid)) if grid else settings
    if not coefficients:
        settings.parts()  # before anything is opened
    run = None if out is None or dry_run else open_run(out, SEARCH)
    wanted = DataOptions(
        tuple(data or ()), limit=limit or None, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    given = (family, regime, base, models or (), wanted)
    if (
        objective in UNLABELLED and split is None
    ):  # there may be nothing to report of, and nothing is fitted to labels
        opened = open_models(*given[:4], replace(wanted, split=validation_split), Settings(**passes), dtype)
        parts = {"validation": opened}
    else:
        parts = open_parts(*given, (validation_split or "validation", split), Settings(**passes), dtype)
    opened = parts["validation"]
    if control_data is not None:
        parts |= open_control(parts, control_data)
    for way in ways or ():
        way.check(len(opened.models))
    if dry_run:
        plan = plan_coefficients(parts, settings) if coefficients else plan_search(
            parts, settings, negate=negate, ways=ways
        )  # fmt: skip
        print_plan(plan, as_json)
        return
    following = report = None
    with running(run):
        result = _found(parts, settings, coefficients, negate, ways)
        if run is not None:
            write_result(run, SEARCH, result, parts, settings)
            following = merge_command(result, opened, write_recipe(run, result, opened))
            report = build_report(run.path)
    print_found(result, to_dict(result, opened.regime), as_json, report)
    if following is not None and not as_json:
        typer.echo(f"Next: {following}")


def _found(parts: Any, settings: Any, coefficients: bool, negate: bool, ways: list[Way] | None) -> Any:
    from mergescope.protocols.arithmetic import task_addition
    from mergescope.protocols.coefficients import search_coefficients
    from mergescope.protocols.compare import compare_methods
    from mergescope.protocols.forgetting import CONTROL, task_negation

    base, models = parts["validation"].base, parts["validation"].models
    validation = parts["validation"].tasks
    test: Any = parts["test"].tasks if "test" in parts else None
    if coefficients:
        return search_coefficients(base, models, validation, test, settings)
    if ways is not None:
        return compare_methods(base, models, validation, test, ways, settings)
    if negate:
        both = [parts[part] for part in (f"validation {CONTROL}", f"test {CONTROL}") if part in parts]
        control: Any = tuple(opened.given.held[0] for opened in both) or None
        return task_negation(base, models, validation, test, settings, control=control)
    return task_addition(base, models, validation, test, settings)


def _require_one(coefficients: bool, negate: bool, methods: list[str] | None) -> None:
    asked = [
        name
        for name, wanted in (("--coefficients", coefficients), ("--negate", negate), ("--methods", methods))
        if wanted
    ]
    if len(asked) > 1:
        raise MergescopeError(f"{' and '.join(asked)} are searches of their own: run one after the other.")
