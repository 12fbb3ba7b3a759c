"""The page of a curvature run: how curved losses are, and what Theorem 5.1 makes of it."""

from __future__ import annotations

import numpy as np

from mergescope.reports.curvature_figures import (
    along_figure,
    bound_figure,
    eigenvalue_figure,
    explained_figure,
)
from mergescope.reports.curvature_view import REGRESSORS, Curved, stored_curvature
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.protocol_words import cell, listed, told
from mergescope.reports.tables import Cell, Grid, number
from mergescope.studies.rundir import Row

AT = {
    "midpoint": "the merged point",
    "base": "the base",
    "line": "the largest of several points between both models",
}
"""Where a pair's eigenvalue is taken, in words."""


def curvature_page(stored: Stored) -> Shown:
    """What the page of a curvature run shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    found = stored_curvature(stored)
    at, term, alpha = (stored.setting(name) for name in ("at", "term", "alpha"))
    where, place = AT[at], AT[term]
    lost = sum(not row.mean > 0 for row in found.eigenvalues)
    none = sum(side.gap.mean == 0 for side in found.sides)
    drawings = {
        "eigenvalues": Drawing(
            eigenvalue_figure(found),
            "largest eigenvalue of the Hessian at the base, at fine-tunes and between them, by data set",
            "A line a data set, whose mean loss it is. How much higher λ is at one place than at another is how little "
            "one number says of the loss in between."
            + (f" {lost} of {len(found.eigenvalues)} are not positive and have no mark." if lost else ""),
        ),
        "bound": Drawing(
            bound_figure(found, place),
            "gap of the loss against its bound and against the exact second-order term",
            f"Theorem 5.1 with λ at {where}. Left of the line, the gap is above what bounds it. On the right, the same "
            f"gaps against the exact term, which replaces λ |d|² by dᵀHd at {place}."
            + (f" {none} of {len(found.sides)} gaps are exactly 0: see the tick 0." if none else ""),
        ),
        "along": Drawing(
            along_figure(found, at == term),
            "curvature along task vectors and merge directions as a share of the largest",
            f"Task vectors: τᵀHτ and λ at the base. Differences of pairs: dᵀHd at {place}, λ at {where}. The bound "
            "takes every direction for the most curved one: the nearer marks are to 0, the looser it is."
            + ("" if at == term else " Marks of pairs can be above 1, as two places differ in curvature."),
        ),
    }
    if found.lines:
        drawings["explained"] = Drawing(
            explained_figure(found),
            "share of the variance of gaps that curvature, distance, their product and the exact term explain",
            "Over all pairs and data. Pairs share models, so intervals are too narrow.",
        )
    return Shown(
        "Is the gap bounded, and explained, by curvature?",
        f"Largest eigenvalues, curvature along task vectors, and Theorem 5.1 on pairs at α = {alpha:g}.",
        f"The bound holds for {found.held} of {len(found.sides)} cases (a pair on a data set), and is "
        f"{number(found.loose, 0 if found.loose >= 10 else 1)} times the gap (median).",
        _sentences(found),
        drawings,
        _grids(found),
        ["largest eigenvalue λ", "gap of the loss", "bound", "exact term", "task vector"],
        caveat=found.held < len(found.sides) or bool(found.unsure),
        small="Small numbers: of gaps, 95 % bootstrap interval over samples; of eigenvalues, the residual of Lanczos’ "
        "iteration. Intervals of R² are over pairs.",
    )  # fmt: skip


def _sentences(found: Curved) -> list[str]:
    said = []
    broken = [f"{side.pair} on {side.data}" for side in found.sides if not side.found["bound holds"]]
    if broken:
        said.append(f"The gap is above its bound for {listed(broken)}.")
    below = sum(side.gap.mean < 0 for side in found.sides)
    said.append(
        f"{below} of {len(found.sides)} gaps are negative: there the merged model’s loss is below the mean of both "
        f"models’. The exact term has the gap’s sign in {found.signs} cases."
    )
    shares = [values["d^T H d"] / values["bound"] for values in found.along.values() if values["bound"]]
    if shares:
        said.append(
            f"Along task vectors, curvature at the base is {number(min(shares), 4)} to {number(max(shares), 4)} of the "
            "largest (1 would make the bound tight)."
        )
    if found.lines:
        best = max(REGRESSORS, key=lambda name: _r2(found, name))
        figures = "; ".join(
            f"{name} {told(found.lines['|gap|', key], 2)}"
            for key, name in REGRESSORS.items()
            if ("|gap|", key) in found.lines
        )
        said.append(f"Of the variance of |gap|, {REGRESSORS[best]} explains most. R²: {figures}.")
    ratio = [
        row.mean / found.base[data].mean
        for data, rows in found.tuned.items()
        for row in rows.values()
        if found.base[data].mean > 0
    ]
    if ratio:
        said.append(
            f"λ at a fine-tune is {number(float(np.median(ratio)), 2)} times that at the base (median)."
        )
    if found.unsure:
        said.append(
            f"Not converged: λ of {listed([f'{name} on {data}' for _, name, data in found.unsure])}. Raise --max-steps."
        )
    return said


def _r2(found: Curved, regressor: str) -> float:
    row = found.lines.get(("|gap|", regressor))
    return -1.0 if row is None else row.mean


def _grids(found: Curved) -> list[Grid]:
    sides = tuple(
        (
            f"{side.pair} on {side.data}",
            (
                cell(side.gap),
                *(Cell(_short(side.found[name])) for name in ("exact term", "lambda", "|d|^2", "bound")),
                Cell("yes" if side.found["bound holds"] else "no", bold=not side.found["bound holds"]),
            ),
        )
        for side in found.sides
    )
    tops = tuple(
        (f"{task} on {data}" if task != data else task, (_ends(found.base[data]), _ends(row)))
        for data in found.data
        for task, row in found.tuned[data].items()
    )
    along = tuple(
        (
            f"{task} on {data}" if task != data else task,
            (
                *(Cell(_short(values[name])) for name in ("d^T H d", "|d|^2", "bound")),
                Cell(number(values["d^T H d"] / values["bound"], 4) if values["bound"] else "–"),
            ),
        )
        for (task, data), values in found.along.items()
    )
    grids = [Grid("Theorem 5.1", ("pair", "gap", "exact term", "λ", "|d|²", "bound", "holds"), sides)]
    if tops:
        places = ("fine-tune", "at the base", "at the fine-tune")
        grids.append(Grid("Largest eigenvalues, with residuals", places, tops))
    heads = ("task vector", "τᵀHτ at the base", "|τ|²", "λ |τ|²", "share")
    return [*grids, Grid("Curvature along task vectors", heads, along)]


def _ends(row: Row) -> Cell:
    return Cell(_short(row.mean), f"± {(row.high - row.low) / 2:.2g}")


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
