"""Fine-tuning in two processes that ``accelerate launch`` starts: the steps of one, and one that writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import given_models
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from entered import entered
from safetensors.torch import load_file
from small_families import Killed, killing, save_task

from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.finetuned import LOG, read_record
from mergescope.training.processes import processes

TESTS = Path(__file__).parents[1]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"]

# SGD, since AdamW's steps are as large where a gradient is nothing but rounding.
BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
RECIPE = {"optimizer": "sgd", "epochs": 1, "batch": 7, "lr": 0.1, "clip": 1.0, "save_every": 1}


def describe(folder, name, base, **recipe):
    family = {"base": str(folder / base), "tasks": {"left": str(folder / "left")}, "regimes": ["full"]}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(family | {"recipe": RECIPE | recipe}))
    return folder / f"{name}.yaml"


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return str(made.getsockname()[1])


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Directories of families that one process made, and two; and what these said."""
    folder = tmp_path_factory.mktemp("processes")
    given_models.save(given_models.make("BertModel", **BERT), folder / "bert")
    given_models.save(given_models.make("GPT2LMHeadModel", **GPT2), folder / "gpt2")
    save_task(folder / "left", train=21)
    families = {
        "bert": describe(folder, "bert", "bert", batch=5),
        "gpt2": describe(folder, "gpt2", "gpt2", accumulate=2),
    }
    for name, family in families.items():
        assert entered("finetune", family, "--out", folder / "one" / name, "--device", "cpu").returncode == 0
    with pytest.raises(Killed):  # one process begins, two go on
        plan = plan_family(read_family_config(families["gpt2"]), folder / "two" / "gpt2")
        plan.run(device="cpu", on_log=killing(2))
    commands = [
        ["finetune", str(family), "--out", str(folder / "two" / name), "--device", "cpu", *more]
        for name, family, more in (
            ("bert", families["bert"], []),
            ("gpt2", families["gpt2"], ["--json"]),
            ("bert", describe(folder, "other", "bert", batch=5, lr=0.5), []),  # an error
        )
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    launch = subprocess.Popen(
        [sys.executable, *LAUNCH, free_port(), "-m", "several_processes", str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = launch.communicate(timeout=600)
    finally:
        launch.terminate()  # not killed: it ends the processes that it started
    done = subprocess.CompletedProcess(launch.args, launch.returncode, *said)
    assert done.stderr.count("All is as it should be.") == 2, done.stderr
    return folder, done


@pytest.mark.parametrize(("name", "steps"), [("bert", 4), ("gpt2", 3)])
def test_two_processes_end_in_the_weights_of_one(launched, name, steps):
    one, two = (launched[0] / count / name / "full" / "left" for count in ("one", "two"))
    start = load_file(launched[0] / name / "model.safetensors")
    for file in [path.name for path in one.glob("*.safetensors")]:
        alone, together = load_file(one / file), load_file(two / file)
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            assert torch.allclose(together[key], value, rtol=1e-5, atol=2e-6), key
    end = load_file(one / "model.safetensors")
    assert max(float((end[key] - value).abs().max()) for key, value in start.items()) > 1e-2
    logs = [pq.read_table(path / LOG).to_pydict() for path in (one, two)]
    assert len(logs[0]["step"]) == steps
    for column in logs[0]:
        assert logs[1][column] == pytest.approx(logs[0][column], rel=1e-4), column
    records = [read_record(path) for path in (one, two)]
    assert records[0]["key"] == records[1]["key"]
    for split, results in records[0]["results"].items():
        assert records[1]["results"][split] == pytest.approx(results, rel=1e-4)


def test_two_processes_write_the_files_of_one(launched):
    files = [
        sorted(str(path.relative_to(launched[0] / count)) for path in (launched[0] / count).rglob("*"))
        for count in ("one", "two")
    ]
    assert files[0] == files[1]


def test_one_of_two_processes_speaks(launched):
    folder, done = launched
    table, _, content = done.stdout.partition("{")
    assert table.count("Accuracy on test samples") == 1 and table.count("left ") == 1
    assert [model["path"] for model in json.loads("{" + content)["models"]] == ["full/left"]
    ours = done.stderr.partition("Sending process")[0]  # the launcher's words follow
    assert done.returncode and ours.count("Error: ") == 1 and "Traceback" not in ours, done.stderr
    assert "recipe.lr: 0.1, now 0.5 (full/left)" in ours


def test_what_processes_can_not_do_is_told(launched, monkeypatch):
    class Two:
        num_processes = 2

    plan = plan_family(read_family_config(launched[0] / "gpt2.yaml"), launched[0] / "one" / "gpt2")
    monkeypatch.setattr("mergescope.studies.family_run.processes", lambda device: Two)
    with pytest.raises(StudyError, match="2 processes train each model together"):
        plan.run(device="cpu", engine=object())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(MergescopeError, match="configured for DeepSpeed"):
        processes("cpu")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    assert processes("cpu").num_processes == 1
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MergescopeError, match="3 processes .* Give --device cpu"):
        processes(None)
