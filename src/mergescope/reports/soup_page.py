"""The page of averaged models: soups, and averages of subsets against their ensembles."""

from __future__ import annotations

import math

from mergescope.protocols.soup_results import LAYER_MEASURES
from mergescope.reports.protocol_figures import Line, ranking
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.protocol_words import apart, cell, listed, told
from mergescope.reports.soup_figures import greedy_steps, layer_curves, weights_against_logits
from mergescope.reports.tables import Cell, Grid, number
from mergescope.studies.rundir import Row

SOUP, AVERAGING = "soup", "averaging"
"""Kinds of rows of soups and of subsets."""

STEP = "greedy step: "


def soup_page(stored: Stored) -> Shown:
    """What the page of soups shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    rows = [row for row in stored.of(kind=SOUP) if not row.points.startswith(STEP)]
    scored: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = row.points.partition(": ")[0]
        part, _, measure = row.measure.partition(" ")
        scored.setdefault(name, {})[part] = row
    series = ["validation", "test"] if stored.tested else ["validation"]
    lacking = [
        f"{name!r} on {part} data"
        for name in dict.fromkeys(("best", "uniform", "greedy", *scored))
        for part in series
        if part not in scored.get(name, {})
    ]
    if lacking:
        raise stored.lacks(lacking[0])
    measure = scored["best"]["validation"].measure.partition(" ")[2]
    steps = _steps(stored)
    counts = {name: len(steps) for name in scored} | {
        "best": 1,
        "greedy": sum(taken for _, _, taken in steps),
    }
    names = {name: f"{name}, {counts[name]} model{'s' * (counts[name] != 1)}" for name in scored}
    loss = measure == "loss"
    drawings = {
        "soups": Drawing(
            ranking(
                [Line(names[name], [found[part] for part in series]) for name, found in scored.items()],
                series,
                measure,
            ),
            f"{measure} of the best model, soups and ensemble",
            "Soups are chosen on validation data; what they are worth is on test data. The ensemble runs every model."
            + (" Losses: left is better." if loss else ""),
        ),
        "greedy": Drawing(
            greedy_steps(steps, measure),
            "steps of the greedy soup",
            "From the best model on validation data to the worst: each is averaged in, and kept unless the score gets "
            "worse.",
        ),
    }
    part = series[-1]
    return Shown(
        "Is the average better than the best model?",
        "Averages of models next to the best of them and to their ensemble.",
        _soup_headline(scored, counts, part, measure),
        _soup_sentences(scored, steps, part, loss),
        drawings,
        [
            Grid(
                f"Soups: {measure}, the mean over data sets",
                ("soup", *series),
                tuple(
                    (names[name], tuple(cell(found[part], 4) for part in series))
                    for name, found in scored.items()
                ),
            ),
            Grid(
                "Steps of the greedy soup",
                ("model", f"validation {measure} with it", "taken"),
                tuple(
                    (name, (Cell(number(value, 4)), Cell("yes" if taken else "no")))
                    for name, value, taken in steps
                ),
            ),
        ],
        ["soup", "ensemble", "mean accuracy", "validation, test"],
    )


def subsets_page(stored: Stored) -> Shown:
    """What the page of subsets shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    kinds = (
        "accuracy of averaged weights",
        "accuracy of averaged logits",
        "mean accuracy of the single models",
    )
    names = [row.points for row in stored.of(kind=AVERAGING, measure=kinds[0])]
    stored.one(kind=AVERAGING, measure=kinds[0])
    found = [tuple(stored.one(kind=AVERAGING, measure=kind, points=name) for kind in kinds) for name in names]
    subsets = [(weights, logits, own) for weights, logits, own in found]
    singles = stored.of(kind=AVERAGING, measure="accuracy of a single model")
    if not singles:
        raise stored.lacks("measure 'accuracy of a single model'")
    less = stored.one(kind=AVERAGING, measure="weights less logits")
    layers: dict[str, dict[str, Row]] = {}
    for row in stored.of(kind=AVERAGING):
        if row.layer:
            layers.setdefault(row.layer, {})[row.measure] = row
    for layer, measures in layers.items():
        for name in LAYER_MEASURES:
            if name not in measures:
                raise stored.lacks(f"{name} at {layer!r}")
    correlations = [
        row
        for name in ("pearson", "spearman")
        for row in stored.of(kind=AVERAGING, measure=name)
        if math.isfinite(row.mean)  # NaN where accuracies do not vary
    ]
    size = int(subsets[0][0].parameter)
    drawings = {
        "subsets": Drawing(
            weights_against_logits(subsets, singles),
            "accuracy of averaged weights against averaged logits, one mark a subset",
            "Left: on the diagonal the average of weights does what the ensemble does. Right: what either gains over "
            "the mean of the subset’s models; in order, so that marks don’t hide each other.",
        )
    }
    if layers:
        drawings["layers"] = Drawing(
            layer_curves(layers),
            "cos, its baseline and coef by layer",
            "Eq. 1: the averaged model’s features against the average of the models’ features, mean over subsets. Both "
            "are 1 if averaging weights averages features. Grey: linear by construction.",
        )
    return Shown(
        "Does averaging weights do what averaging predictions does?",
        f"Subsets of {size} of {len(singles)} models: one model with averaged weights, next to averaged logits.",
        _subset_headline(less, correlations, len(subsets), size),
        _subset_sentences(subsets, singles, correlations),
        drawings,
        [
            Grid(
                "Correlation and difference over subsets",
                ("measure", "value"),
                (
                    *((row.measure.capitalize(), (cell(row),)) for row in correlations),
                    ("weights less logits", (cell(less, 4),)),
                ),
            ),
            _layer_grid(layers),
            Grid(
                "Accuracy of every subset",
                ("models", "averaged weights", "averaged logits", "mean of single models"),
                tuple(
                    (weights.points, (cell(weights, 4), cell(logits, 4), cell(own, 4)))
                    for weights, logits, own in subsets
                ),
            ),
            Grid(
                "Accuracy of the models by themselves",
                ("model", "accuracy"),
                tuple((row.points, (cell(row, 4),)) for row in singles),
            ),
        ],
        ["averaged weights, averaged logits", "ensemble", "cos, coef"],
        small="Small numbers: 95 % bootstrap interval; of correlations and layers over subsets, else over samples.",
    )


def _steps(stored: Stored) -> list[tuple[str, float, bool]]:
    steps = []
    for row in stored.of(kind=SOUP):
        if row.points.startswith(STEP) and row.measure != "taken":
            taken = stored.one(kind=SOUP, points=row.points, measure="taken").mean
            steps.append((row.points[len(STEP) :], row.mean, bool(taken)))
    if not steps:
        raise stored.lacks("the steps of the greedy soup")
    return steps


def _soup_headline(scored: dict[str, dict[str, Row]], counts: dict[str, int], part: str, measure: str) -> str:
    greedy, best = scored["greedy"][part], scored["best"][part]
    if counts["greedy"] == 1:
        return (
            f"The greedy soup is the best model alone: no average is better on validation data. Its {part} {measure}: "
            f"{told(best)}."
        )
    return (
        f"The greedy soup, of {counts['greedy']} of {counts['uniform']} models, has {part} {measure} {told(greedy)}; "
        f"the best single model {told(best)}."
    )


def _soup_sentences(
    scored: dict[str, dict[str, Row]], steps: list[tuple[str, float, bool]], part: str, loss: bool
) -> list[str]:
    greedy, best = scored["greedy"][part], scored["best"][part]
    said = []
    if sum(taken for _, _, taken in steps) > 1:
        gain = (best.mean - greedy.mean) if loss else (greedy.mean - best.mean)
        kind = "better" if gain > 0 else "worse" if gain < 0 else "as good"
        clear = (
            ""
            if gain == 0
            else " clearly"
            if apart(greedy, best)
            else ", not clearly (their intervals overlap)"
        )
        said.append(
            f"The soup is {kind} than the best model{clear}."
            if gain
            else "The soup is as good as the best model."
        )
    others = [name for name in ("uniform", "ensemble") if name in scored]
    said.append(
        "To compare with: " + "; ".join(f"{name} {told(scored[name][part])}" for name in others) + "."
    )
    left = [name for name, _, taken in steps if not taken]
    said.append(
        f"Left out of the greedy soup: {listed(left)}."
        if left
        else "No model is left out of the greedy soup."
    )
    return said


def _subset_headline(less: Row, correlations: list[Row], count: int, size: int) -> str:
    where = f"Over {count} subset{'s' * (count != 1)} of {size}, averaged weights"
    if less.low <= 0 <= less.high:
        text = f"{where} and averaged logits don’t clearly differ in accuracy: {told(less, 4, sign=True)}"
    else:
        kind = "more" if less.mean > 0 else "less"
        text = f"{where} are worth {kind} in accuracy than averaged logits: {told(less, 4, sign=True)}"
    pearson = [row for row in correlations if row.measure == "pearson"]
    return text + (f", correlation {told(pearson[0])}." if pearson else ".")


def _subset_sentences(
    subsets: list[tuple[Row, Row, Row]], singles: list[Row], correlations: list[Row]
) -> list[str]:
    gain = sum(weights.mean - own.mean for weights, _, own in subsets) / len(subsets)
    best = max(singles, key=lambda row: row.mean)
    above = sum(weights.mean > best.mean for weights, _, _ in subsets)
    said = [
        f"Averaged weights are worth {number(gain, 4, True)} over the mean of the subset’s models, on average; "
        f"{above} of {len(subsets)} averages beat the best single model ({best.points}, {number(best.mean, 4)})."
    ]
    if not correlations:
        said.append(
            "There is no correlation to tell: fewer than three subsets, or accuracies that do not vary."
        )
    if len(subsets) > 1:
        said.append(
            "Subsets share models, so they are not independent: intervals over subsets are too narrow, if anything."
        )
    return said


def _layer_grid(layers: dict[str, dict[str, Row]]) -> Grid:
    body = tuple(
        (
            layer + (" (trivial)" if next(iter(measures.values())).trivial else ""),
            tuple(cell(measures[name], 4) for name in LAYER_MEASURES),
        )
        for layer, measures in layers.items()
    )
    return Grid("Eq. 1 by layer, mean over subsets", ("layer", *LAYER_MEASURES), body)
