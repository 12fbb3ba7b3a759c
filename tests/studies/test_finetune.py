"""Fine-tuning one model: what is kept, what is refused, what is recorded."""

import shutil
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_families import FAST, Killed, contents, killing, make_inputs
from support import stand_in_for_tensorboard

from mergescope.errors import MergescopeError, StudyError
from mergescope.merging.card import front_matter
from mergescope.merging.merge import merge
from mergescope.models import load_model
from mergescope.models.heads import load_head
from mergescope.models.with_head import WithHead
from mergescope.studies.finetune import finetune, prepare
from mergescope.studies.finetuned import (
    COLUMNS,
    LOG,
    STARTED,
    STATE,
    changes,
    read_record,
    status_of,
    workplace,
)
from mergescope.studies.tensorboard import Logs
from mergescope.studies.training_data import Encoded, FineTune
from mergescope.training import Recipe
from mergescope.training.loop import evaluate
from mergescope.training.objective import Objective
from mergescope.weights import Checkpoint

RECIPE = Recipe("adamw", **FAST)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def tune(inputs):
    return FineTune(str(inputs / "base"), str(inputs / "left"), "left", recipe=RECIPE)


def train(tune, out, **more):
    return finetune(prepare(tune), out, progress=False, device="cpu", **more)


def evaluated(folder, prepared):
    """Loss and accuracy on the test samples of what a directory holds."""
    network = WithHead(load_model(Checkpoint(folder)), load_head(folder)).eval()
    return evaluate(network, Encoded(prepared.parts["test"]), Objective(network))


@pytest.mark.parametrize("regime", ["full", "attention-1", "linearized", "lora"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_results_are_those_of_the_weights_that_were_kept(tune, tmp_path, regime, keep):
    # High rates, so that the best weights are not the last.
    recipe = replace(RECIPE, epochs=3, lr=0.05, evaluate_every=1)
    prepared = prepare(replace(tune, regime=regime, recipe=recipe, keep=keep))
    folder = finetune(prepared, tmp_path / "out", progress=False, device="cpu")
    record = read_record(folder)
    if regime != "linearized":  # whose weights mean something in the linearised network only
        loss, accuracy = evaluated(folder, prepared)
        assert record["results"]["test"] == {
            "loss": pytest.approx(loss, abs=1e-5),
            "accuracy": pytest.approx(accuracy),
        }
    best = max(record["evaluations"], key=lambda found: (found["accuracy"], -found["loss"]))
    wanted = best if keep == "best" else record["evaluations"][-1]
    assert record["results"]["validation"]["loss"] == pytest.approx(wanted["loss"], abs=1e-5)


def test_the_record_and_the_log_say_what_was_done(tune, inputs, tmp_path):
    folder = train(replace(tune, limit=20, max_length=6), tmp_path / "out")
    record = read_record(folder)
    assert record["task"] | {"fingerprints": 0, "notes": 0} == {
        "name": "left", "source": str(inputs / "left"), "classes": ["maybe", "no", "yes"], "fingerprints": 0,
        "notes": 0, "samples": {"train": 20, "validation": 2, "test": 9}, "limit": 20, "max_length": 6,
    }  # fmt: skip
    assert record["regime"] == {"name": "full", "trained_parameters": 7419} and record["head"] == "trained"
    assert record["base"]["digest"] == Checkpoint(inputs / "base").digest and record["steps"] == 3
    log = pq.read_table(folder / LOG).to_pydict()
    assert tuple(log) == COLUMNS and log["step"] == [1, 2, 3] and log["samples"] == [8, 8, 4]


def test_the_card_carries_the_licence_on_and_names_no_directory(inputs, tune, tmp_path):
    shutil.copytree(inputs / "base", tmp_path / "base")
    stated = {"license": "apache-2.0", "pipeline_tag": "fill-mask", "base_model": "org/older"}
    (tmp_path / "base" / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\nThe base.\n")
    folders = {}
    for regime in ("full", "linearized"):
        of_base = replace(tune, base=str(tmp_path / "base"), regime=regime)
        folders[regime] = finetune(prepare(of_base), tmp_path / regime, progress=False, device="cpu")
        text = (folders[regime] / "README.md").read_text()
        assert front_matter(folders[regime]) == {
            "base_model": ["org/older"], "base_model_relation": "finetune", "library_name": "transformers",
            "tags": ["mergescope"], "license": "apache-2.0",
        }  # fmt: skip
        record = read_record(folders[regime])
        assert str(tmp_path) not in text and record["base"]["digest"] in text
        assert f"| test | {record['results']['test']['loss']:.4f} |" in text
        assert ("linearised around its base" in text) == (regime == "linearized")
    models = [{"model": str(folder), "parameters": {"weight": 1}} for folder in folders.values()]
    merged = merge({"merge_method": "linear", "models": models}, tmp_path / "merged", progress=False)
    assert front_matter(merged)["license"] == "apache-2.0"


def test_no_steps_leave_the_base(tune, inputs, tmp_path):
    folder = train(replace(tune, recipe=replace(RECIPE, steps=0)), tmp_path / "out")
    assert Checkpoint(folder).digest == Checkpoint(inputs / "base").digest
    assert pq.read_table(folder / LOG).num_rows == 0 and read_record(folder)["evaluations"] == []


def test_data_and_base_that_are_open_give_the_same(tune):
    first = prepare(tune)
    again = prepare(replace(tune, regime="lora"), base=first.base)
    assert again.key != first.key and again.base is first.base
    assert prepare(tune, base=first.base).key == first.key


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, False), ({"head": "frozen-random"}, False), ({"keep": "best"}, False), ({"limit": 5}, False),
        ({"regime": "attention-2"}, False), ({"name": "other"}, False), ({"limit": 500}, True),
        ({"max_length": 20}, True),
        ({"max_length": 3}, False), ({"text_column": "text"}, True),
    ],
)  # fmt: skip
def test_the_key_is_that_of_the_result(tune, change, same):
    assert (prepare(tune).key == prepare(replace(tune, **change)).key) is same


def test_a_finished_model_is_kept_and_another_configuration_refused(tune, tmp_path):
    folder = train(tune, tmp_path / "out")
    before = contents(tmp_path)
    assert train(tune, folder, on_log=killing(1)) == folder
    with pytest.raises(MergescopeError, match="recipe.lr: 0.001, now 0.1(.|\n)*Nothing was overwritten"):
        train(replace(tune, recipe=replace(RECIPE, lr=0.1)), folder)
    assert contents(tmp_path) == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(MergescopeError, match="it holds other files"):
        train(tune, tmp_path / "mine")


def test_a_damaged_record_or_state_is_told(tune, tmp_path):
    folder = train(tune, tmp_path / "out")
    (folder / "finetune.yaml").write_text("key: [")
    with pytest.raises(StudyError, match="not valid YAML"):
        train(tune, folder)
    with pytest.raises(Killed):
        train(replace(tune, recipe=replace(RECIPE, save_every=1)), tmp_path / "broken", on_log=killing(2))
    work = workplace(tmp_path / "broken")
    (work / STATE).write_bytes(b"torn")
    with pytest.raises(MergescopeError, match="can't be read"):
        train(replace(tune, recipe=replace(RECIPE, save_every=1)), tmp_path / "broken")
    (work / STARTED).write_text("- a list")
    with pytest.raises(StudyError, match="says nothing of a training"):
        status_of(prepare(tune), tmp_path / "broken")


def test_precisions_of_models_after_each_other_may_differ(tune, tmp_path):
    train(tune, tmp_path / "one")
    other = train(replace(tune, recipe=replace(RECIPE, precision="bf16")), tmp_path / "other")
    assert read_record(other)["recipe"]["precision"] == "bf16"


def test_fp16_on_a_cpu_is_refused_before_anything_is_written(tune, tmp_path):
    with pytest.raises(MergescopeError, match="no training in fp16 on a CPU"):
        train(replace(tune, recipe=replace(RECIPE, precision="fp16")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_changes_are_told_in_words():
    old = {"head": "trained", "recipe": {"lr": 1, "steps": None}, "task": {"fingerprints": {"train": "a"}}}
    new = {"head": "none", "recipe": {"lr": 1, "steps": 5}, "task": {"fingerprints": {"train": "b"}}}
    assert changes(old, new) == [
        "head: trained, now none", "the training samples: others than before", "recipe.steps: nothing, now 5",
    ]  # fmt: skip


def test_tensorboard_gets_the_numbers_of_every_step(tune, tmp_path, monkeypatch):
    written = stand_in_for_tensorboard(monkeypatch)
    train(tune, tmp_path / "out", tensorboard=tmp_path / "board")
    assert written[0] == str(tmp_path / "board") and written[-1] == "closed"
    assert [step for name, step in written[1:-1] if name == "train/loss"] == [1, 2, 3]
    assert ("evaluation/accuracy", 3) in written


def test_without_tensorboard_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MergescopeError, match="pip install tensorboard"):
        Logs(tmp_path)


def test_the_random_state_is_left_alone(tune, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    train(tune, tmp_path / "out")
    assert torch.equal(torch.rand(1), wanted)
    assert yaml.safe_load((tmp_path / "out" / "finetune.yaml").read_text())["seed"] == 0
