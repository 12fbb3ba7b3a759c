"""Which columns, configuration and tokenizer data are read with, by all commands that run models on data."""

import json

import numpy as np
import pytest
import torch
import typer
from datasets import Dataset, Features, Image, Value
from entered import entered
from given_models import WORDS, family, labels, make, save, save_rows, save_tokenizer, texts
from PIL import Image as Pillow
from tunable_bases import preprocessor

from mergescope.cli import app

COMMANDS = ("measure", "evaluate")

OTHERS = {
    "equations": ("--tests", "ctl"),
    "search": ("--grid", 0, 1, "--no-extend"),
    "soup": (),
    "disentangle": ("--points", 2),
    "stitch": ("--lambdas", 0.4),
    "predict": (),
    "theorems": ("--layers", "output"),
    "curvature": ("--at", "base", "--max-steps", 2),
}
"""The same options are theirs; and what makes them cheap."""


def figures(command, models, data, *more):
    """What is found, without what it costs."""
    words = (
        command,
        "--base",
        models["base"],
        "--models",
        models["a"],
        models["b"],
        "--data",
        f"some={data}",
    )
    local = ("--no-local",) if command == "measure" else ()
    done = entered(*words, *local, *more, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {name: found[name] for name in ("pairs", "losses", "results") if name in found}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return family(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Texts and labels in columns that need no option."""
    return save_rows(tmp_path_factory.mktemp("usual") / "test.csv", texts(), label=labels(10, 2))


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """The same in other columns, beside others of the usual names."""
    first, rest = zip(*(text.partition(" ")[::2] for text in texts()), strict=True)
    columns = {"words": texts(), "kind": labels(10, 2), "first": first, "rest": rest, "label": [0, 1] * 5}
    return save_rows(tmp_path_factory.mktemp("unusual") / "test.csv", ["w0"] * 10, **columns)


@pytest.mark.parametrize("command", COMMANDS)
def test_columns_of_texts_and_labels(classifiers, usual, unusual, command):
    named = ("--text-column", "words", "--label-column", "kind")
    assert figures(command, classifiers, unusual, *named) == figures(command, classifiers, usual)


@pytest.mark.parametrize("command", OTHERS)
def test_columns_of_texts_and_labels_of_every_task(classifiers, tmp_path, command):
    words = [command, *OTHERS[command], "--base", classifiers["base"], "--json"]
    words += ["--models", f"a={classifiers['a']}", f"b={classifiers['b']}"]
    found = []
    for name, options in (("usual", ()), ("unusual", ("--text-column", "words", "--label-column", "kind"))):
        for split, seed in (("validation", 1), ("test", 0)):
            columns = {"label": labels(10, 2)}
            if options:
                columns = {"words": texts(seed=seed), "kind": labels(10, 2), "label": [0, 1] * 5}
            save_rows(
                tmp_path / name / f"{split}.csv", ["w0"] * 10 if options else texts(seed=seed), **columns
            )
        done = entered(*words, "--data", f"a={tmp_path / name}", f"b={tmp_path / name}", *options)
        assert done.returncode == 0, done.stderr
        found.append(without_costs(json.loads(done.stdout)))
    assert found[0] == found[1]


def without_costs(found):
    """What a command says, without what it took."""
    if isinstance(found, dict):
        return {
            name: without_costs(value) for name, value in found.items() if name not in ("cost", "seconds")
        }
    return [without_costs(each) for each in found] if isinstance(found, list) else found


def test_every_command_with_data_takes_them():
    commands = typer.main.get_command(app).commands
    taking = {name for name in commands if any("--batch-size" in it.opts for it in commands[name].params)}
    assert taking == {*COMMANDS, *OTHERS, "mergeability"}
    for name in taking - {"mergeability"}:  # of families, which have their own columns
        options = {option for it in commands[name].params for option in it.opts}
        assert {"--text-column", "--label-column", "--image-column", "--template", "--tokenizer"} <= options


def test_a_text_is_made_of_columns(classifiers, usual, unusual):
    named = ("--template", "{first} {rest}", "--label-column", "kind")
    assert figures("measure", classifiers, unusual, *named) == figures("measure", classifiers, usual)


def test_a_prompt_is_read_and_not_counted(tmp_path):
    models = family(tmp_path, kind="LlamaForCausalLM", change=0.02)
    asked, said = ("w1 w2", "w3"), ("w4", "w5 w6 w7")
    data = save_rows(tmp_path / "test.csv", said, question=asked)
    found = figures("measure", models, data, "--text-column", "text", "--prompt-column", "question")
    (loss,) = [row["loss"]["mean"] for row in found["losses"] if row["model"] == "base"]
    network, losses = make("LlamaForCausalLM"), []
    for question, answer in zip(asked, said, strict=True):
        ids = torch.tensor([[2, *(WORDS.index(word) for word in f"{question} {answer}".split()), 3]])
        with torch.no_grad():
            scores = network(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        each = -scores[torch.arange(len(scores)), ids[0, 1:]]
        losses.append(each[len(question.split()) :].mean().item())
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_one_of_several_data_sets_of_a_directory(classifiers, tmp_path):
    for seed, name in enumerate(("noun", "verb")):
        save_rows(tmp_path / name / "test.csv", texts(seed=seed), label=labels(10, 2))
    found = figures("measure", classifiers, tmp_path, "--data-config", "verb")
    assert found == figures("measure", classifiers, tmp_path / "verb")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_from_elsewhere(classifiers, usual, tmp_path, command):
    other = save_tokenizer(tmp_path / "other", marks=False)
    own = figures(command, classifiers, usual)
    assert figures(command, classifiers, usual, "--tokenizer", classifiers["a"]) == own
    assert figures(command, classifiers, usual, "--tokenizer", other) != own


@pytest.mark.parametrize("command", COMMANDS)
def test_one_of_several_columns_of_images(tmp_path, command):
    start, models = make("ViTForImageClassification"), {}
    for seed, name in enumerate(("base", "a", "b")):
        network = make("ViTForImageClassification", seed, start) if seed else start
        models[name] = preprocessor(save(network, tmp_path / name, tokenizer=False))
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    photos, blank = [Pillow.fromarray(pixels) for pixels in noise], Pillow.new("RGB", (8, 8))
    for folder, columns in (("one", {"photo": photos}), ("two", {"image": [blank] * 6, "photo": photos})):
        features = Features({**dict.fromkeys(columns, Image()), "label": Value("int64")})
        (tmp_path / folder).mkdir()
        table = Dataset.from_dict({**columns, "label": [0, 1] * 3}, features=features)
        table.to_parquet(str(tmp_path / folder / "test.parquet"))
    found = figures(command, models, tmp_path / "two", "--image-column", "photo")
    assert found == figures(command, models, tmp_path / "one")


def test_options_that_a_family_has_no_use_for_are_refused(tmp_path, monkeypatch):
    from mergescope.studies import given_family

    def found(kind):
        monkeypatch.setattr(given_family, "find_family", lambda *_, **__: object.__new__(kind))

    for kind, words in (
        (given_family.ClipFamily, ("--label-column", "class", "--prompt-column", "ask")),
        (given_family.OwnFamily, ("--data-config", "verb")),
    ):
        found(kind)
        done = entered("evaluate", "--family", "some", *words)
        assert done.returncode == 2 and " and ".join(words[::2]) in done.stderr.replace(", ", " and ")
