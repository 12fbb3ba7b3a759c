"""Merging: writing points to disk."""

from mergescope.merging.writer import save

__all__ = ["save"]
