"""Tables of a run: the compact one for the terminal, and the cells of the report's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergescope.reports.results import ALL_TASKS, ENSEMBLE, Results, Spread, model_rank, spread
from mergescope.reports.verdicts import RULE, Family, pairs_holding, worst_layer
from mergescope.studies.rundir import Row

if TYPE_CHECKING:
    from rich.table import Table

EQUATIONS = {
    "ctl": "CTL, pairs",
    "eq1": "Eq. 1, average of all",
    "eq2": "Eq. 2, addition",
    "eq3": "Eq. 3, negation",
}
"""Linearity tests of fine-tuned models, and what tables call them."""

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is shown.
        note: smaller text below it, such as a range.
        bold: whether it stands out.
    """

    text: str
    note: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: what it is about.
        columns: headings; the first is that of the row names.
        rows: name of the row, then its cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number for a table.

    Args:
        value: the number.
        digits: after the point.
        sign: whether positive numbers get one.

    Returns:
        Text; a dash for NaN, ∞ for infinite numbers, a true minus sign for negative ones.

    Example:
        >>> number(0.12345), number(-0.5, 1), number(float("nan")), number(float("-inf"))
        ('0.123', '−0.5', '–', '−∞')
    """
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞" if sign else "∞"
    value = round(value, digits) + 0.0  # no minus zero
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def significant(value: float) -> str:
    """A number for a table that may be small.

    Args:
        value: the number.

    Returns:
        Text as of [`number`][]; below 0.1 three significant digits, so that its sign and size are seen.

    Example:
        >>> significant(0.5), significant(-0.000123), significant(0.0), significant(float("inf"))
        ('0.500', '−0.000123', '0.000', '∞')
    """
    return f"{value:.3g}".replace("-", "−") if 0 < abs(value) < 0.1 else number(value)


def interval(low: float, high: float, digits: int = 2) -> str:
    """A range for a table.

    Args:
        low: its lower end.
        high: its upper end.
        digits: after the point.

    Returns:
        Text; empty if an end is NaN.

    Example:
        >>> interval(0.5, 1)
        '0.50 to 1.00'
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, digits)} to {number(high, digits)}"


def summary_table(rows: Sequence[Row]) -> Table:
    """What a run found, one line a network and regime, for the terminal.

    Args:
        rows: the results of a run.

    Returns:
        A rich table, readable from 80 characters on.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    results = Results(rows)
    table = Table(
        title=f"Cross-Task Linearity at α = {results.alpha:g}, and what merging gives",
        caption=f"cos: mean over pairs at the worst layer. {RULE} acc.: normalised accuracy, 1 = single-task models.",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        title_justify="left",
        padding=0,
    )
    table.add_column("\nfamily", overflow="fold", min_width=12)
    names = ("\ncos", "base-\nline", "\ncoef", "CTL\nholds", "LLFC\nholds", "error\nbarrier")
    for name in (*names, "acc.:\naverage", "task\narith.", "ensem-\nble"):
        table.add_column(name, justify="right", no_wrap=True)
    for family in results.families:
        cells = [" ".join(family), *_summary(results, family)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _summary(results: Results, family: Family) -> list[str]:
    layer = worst_layer(results, family)
    cos, baseline = (
        math.nan if layer is None else results.spread(family, "ctl", name, at=results.alpha, layer=layer).mean
        for name in ("cos", "baseline")
    )
    evidence = results.evidence(family[0])
    coef = spread(
        row.mean for row in results.select(family, "ctl", "coef", at=results.alpha) if row.layer in evidence
    )
    holds = []
    for measure in ("CTL holds", "LLFC holds"):
        passed, tested = pairs_holding(results, family, measure, results.alpha)
        holds.append(f"{passed}/{tested}" if tested else NONE)
    worst = results.spread(family, "barrier", "error").high
    merged = []
    for start in ("average", "task arithmetic", ENSEMBLE):
        label = results.model(family, start)
        merged.append(math.nan if label is None else _normalised(results, family, label))
    coefs = f"{number(coef.low, 2)}–{number(coef.high, 2)}" if coef.n else NONE
    barrier = f"{number(100 * worst, 1, sign=True)}%" if math.isfinite(worst) else NONE
    return [number(cos), number(baseline), coefs, *holds, barrier, *(number(value, 2) for value in merged)]


def _normalised(results: Results, family: Family, label: str) -> float:
    return results.value(family, "accuracy", "normalised accuracy", points=label)


def accuracy_grid(results: Results, family: Family) -> Grid:
    """Accuracy of every model on every task, the best merged model in bold.

    Merged means one set of weights: the ensemble, which runs every model, does not compete.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        The table.
    """
    labels = results.models(family)
    columns = [(task, "accuracy") for task in results.tasks]
    columns += [(ALL_TASKS, "accuracy"), (ALL_TASKS, "normalised accuracy")]
    found = {
        (label, column): next(
            iter(results.select(family, "accuracy", column[1], points=label, data=column[0])), None
        )
        for label in labels
        for column in columns
    }
    merged = [label for label in labels if model_rank(label) == 2]
    best = {
        column: max((row.mean for label in merged if (row := found[label, column]) and math.isfinite(row.mean)),
                    default=math.nan)
        for column in columns
    }  # fmt: skip

    def cell(label: str, column: tuple[str, str]) -> Cell:
        row = found[label, column]
        if row is None:
            return Cell(NONE)
        bold = label in merged and row.mean == best[column]
        return Cell(number(row.mean), interval(row.low, row.high), bold)

    body = tuple((label, tuple(cell(label, column) for column in columns)) for label in labels)
    return Grid(_title(family), ("model", *results.tasks, "mean", "normalised"), body)


def equation_grid(results: Results, family: Family) -> Grid:
    """cos, coef, gap and baseline of CTL and Eq. 1 to 3 at every layer.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        The table: mean over pairs (Eq. 3: over tasks), with the range below.
    """
    measures = ("cos", "baseline", "coef", "gap", "gap_between", "cos_rel")
    trivial = results.trivial(family[0])
    body = []
    for kind, title in EQUATIONS.items():
        for layer in results.layers(family[0]):
            found = [
                results.spread(family, kind, name, at=results.at(kind), layer=layer) for name in measures
            ]
            if found[0].n:
                name = f"{title.split(',')[0]} · {layer}" + (" (trivial)" if layer in trivial else "")
                body.append((name, tuple(_spread_cell(value) for value in found)))
    columns = ("test · layer", "cos", "baseline", "coef", "gap", "gap / distance", "cos of changes")
    return Grid(_title(family), columns, tuple(body))


def pair_grid(results: Results, family: Family) -> Grid:
    """Cosine of every pair at every layer with its 95 % bootstrap interval over samples, and the baseline.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        The table: one row a pair, one column a layer.
    """
    trivial = results.trivial(family[0])
    layers = results.layers(family[0])
    body = []
    for pair in results.pairs:
        cells = []
        for layer in layers:
            cos, baseline = (
                next(
                    iter(results.select(family, "ctl", name, at=results.alpha, points=pair, layer=layer)),
                    None,
                )
                for name in ("cos", "baseline")
            )
            if cos is None or baseline is None:
                cells.append(Cell(NONE))
                continue
            note = f"{interval(cos.low, cos.high, 4)}; {number(baseline.mean, 2)}"
            cells.append(Cell(number(cos.mean, 4), note))
        body.append((pair, tuple(cells)))
    columns = [f"{layer} (trivial)" if layer in trivial else layer for layer in layers]
    return Grid(_title(family), ("pair", *columns), tuple(body))


def barrier_grid(results: Results) -> Grid:
    """Loss and error barriers of every pair.

    Args:
        results: of a run.

    Returns:
        The table.
    """
    columns = [
        f"{network}, {regime}: {measure}"
        for network, regime in results.families
        for measure in ("loss", "error")
    ]
    body = tuple(
        (
            pair,
            tuple(
                Cell(number(results.value(family, "barrier", measure, points=pair), sign=True))
                for family in results.families
                for measure in ("loss", "error")
            ),
        )
        for pair in results.pairs
    )
    return Grid("Barriers", ("pair", *columns), body)


def null_grid(results: Results, family: Family) -> Grid:
    """The null baselines beside the same pair of fine-tuned models.

    Args:
        results: of a run.
        family: network and regime.

    Returns:
        The table.
    """
    measures = ("cos", "baseline", "coef", "gap_between", "cos_rel")
    pairs = {
        row.points for kind in ("null-init", "null-random") for row in results.select(family, kind, "cos")
    }
    names = {
        "ctl": "fine-tuned pair",
        "null-init": "other initialisation",
        "null-random": "random directions",
    }
    body = []
    for layer in results.layers(family[0]):
        for kind, title in names.items():
            values = (
                spread(
                    row.mean
                    for row in results.select(family, kind, name, at=results.at(kind), layer=layer)
                    if row.points in pairs
                )
                for name in measures
            )
            body.append((f"{layer} · {title}", tuple(Cell(number(value.mean)) for value in values)))
    columns = ("layer · models", "cos", "baseline", "coef", "gap / distance", "cos of changes")
    return Grid(_title(family), columns, tuple(body))


def _spread_cell(value: Spread) -> Cell:
    return Cell(number(value.mean), interval(value.low, value.high) if value.n > 1 else "")


def _title(family: Family) -> str:
    return f"{family[0]}, {family[1]}"
