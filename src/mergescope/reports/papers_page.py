"""The page of a study of a figure or table: its claims, and figures of all that it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mergescope.errors import StudyError
from mergescope.reports.paper_figures.drawn import drawn_figures
from mergescope.reports.paper_figures.ran import read_ran
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.sweep_page import Page
from mergescope.studies.papers.figures import PaperFigure

RULE = (
    "What should be above 0 is the worst case, or a mean, as the claim says; where models were trained several times, "
    "the interval is Student’s t over repetitions, else it is of the samples, or over the cases of a mean. A claim "
    "holds if the interval is above 0, does not hold if it is below, and is inconclusive otherwise. In “A against B”, "
    "A is what should be larger: of a claim that something is smaller, the other side comes first."
)


def paper_page(about: Mapping[str, Any]) -> Page:
    """What the page shows.

    Args:
        about: content of the study's ``run.yaml``.

    Returns:
        Words and figures.

    Raises:
        StudyError: a step's run directory is gone.
    """  # noqa: DOC502 (raised by what this calls)
    study, provenance = about["config"], about["provenance"]
    drawings = _together(study, provenance["steps"])
    preset = about["preset"]
    facts = [
        ("Source", [study["source"]]), ("Setting there", [study["setting"]]),
        ("Data", [str(provenance["data"]["source"])]),
        ("Commands", list(dict.fromkeys(step["command"] for step in provenance["steps"]))),
        ("Cost", [provenance["cost"]]),
    ]  # fmt: skip
    if preset in study["differs"]:
        facts.append(("What differs", [study["differs"][preset]]))
    return Page(study["title"], study["claims"], RULE, facts, drawings, [])


def _together(study: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Drawing]:
    # Figures of all regimes and repetitions, as the study's file asks for them.
    try:
        figures = TypeAdapter(tuple[PaperFigure, ...]).validate_python(study.get("figures", ()))
    except ValidationError as error:
        raise StudyError(
            f"The run of {study['name']} asks for figures that this version doesn't draw ({error}). {AGAIN}"
        ) from error
    if not figures:
        return {}
    return drawn_figures(figures, read_ran(steps), [step["command"] for step in study["steps"]])
