"""Disks that are full and directories that can't be written: said with the file's name, and nothing is lost.

A limit on the size of files stands for a full disk: the system refuses the same calls, and nobody needs to be root.
"""

import os
import subprocess
import sys

import pytest
from test_kills import numbers_of, tensors_of

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import torch; torch.set_num_threads(1)
if sys.argv[1] != "none":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv[:2] = ["mergescope"]
from mergescope.cli import main
main()
"""


def run(command, limit="none"):
    """A command on a disk that takes files of so many bytes."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, command)], text=True, capture_output=True
    )


COMMANDS = {
    "merge": lambda inputs, out: ["merge", inputs / "recipe.yml", out, "--resume"],
    "finetune": lambda inputs, out: ["finetune", "--base", inputs / "start", "--data", f"t={inputs / 'task'}",
                                     "--regime", "full", "--epochs", 1, "--batch", 8, "--device", "cpu", "--out", out],
    "measure": lambda inputs, out: ["measure", "--base", inputs / "start", "--models", inputs / "a", inputs / "b",
                                    "--data", f"t={inputs / 'task'}", "--out", out],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_said_and_the_same_command_goes_on_when_there_is_room(inputs, tmp_path, name):
    command, out = COMMANDS[name], tmp_path / "out"
    full = run(command(inputs, out), 20_000)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    assert str(out) in full.stderr and (
        "run the same command again" in full.stderr or "--resume" in full.stderr
    )
    assert not list(out.rglob("*.tmp*")) if out.exists() else True
    again = run(command(inputs, out))
    assert again.returncode == 0, again.stderr
    undisturbed = run(command(inputs, tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0
    assert tensors_of(out) == tensors_of(tmp_path / "undisturbed")
    assert numbers_of(out) == numbers_of(tmp_path / "undisturbed")


def test_a_report_that_finds_no_room_leaves_the_old_one(inputs, tmp_path):
    out = tmp_path / "out"
    assert run(COMMANDS["measure"](inputs, out)).returncode == 0
    before = (out / "report.html").read_bytes()
    full = run(["report", out], 5_000)
    assert full.returncode == 2 and "Traceback" not in full.stderr and "can't be written" in full.stderr
    assert (out / "report.html").read_bytes() == before
    assert run(["report", out]).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_takes_no_directory_is_said(inputs, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    places = [tmp_path / "file" / "out"]
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed" / "out")
    for out in places:
        ran = run(COMMANDS[name](inputs, out))
        assert ran.returncode == 2 and "Traceback" not in ran.stderr and str(out) in ran.stderr
    assert (tmp_path / "file").read_text() == "mine"
