"""Commands killed at random moments: each goes on to the same bytes or numbers, and nothing half-made looks whole.

One moment of each command; MERGESCOPE_KILLS=50 tries so many.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from given_models import make, save, save_rows, texts
from safetensors import safe_open
from small_families import make_inputs

from mergescope.studies.rundir import read_rows

KILLS = int(os.environ.get("MERGESCOPE_KILLS", "1"))
QUIET = {"seconds", "peak_bytes", "forward_passes"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    start = make("BertForSequenceClassification")
    for seed, name in enumerate("ab", 1):
        save(make("BertForSequenceClassification", seed, start), folder / name)
    save(start, folder / "start")
    save_rows(folder / "test.csv", texts(48), label=[n % 2 for n in range(48)])
    for name in ("large-a", "large-b"):
        (folder / name).mkdir()
        from safetensors.torch import save_file

        save_file({f"h.{n}.w": torch.randn(500, 500) for n in range(40)}, folder / name / "model.safetensors")
    models = [{"model": str(folder / name), "parameters": {"weight": 1}} for name in ("large-a", "large-b")]
    (folder / "recipe.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return folder


def merging(inputs, out):
    return ["merge", inputs / "recipe.yml", out, "--resume"]


def finetuning(inputs, out):
    data = [f"{name}={inputs / name}" for name in ("left", "right")]
    return ["finetune", "--base", inputs / "base", "--data", *data, "--regime", "full", "attention", "--out", out,
            "--epochs", "2", "--batch", "4", "--save-every", "3", "--keep", "best", "--device", "cpu"]  # fmt: skip


def measuring(inputs, out, command="measure"):
    return [command, "--base", inputs / "start", "--models", inputs / "a", inputs / "b", "--data",
            f"t={inputs / 'test.csv'}", "--batch-size", "4", "--out", out]  # fmt: skip


def equating(inputs, out):
    return measuring(inputs, out, "equations")


def studying(inputs, out):
    return ["study", "run", "ctl-fig2-mlp", "--preset", "quick", "--workers", "1", "--work", out / "work",
            "--out", out / "run"]  # fmt: skip


def tensors_of(folder):
    """All weights by path and key; a file that can't be read fails."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 (no mapping)
                found[str(path.relative_to(folder)), key] = stream.get_tensor(key).numpy().tobytes()
    return found


def numbers_of(folder):
    """All results but what they cost."""
    return [
        {name: repr(value) for name, value in vars(row).items() if name not in QUIET}
        for path in sorted(folder.rglob("results.parquet"))
        for row in read_rows(path)
    ]


def whole(out):
    """What a reader takes for complete: every visible file that is there can be read."""
    if out.exists():
        tensors_of(out)
        numbers_of(out)
        for path in out.rglob("run.yaml"):
            assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    "make_command", [merging, finetuning, measuring, equating, studying], ids=lambda made: made.__name__
)
def test_a_killed_command_goes_on_to_the_same_bytes_and_numbers(make_command, inputs, commands, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    first = commands.run(make_command(inputs, undisturbed))
    assert first.code == 0, first.stderr
    rng, killed = random.Random(make_command.__name__), 0
    expected = tensors_of(undisturbed), numbers_of(undisturbed)
    assert any(expected)
    for turn in range(KILLS + 3):
        if turn >= KILLS and killed:  # else all were faster than the first
            break
        out = tmp_path / f"out{turn}"
        code = commands.run(make_command(inputs, out), rng.uniform(0.02, 0.95) * first.seconds).code
        killed += code == -signal.SIGKILL
        whole(out)
        assert code in (0, -signal.SIGKILL)
        if make_command is not merging or not out.exists():  # a merge that is complete isn't made again
            again = commands.run(make_command(inputs, out))
            assert again.code == 0, again.stderr
        assert (tensors_of(out), numbers_of(out)) == expected
        left = [str(path) for path in tmp_path.rglob("*") if path.name.startswith(f".{out.name}.")]
        assert not left
    assert killed


PARENT = """
import os, sys, time
from pathlib import Path
from mergescope.tracing.engines import LocalEngine
from waiting_items import wait
if __name__ == "__main__":
    with LocalEngine(2) as engine:
        engine.map(wait, [Path(sys.argv[1]) / name for name in "ab"], "waiting")
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    places = [str(tmp_path), str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    marks = [tmp_path / name for name in "ab"]
    while not all(mark.is_file() and mark.read_text() for mark in marks):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [int(mark.read_text()) for mark in marks]
    assert all(running(worker) for worker in workers)
    parent.kill()
    parent.wait()
    for _ in range(1200):
        if not any(running(worker) for worker in workers):
            break
        time.sleep(0.05)
    assert not any(running(worker) for worker in workers)


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
