"""Finding coefficients of task vectors, one a task or one a task and group of layers."""

from mergescope.protocols.coefficients.result import CoefficientSearch, Method, SurrogateFit
from mergescope.protocols.coefficients.search import SearchSettings, planned_points, search_coefficients

__all__ = [
    "CoefficientSearch",
    "Method",
    "SearchSettings",
    "SurrogateFit",
    "planned_points",
    "search_coefficients",
]
