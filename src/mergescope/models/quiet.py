"""Keeping transformers silent while this package calls it, and only then."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and messages below errors; what the user set comes back at the end.

    Its warnings of missing weights are no loss: loading makes errors of them.

    Yields:
        Nothing.

    Example:
        >>> import transformers
        >>> before = transformers.logging.get_verbosity()
        >>> with quiet_transformers():
        ...     transformers.logging.get_verbosity() == logging.ERROR
        True
        >>> transformers.logging.get_verbosity() == before
        True
    """
    from huggingface_hub import utils as hub
    from transformers.utils import logging as messages

    logger = messages.get_logger("transformers")
    level = logger.level
    bars, hub_bars = messages.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    # The hub warns when an environment variable outranks these calls, which changes nothing here.
    with _no_warnings():
        messages.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        with _no_warnings():
            if bars:
                messages.enable_progress_bar()
            (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
