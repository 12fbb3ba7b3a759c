"""Values that JSON can hold: it knows no tuples, no NaN and no infinite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Make something JSON can hold.

    Args:
        value: lists, tuples, mappings and scalars.

    Returns:
        The same with lists for tuples and None for numbers that are not finite.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
