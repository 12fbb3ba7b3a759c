"""Every code of docs/exit-codes.md, by commands that end with it."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mergescope import cli
from mergescope.cli import study

ENTRY = Path(sysconfig.get_path("scripts")) / "mergescope"
PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
INSTEAD = """
import os, signal, sys
import mergescope.cli.study_lines as lines
from mergescope.cli import main

def listed():
    {}

lines.listed = listed
sys.argv = ["mergescope", "study", "list"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
main()
"""
"""``mergescope study list``, in which something happens."""


def run(*words):
    return subprocess.run([str(ENTRY), *map(str, words)], capture_output=True, text=True, check=False)


def instead(happening):
    arguments = [sys.executable, "-c", INSTEAD.format(happening)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models that fit each other, one with a configuration that differs, and one of another shape."""
    folder = tmp_path_factory.mktemp("models")
    for name, width in (("a", 4), ("b", 4), ("odd", 5)):
        (folder / name).mkdir()
        save_file({"w": torch.ones(3, width)}, folder / name / "model.safetensors")
    (folder / "a" / "config.json").write_text('{"model_type": "llama", "rope_theta": 10000.0}')
    (folder / "b" / "config.json").write_text('{"model_type": "llama", "rope_theta": 500000.0}')
    return folder


def check(*words):
    return CliRunner().invoke(cli.app, ["check", *map(str, words)], catch_exceptions=False)


def test_the_page_lists_the_codes_that_are_tested_here():
    codes = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert codes == ["0", "1", "2", "3", "130"]


def test_0_done():
    done = run("study", "list")
    assert done.returncode == 0 and done.stderr == ""
    assert run("--help").returncode == run("--version").returncode == 0


def test_1_a_bug_keeps_its_traceback():
    failed = instead("1 / 0")
    assert failed.returncode == 1 and "Traceback" in failed.stderr and "ZeroDivisionError" in failed.stderr


def test_1_a_user_error_under_debug_has_its_traceback():
    failed = run("--debug", "study", "show", "digit")
    assert failed.returncode == 1 and "Traceback" in failed.stderr and "There is no study" in failed.stderr


def test_1_without_a_word_where_nobody_reads_on():
    piped = f"{ENTRY} study list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n" and done.stderr == ""


def test_2_what_the_user_can_put_right():
    for words in (
        ("study", "show", "digit"),
        ("measure", "--modles", "a"),
        ("measur",),
        ("demo", "--workers", "none"),
    ):
        failed = run(*words)
        assert failed.returncode == 2 and failed.stdout == "", words
        assert "Error" in failed.stderr and "Traceback" not in failed.stderr, words


def test_2_and_3_what_check_finds(models):
    fine, strict = check(models / "a", models / "b"), check(models / "a", models / "b", "--strict")
    assert (fine.exit_code, strict.exit_code) == (0, 3) and "rope_theta" in strict.output
    assert check(models / "a", models / "odd", "--strict").exit_code == 2


def test_130_interrupted_says_how_to_go_on():
    stopped = instead("os.kill(os.getpid(), signal.SIGINT)")
    assert stopped.returncode == 130 and "run the same command again" in stopped.stderr
    assert "Traceback" not in stopped.stderr and stopped.stdout == ""


def test_130_also_from_a_command_that_a_study_runs(monkeypatch):
    def interrupted(*words, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("mergescope.weights.geometry.geometry", interrupted)
    monkeypatch.setattr("mergescope.cli.geometry.models_or_family", lambda *given: (None, []))
    with pytest.raises(KeyboardInterrupt):  # so that the study does not go on with its next command
        study._run_words(["geometry", "a", "--base", "b"])
    assert CliRunner().invoke(cli.app, ["geometry", "a", "--base", "b"]).exit_code == 130
