"""What ``mergescope check`` and ``mergescope geometry`` print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mergescope.display import NONE
from mergescope.errors import printable
from mergescope.merging.findings import QUALITY, Report
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.style import shorten
from mergescope.weights.geometry import Geometry, Scope

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST_LAYERS = 24


def report_parts(report: Report, everything: bool = False) -> Iterator[Any]:
    """What to print of a report, in order.

    Args:
        report: the report.
        everything: name every tensor of every finding.

    Yields:
        Tables and texts for a rich console.
    """
    names = [name for name in report.models if name != report.base]
    title = ", ".join(names) + (f"; base {report.base}" if report.base else "; no base")
    yield Text(printable(title), style="bold")
    for finding in report.findings:
        head = Text(f"{finding.severity}: ", style=_COLOURS[finding.severity])
        yield head.append(printable(finding.message), style="default not bold")
        if everything and len(finding.items) > 1:
            yield Text(printable("\n".join(f"    {item}" for item in finding.items)), style="dim")
    if report.config:
        title = f"config.json: {len(report.config)} keys differ"
        table = _table()
        table.add_column("key", overflow="fold")
        for name in report.models:
            table.add_column(printable(shorten(name, 20)), overflow="fold")
        table.add_column("matters")
        for row in report.config:
            table.add_row(*map(printable, (row.key, *row.values, row.matters)))
        yield _titled(title, table)
    if report.verdicts:
        title = "Where the models come from"
        table = _table()
        table.add_column("pair", overflow="fold", ratio=2)
        table.add_column("verdict")
        table.add_column("reason", ratio=5)
        for verdict in report.verdicts:
            pair = f"{shorten(verdict.model, 24)} / {shorten(verdict.other, 24)}"
            table.add_row(pair, verdict.relation.word, verdict.reason)
        yield _titled(title, table)
        yield Text(f"\n{QUALITY}", style="dim")
    if report.geometry is not None and report.base is not None:
        yield distance_table(report.geometry, "layer")
    yield Text("")
    for skipped in report.skipped:
        yield Text(f"not checked: {printable(skipped)}", style="magenta")
    yield conclusion(report)


def conclusion(report: Report) -> Text:
    """The last line of a check.

    Args:
        report: the report.

    Returns:
        Whether the models can be merged.
    """
    return Text(report.says, style="bold red" if report.of("error") else "bold green")


def geometry_parts(found: Geometry) -> Iterator[Any]:
    """What to print of a geometry, in order.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry].

    Yields:
        Tables and texts for a rich console; pairs with a model that equals the base have a dash for their cosine.
    """
    total = found.total
    title = f"Task vectors against {found.base}: {total.entries:,} weights, |θ₀| = {total.base_norm:.4g}"
    table = _table()
    for column in ("model", "|τ|", "|τ| / |θ₀|", "unchanged"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for k, model in enumerate(found.models):
        table.add_row(
            model, f"{total.norms[k]:.4g}", f"{total.distances[k]:.4g}", f"{total.unchanged[k]:.1%}"
        )
    yield _titled(title, table)
    if len(found.models) > 1:
        yield _matrix(
            found,
            total.cosines.tolist(),
            "Cosine of task vectors",
            lambda cosine: f"{round(cosine, 3) + 0:.3f}",
        )
        yield _matrix(found, total.conflicts.tolist(), "Opposite signs where both changed", "{:.1%}".format)
    yield distance_table(found, "layer")
    yield distance_table(found, "kind")
    if found.left_out:
        yield Text(
            f"left out, as they are no weights: {', '.join(found.left_out)}", style="dim", overflow="fold"
        )


def regime_table(found: Mapping[str, Geometry]) -> Group:
    """Task vectors of the same tasks in several regimes, a line each (ATTN, Fig. 5).

    Args:
        found: label of a regime to the geometry of its models.

    Returns:
        Title and table: means over models, and over pairs of models that both differ from the base.
    """
    first = next(iter(found.values()))
    table = _table()
    for column in ("regime", "|τ| / |θ₀|", "unchanged", "cosine", "smallest", "largest", "opposite signs"):
        table.add_column(column, justify="left" if column == "regime" else "right")
    for label, geometry in found.items():
        total, count = geometry.total, len(geometry.models)
        pairs = [(i, j) for i in range(count) for j in range(i) if total.moved(i, j)]
        cosines = [float(total.cosines[i, j]) for i, j in pairs]
        conflicts = [float(total.conflicts[i, j]) for i, j in pairs]
        said = ["", "", "", ""]
        if pairs:
            said = [f"{value:.3f}" for value in (sum(cosines) / len(pairs), min(cosines), max(cosines))]
            said.append(f"{sum(conflicts) / len(pairs):.1%}")
        means = f"{float(sum(total.distances)) / count:.4g}", f"{float(sum(total.unchanged)) / count:.1%}"
        table.add_row(label, *means, *said)
    return _titled(f"Task vectors of {len(first.models)} tasks against {first.base}, by regime: means", table)


def distance_table(found: Geometry, scope: Scope) -> Group:
    """Relative distances by group.

    Args:
        found: from [`geometry`][mergescope.weights.geometry.geometry].
        scope: ``"layer"`` or ``"kind"``.

    Returns:
        Title and table; of very many blocks those in the middle are counted instead.
    """
    groups = found.groups(scope)
    title = f"Relative distance |τ| / |θ₀| by {'block' if scope == 'layer' else 'kind of module'}"
    table = _table()
    table.add_column("block" if scope == "layer" else "kind")
    table.add_column("weights", justify="right")
    for name in found.models:
        table.add_column(printable(shorten(name, 20)), justify="right")
    lines = [
        (label, f"{sums.entries:,}", *(f"{value:.3g}" for value in sums.distances))
        for label, sums in zip(short_layers(list(groups)), groups.values(), strict=True)
    ]
    if len(lines) > _MOST_LAYERS:
        half = _MOST_LAYERS // 2
        hidden = len(lines) - 2 * half
        lines = [*lines[:half], (f"… {hidden} more", *[""] * (len(found.models) + 1)), *lines[-half:]]
    for line in lines:
        table.add_row(*line)
    return _titled(title, table)


def _matrix(found: Geometry, values: list[list[float]], title: str, shown: Callable[[float], str]) -> Group:
    table = _table()
    table.add_column("")
    for name in found.models:
        table.add_column(shorten(name, 14), justify="right")
    moved = found.total.moved
    for i, (name, row) in enumerate(zip(found.models, values, strict=True)):
        cells = ("·" if i == j else shown(value) if moved(i, j) else NONE for j, value in enumerate(row))
        table.add_row(printable(shorten(name, 20)), *cells)
    return _titled(title, table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _titled(title: str, table: Table) -> Group:
    # A table's own title is wrapped to the table's width, which may be small.
    return Group(Text(f"\n{title}", style="bold"), table)
