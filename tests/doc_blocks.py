"""Code blocks of the documentation: found, parsed against the command line, and run as a reader would."""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import typer

from mergescope import cli

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<code>.*?)^```$",
    re.M | re.S,
)

PINNED = (
    f"torch=={torch.__version__.partition('+')[0]}" in (ROOT / "constraints.txt").read_text().splitlines()
)
"""Whether models are trained as when the pages were written: which tasks do well differs between versions of torch."""


@dataclass(frozen=True)
class Block:
    """A fenced block, its file name, and the comment on the line before: ``not run: why``, or ``exits: code``."""

    language: str
    title: str
    code: str
    note: str

    @property
    def runs(self):
        return not self.note.startswith("not run: ")

    @property
    def code_of_exit(self):
        return int(self.note.removeprefix("exits: ")) if self.note.startswith("exits: ") else 0


def blocks_of(page):
    """All fenced blocks of a page, in order."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(*(block[name] or "" for name in ("language", "title", "code", "note"))) for block in found]


def commands_of(code):
    """The words of every command of a shell block; of a pipe, its first."""
    lines = code.replace("\\\n", " ").splitlines()
    parts = (part.split(" | ")[0] for line in lines for part in line.split(" && "))
    words = (shlex.split(part, comments=True) for part in parts)
    return [command for command in words if command]


def parse(command):
    """Have the command line parse a command without running it: click's errors for what it doesn't know."""
    words, name, found = command[1:], command[0], typer.main.get_command(cli.app)
    while hasattr(found, "resolve_command"):
        name, found, words = found.resolve_command(found.context_class(found), words)
    found.make_context(name, list(words))


def run_page(page, folder):
    """Run a page from its first block to its last in a directory, and compare the output that it shows."""
    said, here, variables = "", Path.cwd(), {"__name__": "__main__"}
    os.chdir(folder)
    try:
        for block in blocks_of(page):
            if block.language == "yaml" and block.title:
                Path(block.title).write_text(block.code, encoding="utf-8")
            elif block.language == "bash" and block.runs:
                said = "".join(_run(command, block.code_of_exit) for command in commands_of(block.code))
            elif block.language == "python" and block.runs:
                exec(compile(block.code, str(page), "exec"), variables)
            elif block.language == "text" and block.runs and PINNED:
                assert _missing(block.code, said) == [], f"{page.name} shows what no command says:\n{said}"
    finally:
        os.chdir(here)


def _run(command, expected):
    name, *words = command
    if name == "cd":
        os.chdir(words[0])
        return ""
    said = io.StringIO()
    before, sys.argv = sys.argv, [name, *words]
    ended = 0
    try:
        loud = mock.patch.object(
            cli, "quiet_packages", lambda: None
        )  # it would hold for the tests that follow
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), loud:
            if name == "torchrun":
                command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *words]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                print(ran.stdout, ran.stderr)
                ended = ran.returncode
            elif name == "python":
                sys.argv = [str(ROOT / words[0]), *words[1:]]
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                assert name == "mergescope", f"nobody knows how to run {name} here"
                cli.main()
    except SystemExit as end:
        ended = end.code or 0
    finally:
        sys.argv = before
    assert ended == expected, f"{shlex.join(command)} exited with {ended}:\n{said.getvalue()}"
    return said.getvalue()


def _missing(shown, said):
    # Figures differ in their last digits between versions and machines, and so do widths: words are compared.
    known = _words(said)
    return [line for line in shown.splitlines() if _words(line) not in known]


def _words(text):
    return " ".join(re.sub(r"[-−+]?\d+(\.\d+)?", "#", text).split())
