"""The page of a prediction: what merges would do, and how that agrees with what they do."""

from __future__ import annotations

import math

import numpy as np

from mergescope.protocols.prediction.surfaces import BOX
from mergescope.reports.geometry_figures import short_layers
from mergescope.reports.prediction_figures import (
    KINDS,
    PANELS,
    accuracy_line,
    against_measured,
    by_layer,
    interactions,
    surfaces,
    third_order,
)
from mergescope.reports.prediction_view import Predicted, Square, spread, stored_prediction, stored_squares
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.protocol_words import cell, listed, told
from mergescope.reports.tables import NONE, Cell, Grid, number
from mergescope.studies.rundir import Row

SHOWN = 12
"""Surfaces of a figure at most; further pairs are in the results only."""

FAR = 1.0
"""Where the third order takes over below this coefficient, predictions of whole task vectors are rough."""


def prediction_page(stored: Stored) -> Shown:
    """What the page of a prediction shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    found, squares = stored_prediction(stored), stored_squares(stored)
    line, true = (stored.of(kind=kind, measure="normalised accuracy") for kind in ("predicted", "measured"))
    if stored.of(kind="predicted") and not line:
        raise stored.lacks("kind 'predicted', measure 'normalised accuracy'")
    best = max(line, key=lambda row: (row.mean, -row.parameter)) if line else None
    drawings: dict[str, Drawing] = {}
    if found.measured:
        more = f" {PANELS} of {len(found.layers)} layers are shown." if len(found.layers) > PANELS else ""
        drawings["agreement"] = Drawing(
            against_measured(found),
            "measured gap of every test against the predicted one, by layer",
            "A mark a test, a panel a layer. On the line, the prediction is right; slope and R² are over "
            f"all samples and tests.{' Gaps of 0 stand at the tick 0.' if _zeros(found) else ''}{more}",
        )
    drawings["layers"] = Drawing(
        by_layer(found),
        "gap by layer, predicted" + (" beside measured" if found.measured else ""),
        "The gap is the distance between the merged model’s features and the combined features of its parts, relative "
        "to the latter. Logarithmic." + (" Gaps of 0 stand at the tick 0." if _zeros(found) else ""),
    )
    if found.measured:
        kinked = _kinked(found)
        drawings["third-order"] = Drawing(
            third_order(found),
            "error of the predicted gap, and the coefficient at which the third order takes over, by layer",
            "Left: how far the predicted gap is from the measured one, as vectors. Right: up to which multiple of a "
            "task vector the second order is the larger part of what is not linear; above 1 (dotted), whole task "
            "vectors are short enough to be predicted."
            + (
                f" No mark at {listed(kinked)}: kinks (ReLU) outweigh the second order, however short task vectors are."
                if kinked
                else ""
            ),
        )
    drawings["interactions"] = Drawing(
        interactions(found),
        "interaction of every two task vectors",
        "How much two task vectors change together beyond what each changes alone, relative to the latter, at the "
        "middle layer and at the last. On the diagonal, a task vector’s own curvature.",
    )
    if best is not None:
        drawings["accuracy"] = Drawing(
            accuracy_line(line, true, best.parameter),
            "predicted normalised accuracy of task addition over its coefficient",
            "All task vectors with one coefficient λ. The band is the 95 % interval of the prediction over samples, "
            "which does not hold the error of the expansion"
            + ("; bars are intervals of what was measured." if true else "."),
        )
    if squares:
        shown = squares[:SHOWN]
        rest = f" The first {SHOWN} of {len(squares)} pairs." if len(squares) > SHOWN else ""
        drawings["surfaces"] = Drawing(
            surfaces(shown, BOX),
            "predicted accuracy of pairs over both coefficients",
            "A pair of task vectors with a coefficient each; above it the best predicted spot of the search box. "
            "Circles are filled with what was measured: where they are hardly seen, the prediction is right."
            + rest,
        )
    return Shown(
        "What would merging these models do?",
        "Gaps, interactions and accuracy of merged models, predicted from derivatives at the base.",
        _headline(found, best),
        _sentences(found, best, line, true, squares),
        drawings,
        [*_grids(found, line, true), *([_square_grid(squares)] if squares else [])],
        [
            "predicted gap", "interaction", *(["third order takes over"] if found.measured else []), "task vector",
            *(["normalised accuracy", "search box"] if best is not None else []),
        ],
        caveat=found.measured and _reach(found) < FAR,
    )  # fmt: skip


def _zeros(found: Predicted) -> bool:
    return any(gap == 0 for said in found.gaps.values() for pair in said.values() for gap in pair)


def _kinked(found: Predicted) -> list[str]:
    return [layer for layer in found.evidence if found.agreement[layer]["takes over"].mean == 0]


def _reach(found: Predicted) -> float:
    return spread([found.agreement[layer]["takes over"].mean for layer in found.evidence])[0]


def _headline(found: Predicted, best: Row | None) -> str:
    if not found.measured:
        kind = found.kinds[0]
        layer = max(found.evidence or found.layers, key=lambda name: found.mean_gap(kind, name))
        said = f"Predicted gap of {KINDS[kind]}: {number(found.mean_gap(kind, layer))} at {layer}, where it is largest"
        return (
            f"{said}; best predicted coefficient of all tasks: {best.parameter:g}."
            if best is not None
            else f"{said}."
        )
    slopes, squares = (
        spread([found.agreement[layer][name].mean for layer in found.evidence]) for name in ("slope", "r2")
    )
    if math.isnan(squares[0]):
        return "Predicted gaps are too small, or too few, to compare with measured ones."
    return (
        f"Predicted gaps agree with measured ones with R² from {number(squares[0], 2)} to {number(squares[1], 2)} over "
        f"layers, and slopes from {number(slopes[0], 2)} to {number(slopes[1], 2)}."
    )


def _sentences(
    found: Predicted, best: Row | None, line: list[Row], true: list[Row], squares: list[Square]
) -> list[str]:
    said = []
    if found.measured and found.evidence:
        said.append(_third_order(found))
    if best is not None:
        text = f"Best predicted coefficient of task addition: {best.parameter:g}, normalised accuracy {told(best)}."
        if true:
            top = max(true, key=lambda row: row.mean)
            values = ", ".join(f"{row.parameter:g}" for row in true)
            near = {row.parameter: row for row in line}
            wrong = np.mean([
                abs(near[row.parameter].mean - row.mean) for row in true if row.parameter in near
            ])
            text += (
                f" Of those that were run ({values}), {top.parameter:g} is best, {told(top)}; predictions are off by "
                f"{number(float(wrong))} on average."
            )
        said.append(text)
    off = [abs(value) for square in squares for value in square.off]
    if squares:
        top_pair = max(squares, key=lambda square: square.worth.mean)
        low_pair = min(squares, key=lambda square: square.worth.mean)
        more = (
            f" Where pairs were run, predictions are off by {number(float(np.mean(off)))} on average."
            if off
            else ""
        )
        said.append(
            f"Of pairs, {' + '.join(top_pair.tasks)} is predicted to merge best ({told(top_pair.worth, 2)})"
            + (
                f", {' + '.join(low_pair.tasks)} worst ({told(low_pair.worth, 2)})."
                if len(squares) > 1
                else "."
            )
            + more
        )
    last = found.layers[-1]
    pairs = {key: row for key, row in found.interaction.items() if key[2] == last and key[0] != key[1]}
    if pairs:
        most, least = (choose(pairs, key=lambda key: pairs[key].mean) for choose in (max, min))
        said.append(
            f"At {last}, {' and '.join(most[:2])} interact most, {told(pairs[most], 2)} of what each changes"
            + (f"; {' and '.join(least[:2])} least, {told(pairs[least], 2)}." if len(pairs) > 1 else ".")
        )
    return said


def _third_order(found: Predicted) -> str:
    never = _kinked(found)
    if never:
        return (
            f"At {listed(never)}, kinks (ReLU) outweigh the second order, however short task vectors are: predicted "
            "gaps lack what no derivative sees."
        )
    known = {layer: found.agreement[layer]["takes over"].mean for layer in found.evidence}
    reach = {layer: value for layer, value in known.items() if not math.isnan(value)}
    if not reach:
        return "Predicted gaps are too small to tell where the third order takes over."
    first = min(reach, key=lambda layer: reach[layer])
    if math.isinf(reach[first]):
        return "The third order takes over at no layer, so the second one covers whole task vectors."
    enough = (
        "so whole task vectors are out of its reach there"
        if reach[first] < FAR
        else "so it covers whole task vectors"
    )
    return (
        f"The third order takes over first at {first}, at {number(reach[first], 2)} times a task vector, "
        f"{enough}."
    )


def _grids(found: Predicted, line: list[Row], true: list[Row]) -> list[Grid]:
    heads = ["layer"]
    for kind in found.kinds:
        heads += [f"{KINDS[kind].split(',')[0]}, predicted", *(["measured"] if found.measured else [])]
    heads += ["slope", "R²", "error", "third order from"] if found.measured else []
    body = []
    for layer, label in zip(found.layers, short_layers(found.layers), strict=True):
        cells = [
            Cell(number(found.mean_gap(kind, layer, side)))
            for kind in found.kinds
            for side in range(2 if found.measured else 1)
        ]
        if found.measured:
            cells += [
                Cell(number(found.agreement[layer][name].mean, 2))
                for name in ("slope", "r2", "error", "takes over")
            ]
        body.append((label + (" (trivial)" if layer in found.trivial else ""), tuple(cells)))
    grids = [Grid("Gaps by layer, means over tests", tuple(heads), tuple(body))]
    if line:
        known = {row.parameter: row for row in true}
        rows = tuple(
            (
                f"{row.parameter:g}",
                (cell(row), cell(known[row.parameter]) if row.parameter in known else Cell(NONE)),
            )
            for row in line
        )
        grids.append(Grid("Task addition, normalised accuracy", ("λ", "predicted", "measured"), rows))
    return grids


def _square_grid(squares: list[Square]) -> Grid:
    body = tuple(
        (
            " + ".join(square.tasks),
            (
                Cell(f"{square.best[0]:g}, {square.best[1]:g}"),
                cell(square.worth),
                Cell(number(float(np.mean(np.abs(square.off)))) if square.off else NONE),
            ),
        )
        for square in sorted(squares, key=lambda square: -square.worth.mean)
    )
    return Grid(
        "Pairs, the best predicted first",
        ("pair", "best coefficients", "normalised accuracy, predicted", "mean error where run"),
        body,
    )
