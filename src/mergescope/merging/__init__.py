"""Merging: writing points to disk."""

from mergescope.merging.writer import save, write_safetensors

__all__ = ["save", "write_safetensors"]
