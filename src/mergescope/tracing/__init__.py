"""Tracing: one pass of a data set through many points in lock-step."""

from mergescope.tracing.trace import Trace, trace

__all__ = ["Trace", "trace"]
