"""Curvature of the loss: what Theorem 5.1 (CTL) bounds the gap by."""

from mergescope.protocols.curvature.lanczos import ENDS, Ritz, lanczos
from mergescope.protocols.curvature.measure import (
    CurvatureSettings,
    DirectionalCurvature,
    Eigenvalues,
    curvature,
    eigenvalues,
)

__all__ = [
    "ENDS",
    "CurvatureSettings",
    "DirectionalCurvature",
    "Eigenvalues",
    "Ritz",
    "curvature",
    "eigenvalues",
    "lanczos",
]
