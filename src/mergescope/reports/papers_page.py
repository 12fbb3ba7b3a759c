"""The page of a study of a figure or table: its claims, and the figures of the commands that it ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError
from mergescope.reports.protocol_view import AGAIN, Drawing
from mergescope.reports.sweep_page import Page

RULE = (
    "What should be above 0 is the worst case, or a mean, as the claim says; where models were trained several times, "
    "the interval is Student’s t over repetitions, else it is of the samples, or over the cases of a mean. A claim "
    "holds if the interval is above 0, does not hold if it is below, and is inconclusive otherwise."
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
    drawings: dict[str, Drawing] = {}
    for step in provenance["steps"]:
        if step["seed"] or not step["figures"]:
            continue
        found = _drawings(Path(step["run"]))
        for name in step["figures"]:
            if name in found:
                label = f"{name}-{step['regime']}" if f"{name}" in drawings else name
                caption = f"{step['regime']}: {found[name].caption}"
                drawings[label] = Drawing(found[name].figure, found[name].alt, caption)
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


def _drawings(folder: Path) -> Mapping[str, Drawing]:
    from mergescope.reports.html import parts_of

    if not folder.is_dir():
        raise StudyError(f"The run directory {folder} of a step is gone. {AGAIN}")
    parts = parts_of(folder)
    shown = parts.content.get("shown")
    if shown is not None:
        return shown.drawings
    return {name: Drawing(figure, name, "") for name, figure in parts.figures.items()}
