"""Protocols: what is done with points and traces, as the papers do it."""

from mergescope.protocols.barrier import Barrier, barrier, line
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

__all__ = [
    "GRID",
    "Barrier",
    "Choice",
    "HeldOut",
    "Linearity",
    "LinearityTest",
    "Measurement",
    "Pair",
    "Settings",
    "Verdict",
    "addition",
    "addition_line",
    "averaging",
    "barrier",
    "choose",
    "ctl",
    "line",
    "linearity",
    "measure",
    "negation",
    "normalised_accuracy",
]
