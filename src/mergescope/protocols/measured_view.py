"""A measurement as lines of a results table, and what of it is worth a look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergescope.display import NONE, Cell, Table, View, figure, pivot

if TYPE_CHECKING:
    from mergescope.protocols.measure import Measurement, Pair

TITLES = {"FT–FT": "Fine-tunes", "PT–FT": "Base and fine-tunes"}
"""Kind of pair to what its table is called."""


def pair_rows(pair: Pair) -> list[dict[str, Any]]:
    """What was measured of a pair, as lines of a results table.

    Args:
        pair: the pair.

    Returns:
        Fields of [`Row`][mergescope.studies.rundir.Row]. Kinds: ``ctl`` (two fine-tunes) and ``pt-ft`` (base and
        fine-tune) with one row a layer and measure, the same with ``-local`` behind (every layer fed the base's
        input), ``agreement``, ``line`` and ``barrier``.
    """
    kind, table = "ctl" if pair.kind == "FT–FT" else "pt-ft", []
    common = {"points": pair.name, "data": " ∪ ".join(pair.data)}
    for suffix, results in (("", pair.propagated), ("-local", pair.local)):
        for alpha, result in results.items():
            here = {**common, "kind": kind + suffix, "parameter": alpha}
            table += [{**row, **here} for row in result.rows()]
            verdict = result.verdict
            said = {
                "CTL holds": verdict.ctl, "LLFC holds": verdict.llfc, "beats baseline": verdict.beats_baseline,
            }  # fmt: skip
            table += [{**here, "measure": name, "mean": float(holds)} for name, holds in said.items()]
    table += [
        {**common, "kind": "agreement", "measure": ends, "parameter": pair.alpha, **vars(summary)}
        for ends, summary in pair.agreement.items()
    ]
    barrier = [] if pair.barrier is None else pair.barrier.rows()
    return table + [{**common, **row} for row in barrier]


def measurement_rows(found: Measurement) -> list[dict[str, Any]]:
    """A whole measurement as lines of a results table.

    Args:
        found: the measurement.

    Returns:
        Those of every pair, with what their passes cost, and ``accuracy``: loss and accuracy of each model and data
        set.
    """
    table = []
    for pair in found.pairs:
        traces = [found.traces[name] for name in pair.data]
        cost = {
            "seconds": round(sum(traced.seconds for traced in traces), 3),
            "forward_passes": sum(traced.forward_passes for traced in traces),
            "peak_bytes": max(traced.peak_bytes for traced in traces),
        }
        table += [{**row, **cost} for row in pair_rows(pair)]
    return table + [
        {"kind": "accuracy", "points": model, "data": data, "measure": measure, **vars(summary)}
        for (model, data), values in found.losses.items()
        for measure, summary in values.items()
    ]


def measurement_says(found: Measurement) -> str:
    """For how many pairs CTL holds, in words.

    Args:
        found: the measurement.

    Returns:
        A sentence about pairs of fine-tunes; without any, about those with the base.
    """
    kind = next(kind for kind in TITLES if any(pair.kind == kind for pair in found.pairs))
    words = [pair.word for pair in found.pairs if pair.kind == kind]
    return (
        f"CTL holds for {words.count('CTL holds')} of {len(words)} pairs of {TITLES[kind].lower()} at "
        f"α = {found.pairs[0].alpha:g}."
    )


def measurement_view(found: Measurement) -> View:
    """A measurement for a notebook: one line a pair, and accuracies.

    Args:
        found: the measurement.

    Returns:
        The headline and the tables.
    """
    tables = [_pairs(found, kind) for kind in TITLES if any(pair.kind == kind for pair in found.pairs)]
    if found.losses:
        tables.append(pivot(found.rows(), "Accuracy", "points", "data", kind="accuracy", measure="accuracy"))
    return View(found.says, tuple(tables), tuple(found.notes))


def pair_view(pair: Pair) -> View:
    """A pair for a notebook: its layers, and why.

    Args:
        pair: the pair.

    Returns:
        Word and reason, and the table of layers at the alpha nearest to 1/2.
    """
    said = f"{pair.name} ({pair.kind}): {pair.word}. {pair.reason}"
    return View(said, pair.middle._view().tables)


def _pairs(found: Measurement, kind: str) -> Table:
    lines = []
    for pair in found.pairs:
        if pair.kind != kind:
            continue
        evidence = pair.middle.evidence
        barrier = Cell(NONE) if pair.barrier is None else figure(pair.barrier.loss_barrier)
        if not evidence:
            lines.append((pair.name, pair.word, *[Cell(NONE)] * 3, barrier))
            continue
        cos = min(evidence, key=lambda entry: entry.measures["cos"].mean)
        coef = max(evidence, key=lambda entry: abs(entry.measures["coef"].mean - 1))
        low, off = cos.measures["cos"], coef.measures["coef"]
        lines.append((
            pair.name, pair.word, Cell(figure(low.mean).text, f"at {cos.layer}"), figure(cos.measures["baseline"].mean),
            Cell(figure(off.mean).text, f"at {coef.layer}"), barrier,
        ))  # fmt: skip
    heads = ("pair", "verdict", "lowest cos", "its baseline", "coef furthest from 1", "loss barrier")
    return Table(f"{TITLES[kind]}: the layers that decide", heads, tuple(lines))
