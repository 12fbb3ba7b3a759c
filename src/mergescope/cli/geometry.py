"""``mergescope geometry``: lengths, angles and sign conflicts of task vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mergescope.cli.family_options import FAMILY, REGIME, models_or_family
from mergescope.cli.printing import print_json
from mergescope.errors import MergescopeError


def geometry(
    models: Annotated[list[str] | None, typer.Argument(help="Fine-tuned models: paths or hub ids.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were fine-tuned from.")] = None,
    family: Annotated[str | None, typer.Option(help=FAMILY)] = None,
    regime: Annotated[str | None, typer.Option(help=REGIME)] = None,
    by_regime: Annotated[
        bool, typer.Option("--by-regime", help="All regimes of a family, next to each other.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for geometry.parquet and figures (SVG, PNG).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Chunks at once (default: one a core, 8 at most).")
    ] = None,
) -> None:
    """Measure task vectors: relative distances, cosines, sign conflicts; by block and kind of module.

    [bold]Example:[/] mergescope geometry org/a org/b --base org/base --out geometry/
    """  # noqa: DOC501 (typer shows this text to users)
    from mergescope.merging.merge import default_threads
    from mergescope.weights.geometry import geometry as run

    if by_regime:
        if family is None or regime is not None:
            raise MergescopeError(
                "--by-regime compares the regimes of a family: give --family DIR, and no --regime."
            )
        _by_regime(family, models, base, out, as_json, threads or default_threads())
        return
    given = models_or_family(models, base, family, regime)
    if given is None:
        from mergescope.merging.check import open_distinct

        if not models or base is None:
            raise MergescopeError("Name the models and --base, or --family DIR.")
        first, *others = open_distinct([base, *models])
    else:
        first, others = given
    found = run(first, others, threads=threads or default_threads(), progress=True)
    rows = [vars(row) for row in found.rows()]
    if out is not None:
        from mergescope.reports.geometry_figures import write_geometry_figures
        from mergescope.reports.html import reports_left_out

        _write(rows, out)
        if not reports_left_out():
            write_geometry_figures(found, out / "figures")
    from mergescope.reports.check_tables import geometry_parts

    _print(rows, geometry_parts(found), as_json, out)


def _by_regime(
    family: str, models: list[str] | None, base: str | None, out: Path | None, as_json: bool, threads: int
) -> None:
    from mergescope.reports.check_tables import regime_table
    from mergescope.studies.families import read_family
    from mergescope.weights.geometry import geometry as run

    found = {}
    for label in read_family(Path(family)).regimes:
        given = models_or_family(models, base, family, label)
        assert given is not None  # there is a family
        found[label] = run(*given, threads=threads, progress=True)
    rows = [{"regime": label, **vars(row)} for label, of in found.items() for row in of.rows()]
    if out is not None:
        from mergescope.reports.geometry_figures import by_regime, write_figures

        _write(rows, out)
        several = {label: of for label, of in found.items() if len(of.models) > 1}
        write_figures({"regimes": by_regime(several)} if several else {}, out / "figures")
    _print(rows, [regime_table(found)], as_json, out)


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    from mergescope.studies.rundir import write_table

    write_table(out / "geometry.parquet", {name: [row[name] for row in rows] for name in rows[0]})


def _print(rows: list[dict[str, Any]], parts: Iterable[Any], as_json: bool, out: Path | None) -> None:
    if as_json:
        print_json(rows)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    if out is not None:
        typer.echo(f"Table and figures: {out}")
