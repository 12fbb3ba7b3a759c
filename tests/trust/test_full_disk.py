"""Disks that are full and directories that can't be written: said with the file's name, and nothing is lost."""

import os
import re

import pytest
from small_disks import small_disk
from test_kills import numbers_of, tensors_of

COMMANDS = {
    "merge": lambda inputs, out: ["merge", inputs / "recipe.yml", out, "--resume"],
    "finetune": lambda inputs, out: ["finetune", "--base", inputs / "start", "--data", f"t={inputs / 'task'}",
                                     "--regime", "full", "--epochs", 1, "--batch", 8, "--device", "cpu", "--out", out],
    "measure": lambda inputs, out: ["measure", "--base", inputs / "start", "--models", inputs / "a", inputs / "b",
                                    "--data", f"t={inputs / 'task'}", "--out", out],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"), [("merge", 36), ("finetune", 20), ("finetune", 64), ("measure", 64)]
)
def test_a_full_disk_is_said_and_the_same_command_goes_on_when_there_is_room(
    inputs, commands, tmp_path, name, size
):
    command, undisturbed = COMMANDS[name], tmp_path / "undisturbed"
    assert commands.run(command(inputs, undisturbed)).code == 0
    with small_disk(tmp_path / "disk", size) as make_room:
        out = tmp_path / "disk" / "out"
        # The next best is a limit on the size of files: the system refuses the same calls.
        full = commands.run(command(inputs, out), room=20_000 if make_room is None else "")
        assert full.code == 2 and "Traceback" not in full.stderr, full.stderr
        assert str(out) in full.stderr and (
            "run the same command again" in full.stderr or "--resume" in full.stderr
        )
        assert re.search("[Nn]o space left|full disk|File too large", full.stderr), full.stderr
        assert not list(out.parent.rglob(".*.tmp*"))
        if make_room is not None:
            make_room()
        again = commands.run(command(inputs, out))
        assert again.code == 0, again.stderr
        assert tensors_of(out) == tensors_of(undisturbed)
        assert numbers_of(out) == numbers_of(undisturbed)


def test_a_report_that_finds_no_room_leaves_the_old_one(inputs, commands, tmp_path):
    out = tmp_path / "out"
    assert commands.run(COMMANDS["measure"](inputs, out)).code == 0
    before = (out / "report.html").read_bytes()
    full = commands.run(["report", out], room=5_000)
    assert full.code == 2 and "Traceback" not in full.stderr and "can't be written" in full.stderr
    assert (out / "report.html").read_bytes() == before
    assert commands.run(["report", out]).code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_takes_no_directory_is_said(inputs, commands, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    places = [tmp_path / "file" / "out"]
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        places.append(tmp_path / "closed" / "out")
    for out in places:
        ran = commands.run(COMMANDS[name](inputs, out))
        assert ran.code == 2 and "Traceback" not in ran.stderr and str(out) in ran.stderr
    assert (tmp_path / "file").read_text() == "mine"
