"""``mergescope merge``: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mergescope.merging.plan import Job


def merge(
    recipe: Annotated[Path, typer.Argument(help="Recipe in mergekit's YAML.")],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted merge.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of random methods (default: the recipe's, or 0).")
    ] = None,
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
    from mergescope.merging.merge import default_threads, parse_size, require_free
    from mergescope.merging.merge import merge as run
    from mergescope.merging.plan import make_plan
    from mergescope.merging.recipe import read_recipe

    started = time.perf_counter()
    parse_size(max_shard_size)
    plan = make_plan(read_recipe(recipe), seed=seed)
    method = plan.recipe.method
    count = threads or default_threads()
    typer.echo(f"{method.name}: {method.summary}")
    typer.echo(
        f"{len(plan.models)} models, {len(plan.jobs)} tensors; read {_size(plan.bytes_read)}, write "
        f"{_size(plan.bytes_written)}; about {_size(plan.expected_memory(count))} of working memory for {count} threads"
    )
    for note in plan.notes:
        typer.echo(f"note: {note}")
    if dry_run:
        try:
            require_free(plan, out, overwrite)
        except MergescopeError as error:
            typer.echo(f"note: {error}")
        for job in plan.jobs:
            what = f"copied from {job.labels[0]}" if job.copy else f"{method.name} of {_shares(job)}"
            typer.echo(f"  {job.name}  {job.spec}  {what}")
        return
    try:
        run(
            plan, out, threads=threads, max_shard_size=max_shard_size, overwrite=overwrite, resume=resume,
            digests=digests,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is done is kept: add --resume to go on from there.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Merged into {out} in {time.perf_counter() - started:.1f} s")


def _shares(job: Job) -> str:
    told = []
    for place, label in enumerate(job.labels):
        values = [f"{name} {given[place]:g}" for name, given in job.values.per_model.items()]
        told.append(f"{label} ({', '.join(values)})" if values else label)
    return ", ".join(told)


def _size(count: int) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"
