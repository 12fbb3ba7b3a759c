"""What the terminal shows of a run directory, whatever kind of run it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from mergescope.reports.html import read_about
from mergescope.reports.measured_page import load_measured
from mergescope.reports.measured_words import headline, sentences
from mergescope.reports.measurement import measured_parts
from mergescope.reports.tables import summary_table
from mergescope.reports.verdicts import verdict_sentences
from mergescope.studies.claims import KIND, claim_of
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


def summary_content(run_dir: str | Path) -> dict[str, Any]:
    """The results of a run directory for scripts.

    Args:
        run_dir: run directory of a study or a measurement.

    Returns:
        Values that JSON can hold, besides NaN: study, preset, what its results say in words, claims with verdicts,
        cost, notes, and every row of the results.

    Raises:
        StudyError: something is missing or damaged.
    """  # noqa: DOC502 (raised by what this calls)
    path = Path(run_dir)
    about, rows = read_about(path), read_rows(path / RESULTS)
    provenance = about["provenance"]
    if about["study"] == STUDY:
        found = load_measured(path, about)
        says = [headline(found)[1], *sentences(found)]
    else:
        says = str(provenance["says"]).splitlines() if "says" in provenance else verdict_sentences(rows)
    claims = [(row.regime, claim_of(row)) for row in rows if row.kind == KIND]
    return {
        "directory": str(path), "study": about["study"], "preset": about.get("preset") or None, "says": says,
        "claims": [{"of": regime, **vars(claim), "verdict": claim.verdict} for regime, claim in claims],
        "cost": provenance.get("cost"), "notes": provenance.get("notes") or [],
        "results": [vars(row) for row in rows],
    }  # fmt: skip
