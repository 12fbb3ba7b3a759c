"""What ``mergescope measure`` prints: verdicts, the numbers behind them, losses, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mergescope.protocols.measure import Measurement
from mergescope.reports.measured import FINE_TUNES, MERGED, TITLES, Measured, Told
from mergescope.reports.measured_words import headline, sentences
from mergescope.reports.style import shorten
from mergescope.reports.tables import NONE, interval, number
from mergescope.reports.verdicts import RULE
from mergescope.studies.measured import cost

if TYPE_CHECKING:
    from mergescope.studies.rundir import Row

_COLOURS = {"holds": "bold green", "partly": "bold yellow", "fails": "bold red", "unknown": "bold magenta"}
_MOST_PAIRS = 28
_MOST_REASONS = 6
_MOST_IN_FULL = 6
_MOST_DATA = 4
_WIDE = len("100.0% (1.234)")


def measurement_parts(found: Measurement) -> list[Any]:
    """What to print of a measurement, in order.

    Args:
        found: from [`measure`][mergescope.measure].

    Returns:
        Texts and tables for a rich console, readable from 80 characters on.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = ms.random_neighbour(base, base * 1.01, seed=0)
        >>> found = ms.measure(base, {"a": near}, [ms.HeldOut("noise", [torch.ones(3, 4)], net)])
        >>> str(measurement_parts(found)[0])
        'CTL holds for base and fine-tune at α = 0.5.'
    """
    return measured_parts(Measured.of(found), cost(found), found.notes)


def measured_parts(found: Measured, spent: Mapping[str, Any], notes: Sequence[str] = ()) -> list[Any]:
    """The same from stored results.

    Args:
        found: the measurement.
        spent: what it cost, as [`cost`][mergescope.studies.measured.cost] says.
        notes: what the user should know.

    Returns:
        Texts and tables for a rich console.
    """
    status, sentence = headline(found)
    parts: list[Any] = [Text(sentence, style=_COLOURS[status]), *map(Text, sentences(found))]
    parts += [pair_table(found, kind) for kind in found.kinds]
    parts.append(Text(f"\n{_caption(found)}", style="dim"))
    parts += _reasons(found)
    parts += loss_tables(found)
    parts.append(Text(f"\n{cost_line(spent)}", style="dim"))
    return [*parts, *(Text(f"note: {note}", style="cyan") for note in notes)]


def pair_table(found: Measured, kind: str) -> Group:
    """The verdict on each pair, and the layers that decide it; of many pairs, one line for each.

    Args:
        found: the measurement.
        kind: of pairs.

    Returns:
        Title and table; of very many pairs the least linear ones.
    """
    pairs = found.of_kind(kind)
    shown = pairs if len(pairs) <= _MOST_PAIRS else found.least_linear(pairs, _MOST_PAIRS)
    agree = any(found.agreement(pair) for pair in shown)
    losses = any(math.isfinite(found.barrier(pair)) for pair in shown)
    brief = len(pairs) > _MOST_IN_FULL
    join = " " if brief else "\n"
    table = _table()
    table.add_column("pair", overflow="fold", ratio=1, min_width=16)
    table.add_column("verdict", no_wrap=True)
    table.add_column("lowest\ncos" if brief else "lowest cos\n95 % interval", no_wrap=True)
    table.add_column("coef off\nmost", no_wrap=True)
    for title in (
        found.gap_title.replace(" / ", " /\n"),
        *["loss\nbarrier"] * losses,
        *["same\nanswer"] * agree,
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for pair in shown:
        cos, coef, gap = (found.worst(pair, measure) for measure in ("cos", "coef", found.gap))
        barrier, agreement = found.barrier(pair), found.agreement(pair)
        cells = [
            NONE if cos is None else _lowest(found, cos, brief),
            NONE if coef is None else number(coef.mean) + ("" if brief else f"\n({_place(found, coef)})"),
            NONE if gap is None else number(gap.mean),
            *[number(barrier, sign=True)] * losses,
            *[NONE if agreement is None else f"{100 * agreement.mean:.1f}%"] * agree,
        ]
        name = f"{shorten(pair.a, 32)} +{join}{shorten(pair.b, 32)}"
        table.add_row(name, Text(pair.word, style=_COLOURS[pair.status]), *cells)
    title = f"{kind}: {TITLES[kind]}, α = {found.alpha:g}"
    if len(shown) < len(pairs):
        title += f"; the {len(shown)} least linear of {len(pairs)} pairs"
    return _titled(title, table)


def _caption(found: Measured) -> str:
    relative = (
        "gap / change: distance between merged and mixed features, relative to what fine-tuning changed"
        if found.gap == "gap_rel"
        else "gap / distance: distance between merged and mixed features, relative to that between the two models"
    )
    same = "; same answer: how often both models predict the same" if _predicts(found) else ""
    many = any(len(found.of_kind(kind)) > _MOST_IN_FULL for kind in found.kinds)
    more = " The report (--out) has every layer, with intervals." if many else ""
    return f"In brackets: the layer. {relative} (largest of the layers){same}. {RULE}{more}"


def _predicts(found: Measured) -> bool:
    return any(found.agreement(pair) for pair in found.pairs)


def _lowest(found: Measured, row: Row, brief: bool) -> str:
    text = f"{number(row.mean)} ({_place(found, row)})"
    return text if brief else f"{text}\n{_interval(row)}"


def _place(found: Measured, row: Row) -> str:
    return shorten(found.label(row), 8)


def _interval(row: Row) -> str:
    if not math.isfinite(row.low + row.high):
        return ""
    return interval(row.low, row.high) if row.low < 0 else f"{number(row.low)}–{number(row.high)}"


def _reasons(found: Measured) -> list[Any]:
    pairs = found.pairs
    if len(pairs) > _MOST_REASONS:
        pairs = found.least_linear((pair for pair in pairs if pair.word != "CTL holds"), _MOST_REASONS)
    if not pairs:
        return []
    parts = [Text("\nWhy", style="bold")]
    for pair in pairs:
        line = Text("• ").append(f"{pair.name} ({pair.kind}): ", style=_COLOURS[pair.status])
        parts.append(line.append(pair.reason))
    rest = sum(pair.word != "CTL holds" for pair in found.pairs) - len(pairs)
    if len(found.pairs) > _MOST_REASONS and rest > 0:
        parts.append(Text(f"  … and {rest} more that CTL does not hold for.", style="dim"))
    return parts


def loss_tables(found: Measured) -> list[Any]:
    """Loss and accuracy: of every model on all data, and of merged midpoints next to their ends.

    Args:
        found: the measurement.

    Returns:
        Titles and tables; nothing without labels.
    """
    data = list(dict.fromkeys(name for _, name in found.losses))
    models = [model for model in found.models if any((model, name) in found.losses for name in data)]
    parts: list[Any] = []
    for start in range(0, len(data), _MOST_DATA):
        shown = data[start : start + _MOST_DATA]
        table = _table()
        table.add_column("model", overflow="fold", ratio=1, min_width=12)
        for name in shown:
            table.add_column(shorten(name, 18), justify="right", overflow="fold", min_width=_WIDE)
        for model in models:
            table.add_row(model, *(_scores(found, model, name) for name in shown))
        parts.append(_titled("Accuracy (loss) of every model", table))
    merged = [(pair, name) for pair in found.of_kind(FINE_TUNES) for name in pair.data]
    merged = [(pair, name) for pair, name in merged if (pair.name + MERGED, name) in found.losses]
    if not merged:
        return parts
    shown_lines = sorted(merged, key=lambda line: -excess(found, *line))[:_MOST_PAIRS]
    table = _table()
    table.add_column("pair", overflow="fold", ratio=2, min_width=12)
    table.add_column("data", overflow="fold", ratio=1)
    for title in ("first", "second", "merged"):
        table.add_column(title, justify="right", no_wrap=True)
    for pair, name in merged if len(merged) <= _MOST_PAIRS else shown_lines:
        scores = [_scores(found, model, name) for model in (pair.a, pair.b, pair.name + MERGED)]
        table.add_row(pair.name, name, *scores)
    title = f"Accuracy (loss) of merged models next to their ends, α = {found.alpha:g}"
    if len(merged) > _MOST_PAIRS:
        title += f"; the {_MOST_PAIRS} with the largest loss above the ends' mean, of {len(merged)}"
    return [*parts, _titled(title, table)]


def excess(found: Measured, pair: Told, data: str) -> float:
    """Loss of a merged model above the mean of its ends.

    Args:
        found: the measurement.
        pair: which pair.
        data: on which data.

    Returns:
        The difference; minus infinity if a loss is missing.
    """
    losses = [
        row.mean if (row := found.losses.get((model, data), {}).get("loss")) is not None else math.nan
        for model in (pair.name + MERGED, pair.a, pair.b)
    ]
    value = losses[0] - (losses[1] + losses[2]) / 2
    return value if math.isfinite(value) else -math.inf


def _scores(found: Measured, model: str, data: str) -> str:
    row = found.losses.get((model, data))
    if not row:
        return NONE
    return f"{100 * row['accuracy'].mean:.1f}% ({number(row['loss'].mean)})"


def cost_line(spent: Mapping[str, Any]) -> str:
    """What a measurement cost, in a line.

    Args:
        spent: as [`cost`][mergescope.studies.measured.cost] says.

    Returns:
        The line.

    Example:
        >>> cost_line({"samples": 8, "forward_passes": 6, "seconds": 1.25, "executor": "resident"})
        '8 samples, 6 forward passes, 1.2 s, resident executor'
    """
    words = {
        "samples": "{:,} samples",
        "points": "{:,} points at most in a pass",
        "forward_passes": "{:,} forward passes",
        "local_passes": "{:,} local passes",
        "seconds": "{:.1f} s",
        "peak_bytes": "{:.2f} GB peak memory",
        "executor": "{} executor",
        "dtype": "{}",
        "features": "features {}",
    }
    known = {
        key: value / 1e9 if key == "peak_bytes" else value for key, value in spent.items() if key in words
    }
    return ", ".join(text.format(known[key]) for key, text in words.items() if known.get(key) is not None)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=False)


def _titled(title: str, table: Table) -> Group:
    # A table's own title is wrapped to the table's width, which may be small.
    return Group(Text(f"\n{title}", style="bold"), table)
