"""The report of a protocol's run directory: evaluation, search, soup, disentanglement, stitching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError
from mergescope.reports.html import Parts

TITLES = {
    "evaluate": (
        "How good are these models?",
        "Accuracy and loss of models and of points between them, task by task.",
    ),
    "search": (
        "Which coefficients?",
        "What was chosen on validation data, and what it is worth on test data.",
    ),
    "soup": ("Averages and ensembles", "Averaged weights next to averaged predictions."),
    "disentangle": (
        "Do these tasks get in each other's way?",
        "Weight disentanglement error: how often adding one task's vector changes what the model says on the other's "
        "data.",
    ),
    "stitch": (
        "Does the pretrained network understand mixed features?",
        "Accuracy of the pretrained network's rest on mixed features, after every block.",
    ),
}
"""What ``run.yaml`` calls the study, to the page's title and what it is about."""


def protocol_page(path: Path, about: Mapping[str, Any]) -> Parts:
    """Read a protocol's run directory, and draw.

    Args:
        path: the directory.
        about: content of its ``run.yaml``.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged.
    """
    provenance, config = about["provenance"], about["config"]
    parts = {
        name: provenance[name] for name in ("validation", "test") if isinstance(provenance.get(name), dict)
    }
    lacking = [name for name in ("cost", "says") if name not in provenance] or ([] if parts else ["test"])
    if lacking:
        raise StudyError(
            f"{path / 'run.yaml'} lacks {', '.join(lacking)} under 'provenance'. Run the command again."
        )
    title, lead = TITLES[about["study"]]
    first = next(iter(parts.values()))
    samples = {
        name: {task: data["samples"] for task, data in part["data"].items()} for name, part in parts.items()
    }
    cost, said = provenance["cost"], {}
    for name, found in samples.items():
        said[name] = ", ".join(f"{count:,} of {task}" for task, count in found.items())
    content = {
        "title": title, "lead": lead, "models": list(first["models"]), "says": provenance["says"],
        "data": [f"{name}: {text}" for name, text in said.items()], "notes": provenance.get("notes") or [],
        "cost": f"{cost['forward_passes']:,} forward passes of a batch, {cost['seconds']:g} s",
        "captions": {}, "regime": config.get("regime"),
    }  # fmt: skip
    return Parts("protocol.html.j2", {}, content)
