"""Options of ``mergescope finetune``: each changes what it says, in the weights, the data or the files."""

import json
import math

import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from entered import entered
from given_models import WORDS, make, save, save_rows
from PIL import Image as Pillow
from safetensors.torch import load_file
from small_families import make_inputs
from support import stand_in_for_tensorboard
from tunable_bases import vit

from mergescope.errors import StudyError
from mergescope.models.features import TOKEN_MASK
from mergescope.studies import family_run
from mergescope.tracing import engines
from mergescope.training import linearized

FAST = ("--steps", 1, "--batch", 8, "--lr", "1e-2", "--device", "cpu")


def run(*words):
    """What is printed."""
    done = entered("finetune", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def one(inputs):
    """One task, without a regime."""
    return ["--base", inputs / "base", "--data", inputs / "left", *FAST, "--regime"]


def test_lora_is_made_as_it_is_told_to_be(inputs, one, tmp_path):
    run(*one, "lora", "--lora-rank", 2, "--lora-alpha", 6, "--lora-dropout", 0.25, "--rslora",
        "--lora-targets", "query", "intermediate.dense", "--out", tmp_path / "family")  # fmt: skip
    made = tmp_path / "family" / "lora" / "left"
    said = json.loads((made / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"], said["use_rslora"]) == (2, 6, 0.25, True)
    base, tuned = (load_file(folder / "model.safetensors") for folder in (inputs / "base", made))
    factors = load_file(made / "adapter" / "adapter_model.safetensors")
    targets = [
        f"encoder.layer.{n}.{name}"
        for n in range(3)
        for name in ("attention.self.query", "intermediate.dense")
    ]
    assert {key for key in base if not torch.equal(base[key], tuned[key])} == {
        f"{name}.weight" for name in targets
    }
    for name in targets:
        a, b = (factors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        expected = base[f"{name}.weight"] + 6 / math.sqrt(2) * b @ a
        torch.testing.assert_close(tuned[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)


def test_lora_without_options_is_scaled_by_the_rank_and_has_no_dropout(one, tmp_path):
    run(*one, "lora", "--lora-rank", 3, "--out", tmp_path)
    said = json.loads((tmp_path / "lora" / "left" / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"], said["use_rslora"]) == (3, 6, 0, False)


@pytest.mark.parametrize(
    ("regime", "more", "ends"),
    [
        ("attention", (), ("query.weight", "key.weight", "value.weight", "attention.output.dense.weight")),
        ("attention", ("--paradigm", 2, "--patterns", "query"), ("query.weight", "query.bias")),
        (
            "attention",
            ("--patterns", "value", "intermediate.dense"),
            ("value.weight", "intermediate.dense.weight"),
        ),
        ("lora", ("--lora-targets", "key"), ("key.lora_A.default.weight", "key.lora_B.default.weight")),
    ],
)
def test_matrices_that_are_named_train_and_no_others(one, tmp_path, regime, more, ends):
    plan = json.loads(run(*one, regime, *more, "--out", tmp_path / "never", "--dry-run", "--json"))
    (rows,) = plan["trains"].values()
    names = [row["pattern"] for row in rows if row["trained"] and ".layer." in row["pattern"]]
    assert names and all(name.endswith(ends) for name in names)
    assert all(any(name.endswith(end) for name in names) for end in ends)


@pytest.mark.parametrize("more", [(), ("--checkpointing",)])
def test_activations_are_recomputed_if_asked_for(one, tmp_path, monkeypatch, more):
    real, seen = linearized.recomputed, []

    def recomputed(network, blocks):
        seen.append(len(blocks))
        return real(network, blocks)

    monkeypatch.setattr(linearized, "recomputed", recomputed)
    run(*one, "linearized", *more, "--out", tmp_path)
    assert set(seen) == {3 if more else 0}


def test_options_without_their_regime_are_refused(one, tmp_path):
    mine = (
        ("--checkpointing",), ("--lora-alpha", 4), ("--lora-dropout", 0.1), ("--lora-targets", "query"), ("--rslora",),
        ("--paradigm", 2), ("--patterns", "query"),
    )  # fmt: skip
    for words in mine:
        done = entered("finetune", *one, "full", *words, "--out", tmp_path / "never")
        assert done.returncode == 2 and f"{words[0]}: none of the regimes full takes it" in done.stderr


@pytest.fixture
def samples(monkeypatch):
    """The first training sample that a network would be given: what ``--dry-run`` opens of a task."""
    opened = []

    def open_task(*arguments):
        opened.append(family_run_open(*arguments))
        return opened[-1]

    family_run_open = family_run.open_task
    monkeypatch.setattr(family_run, "open_task", open_task)

    def first(base, task, *more, regime="full"):
        run(
            "--base",
            base,
            "--data",
            task,
            "--regime",
            regime,
            "--dry-run",
            "--out",
            base.parent / "never",
            *more,
        )
        return {name: value[0] for name, value in opened[-1].parts["train"].batch(torch.arange(1)).items()}

    return first


def words_of(ids):
    return " ".join(WORDS[number] for number in ids.tolist() if number >= 4)


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    """A task whose columns are called as usual, and other columns with other texts and labels."""
    folder = tmp_path_factory.mktemp("columns")
    for split, count in (("train", 12), ("test", 6)):
        same = {
            name: [text] * count for name, text in (("first", "w1"), ("second", "w2 w3"), ("reply", "w4 w5"))
        }
        kinds = {"label": ["no", "yes"] * (count // 2), "kind": ["yes", "no"] * (count // 2)}
        save_rows(folder / f"{split}.csv", ["w0"] * count, **same, **kinds)
    return folder


@pytest.mark.parametrize(
    ("more", "told", "label"),
    [
        ((), "w0", 0),
        (("--text-column", "second"), "w2 w3", 0),
        (("--template", "{second} w9 {first}"), "w2 w3 w9 w1", 0),
        (("--label-column", "kind"), "w0", 1),
    ],
)
def test_columns_of_texts_and_labels(inputs, columns, samples, more, told, label):
    found = samples(inputs / "base", columns, *more)
    assert (words_of(found["input_ids"]), int(found["labels"])) == (told, label)


def test_the_columns_that_were_named_are_those_of_the_task(inputs, columns, tmp_path):
    named = ("--template", "{second} w9", "--label-column", "kind")
    run(
        "--base",
        inputs / "base",
        "--data",
        f"mine={columns}",
        "--regime",
        "full",
        *FAST,
        *named,
        "--out",
        tmp_path,
    )
    task = yaml.safe_load((tmp_path / "family.yaml").read_text())["tasks"]["mine"]
    assert task["columns"] == {"template": "{second} w9", "label_column": "kind"}


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """A causal language model and an encoder-decoder."""
    folder = tmp_path_factory.mktemp("writers")
    return {
        name: save(make(name), folder / name) for name in ("LlamaForCausalLM", "T5ForConditionalGeneration")
    }


def test_a_prompt_is_read_and_not_learned(writers, inputs, columns, samples):
    found = samples(
        writers["LlamaForCausalLM"], columns, "--prompt-column", "first", "--text-column", "second"
    )
    assert words_of(found["input_ids"]) == "w1 w2 w3"
    assert words_of(found["labels"][found["labels"] >= 0]) == "w2 w3"
    found = samples(inputs / "base", columns, "--prompt-column", "first", "--text-column", "second")
    assert words_of(found["input_ids"]) == "w1 w2 w3"
    assert words_of(found["input_ids"][found[TOKEN_MASK].bool()]) == "w2 w3"


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_answers_are_what_is_learned(writers, columns, samples, name):
    found = samples(writers[name], columns, "--template", "{second} w9", "--answer-column", "reply")
    assert words_of(found["labels"][found["labels"] >= 0]) == "w4 w5"
    assert words_of(found["input_ids"]) == ("w2 w3 w9 w4 w5" if name.startswith("Llama") else "w2 w3 w9")


def test_one_of_several_columns_of_images(tmp_path, samples):
    features = Features({"image": Image(), "photo": Image(), "label": Value("int64")})
    dark, bright = (Pillow.new("RGB", (8, 8), (value,) * 3) for value in (0, 255))
    for split in ("train", "test"):
        rows = {"image": [dark] * 6, "photo": [bright] * 6, "label": [0, 1] * 3}
        (tmp_path / "task").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "task" / f"{split}.parquet"))
    base = vit(tmp_path / "base")
    for column, shade in (("image", -2), ("photo", 2)):
        pixels = samples(base, tmp_path / "task", "--image-column", column)["pixel_values"]
        torch.testing.assert_close(pixels, torch.full_like(pixels, shade))
    run("--base", base, "--data", tmp_path / "task", "--image-column", "photo", "--regime", "full", *FAST,
        "--out", tmp_path / "family")  # fmt: skip
    (model,) = yaml.safe_load((tmp_path / "family" / "family.yaml").read_text())["models"]
    found = json.loads(entered("evaluate", "--family", tmp_path / "family", "--json").stdout)["results"]
    (loss,) = [row["mean"] for row in found if (row["points"], row["measure"]) == ("task", "loss")]
    assert loss == pytest.approx(model["results"]["test"]["loss"], abs=1e-5)


@pytest.mark.parametrize(("device", "place"), [("auto", None), ("cpu", "cpu")])
def test_the_trainer_is_told_where_and_how_to_compute(one, tmp_path, monkeypatch, device, place):
    def finetune(prepared, folder, **how):
        raise StudyError(f"{prepared.tune.recipe.precision} on {how['device']}")

    monkeypatch.setattr(family_run, "finetune", finetune)
    words = (*one, "full", "--precision", "bf16", "--device", device, "--out", tmp_path)
    assert f"bf16 on {place}" in entered("finetune", *words).stderr


def test_tensorboard_has_a_log_of_every_model(inputs, one, tmp_path, monkeypatch):
    written = stand_in_for_tensorboard(monkeypatch)
    run(*one, "full", "--out", tmp_path / "family", "--tensorboard", tmp_path / "logs")
    assert written[0] == str(tmp_path / "logs" / "full" / "left") and ("train/loss", 1) in written
    done = entered(
        "finetune", *one, "full", "--out", tmp_path / "other", "--tensorboard", tmp_path, "--workers", 2
    )
    assert done.returncode == 2 and "Leave the workers or the logs out" in done.stderr


@pytest.mark.parametrize(("more", "wanted"), [((), []), (("--workers", 1), []), (("--workers", 3), [3])])
def test_so_many_models_are_trained_at_a_time(one, tmp_path, monkeypatch, more, wanted):
    asked = []

    class Counted(engines.LocalEngine):
        def __init__(self, workers):
            asked.append(workers)
            super().__init__(1)  # processes take seconds to start

    monkeypatch.setattr(engines, "LocalEngine", Counted)
    run(*one, "full", "--out", tmp_path, *more)
    assert asked == wanted and (tmp_path / "full" / "left" / "model.safetensors").is_file()
