"""``mergescope check``: what stands against a merge."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mergescope.cli.family_options import FAMILY, REGIME, models_or_family
from mergescope.cli.printing import print_json


def check(
    models: Annotated[
        list[str] | None, typer.Argument(help="A recipe (.yml), or models: paths or hub ids.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY)] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read headers, configs and tokenizers only.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Name every tensor of every finding.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every tensor named.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if there are warnings.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Chunks at once (default: one a core, 8 at most).")
    ] = None,
) -> None:
    """Compare models before a merge, and tell all that stands against it.

    Keys, shapes, dtypes, configurations, tokenizers, tied heads, NaN, and whether the models descend
    from the base.

    Exit codes: 0 can be merged; 2 can't, or a file can't be read; 3 can, but there are warnings and
    --strict was given.

    [bold]Example:[/] mergescope check org/a org/b --base org/base
    """  # noqa: DOC501 (typer shows this text to users)
    from pathlib import Path

    from mergescope.errors import MergescopeError, near_paths
    from mergescope.merging.check import check as run
    from mergescope.merging.merge import default_threads

    given = models_or_family(models, base, family, regime)
    models = models or []
    recipes = [name for name in models if name.endswith((".yml", ".yaml")) and not Path(name).is_dir()]
    if recipes and (len(models) > 1 or base is not None):
        raise MergescopeError(
            f"{recipes[0]} is a recipe and names its models: give it alone, without --base."
        )
    if len(models) == 1 and base is None and not Path(models[0]).expanduser().exists():
        raise MergescopeError(
            f"There is no recipe {models[0]!r}.{near_paths(models[0])} Name a recipe, two models or more, or a model "
            "and --base."
        )
    count = threads or default_threads()
    if given is not None:
        report = run(given[1], given[0], fast=fast, threads=count, progress=True)
    elif recipes:
        report = run(recipe=Path(recipes[0]), fast=fast, threads=count, progress=True)
    else:
        report = run(models, base, fast=fast, threads=count, progress=True)
    said = _expected(report, given, recipes, base)
    if as_json:
        print_json({**report.to_dict(), "expected": None if said is None else said.to_dict()})
    else:
        from rich.console import Console

        from mergescope.reports.check_tables import report_parts

        console = Console(highlight=False, markup=False, emoji=False)
        for part in report_parts(report, everything):
            console.print(part)
        if said is not None:
            console.print(f"\n{said.text}", markup=False)
    raise typer.Exit(report.exit_code(strict))


def _expected(report: Any, given: Any, recipes: list[str], base: str | None) -> Any:
    # Nothing is read again where nothing was measured.
    if report.geometry is None or report.base is None:
        return None
    from mergescope.studies.expected_merges import expected_of_check
    from mergescope.weights.references import open_model

    if given is None and recipes:
        from mergescope.merging.recipe import read_recipe

        base = read_recipe(recipes[0]).base_model
    return expected_of_check(report, given[0] if given is not None else open_model(str(base)))
