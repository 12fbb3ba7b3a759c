"""The report of a protocol's run directory: evaluation, search, soup, disentanglement, stitching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergescope.errors import PointError, StudyError
from mergescope.reports.curvature_page import curvature_page
from mergescope.reports.disentanglement_page import disentanglement_page
from mergescope.reports.equations_page import equations_page
from mergescope.reports.html import Parts
from mergescope.reports.measured_tables import facts_grid
from mergescope.reports.prediction_page import prediction_page
from mergescope.reports.protocol_evaluation import evaluation_page
from mergescope.reports.protocol_view import AGAIN, Shown, Stored, load_stored, parts_of
from mergescope.reports.protocol_words import TERMS, sources_of
from mergescope.reports.search_addition import addition_page
from mergescope.reports.search_coefficients import coefficients_page
from mergescope.reports.search_methods import methods_page
from mergescope.reports.search_negation import negation_page
from mergescope.reports.soup_page import soup_page, subsets_page
from mergescope.reports.stitching_page import stitching_page
from mergescope.reports.theorems_page import theorems_page
from mergescope.studies.rundir import RESULTS

PAGES: dict[str, dict[str, Callable[[Stored], Shown]]] = {
    "evaluate": {"accuracy": evaluation_page},
    "search": {
        "lambda-search": addition_page,
        "negation-search": negation_page,
        "merging": methods_page,
        "coefficient-search": coefficients_page,
    },
    "soup": {"soup": soup_page, "averaging": subsets_page},
    "disentangle": {"disentanglement": disentanglement_page},
    "equations": dict.fromkeys(("ctl", "eq1", "eq2", "eq3"), equations_page),
    "stitch": {"stitch-addition": stitching_page, "stitch-negation": stitching_page},
    "predict": {"prediction": prediction_page, "interaction": prediction_page},
    "curvature": {"eigenvalue of base": curvature_page},
    "theorems": {"tally": theorems_page},
}
"""What ``run.yaml`` calls the study, and the kind of its rows, to what makes the page."""

SHOWN_MODELS = 12
"""More models than this are counted in the heading, and named below."""


def protocol_page(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read a protocol's run directory, check that it is complete, and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """
    stored = load_stored(path, about)
    pages, kinds = PAGES[about["study"]], {row.kind for row in stored.rows}
    makers = [maker for kind, maker in pages.items() if kind in kinds]
    if not makers:
        raise StudyError(
            f"{path / RESULTS} has no rows of the study {about['study']!r}: none of {', '.join(pages)}, but "
            f"{', '.join(sorted(kinds))}. {AGAIN}"
        )
    try:
        shown = makers[0](stored)
    except PointError as error:  # numbers that no choice follows from
        raise StudyError(f"{path / RESULTS}: {error} {AGAIN}") from error
    figures = {name: drawing.figure for name, drawing in shown.drawings.items()}
    return Parts("protocol.html.j2", figures, _content(stored, shown, about))


def _content(stored: Stored, shown: Shown, about: Mapping[str, Any]) -> dict[str, Any]:
    provenance = stored.provenance
    parts = parts_of(provenance)
    name, first = next(iter(parts.items()))
    models, base = list(first["models"]), None
    if (about["config"].get(name) or {}).get("base") is not None:
        base, *models = models
    return {
        "shown": shown,
        "base": base,
        "models": ", ".join(models) if len(models) <= SHOWN_MODELS else f"{len(models)} models",
        "regime": about["config"].get("regime"),
        "linearized": bool(provenance.get("linearized")),
        "data": [f"{name}: {_samples(part['data'])}" for name, part in parts.items()],
        "cost": _cost(provenance["cost"]),
        "notes": provenance.get("notes") or [],
        "says": provenance["says"],
        "terms": [(term, *TERMS[term]) for term in shown.terms],
        "sources": sources_of(shown.terms),
        "facts_grids": [
            facts_grid("model", first["models"], []),
            *(facts_grid(f"{name} data", part["data"], []) for name, part in parts.items()),
        ],
    }


def _samples(data: Mapping[str, Any]) -> str:
    counts = {name: fact.get("samples") if isinstance(fact, dict) else None for name, fact in data.items()}
    if None in counts.values():
        return ", ".join(counts)
    if len(set(counts.values())) == 1 and len(counts) > 1:
        return f"{next(iter(counts.values())):,} samples each of {', '.join(counts)}"
    return ", ".join(f"{count:,} samples of {name}" for name, count in counts.items())


def _cost(spent: Mapping[str, Any]) -> str:
    rests = f", {spent['rest_passes']:,} passes of what follows a block" if "rest_passes" in spent else ""
    for name, words in (("derivatives", "second derivatives"), ("products", "Hessian-vector products")):
        rests += f", {spent[name]:,} {words}" if name in spent else ""
    return f"{spent['forward_passes']:,} forward passes of a batch{rests}, {spent['seconds']:.1f} s"
