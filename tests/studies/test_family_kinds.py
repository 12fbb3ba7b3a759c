"""Families of other kinds of models are measured with the heads, columns and classes they were trained with."""

import given_models
import pytest
import tunable_bases
from datasets import Dataset
from small_families import FAST

from mergescope.data import encode, load_processor
from mergescope.protocols.measure import Settings
from mergescope.studies.families import Task
from mergescope.studies.family_data import held_out_rows
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.finetune import prepare
from mergescope.studies.given import DataOptions, Options
from mergescope.studies.given_family import prepare_family
from mergescope.studies.training_data import FineTune


def made(folder, base, tasks, **more):
    config = {"base": str(base), "tasks": tasks, "regimes": ["full"], "recipe": FAST | {"lr": 1e-2}} | more
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu")


def measured(family, limit=None):
    options = Options(None, (), DataOptions((), limit=limit), Settings(progress=False))
    return prepare_family(str(family.path), None, options).run()


@pytest.mark.parametrize("regime", ["full", "linearized"])
@pytest.mark.parametrize("make", [tunable_bases.vit, tunable_bases.clip, tunable_bases.net])
def test_measured_accuracy_is_that_which_was_recorded(tmp_path, make, regime):
    data = str(tunable_bases.animals(tmp_path / "data", names=("a", "b", "c", "d", "e")))
    head = "auto" if make is tunable_bases.net else "trained"
    tasks = {"first": {"data": data, "classes": [0, 1]}, "last": {"data": data, "classes": [2, 4]}}
    family = made(tmp_path, make(tmp_path / "base"), tasks, head=head, regimes=[regime])
    found = measured(family)
    assert found.linearized == (regime == "linearized")
    for member in family.members:
        said = found.losses[member.task, member.task]
        assert said["accuracy"].mean == pytest.approx(member.results["test"]["accuracy"])
        assert said["loss"].mean == pytest.approx(member.results["test"]["loss"], abs=1e-4)
        assert said["accuracy"].n == 8 and family.tasks[member.task].classes in (("a", "b"), ("c", "e"))


def test_texts_are_measured_on_what_was_held_out(tmp_path):
    base = given_models.save(given_models.make("GPT2LMHeadModel"), tmp_path / "base")
    lines = {name: given_models.texts(40, seed=seed) for seed, name in enumerate(("one", "two"))}
    for name, rows in lines.items():
        given_models.save_rows(tmp_path / name / "train.csv", rows)
    family = made(tmp_path, base, {name: str(tmp_path / name) for name in lines})
    assert family.base.kind == "decoder" and set(family.members[0].results) == {"validation"}
    rows, columns = held_out_rows(family.tasks["one"], "decoder")
    assert len(rows) == 4 and set(rows["text"][:]) <= set(lines["one"]) and columns["text_column"] is None
    few, _ = held_out_rows(family.tasks["one"], "decoder", limit=2)
    assert set(few["text"][:]) < set(rows["text"][:])
    assert set(measured(family).losses["one", "one"]) >= {"loss", "accuracy"}
    given_models.save_rows(tmp_path / "one" / "test.csv", ["w1 w2"])
    assert held_out_rows(Task(str(tmp_path / "one")), "decoder")[0]["text"][:] == ["w1 w2"]


def test_answers_are_left_out_of_what_is_measured(tmp_path):
    data = str(tunable_bases.questions(tmp_path / "data"))
    task = {"data": data, "answer_column": "reply", "text_column": "text"}
    family = made(tmp_path, tunable_bases.t5(tmp_path / "base"), {"one": task})
    found = measured(family, limit=5)
    assert found.losses == {} and [pair.data for pair in found.pairs] == [("one",)]
    assert {trace.samples for trace in found.traces.values()} == {5}


def test_texts_without_splits_to_choose_on_are_chosen_on_what_was_held_out(tmp_path):
    lines = given_models.texts(40)
    given_models.save_rows(tmp_path / "one" / "train.csv", lines)
    task = Task(str(tmp_path / "one"))

    def rows(split=None):
        return held_out_rows(task, "decoder", split=split)[0]["text"][:]

    held = rows("validation")
    assert len(held) == 4 and held == rows()
    given_models.save_rows(tmp_path / "one" / "validation.csv", ["w1 w2"])
    assert rows() == ["w1 w2"] and rows("validation") == held
    given_models.save_rows(tmp_path / "one" / "test.csv", ["w3 w4"])
    assert rows() == ["w3 w4"] and rows("validation") == ["w1 w2"]


def test_a_decoder_that_learned_answers_is_judged_by_them(tmp_path):
    base = given_models.save(given_models.make("LlamaForCausalLM"), tmp_path / "base")
    task = {"data": str(tunable_bases.questions(tmp_path / "data")), "answer_column": "reply"}
    family = made(tmp_path, base, {"one": task, "two": task})
    counted = {}
    for answers in (False, True):
        options = Options(None, (), DataOptions((), answers=answers), Settings(progress=False))
        (batch, *_) = prepare_family(str(family.path), None, options).batches["one"]
        counted[answers] = batch.get("token_mask", batch["attention_mask"]).sum(1)
    assert set(counted[True].tolist()) == {3}  # two words, [SEP]
    assert (counted[False] > 3).all()


def test_an_encoder_decoder_is_measured_on_the_pair_as_the_one_text_that_it_learned(tmp_path):
    base = tunable_bases.t5(tmp_path / "base")
    for split in ("train", "test"):
        pair = {"premise": ["w1 w2"] * 12, "hypothesis": ["w3"] * 12, "label": ["w10", "w11"] * 6}
        (tmp_path / "data").mkdir(exist_ok=True)
        Dataset.from_dict(pair).to_csv(str(tmp_path / "data" / f"{split}.csv"))
    learned = prepare(FineTune(str(base), str(tmp_path / "data"), "one")).parts["test"]
    rows, columns = held_out_rows(Task(str(tmp_path / "data")), "encoder-decoder")
    measured = encode(rows, load_processor(base, "encoder-decoder"), progress=False, **columns)
    for one, two in zip(learned, measured, strict=True):
        assert one["input_ids"].tolist() == two["input_ids"].tolist()
