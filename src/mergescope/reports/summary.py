"""What the terminal shows of a run directory, whatever kind of run it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from mergescope.reports.html import read_about
from mergescope.reports.measured_page import load_measured
from mergescope.reports.measurement import measured_parts
from mergescope.reports.tables import summary_table
from mergescope.reports.verdicts import verdict_sentences
from mergescope.studies.measured import STUDY
from mergescope.studies.rundir import RESULTS, read_rows


def summary_parts(run_dir: str | Path) -> list[Any]:
    """The results of a run directory for a rich console.

    Args:
        run_dir: run directory of a study or a measurement.

    Returns:
        Tables and texts, in order.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    path = Path(run_dir)
    about = read_about(path)
    if about["study"] == STUDY:
        provenance = about["provenance"]
        return measured_parts(load_measured(path, about), provenance["cost"], provenance.get("notes") or [])
    if "says" in about["provenance"]:
        return [Text(str(about["provenance"]["says"]))]
    rows = read_rows(path / RESULTS)
    return [summary_table(rows), *(Text(f"• {sentence}") for sentence in verdict_sentences(rows))]
