"""The page of CTL and Eq. 1 to 3."""

from __future__ import annotations

from mergescope.protocols.equations import KINDS
from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.equations_figures import by_layer
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.tables import Cell, Grid, number
from mergescope.studies.rundir import Row

MEASURES = ("cos", "baseline", "coef", "gap")
"""What tables show."""

Found = dict[str, dict[str, list[Row]]]


def equations_page(stored: Stored) -> Shown:
    """What the page of linearity tests shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    kinds: dict[str, Found] = {}
    for kind in KINDS:
        for row in stored.of(kind=kind):
            kinds.setdefault(kind, {}).setdefault(row.layer, {}).setdefault(row.measure, []).append(row)
    for kind, layers in kinds.items():
        for layer, measures in layers.items():
            for measure in MEASURES:
                if measure not in measures:
                    raise stored.lacks(f"{measure} of {kind} at {layer!r}")
    counts = {kind: len({(row.points, str(row.parameter)) for row in stored.of(kind=kind)}) for kind in kinds}
    sentences = [_sentence(KINDS[kind], counts[kind], layers) for kind, layers in kinds.items()]
    held = [kind for kind, layers in kinds.items() if _holds(layers)]
    headline = (
        f"All tests of {_listed([KINDS[kind] for kind in held])} are linear by our thresholds."
        if held
        else "No kind of test is linear at every layer, for all models."
    )
    return Shown(
        "Is each layer’s feature of a merged model the mix of features?",
        "f(left) ≈ Σ aₖ f(pₖ) at every layer, for pairs, averages, sums and differences of models.",
        headline,
        [
            *sentences,
            f"Linear: cos at least {COS_HOLDS:g} and coef within {COEF_HOLDS:g} of 1 at every layer.",
        ],
        {
            "layers": Drawing(
                by_layer(kinds),
                "1 - cos with its baseline, and coef, by layer",
                "Filled: how far the merged model’s features are from the mix. Hollow: how far the models’ features "
                "are from each other. Grey ground: linear by construction, no evidence.",
            )
        },
        [_grid(kind, layers) for kind, layers in kinds.items()],
        ["cos, coef"],
        caveat=len(held) < len(kinds),
        small="Small numbers: smallest to largest of the tests.",
    )


def _evidence(layers: Found) -> Found:
    return {
        layer: measures
        for layer, measures in layers.items()
        if not any(row.trivial for row in measures["cos"])
    }


def _holds(layers: Found) -> bool:
    rows = _evidence(layers).values()
    cos = [row.mean for measures in rows for row in measures["cos"] if row.n]
    coef = [abs(row.mean - 1) for measures in rows for row in measures["coef"] if row.n]
    return bool(cos) and min(cos) >= COS_HOLDS and max(coef) <= COEF_HOLDS


def _sentence(name: str, count: int, layers: Found) -> str:
    rows = [(row, layer) for layer, measures in _evidence(layers).items() for row in measures["cos"] if row.n]
    if not rows:
        return f"{name}: no layer with live, non-trivial features."
    worst, layer = min(rows, key=lambda entry: entry[0].mean)
    above = sum(
        cos.low > base.high
        for measures in _evidence(layers).values()
        for cos, base in zip(measures["cos"], measures["baseline"], strict=True)
    )
    return (
        f"{name} ({count} test{'s' * (count != 1)}): lowest cos {number(worst.mean)} at {layer} ({worst.points}); cos "
        f"is clearly above its baseline in {above} of {len(rows)} cases."
    )


def _grid(kind: str, layers: Found) -> Grid:
    body = []
    for layer, measures in layers.items():
        cells = []
        for measure in MEASURES:
            values = [row.mean for row in measures[measure] if row.n]
            if not values:
                cells.append(Cell(number(float("nan"))))
                continue
            note = f"{number(min(values), 4)} to {number(max(values), 4)}" if len(values) > 1 else ""
            cells.append(Cell(number(sum(values) / len(values), 4), note))
        trivial = any(row.trivial for row in measures["cos"])
        body.append((layer + (" (trivial)" if trivial else ""), tuple(cells)))
    return Grid(f"{KINDS[kind]}: mean over tests, smallest to largest", ("layer", *MEASURES), tuple(body))


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
