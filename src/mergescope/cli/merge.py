"""``mergescope merge``: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    recipe: Annotated[Path, typer.Argument(help="Recipe in mergekit's YAML.")],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted merge.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw random numbers.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Tensors at once (default: one a core).")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file, as 5GB or 512MiB.")] = "5GB",
    digests: Annotated[
        bool, typer.Option(help="Put the parents' content digests into the model card.")
    ] = True,
) -> None:
    """Merge models by a recipe into a directory that from_pretrained loads.

    [bold]Example:[/] mergescope merge recipe.yml merged/ --dry-run
    """  # noqa: DOC501 (typer's way to end with a status)
    import time

    from mergescope.errors import MergescopeError
    from mergescope.merging.merge import default_threads, parse_size, require_free, run_plan
    from mergescope.merging.plan import make_plan
    from mergescope.merging.recipe import read_recipe

    started = time.perf_counter()
    parse_size(max_shard_size)
    plan = make_plan(read_recipe(recipe), seed=seed)
    method = plan.recipe.method
    count = threads or default_threads()
    typer.echo(f"{method.name}: {method.summary}")
    typer.echo(
        f"{len(plan.models)} models, {len(plan.jobs)} tensors; read {plan.bytes_read / 1e9:.2f} GB, write "
        f"{plan.bytes_written / 1e9:.2f} GB; about {plan.expected_memory(count) / 1e6:.0f} MB of memory for "
        f"{count} threads"
    )
    for note in plan.notes:
        typer.echo(f"note: {note}")
    if dry_run:
        try:
            require_free(plan, out, overwrite)
        except MergescopeError as error:
            typer.echo(f"note: {error}")
        for job in plan.jobs:
            what = "copied" if job.copy else method.name
            typer.echo(f"  {job.name}  {job.spec}  {what} of {', '.join(job.labels)}")
        return
    try:
        run_plan(
            plan,
            out,
            threads=threads,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            resume=resume,
            digests=digests,
        )
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is done is kept: add --resume to go on from there.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Merged into {out} in {time.perf_counter() - started:.1f} s")
