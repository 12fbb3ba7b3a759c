"""``mergescope merge``: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergescope.cli.family_options import REGIME
from mergescope.cli.printing import JSON, print_json

if TYPE_CHECKING:
    from mergescope.merging.plan import Job, Plan


def merge(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe in mergekit's YAML.")] = None,
    out: Annotated[Path | None, typer.Argument(help="Directory to make.")] = None,
    family: Annotated[
        str | None,
        typer.Option(help="In place of a recipe: a family of mergescope finetune, or a published one."),
    ] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    method: Annotated[str | None, typer.Option(help="Of a family: linear, task_arithmetic, ties ...")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="Of a family's method: NAME=VALUE, for all models; several.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Of a family: where its base is now.")] = None,
    family_out: Annotated[Path | None, typer.Option("--out", help="Of a family: directory to make.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted merge.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of random methods (default: the recipe's, or 0).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Tensors at once (default: one a core, 8 at most).")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file, as 5GB or 512MiB.")] = "5GB",
    digests: Annotated[
        bool, typer.Option(help="Put the parents' content digests into the model card.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Merge models by a recipe into a directory that from_pretrained loads.

    All models of a family are merged without a recipe: mergescope merge --family DIR --method ties --out merged/

    [bold]Example:[/] mergescope merge recipe.yml merged/ --dry-run
    """
    import time

    from mergescope.errors import MergescopeError
    from mergescope.merging.merge import default_threads, parse_size, require_free
    from mergescope.merging.merge import merge as run
    from mergescope.merging.plan import make_plan
    from mergescope.merging.recipe import read_recipe

    started = time.perf_counter()
    parse_size(max_shard_size)
    source, opened, out = _what_and_where(recipe, out, family, family_out, (regime, method, parameter, base))
    plan = make_plan(read_recipe(source), seed=seed, opened=opened)
    if opened:
        plan.notes.append(
            f"vision towers of CLIP models: with --family {family} only, the recipe names whole models"
        )
    chosen = plan.recipe.method
    count = threads or default_threads()
    typer.echo(f"{chosen.name}: {chosen.summary}")
    typer.echo(
        f"{len(plan.models)} models, {len(plan.jobs)} tensors; read {_size(plan.bytes_read)}, write "
        f"{_size(plan.bytes_written)}; about {_size(plan.expected_memory(count))} of working memory for {count} threads"
    )
    for note in plan.notes:
        typer.echo(f"note: {note}")
    told = _told(plan, out, count)
    if dry_run:
        try:
            require_free(plan, out, overwrite)
        except MergescopeError as error:
            typer.echo(f"note: {error}")
            told["notes"].append(str(error))
        if as_json:
            print_json({**told, "plan": [_tensor(job) for job in plan.jobs]})
            return
        for job in plan.jobs:
            what = f"copied from {job.labels[0]}" if job.copy else f"{chosen.name} of {_shares(job)}"
            typer.echo(f"  {job.name}  {job.spec}  {what}")
        return
    run(
        plan, out, threads=threads, max_shard_size=max_shard_size, overwrite=overwrite, resume=resume,
        digests=digests,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    typer.echo(f"Merged into {out} in {seconds:.1f} s")
    if as_json:
        print_json({**told, "seconds": round(seconds, 2)})


def _told(plan: Plan, out: Path, threads: int) -> dict[str, Any]:
    return {
        "directory": str(out), "method": plan.recipe.method.name, "models": list(plan.models), "seed": plan.seed,
        "tensors": len(plan.jobs), "bytes_read": plan.bytes_read, "bytes_written": plan.bytes_written,
        "threads": threads, "expected_memory": plan.expected_memory(threads), "notes": list(plan.notes),
    }  # fmt: skip


def _tensor(job: Job) -> dict[str, Any]:
    values = {name: list(given) for name, given in job.values.per_model.items()}
    return {
        "name": job.name, "shape": list(job.spec.shape), "dtype": str(job.spec.dtype).removeprefix("torch."),
        "copied": job.copy, "models": list(job.labels[:1] if job.copy else job.labels),
        "parameters": {} if job.copy else {**values, **job.values.common},
    }  # fmt: skip


def _what_and_where(
    recipe: Path | None,
    out: Path | None,
    family: str | None,
    family_out: Path | None,
    said: tuple[str | None, str | None, list[str] | None, str | None],
) -> tuple[Any, dict[str, Any], Path]:
    from mergescope.errors import MergescopeError

    if family is None:
        if any(said) or family_out is not None:
            raise MergescopeError(
                "--regime, --method, --parameter, --base and --out are for --family DIR. A recipe says the rest: "
                "mergescope merge RECIPE OUT."
            )
        if recipe is None or out is None:
            raise MergescopeError(
                "Say what to merge and where: mergescope merge RECIPE OUT, or --family DIR --method METHOD --out OUT."
            )
        return recipe, {}, out
    if recipe is not None:
        raise MergescopeError(
            f"--family {family} takes the place of the recipe {recipe}. Name OUT with --out."
        )
    if family_out is None:
        raise MergescopeError("There is no place for the merged model. Give --out DIR.")
    from mergescope.studies.opened_families import family_recipe

    regime, method, parameters, base = said
    made, opened = family_recipe(family, regime, method, _parameters(parameters or []), base=base)
    return made, opened, family_out


def _parameters(texts: list[str]) -> dict[str, Any]:
    from mergescope.documents import DocumentError, load_yaml
    from mergescope.errors import MergescopeError

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not value:
            raise MergescopeError(
                f"--parameter {text!r} is not understood. Write NAME=VALUE, such as density=0.5."
            )
        try:
            found[name] = load_yaml(value)
        except DocumentError as error:
            raise MergescopeError(
                f"--parameter {text!r} is not understood: {error}. Write NAME=VALUE."
            ) from None
    return found


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
