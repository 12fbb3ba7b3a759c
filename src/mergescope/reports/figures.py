"""Figures of the linearity measures, each a pure function of a run's results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports.panels import Series, label_room, layer_panel, legend, line_at_one, mark, whisker
from mergescope.reports.results import Results, Spread, spread
from mergescope.reports.style import (
    BAND,
    INK,
    MUTED,
    PAGE,
    WIDTH,
    family_name,
    look,
    new_figure,
    settle,
    shorten,
    styled,
)
from mergescope.reports.tables import EQUATIONS
from mergescope.reports.verdicts import Family

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLIP = (0.005, 0.995)
"""Quantiles at which the coefficient distributions are cut off."""

_OTHER = 2
"""Looks from this number on are for series that are not regimes."""

_THRESHOLDS = (
    ("exact linearity", {"color": INK, "ls": "-", "lw": 1}),
    (f"CTL asks: cos at least {COS_HOLDS:g}", {"color": MUTED, "ls": (0, (1, 1.5)), "lw": 1.2}),
    (f"CTL asks: coef within {COEF_HOLDS:g} of 1", {"marker": "s", "color": BAND, "ms": 9}),
)


def main(results: Results) -> Figure:
    """CTL by layer: cos against its baseline, and coef, regimes side by side.

    Args:
        results: of a run.

    Returns:
        A row for each network.
    """
    with styled():
        rows = len(results.networks)
        extra = sum(label_room(results, network, 4.3) for network in results.networks)
        figure = new_figure(WIDTH, 0.9 + 2.35 * rows + extra)
        grid = figure.subplots(rows, 2, squeeze=False)
        for row, network in enumerate(results.networks):
            families = _of(results, network)
            for axes, measure in zip(grid[row], ("cos", "coef"), strict=True):
                series = []
                for regime in families:
                    family = (network, regime)
                    references = (
                        [value.mean for value in _pairs(results, family, "baseline")]
                        if measure == "cos"
                        else []
                    )
                    entry = look(results.regimes.index(regime))
                    series.append(Series(regime, entry, _pairs(results, family, measure), references))
                layer_panel(axes, results, network, series)
                line_at_one(axes, *((0.0, COS_HOLDS) if measure == "cos" else (COEF_HOLDS, 0.0)))
                hollow = " (hollow: baseline)" if measure == "cos" else ""
                axes.set(
                    title=f"{shorten(network)}: {measure} at α = {results.alpha:g}{hollow}", ylabel=measure
                )
        entries = _regimes(results)
        entries += [("baseline cos", {"marker": "o", "mfc": PAGE, "mec": MUTED, "mew": 1.2, "ms": 6})]
        pairs = len(results.pairs)
        entries += [(f"smallest to largest of {pairs} pairs", whisker())] if pairs > 1 else []
        legend(figure, [*entries, *_THRESHOLDS], columns=4)
        return settle(figure)


def alpha_dependence(results: Results) -> Figure:
    """Draw cos and coef of CTL at every interpolation weight.

    Args:
        results: of a run.

    Returns:
        Two rows for each network (cos, coef), a column for each regime.
    """
    kinds = [(f"α = {alpha:g}", "ctl", alpha) for alpha in results.alphas]
    return _tests(results, kinds, ("cos", "coef"), "smallest to largest of the pairs")


def equations(results: Results) -> Figure:
    """Draw cos and coef of CTL and Eq. 1 to 3.

    Args:
        results: of a run.

    Returns:
        Two rows for each network (cos, coef), a column for each regime.
    """
    kinds = [(title, kind, results.at(kind)) for kind, title in EQUATIONS.items()]
    return _tests(results, kinds, ("cos", "coef"), "smallest to largest of the pairs (Eq. 3: of the tasks)")


def _tests(
    results: Results, kinds: Sequence[tuple[str, str, float | None]], measures: Sequence[str], whiskers: str
) -> Figure:
    with styled():
        rows, columns = len(results.networks) * len(measures), len(results.regimes)
        width = max(WIDTH, 3.2 * columns)
        extra = sum(label_room(results, network, width / columns - 0.7) for network in results.networks)
        figure = new_figure(width, 0.6 + 1.75 * rows + extra * len(measures))
        grid = figure.subplots(rows, columns, squeeze=False)
        for row, (network, measure) in enumerate((n, m) for n in results.networks for m in measures):
            drawn = []
            for column, regime in enumerate(results.regimes):
                axes, family = grid[row][column], (network, regime)
                if family not in results.families:
                    axes.axis("off")
                    continue
                series = [
                    Series(title, look(i + _OTHER), _layers(results, family, kind, measure, at))
                    for i, (title, kind, at) in enumerate(kinds)
                ]
                layer_panel(axes, results, network, series)
                line_at_one(axes)
                axes.set(
                    title=f"{family_name(family, figure.get_figwidth() / columns)}: {measure}", ylabel=measure
                )
                drawn.append(axes)
            lows, highs = zip(*(axes.get_ylim() for axes in drawn), strict=True)
            low, high = min(lows), max(highs)
            for axes in drawn:
                axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        entries = [(title, mark(look(i + _OTHER))) for i, (title, _, _) in enumerate(kinds)]
        legend(figure, [*entries, (whiskers, whisker())])
        return settle(figure)


def null_baselines(results: Results) -> Figure:
    """The null baselines beside the same pair of fine-tuned models.

    Args:
        results: of a run.

    Returns:
        A row for each network and regime; columns cos, coef, gap over distance, cos of changes.
    """
    measures = {
        "cos": "cos (hollow: baseline)",
        "coef": "coef",
        "gap_between": "gap / distance",
        "cos_rel": "cos of changes",
    }
    kinds = {
        "fine-tuned pair": "ctl",
        "other initialisation": "null-init",
        "random directions": "null-random",
    }
    with styled():
        rows = len(results.families)
        extra = sum(label_room(results, network, 1.9) for network, _ in results.families)
        figure = new_figure(WIDTH, 0.6 + 1.9 * rows + extra)
        grid = figure.subplots(rows, len(measures), squeeze=False)
        for row, family in enumerate(results.families):
            pairs = {
                found.points
                for kind in list(kinds.values())[1:]
                for found in results.select(family, kind, "cos")
            }
            pair = next((name for name in results.pairs if name in pairs), results.pairs[0])
            for axes, (measure, title) in zip(grid[row], measures.items(), strict=True):
                series = []
                for i, (label, kind) in enumerate(kinds.items()):
                    values = _layers(results, family, kind, measure, results.at(kind), pair)
                    references = _layers(results, family, kind, "baseline", results.at(kind), pair)
                    hollow = [value.mean for value in references] if measure == "cos" else []
                    series.append(Series(label, look(i + _OTHER), values, hollow))
                layer_panel(axes, results, family[0], series)
                if measure != "gap_between":
                    line_at_one(axes)
                axes.set_title(title)
            grid[row][0].set_ylabel(f"{shorten(family[0], 16)}\n{shorten(family[1], 16)}", fontweight="bold")
        legend(figure, [(label, mark(look(i + _OTHER))) for i, label in enumerate(kinds)])
        return settle(figure)


def coef_distributions(results: Results, samples: Mapping[tuple[str, str, str], np.ndarray]) -> Figure:
    """How coef is distributed over samples, by layer and regime.

    Args:
        results: of a run.
        samples: coefficients of all pairs by network, regime and layer, each ``(samples,)``.

    Returns:
        A row for each network: a violin for each layer and regime, its median marked.
    """
    import numpy as np

    with styled():
        extra = sum(label_room(results, network, 9.3) for network in results.networks)
        figure = new_figure(WIDTH, 0.6 + 2.2 * len(results.networks) + extra)
        grid = figure.subplots(len(results.networks), 1, squeeze=False)[:, 0]
        for axes, network in zip(grid, results.networks, strict=True):
            regimes, layers = _of(results, network), results.layers(network)
            shown = [values for key, values in samples.items() if key[0] == network and len(values)]
            layer_panel(axes, results, network, [])
            line_at_one(axes)
            axes.set(title=f"{shorten(network)}: coef of single samples", ylabel="coef")
            if not shown:
                continue
            low, high = np.quantile(np.concatenate(shown), CLIP)
            low, high = min(low, 0.95), max(high, 1.05)
            for i, regime in enumerate(regimes):
                for position, layer in enumerate(layers):
                    values = samples.get((network, regime, layer))
                    if values is not None and len(values):
                        width = 0.8 / len(regimes)
                        left = position - 0.4 + i * width
                        _violin(
                            axes,
                            values,
                            left + width / 2,
                            width * 0.46,
                            (low, high),
                            results.regimes.index(regime),
                        )
            axes.set_ylim(low, high)
        entries = [(shorten(regime), _area(i)) for i, regime in enumerate(results.regimes)]
        median = {"marker": "_", "color": INK, "ms": 12, "mew": 2}
        legend(figure, [*entries, ("median", median), _THRESHOLDS[0]])
        return settle(figure)


def _violin(
    axes: Axes, values: np.ndarray, x: float, half_width: float, limits: tuple[float, float], index: int
) -> None:
    import numpy as np

    counts, edges = np.histogram(values, bins=160, range=limits)
    middle = (edges[1:] + edges[:-1]) / 2
    # Silverman's bandwidth in bins, from the quartiles: outliers must not blur the shape.
    spread_of = float(np.subtract(*np.quantile(values, [0.75, 0.25]))) / 1.34
    bins = max(1.0, 0.9 * spread_of * len(values) ** -0.2 / (edges[1] - edges[0]))
    reach = np.arange(-int(3 * bins) - 1, int(3 * bins) + 2)
    kernel = np.exp(-0.5 * (reach / bins) ** 2)
    density = np.convolve(counts, kernel / kernel.sum())[len(reach) // 2 :][: len(counts)]
    if density.max() <= 0:
        return
    width = half_width * density / density.max()
    live = density > 0.006 * density.max()
    axes.fill_betweenx(middle, x - width, x + width, where=live, zorder=3, **_area(index))
    median = float(np.median(values))
    axes.plot(
        [x - half_width, x + half_width], [median, median], color=INK, lw=1.6, zorder=4, solid_capstyle="butt"
    )


def _area(index: int) -> dict[str, Any]:
    entry = look(index)
    return {"facecolor": entry.colour, "edgecolor": INK, "lw": 0.6, "alpha": 0.75, "hatch": entry.hatch}


def clipped_share(
    results: Results, samples: Mapping[tuple[str, str, str], np.ndarray]
) -> dict[str, tuple[float, float, float]]:
    """The range that [`coef_distributions`][] shows, and what it leaves out.

    Args:
        results: of a run.
        samples: as for the figure.

    Returns:
        Network to lower end, upper end and share of samples outside.
    """
    import numpy as np

    out = {}
    for network in results.networks:
        shown = [values for key, values in samples.items() if key[0] == network and len(values)]
        if shown:
            values = np.concatenate(shown)
            low, high = np.quantile(values, CLIP)
            low, high = min(float(low), 0.95), max(float(high), 1.05)
            out[network] = (low, high, float(((values < low) | (values > high)).mean()))
    return out


def _of(results: Results, network: str) -> list[str]:
    return [regime for name, regime in results.families if name == network]


def _pairs(results: Results, family: Family, measure: str) -> list[Spread]:
    return _layers(results, family, "ctl", measure, results.alpha)


def _layers(
    results: Results, family: Family, kind: str, measure: str, at: float | None, points: str | None = None
) -> list[Spread]:
    rows = results.select(family, kind, measure, at=at)
    return [
        spread(
            row.mean
            for row in rows
            if row.layer == layer and points in (None, row.points) and math.isfinite(row.mean)
        )
        for layer in results.layers(family[0])
    ]


def _regimes(results: Results) -> list[tuple[str, dict[str, Any]]]:
    return [(shorten(regime), mark(look(i))) for i, regime in enumerate(results.regimes)]
