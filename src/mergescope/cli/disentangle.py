"""``mergescope disentangle``: does one task's vector change what the model does on another's data?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.data_options import Rows
from mergescope.cli.family_options import FAMILY, REGIME, require_family
from mergescope.cli.printing import JSON, print_found, print_plan

VARIADIC = ("--models", "--data", "--pairs", "--box")


def disentangle(
    rows: Rows,
    models: Annotated[list[str] | None, typer.Option(help="[NAME=]path, hub id or base+adapter; several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="NAME=hub id or path, one a model.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY + " In place of models and data.")] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    pairs: Annotated[list[str] | None, typer.Option(help="Pairs of tasks, a:b; several. Default: all.")] = None,
    preset: Annotated[str, typer.Option(help="tangent: 20 x 20 to +-3; attn: 15 x 15 to +-2.")] = "tangent",
    points: Annotated[int | None, typer.Option(min=2, help="Points a side, in place of the preset's.")] = None,
    reach: Annotated[float | None, typer.Option(help="Largest coefficient, in place of the preset's.")] = None,
    distance: Annotated[str, typer.Option(help="predictions, or kl (symmetrised divergence).")] = "predictions",
    layer: Annotated[str | None, typer.Option(help="With kl: compare features of this layer.")] = None,
    features: Annotated[str, typer.Option(help="Of that layer: auto, all, mean, last or cls (token).")] = "auto",
    threshold: Annotated[float, typer.Option(min=0, help="Errors below it count as small in the summary.")] = 0.1,
    box: Annotated[list[float] | None, typer.Option(help="Ends of the search box (0 1).")] = None,
    linearized: Annotated[bool | None, typer.Option(help="In the linearised network (auto: if trained so).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples of each task, drawn with the seed.")] = 2048,
    split: Annotated[str | None, typer.Option(help="Split of the data (default: test, else validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Run directory for results and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open everything, print the plan and stop.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of intervals.")] = 0,
) -> None:  # fmt: skip
    """Measure the weight disentanglement error of pairs of tasks, over a square of coefficients.

    xi(a1, a2) is how often the edited model, base + a1 tau_1 + a2 tau_2, says
    something else than base + a1 tau_1 on the first task's data, and than
    base + a2 tau_2 on the second's: from 0 to 2. Where it is small, task
    vectors don't get in each other's way. The summary tells the mean, and the
    share of the square (and of the box that coefficients are searched in)
    where it is below the threshold.

    A pair costs n^2 + n forward passes on each task's data; three if the models
    were trained in the linearised regime.

    [bold]Example:[/] mergescope disentangle --family runs/family --regime full --preset attn --out xi/
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.errors import MergescopeError
    from mergescope.protocols.disentanglement import DisentanglementSettings
    from mergescope.protocols.error_grids import BOX, preset_grid
    from mergescope.protocols.measure import Settings
    from mergescope.reports import build_report
    from mergescope.studies.disentangled import (
        STUDY,
        plan_disentanglement,
        run_disentanglement,
        to_dict,
        write_disentanglement,
    )
    from mergescope.studies.given import DataOptions
    from mergescope.studies.protocol_runs import open_models, running
    from mergescope.studies.rundir import open_run

    require_family(family, regime)
    count, far = preset_grid(preset)
    if box and (len(box) != 2 or box[0] > box[1]):
        raise MergescopeError(
            f"A search box has two ends, got {' '.join(f'{end:g}' for end in box)}: --box 0 1."
        )
    settings = DisentanglementSettings(
        points or count, far if reach is None else reach, parse_pairs(pairs), distance, layer, features, limit,
        threshold, (box[0], box[1]) if box else BOX, linearized, device=device, seed=seed,
    )  # fmt: skip
    run = None if out is None or dry_run else open_run(out, STUDY)
    wanted = DataOptions(
        tuple(data or ()), split, limit=limit, batch_size=batch_size, seed=seed, answers=True, **rows
    )
    own = Settings(linearized=linearized, device=device, seed=seed)
    opened = open_models(family, regime, base, models or (), wanted, own, dtype)
    if dry_run:
        plan = plan_disentanglement(opened, settings)
        where = "the linearised network" if plan["linearized"] else "the network"
        most = max(plan["points"].values())
        print_plan(
            plan,
            as_json,
            f"{len(plan['pairs'])} pairs of tasks in {where}; at most {most:,} points on a task's data",
        )
        return
    report = None
    with running(run):
        found = run_disentanglement(opened, settings)
        if run is not None:
            write_disentanglement(run, opened, found)
            report = build_report(run.path)
    print_found(found, to_dict(opened, found), as_json, report, (*found.notes, *opened.given.notes))


def parse_pairs(texts: list[str] | None) -> tuple[tuple[str, str], ...] | None:
    """Pairs of tasks as they are typed.

    Args:
        texts: each ``a:b``.

    Returns:
        Pairs of names, or None for all.

    Raises:
        MergescopeError: a text is no pair.

    Example:
        >>> parse_pairs(["a:b", "a:c"])
        (('a', 'b'), ('a', 'c'))
    """
    from mergescope.errors import MergescopeError

    if not texts:
        return None
    found = []
    for text in texts:
        one, colon, other = text.partition(":")
        if not (one and colon and other):
            raise MergescopeError(f"{text!r} is no pair of tasks. Name two with a colon: --pairs a:b.")
        found.append((one, other))
    return tuple(found)
