"""``mergescope merge``, as it is typed."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from entered import entered
from safetensors.torch import load_file, save_file
from support import counted_threads

import mergescope as ms
from mergescope.merging import execute

ENTRY = Path(sysconfig.get_path("scripts")) / "mergescope"


def run(*arguments):
    return entered("merge", *arguments, columns=200)


@pytest.fixture
def recipe(tmp_path):
    for name, value in (("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        state = {"w": torch.full((400, 300), value), "bn.running_mean": torch.ones(2)}
        save_file(state, tmp_path / name / "model.safetensors")
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return path


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, recipe):
    before = sorted(tmp_path.rglob("*"))
    shown = run(recipe, tmp_path / "deep" / "out", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for part in (
        "linear: Weighted average", "2 models, 2 tensors; read 960 kB, write 480 kB; about ", "MB of working memory",
        "w  float32[400, 300]  linear of ", "a (weight 1), ", "BatchNorm",
    ):  # fmt: skip
        assert part in shown.stdout, part
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_shows_what_gradients_and_filters_come_to(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        state = {f"h.{n}.{part}.w": torch.ones(2) for n in range(3) for part in ("attn", "mlp")}
        save_file(state | {"ids": torch.ones(2, dtype=torch.int64)}, tmp_path / name / "model.safetensors")
    (tmp_path / "recipe.yml").write_text(f"""
merge_method: ties
base_model: {tmp_path / "a"}
models:
  - model: {tmp_path / "b"}
    parameters: {{weight: [{{filter: mlp, value: [0, 1]}}, {{value: 0.3}}], density: 0.5}}
parameters: {{int8_mask: true}}
""")
    shown = run(tmp_path / "recipe.yml", tmp_path / "out", "--dry-run").stdout
    assert f"h.1.mlp.w  float32[2]  ties of {tmp_path / 'b'} (weight 0.5, density 0.5)\n" in shown
    assert f"h.1.attn.w  float32[2]  ties of {tmp_path / 'b'} (weight 0.3, density 0.5)\n" in shown
    assert f"ids  int64[2]  copied from {tmp_path / 'a'}\n" in shown


def test_the_seed_of_the_command_line_wins(tmp_path, recipe):
    recipe.write_text(f"seed: 3\n{recipe.read_text()}")
    for options, seed in (([], 3), (["--seed", "0"], 0)):
        out = tmp_path / f"out{seed}"
        assert run(recipe, out, *options).returncode == 0
        assert yaml.safe_load((out / "mergescope.yml").read_text())["seed"] == seed
    assert run(recipe, tmp_path / "out", "--seed", "-1").returncode == 2


def test_a_merge_and_a_second_one(tmp_path, recipe):
    words = [ENTRY, "merge", recipe, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BatchNorm" in done.stdout and "Merged into" in done.stdout
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].eq(2).all()
    again = run(recipe, tmp_path / "out")
    assert again.returncode == 2 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    assert run(recipe, tmp_path / "out", "--overwrite").returncode == 0


def test_the_card_has_the_parents_digests_unless_they_are_not_wanted(tmp_path, recipe):
    digests = [ms.Checkpoint(tmp_path / name).digest for name in "ab"]
    for options, there in (((), True), (("--no-digests",), False)):
        assert run(recipe, tmp_path / "out", "--overwrite", *options).returncode == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert [digest in card for digest in digests] == [there] * 2 and ("not computed" in card) != there


def test_so_many_tensors_are_merged_at_once_and_planned_for(tmp_path, recipe, monkeypatch):
    asked = counted_threads(monkeypatch, execute)
    assert run(recipe, tmp_path / "out", "--threads", "3").returncode == 0 and asked == [3]
    one, three = (
        json.loads(run(recipe, tmp_path / "never", "--threads", count, "--dry-run", "--json").stdout)
        for count in (1, 3)
    )
    assert three["threads"] == 3 and three["expected_memory"] == 3 * one["expected_memory"]


def test_files_are_no_larger_than_asked_for(tmp_path, recipe):
    assert run(recipe, tmp_path / "out", "--max-shard-size", "480KB").returncode == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*"))
    assert names == [*(f"model-0000{n}-of-00002.safetensors" for n in (1, 2)), "model.safetensors.index.json"]


def test_every_mistake_of_a_recipe_is_printed_with_its_line(tmp_path, recipe):
    recipe.write_text("dtpye: bf16\n" + recipe.read_text().replace("weight: 1", "wieght: 1"))
    failed = run(recipe, tmp_path / "out")
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "recipe.yml has 5 problems" in failed.stderr
    assert "line 1: unknown key 'dtpye'. Did you mean: dtype" in failed.stderr
    assert failed.stderr.count("Did you mean: weight") == 2
    assert not (tmp_path / "out").exists()


def test_a_wrong_size_and_an_absent_recipe(tmp_path, recipe):
    for arguments, said in (
        ((recipe, tmp_path / "out", "--max-shard-size", "five"), "no size"),
        ((tmp_path / "absent.yml", tmp_path / "out"), "no recipe file"),
    ):
        failed = run(*arguments)
        assert failed.returncode == 2 and said in failed.stderr and "Traceback" not in failed.stderr


INTERRUPTED = """
import os, signal
from mergescope.cli import main
from mergescope.merging.partial import PartialMerge

finished, done = PartialMerge.finished, []

def interrupted(self, *entry):
    finished(self, *entry)
    done.append(entry)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
PartialMerge.finished = interrupted
main()
"""
"""The command, with Ctrl-C pressed when two tensors are finished."""


def test_ctrl_c_says_how_to_go_on(tmp_path, recipe):
    for name in "ab":
        state = {f"w{n}": torch.randn(300, 300) for n in range(20)}
        save_file(state, tmp_path / name / "model.safetensors")
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "merge", recipe, tmp_path / "out", "--threads", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = process.stderr
    assert process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    recipe_done = run(recipe, tmp_path / "out", "--resume")
    assert recipe_done.returncode == 0, recipe_done.stderr
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 20
