"""Figures, tables and the one-file HTML report of a run directory."""

from mergescope.reports.html import build_report
from mergescope.reports.summary import summary_content, summary_parts
from mergescope.reports.tables import summary_table
from mergescope.reports.verdicts import verdict_sentences

__all__ = ["build_report", "summary_content", "summary_parts", "summary_table", "verdict_sentences"]
