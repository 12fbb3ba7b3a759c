"""What a terminal sees, and what a file or a pipe does: colours, bars, other packages' messages."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from mergescope.progress import DOWNLOADS, QUIET

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
MISTAKE = ["-m", "mergescope", "study", "show", "digit"]
BAR = """
import time
from mergescope.progress import progress_bar
with progress_bar("counting", 3) as advance:
    for _ in range(3):
        advance(1, "sheep")
        time.sleep(0.15)
"""
OTHERS = """
import sys, warnings
from mergescope.progress import quiet_packages
if "quiet" in sys.argv:
    quiet_packages()
import datasets, tqdm
from transformers.utils import logging
logging.get_logger("transformers").warning("a message")
list(logging.tqdm(range(3), desc="writing shards"))
datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row, desc="mapping")
list(tqdm.tqdm(range(3), desc="another package"))
warnings.warn("a warning")
"""


def environment(**more):
    """Without what a test run or a machine sets, and with what a case does."""
    unset = {"NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "PYTHONWARNINGS", *QUIET, *DOWNLOADS}
    return {name: value for name, value in os.environ.items() if name not in unset} | more


def in_terminal(arguments, **more):
    """What a command of Python writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(
        theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0)
    )  # without a size, bars have no room
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more)
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    process.wait()
    return written.decode()


def elsewhere(arguments, **more):
    """What it writes to pipes."""
    return subprocess.run(
        [sys.executable, *arguments], env=environment(**more), capture_output=True, text=True, check=False
    )


def test_colours_are_for_terminals_and_for_those_who_want_them():
    assert COLOUR.search(in_terminal(MISTAKE, TERM="xterm-256color"))
    assert not COLOUR.search(in_terminal(MISTAKE, TERM="xterm-256color", NO_COLOR="1"))
    assert "\x1b" not in in_terminal(MISTAKE, TERM="dumb")
    piped = elsewhere(MISTAKE, TERM="xterm-256color")
    assert "There is no study 'digit'" in piped.stderr and "\x1b" not in piped.stdout + piped.stderr


def test_help_has_no_colours_in_a_pipe():
    arguments = ["-m", "mergescope", "measure", "--help"]
    assert "\x1b[" in in_terminal(arguments, TERM="xterm-256color")
    assert "\x1b" not in elsewhere(arguments, TERM="xterm-256color").stdout


def test_paragraphs_of_help_are_as_wide_as_the_terminal():
    arguments = ["-m", "mergescope", "search", "--help"]
    for columns in (60, 200):
        shown = [line.rstrip() for line in elsewhere(arguments, COLUMNS=str(columns)).stdout.splitlines()]
        first = next(place for place, line in enumerate(shown) if "Addition (the default)" in line)
        paragraph = shown[first : shown.index("", first)]
        assert len(paragraph) > 2 and min(map(len, paragraph[:-1])) > columns - 20, paragraph


def test_bars_are_for_terminals_that_can_draw_them():
    shown = in_terminal(["-c", BAR], TERM="xterm-256color")
    assert "counting (sheep)" in shown and "3/3" in shown
    assert not COLOUR.search(in_terminal(["-c", BAR], TERM="xterm-256color", NO_COLOR="1"))
    assert in_terminal(["-c", BAR], TERM="dumb") == ""
    assert elsewhere(["-c", BAR], TERM="xterm-256color").stderr == ""


def test_bars_and_messages_of_other_packages_are_not_shown():
    arguments = ["-c", OTHERS]
    loud = elsewhere(arguments).stderr
    for said in ("a message", "writing shards", "mapping", "another package", "a warning"):
        assert said in loud
    piped = elsewhere([*arguments, "quiet"])
    assert piped.stdout + piped.stderr == "" and piped.returncode == 0
    assert in_terminal([*arguments, "quiet"], TERM="xterm-256color") == ""


def test_what_the_user_sets_stays():
    code = (
        "import os, warnings; from mergescope.progress import quiet_packages; quiet_packages()\n"
        "print(os.environ['TRANSFORMERS_VERBOSITY'], os.environ['PYTHONWARNINGS'], warnings.filters[0][0])"
    )
    said = elsewhere(["-c", code], TRANSFORMERS_VERBOSITY="info", PYTHONWARNINGS="error").stdout
    assert said == "info error error\n"
    assert elsewhere(["-c", code]).stdout == "error ignore ignore\n"


def test_downloads_keep_their_bars_on_a_terminal():
    code = (
        "import os; from mergescope.progress import quiet_packages; quiet_packages()\n"
        "print('HF_HUB_DISABLE_PROGRESS_BARS' in os.environ)"
    )
    assert in_terminal(["-c", code], TERM="xterm").strip() == "False"
    assert elsewhere(["-c", code], TERM="xterm").stdout == "True\n"
