"""Merge methods by name, one function on tensors each."""

from mergescope.merging.methods import (  # noqa: F401 (each registers its methods)
    arcee_fusion,
    breadcrumbs,
    dare,
    della,
    linear,
    model_stock,
    ram,
    sce,
    spectral,
    spherical,
    ties,
)
from mergescope.merging.methods.method import METHODS, Method, Parameter, Values

__all__ = ["METHODS", "Method", "Parameter", "Values"]
