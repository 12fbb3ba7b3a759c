"""Protocols: what is done with points and traces, as the papers do it."""

from mergescope.protocols.arithmetic import Addition, task_addition
from mergescope.protocols.barrier import Barrier, barrier, line
from mergescope.protocols.coefficients import CoefficientSearch, SearchSettings, search_coefficients
from mergescope.protocols.compare import Comparison, Way, compare_methods
from mergescope.protocols.disentanglement import Disentanglement, DisentanglementSettings, disentanglement
from mergescope.protocols.evaluation import Evaluation, evaluate
from mergescope.protocols.forgetting import Negation, task_negation
from mergescope.protocols.linearity import (
    Linearity,
    LinearityTest,
    Verdict,
    addition,
    averaging,
    ctl,
    linearity,
    negation,
)
from mergescope.protocols.measure import HeldOut, Measurement, Pair, Settings, measure
from mergescope.protocols.search import GRID, Choice, addition_line, choose, normalised_accuracy
from mergescope.protocols.soups import Soups, SoupSettings, Subsets, soups, subsets
from mergescope.protocols.stitching import StitchingSettings, stitch_addition, stitch_negation
from mergescope.protocols.stitching_result import Stitching
from mergescope.protocols.tuning import ArithmeticSettings

__all__ = [
    "GRID",
    "Addition",
    "ArithmeticSettings",
    "Barrier",
    "Choice",
    "CoefficientSearch",
    "Comparison",
    "Disentanglement",
    "DisentanglementSettings",
    "Evaluation",
    "HeldOut",
    "Linearity",
    "LinearityTest",
    "Measurement",
    "Negation",
    "Pair",
    "SearchSettings",
    "Settings",
    "SoupSettings",
    "Soups",
    "Stitching",
    "StitchingSettings",
    "Subsets",
    "Verdict",
    "Way",
    "addition",
    "addition_line",
    "averaging",
    "barrier",
    "choose",
    "compare_methods",
    "ctl",
    "disentanglement",
    "evaluate",
    "line",
    "linearity",
    "measure",
    "negation",
    "normalised_accuracy",
    "search_coefficients",
    "soups",
    "stitch_addition",
    "stitch_negation",
    "subsets",
    "task_addition",
    "task_negation",
]
