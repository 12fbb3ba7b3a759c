"""Mergeability: does anything that is known before merging tell the merged model's accuracy?"""

from mergescope.protocols.mergeability.analysis import Analysis, Related, Verdict, analyse
from mergescope.protocols.mergeability.case import OUTCOMES, Case, groups_of
from mergescope.protocols.mergeability.collect import MergeabilitySettings, collect
from mergescope.protocols.mergeability.expected import Expected, expected
from mergescope.protocols.mergeability.predictors import CONTROLS, PREDICTORS, Predictor
from mergescope.protocols.mergeability.rule_file import content, read_rules, write_rules

__all__ = [
    "CONTROLS",
    "OUTCOMES",
    "PREDICTORS",
    "Analysis",
    "Case",
    "Expected",
    "MergeabilitySettings",
    "Predictor",
    "Related",
    "Verdict",
    "analyse",
    "collect",
    "content",
    "expected",
    "groups_of",
    "read_rules",
    "write_rules",
]
