"""``mergescope geometry``: lengths, angles and sign conflicts of task vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergescope.cli.family_options import FAMILY, REGIME, models_or_family
from mergescope.errors import MergescopeError


def geometry(
    models: Annotated[list[str] | None, typer.Argument(help="Fine-tuned models: paths or hub ids.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY)] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for geometry.parquet and figures (SVG, PNG).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Chunks at once (default: one a core).")] = None,
) -> None:
    """Measure task vectors: relative distances, cosines, sign conflicts; by block and kind of module.

    [bold]Example:[/] mergescope geometry org/a org/b --base org/base --out geometry/
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.merging.merge import default_threads
    from mergescope.weights.geometry import geometry as run

    given = models_or_family(models, base, family, regime)
    if given is None:
        from mergescope.merging.check import open_distinct

        if not models or base is None:
            raise MergescopeError("Name the models and --base, or --family DIR.")
        first, *others = open_distinct([base, *models])
    else:
        first, others = given
    found = run(first, others, threads=threads or default_threads(), progress=True)
    if out is not None:
        from mergescope.reports.geometry_figures import write_geometry_figures
        from mergescope.studies.rundir import write_table

        rows = found.rows()
        write_table(
            out / "geometry.parquet", {name: [getattr(row, name) for row in rows] for name in vars(rows[0])}
        )
        write_geometry_figures(found, out / "figures")
    if as_json:
        import json

        from mergescope.merging.findings import plain

        typer.echo(json.dumps(plain([vars(row) for row in found.rows()]), indent=1))
        return
    from rich.console import Console

    from mergescope.reports.check_tables import geometry_parts

    console = Console(highlight=False)
    for part in geometry_parts(found):
        console.print(part)
    if out is not None:
        typer.echo(f"Table and figures: {out}")
