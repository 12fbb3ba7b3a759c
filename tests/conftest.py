"""Set-up shared by all tests: one torch thread, no network, no cache outside the run. ``left_out.py`` ends it."""

import gc
import os
import shutil
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="mergescope-tests-")
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (not Ray's 15, at which its workers take minutes to start)

import pytest  # noqa: E402
import torch  # noqa: E402
from left_out import pytest_terminal_summary  # noqa: E402, F401

torch.set_num_threads(1)
gc.set_threshold(10_000)  # as a command does

# A program of its own: to import it is to follow every line that runs after it.
collect_ignore = ["fuzz/guided.py"]


SPACE = 4e9
"""Bytes that the whole suite needs for temporary files: 3.3 GB were in use at once."""


def pytest_configure(config):
    """Refuse to begin what would fail in its middle, test after test, without a word on the cause."""
    whole = config.args == config.getini("testpaths") and not hasattr(config, "workerinput")
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if whole and free < SPACE:
        raise pytest.UsageError(
            f"the tests need {SPACE / 1e9:.0f} GB in {place}, where {free / 1e9:.1f} are free: "
            "make room, or set TMPDIR to another directory"
        )


def pytest_collection_modifyitems(items):
    """Begin with what takes minutes: the others run beside it, and no worker waits for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_all_studies.py")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
