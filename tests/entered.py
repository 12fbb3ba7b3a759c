"""Commands in this process, as they are typed: torch and transformers are imported once, not for each."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from mergescope import cli


def entered(*words, cwd=None, columns=80):
    """Run a command through the real entry point; what is said and the exit code are those of a process.

    Args:
        *words: after ``mergescope``.
        cwd: the working directory.
        columns: width of the terminal.

    Returns:
        A completed process.
    """
    said, errors, before = io.StringIO(), io.StringIO(), Path.cwd()
    words = [str(word) for word in words]
    with (
        mock.patch.dict(os.environ, {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}),
        mock.patch.object(cli, "quiet_packages", lambda: None),  # which would hold for the tests that follow
        mock.patch.object(sys, "argv", ["mergescope", *words]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
    ):
        try:
            os.chdir(cwd or before)
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os.chdir(before)
    return subprocess.CompletedProcess(words, code, said.getvalue(), errors.getvalue())
