"""What the report of a measurement shows.

Besides ``verdicts``, ``cost`` and ``notes``, the page shows what ``run.yaml`` says of the ``models``
and ``data`` under ``provenance``: a mapping of names to facts each (path, commit, digest; source,
fingerprint, samples, what was skipped), whatever these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import StudyError
from mergescope.protocols.linearity import COEF_HOLDS, COS_HOLDS
from mergescope.reports import depth, measured_figures, measured_main, measured_models
from mergescope.reports.html import Parts
from mergescope.reports.measured import KINDS, STATUS, TITLES, Measured
from mergescope.reports.measured_tables import facts_grid, layer_grid, loss_grid, merged_grid, verdict_grid
from mergescope.reports.measured_words import headline, sentences
from mergescope.reports.measurement import cost_line
from mergescope.reports.tables import number
from mergescope.reports.verdicts import RULE
from mergescope.studies.rundir import RESULTS, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("cos", "coef", "gap", "gap_between", "baseline")
"""What every pair and layer must have."""

MOST_REASONS = 8
"""More pairs than this are told in two parts: the least linear ones, and the others folded away."""

_AGAIN = "Measure again into the same directory."


def measured_page(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read a measurement's run directory, check that it is complete, and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    found = load_measured(path, about)
    return Parts("measurement.html.j2", draw(found), _content(found, about["provenance"]))


def load_measured(path: Path, about: Mapping[str, Any]) -> Measured:
    """Read a measurement's results and check that they are complete.

    Args:
        path: the run directory.
        about: content of its ``run.yaml``.

    Returns:
        The measurement.

    Raises:
        StudyError: something is missing or damaged.
    """
    provenance, file = about["provenance"], path / "run.yaml"
    verdicts = provenance.get("verdicts")
    wanted = {"pair", "kind", "a", "b", "data", "says", "reason"}
    if not isinstance(verdicts, list) or not verdicts:
        raise StudyError(f"{file} has no verdicts under 'provenance'. {_AGAIN}")
    if not isinstance(provenance.get("cost"), dict):
        raise StudyError(f"{file} has no cost under 'provenance'. {_AGAIN}")
    for place, told in enumerate(verdicts, 1):
        if not isinstance(told, dict) or not wanted <= told.keys():
            lacking = sorted(wanted - told.keys()) if isinstance(told, dict) else sorted(wanted)
            raise StudyError(f"{file}: verdict {place} lacks {', '.join(lacking)}. {_AGAIN}")
        if told["kind"] not in KINDS or told["says"] not in STATUS:
            raise StudyError(
                f"{file}: verdict {place} is {told['says']!r} on a pair of kind {told['kind']!r}; known are "
                f"{', '.join(STATUS)} and {', '.join(KINDS)}. Another version wrote it. {_AGAIN}"
            )
    rows = read_rows(path / RESULTS)
    if not rows:
        raise StudyError(f"{path / RESULTS} is empty. {_AGAIN}")
    try:
        found = Measured(rows, verdicts)
    except StudyError as error:
        raise StudyError(f"{path / RESULTS}: {error}") from error
    lacking = [
        f"{measure} of {pair.name} at {layer}"
        for pair in found.pairs
        for layer in found.layers
        for measure in MEASURES
        if found.row(pair, measure, layer) is None
    ]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise StudyError(
            f"{path / RESULTS} is not complete. It lacks {'; '.join(lacking[:5])}{more}. {_AGAIN}"
        )
    return found


def draw(found: Measured) -> dict[str, Figure]:
    """Every figure that the measurement allows.

    Args:
        found: the measurement.

    Returns:
        File name without suffix to figure.
    """
    makers: dict[str, Callable[[Measured], Figure] | None] = {
        "main": measured_main.main,
        "depth-cos": depth.cos_by_depth,
        "depth-coef": depth.coef_by_depth,
        "depth-gap": depth.gap_by_depth,
        "local": measured_figures.local_against_all if measured_figures.single_layers(found) else None,
        "layers": measured_figures.by_layer if len(found.pairs) > 1 else None,
        "models": measured_models.matrices if len(found.models) > 2 else None,
        "alpha": measured_figures.along_alpha if len(found.alphas) > 1 else None,
        "barriers": measured_models.barriers if any(found.line(pair) for pair in found.pairs) else None,
    }
    return {name: make(found) for name, make in makers.items() if make is not None}


def _content(found: Measured, provenance: Mapping[str, Any]) -> dict[str, Any]:
    status, sentence = headline(found)
    data = list(dict.fromkeys(name for pair in found.pairs for name in pair.data))
    pairs = found.pairs
    if len(pairs) > MOST_REASONS:
        pairs = found.least_linear(pairs, len(pairs))
    return {
        "found": found,
        "status": status,
        "headline": sentence,
        "sentences": sentences(found),
        "titles": TITLES,
        "told": pairs[:MOST_REASONS],
        "told_later": pairs[MOST_REASONS:],
        "rule": RULE,
        "cos_holds": COS_HOLDS,
        "coef_holds": COEF_HOLDS,
        "most_rows": measured_main.MOST_ROWS,
        "most_lines": measured_figures.MOST_ROWS,
        "most_pairs": depth.MOST_PAIRS,
        "verdict_grids": [verdict_grid(found, kind) for kind in found.kinds],
        "layer_grids": [(pair, layer_grid(found, pair)) for pair in found.pairs],
        "loss_grid": loss_grid(found),
        "merged_grid": merged_grid(found),
        "base": next((pair.a for pair in found.pairs if pair.kind == "PT–FT"), None),
        "data": data,
        "facts_grids": [
            facts_grid("model", provenance.get("models"), found.models),
            facts_grid("data", provenance.get("data"), data),
        ],
        "cost": provenance["cost"],
        "cost_line": cost_line(provenance["cost"]),
        "notes": provenance.get("notes") or [],
        "number": number,
    }
