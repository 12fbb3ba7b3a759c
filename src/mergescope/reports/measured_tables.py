"""Tables of a measurement's report: verdicts, layers, losses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergescope.reports.measured import FINE_TUNES, MERGED, TITLES, Measured, Told
from mergescope.reports.tables import NONE, Cell, Grid, interval, number

if TYPE_CHECKING:
    from mergescope.studies.rundir import Row

_LAYERS = {
    "cos": "cos",
    "baseline": "baseline",
    "coef": "coef",
    "gap": "gap",
    "gap_between": "gap / distance",
    "gap_rel": "gap / change",
    "cos_rel": "cos of changes",
    "coef_rel": "coef of changes",
}
_INTERVALS = (("cos", False), ("coef", False), ("gap", False), ("gap_rel", False), ("cos", True))
"""Measures, and whether by itself, whose intervals have room."""

_ALONE = {"cos": "cos by itself", "coef": "coef by itself"}


def verdict_grid(found: Measured, kind: str) -> Grid:
    """The layers that decide each pair, barriers and predictions.

    Args:
        found: the measurement.
        kind: of pairs.

    Returns:
        The table: one row a pair.
    """
    pairs = found.of_kind(kind)
    barriers = any(math.isfinite(found.barrier(pair)) for pair in pairs)
    agree = any(found.agreement(pair) for pair in pairs)
    columns = [
        "pair",
        "verdict",
        "lowest cos",
        "baseline there",
        "coef furthest from 1",
        f"largest {found.gap_title}",
    ]
    columns += ["loss barrier", "error barrier"] * barriers
    columns += ["same answer: first, second", "first, merged", "second, merged"] * agree
    body = []
    for pair in pairs:
        cos, coef, far = (found.worst(pair, measure) for measure in ("cos", "coef", found.gap))
        baseline = None if cos is None else found.row(pair, "baseline", cos.layer)
        cells = [
            Cell(pair.word),
            _placed(found, cos),
            Cell(NONE if baseline is None else number(baseline.mean)),
            _placed(found, coef),
            _placed(found, far),
        ]
        if barriers:
            cells += [Cell(number(found.barrier(pair, measure), sign=True)) for measure in ("loss", "error")]
        if agree:
            cells += [_share(found.agreement(pair, ends)) for ends in ("a, b", "a, middle", "b, middle")]
        body.append((pair.name, tuple(cells)))
    return Grid(f"{kind}: {TITLES[kind]}, α = {found.alpha:g}", tuple(columns), tuple(body))


def layer_grid(found: Measured, pair: Told) -> Grid:
    """Every measure of a pair at every layer.

    Args:
        found: the measurement.
        pair: which pair.

    Returns:
        The table, with 95 % intervals and the number of samples; measures that nowhere have a value are left out.
    """
    measures = {
        (name, local): title
        for local, names in ((False, _LAYERS), (True, _ALONE))
        for name, title in names.items()
        if any(math.isfinite(found.mean(pair, name, layer, local=local)) for layer in found.layers)
    }
    body = []
    for layer in found.layers:
        cells = []
        for name, local in measures:
            row = found.row(pair, name, layer, local=local)
            note = interval(row.low, row.high, 4) if row is not None and (name, local) in _INTERVALS else ""
            cells.append(Cell(NONE if row is None else number(row.mean, 4), note))
        cos = found.row(pair, "cos", layer)
        cells += [Cell(NONE), Cell(NONE)] if cos is None else [Cell(f"{cos.n:,}"), Cell(f"{cos.dead:,}")]
        body.append((layer + (" (trivial)" if layer in found.trivial else ""), tuple(cells)))
    columns = ("layer", *measures.values(), "samples", "dead")
    return Grid(f"α = {found.alpha:g}", columns, tuple(body))


def loss_grid(found: Measured) -> Grid | None:
    """Accuracy and loss of every model on all data.

    Args:
        found: the measurement.

    Returns:
        The table; None without labels.
    """
    data = list(dict.fromkeys(name for _, name in found.losses))
    models = [model for model in found.models if any((model, name) in found.losses for name in data)]
    if not models:
        return None
    columns = [f"{name}: {measure}" for name in data for measure in ("accuracy", "loss")]
    body = tuple(
        (
            model,
            tuple(_mean(found, model, name, measure) for name in data for measure in ("accuracy", "loss")),
        )
        for model in models
    )
    return Grid("Accuracy and loss of every model", ("model", *columns), body)


def merged_grid(found: Measured) -> Grid | None:
    """Accuracy and loss of the models in the middle of every pair, next to their ends.

    Args:
        found: the measurement.

    Returns:
        The table: one row a pair and data set; None without labels or pairs of fine-tunes.
    """
    body = []
    for pair in found.of_kind(FINE_TUNES):
        for name in pair.data:
            models = (pair.a, pair.b, pair.name + MERGED)
            if (models[-1], name) in found.losses:
                cells = [
                    _mean(found, model, name, measure) for measure in ("accuracy", "loss") for model in models
                ]
                body.append((f"{pair.name} · {name}", tuple(cells)))
    if not body:
        return None
    columns = [
        f"{measure}: {model}" for measure in ("accuracy", "loss") for model in ("first", "second", "merged")
    ]
    return Grid(
        f"Merged models next to their ends, α = {found.alpha:g}", ("pair · data", *columns), tuple(body)
    )


def _placed(found: Measured, row: Row | None) -> Cell:
    if row is None:
        return Cell(NONE)
    note = interval(row.low, row.high, 3)
    return Cell(f"{number(row.mean)} ({found.label(row)})", note)


def _share(row: Row | None) -> Cell:
    if row is None:
        return Cell(NONE)
    return Cell(f"{100 * row.mean:.1f}%", f"{100 * row.low:.0f} to {100 * row.high:.0f}%")


def _mean(found: Measured, model: str, data: str, measure: str) -> Cell:
    row = found.losses.get((model, data), {}).get(measure)
    return Cell(NONE) if row is None else Cell(number(row.mean), interval(row.low, row.high, 3))


def facts_grid(title: str, about: Any, names: Sequence[str]) -> Grid:
    """What is recorded of models or data, whatever it is.

    Args:
        title: what they are.
        about: name to a mapping of facts, or to one fact.
        names: of those that are shown even if nothing is recorded of them.

    Returns:
        The table; of a digest the first digits, with all of it as a note to hover over.

    Example:
        >>> grid = facts_grid("data", {"a": {"rows": 3, "sha": "0" * 40}}, ["b"])
        >>> grid.columns, [(name, [cell.text for cell in cells]) for name, cells in grid.rows]
        (('data', 'rows', 'sha'), [('b', ['–', '–']), ('a', ['3', '000000000000'])])
    """
    known = about if isinstance(about, Mapping) else {}
    facts = {str(name): fact if isinstance(fact, Mapping) else {"": fact} for name, fact in known.items()}
    table = {name: facts.get(name, {}) for name in dict.fromkeys([*names, *facts])}
    columns = list(dict.fromkeys(str(key) for fact in table.values() for key in fact))
    body = tuple(
        (name, tuple(_fact({str(key): value for key, value in fact.items()}.get(key)) for key in columns))
        for name, fact in table.items()
    )
    return Grid(title, (title, *columns), body)


def _fact(value: Any) -> Cell:
    if value is None or value in ("", [], {}):
        return Cell(NONE)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    text = "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return Cell(text[:12], text) if re.fullmatch(r"(\w+:)?[0-9a-f]{20,}", text) else Cell(text)
