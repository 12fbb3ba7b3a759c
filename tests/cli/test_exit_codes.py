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
from mergescope.cli import commands, study

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


KEPT = "What is finished is kept: run the same command again"
ANEW = "run the same command again, and it begins anew"


def interrupted(monkeypatch, capsys, *words):
    """What a command says that is interrupted as soon as it works; on Ray, no cluster is started."""

    def stop(*given, **options):
        raise KeyboardInterrupt

    for place in (
        "soup.require_family",
        "measure.require_family",
        "evaluate.require_family",
        "geometry.models_or_family",
    ):
        monkeypatch.setattr(f"mergescope.cli.{place}", stop)
    monkeypatch.setattr("mergescope.studies.papers.runner.find_paper_study", stop)
    monkeypatch.setattr("mergescope.cli.engine_options._begin", lambda stack, **said: None)
    monkeypatch.setattr(sys, "argv", ["mergescope", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    return capsys.readouterr().err


def test_130_the_message_promises_only_what_the_command_keeps(monkeypatch, capsys, tmp_path):
    def said(*words):
        return interrupted(monkeypatch, capsys, *words)

    out = ("--out", tmp_path)
    assert f"Nothing was kept: {ANEW}." in said("geometry", *out)
    assert f"keeps nothing with --executor streamed: {ANEW}" in said(
        "measure", *out, "--executor", "streamed"
    )
    assert ANEW in said("measure", *out)  # of its passes, nothing is there yet
    (tmp_path / "passes" / "measure-1").mkdir(parents=True)
    (tmp_path / "passes" / "measure-1" / "00000000.npz").touch()
    for words in (("measure",), ("soup",), ("measure", "--engine", "ray", "--executor", "streamed")):
        assert f"{KEPT}." in said(*words, *out)
    assert f"{ANEW}. With --out it would go on." in said("evaluate")
    for more in ((), ("--engine", "ray"), ("--executor", "streamed")):
        assert f"{KEPT}." in said("evaluate", *out, *more)


def test_130_of_a_study_the_message_is_that_of_its_command_or_of_its_steps(monkeypatch, capsys, tmp_path):
    words = ("study", "run", "averaging", "--family", "somewhere", "--out", tmp_path)
    assert ANEW in interrupted(monkeypatch, capsys, *words)  # it runs soup
    words = ("study", "run", "addition", "--family", "somewhere", "--out", tmp_path)
    monkeypatch.setattr(
        "mergescope.cli.search.require_family", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert f"{KEPT}." in interrupted(monkeypatch, capsys, *words)
    assert f"{KEPT}." in interrupted(monkeypatch, capsys, "study", "run", "ctl-fig4")
    with pytest.raises(KeyboardInterrupt) as stop:  # a step that is soup: the steps before it are kept
        study._run_step(["soup", "--out", str(tmp_path)])
    assert not isinstance(stop.value, commands.InnerInterrupt)


def test_130_every_command_is_known_to_go_on_or_not():
    names = {it.name for it in cli.app.registered_commands} | {"run"}
    assert {*commands.GO_ON, *commands.GO_ON_IN_OUT, "merge"} <= names
    page = (PAGE.parent / "determinism.md").read_text(encoding="utf-8").partition("## Interrupted")[2]
    lists = page.partition("What is kept is used")[0]
    assert {*commands.GO_ON_IN_OUT, "merge", "finetune"} <= set(re.findall(r"`(\w+)", lists))
    assert names - set(re.findall(r"`(\w+)", lists)) == {
        "demo", "run", "geometry", "check", "layers", "report", "doctor",
    }  # fmt: skip
