"""Recipes, families, indexes and configurations that would take forever, run code, or mean something else."""

import json
import os
import struct
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tunable_bases import vit
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli import app
from mergescope.data import encode, load_processor
from mergescope.data.registry import task_spec
from mergescope.data.sources import load_table, parse_data_option
from mergescope.errors import CheckpointError, DataError, RecipeError, StudyError
from mergescope.merging.check import check
from mergescope.merging.plan import make_plan
from mergescope.merging.recipe import read_recipe
from mergescope.models.loading import empty_model
from mergescope.studies.family_file import read_family_config
from mergescope.weights.references import open_model

INDEX = "model.safetensors.index.json"
NEXT = list(zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True))
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in NEXT
)
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in NEXT)
RECIPE = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
FAMILY = "base: b\ntasks: [mnist]\nregimes: [full]\n"


@pytest.mark.parametrize(("bomb", "why"), [
    (LAUGHS + "tokenizer: *t\n", "aliases stand for more than 100,000"),
    (MERGED + "parameters: *t\n", "aliases stand for more than 100,000"),
    (MERGED + "tokenizer: {tokens: *t}\n", "aliases stand for more than 100,000"),
    ("tokenizer: " + "[" * 20_000, "nested too deeply"),
    ("tokenizer: " + "{a: " * 20_000, "nested too deeply"),
    ("tokenizer: &a [*a]", "an anchor holds itself"),
    ("tokenizer: &a {x: {<<: *a}}", "an anchor holds itself"),
    ('tokenizer: "\\ud800"', "half a character"),
    ("x: " + "a" * 10_000_001, "10,000,0.. characters"),
])  # fmt: skip
def test_a_yaml_bomb_is_refused_before_it_is_built(tmp_path, bomb, why):
    with pytest.raises(RecipeError, match=rf"evil\.yml can't be read: .*{why}"):
        check(recipe=_written(tmp_path / "evil.yml", RECIPE + bomb))
    with pytest.raises(StudyError, match=rf"family\.yml is not valid YAML: .*{why}"):
        read_family_config(_written(tmp_path / "family.yml", FAMILY + bomb))


def _written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


LIES = ("2001-13-45", "!!int ''", "!!int x", "!!float x", "!!float '1_:'", "!!bool x", "!!timestamp x", "!!binary ö",
        "!!python/object/apply:os.system [id]", "!!omap [1]", "!<x> y", "9" * 5000)  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_value_that_is_not_what_its_tag_or_form_says_is_named_with_its_line(tmp_path, lie):
    for recipe in (
        f"merge_method: linear\nmodels: [{{model: {lie}}}]\n",
        f"models: [{{model: a}}]\nmerge_method: {lie}\n",
        f"merge_method: linear\nmodels:\n  - model: a\n    parameters: {{weight: {lie}}}\n",
        RECIPE + f"seed: {lie}\n",
        RECIPE + f"? {lie}\n: 1\n",
    ):
        with pytest.raises(RecipeError, match="line [1-4]"):
            read_recipe(recipe)
    for place in (
        "base: {}",
        "tasks: {{a: {}}}",
        "seed: {}",
        "regimes: {{lora: {{options: {{rank: {}}}}}}}",
        "{}: 1",
    ):
        key = place.partition(":")[0]
        rest = "".join(line + "\n" for line in FAMILY.splitlines() if not line.startswith(f"{key}:"))
        with pytest.raises(StudyError, match=r"family\.yml"):
            read_family_config(_written(tmp_path / "family.yml", rest + place.format(lie)))


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..", "a/b", "a\\b", "", "a\x1b[2J", "a\x00b", "a" * 101]
)
def test_a_task_or_regime_can_not_name_a_place_outside_the_family(name):
    for more in ({"tasks": {name: "mnist"}}, {"regimes": {name: {"regime": "full"}}}):
        with pytest.raises(StudyError, match="can't be the name of a directory"):
            read_family_config({"base": "b", "tasks": ["mnist"], "regimes": ["full"], **more})


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "./" + "b" * 300, "~nobody-has-this-name/model"])
def test_a_name_that_no_file_can_have_is_told(tmp_path, name):
    with pytest.raises(CheckpointError, match="can't be the name of a file or a directory"):
        open_model(name)
    for read in (load_table, parse_data_option, task_spec):
        with pytest.raises(DataError, match="can't be the name of a file or a directory"):
            read(name)
    with pytest.raises(CheckpointError, match="can't be the name of a file or a directory"):
        make_plan(read_recipe({"merge_method": "passthrough", "models": [{"model": name}]}))
    with pytest.raises(RecipeError, match="no recipe file"):
        read_recipe("a" * 5000)


def _with_index(folder, text):
    save_file({"w": torch.ones(2)}, folder / "a.safetensors")
    return _written(folder / INDEX, text).parent


@pytest.mark.parametrize(("text", "why"), [
    ('{"weight_map": ' + "[" * 200_000, "nested too deeply"),
    ('{"weight_map": {"w": ' + "9" * 5000 + "}}", r"limit \(4300"),
    ('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}', "'w' occurs twice"),
    (json.dumps({"weight_map": {"w": "a" * 5000 + ".safetensors"}}), "must be .safetensors files beside"),
    (json.dumps({"weight_map": {"w": "a\x1b[2J.safetensors"}}), r"'a\\x1b\[2J.safetensors'; shards must be"),
    (json.dumps({"weight_map": {"w": "a\0.safetensors"}}), "must be .safetensors files beside"),
    ('{"weight_map": {"w": "\\ud800.safetensors"}}', "must be .safetensors files beside"),
])  # fmt: skip
def test_a_hostile_index_is_named(tmp_path, text, why):
    with pytest.raises(CheckpointError, match=f"{INDEX}.*{why}"):
        ms.Checkpoint(_with_index(tmp_path, text))


def _header(name, shape, body=b""):
    text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, len(body)]}}).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(("file", "why"), [
    (_header("w\x1b[2J", [1], b"abcd"), r"'w\\x1b\[2J' has control characters"),
    (_header("w\u202e", [1], b"abcd"), "has control characters"),
    (_header("w", [0, 1 << 61, 1 << 61]), "'w' declares the shape"),
    (_header("w", [1] * 1000, b"abcd"), "'w' has 1,000 dimensions"),
])  # fmt: skip
def test_a_tensor_that_no_network_has_is_refused_by_name(tmp_path, file, why):
    (tmp_path / "model.safetensors").write_bytes(file)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{why}.*Fetch the model from a source"):
        ms.Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "pytorch_model.bin", "adapter_config.json"])
def test_a_link_to_itself_and_a_pipe_are_no_files(tmp_path, name):
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / name).symlink_to(name)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)  # opening it would wait for a writer for ever
    for source in (tmp_path / "loop", tmp_path / "pipe", tmp_path / "loop" / name, tmp_path / "pipe" / name):
        with pytest.raises(CheckpointError, match=str(source)):
            open_model(source)


def test_links_in_a_circle_are_refused_or_not_followed(tmp_path):
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(CheckpointError, match=r"out can't be a directory: .*Choose another"):
        ms.save(ms.Checkpoint({"w": torch.ones(1)}), tmp_path / "out")
    for reader, error in (
        (read_recipe, RecipeError),
        (read_family_config, StudyError),
        (load_table, DataError),
    ):
        with pytest.raises(error, match="out"):
            reader(str(tmp_path / "out"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "again").symlink_to(".")
    (folder / "up").symlink_to("..")
    _written(folder / "test.csv", "text,label\na,b\n")
    assert load_table(folder)["text"] == ["a"]
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv is neither a file nor a directory"):
        load_table(folder / "pipe.csv")


CONFIGS = {
    "wide": ({"model_type": "bert", "hidden_size": 1 << 40}, "hidden_size 1099511627776"),
    "deep": ({"model_type": "bert", "num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
    "nested": ({"model_type": "clip", "text_config": {"vocab_size": 1 << 50}}, r"text_config\.vocab_size"),
    "own net": ({"model_type": "mergescope-vit", "depth": 10**7}, "depth 10000000"),
    "negative": ({"model_type": "mergescope-mlp", "sizes": [-1, 2]}, "sizes -1"),
    "text": ({"model_type": "mergescope-mlp", "sizes": "x"}, "can be built from"),
    "nothing": ({"model_type": "mergescope-mlp", "sizes": [2]}, "can be built from"),
    "by zero": ({"model_type": "mergescope-vit", "patch": 0}, "can be built from"),
    "list": ({"model_type": ["a"]}, "its architecture is unknown"),
    "no mapping": (["bert"], "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_that_asks_for_too_much_is_refused_before_anything_is_built(tmp_path, kind):
    config, why = CONFIGS[kind]
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    _written(tmp_path / "config.json", json.dumps(config))
    for build in (ms.load_model, empty_model):
        with pytest.raises(CheckpointError, match=why):
            build(tmp_path)


def test_code_that_comes_with_an_image_preprocessor_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    _written(folder / "evil.py", f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    _written(folder / "config.json", json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    own = {"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "evil.X"}}
    _written(folder / "preprocessor_config.json", json.dumps(own))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(DataError, match="can't be loaded"):
        load_processor(folder, "image")
    assert not asked and not (tmp_path / "was run").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run_and_not_asked_about(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    _written(folder / "evil.py", f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    own = {"AutoConfig": "evil.A", "AutoModel": "evil.B", "AutoTokenizer": ["evil.C", None]}
    _written(
        folder / "config.json", json.dumps({"model_type": "evil", "auto_map": own, "architectures": ["B"]})
    )
    _written(folder / name, json.dumps({"model_type": "evil", "auto_map": own, "tokenizer_class": "C"}))
    data = _written(tmp_path / "test.csv", "text,label\na,b\n")
    command = [
        "measure",
        "--base",
        folder,
        "--models",
        f"a={folder}",
        f"b={folder}",
        "--data",
        data,
        "--dry-run",
    ]
    # Whoever answers yes to every question isn't asked.
    ran = subprocess.run(
        [sys.executable, "-m", "mergescope", *map(str, command)], input="y\n" * 10, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 2 and not (tmp_path / "was run").exists()
    assert "Traceback" not in ran.stderr and "[y/N]" not in ran.stdout + ran.stderr
    assert str(folder) in ran.stderr and "which was not run" in ran.stderr


def test_an_error_can_not_move_the_cursor_of_a_terminal(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(_header("w\x1b[2J\r\x07", [1], b"abcd"))
    ran = subprocess.run(
        [sys.executable, "-m", "mergescope", "check", str(tmp_path), f"{tmp_path}\x1b[2J"],
        text=True, capture_output=True,
    )  # fmt: skip
    assert ran.returncode == 2 and r"\x1b[2J" in ran.stdout + ran.stderr
    assert not set(ran.stdout + ran.stderr) & set("\x1b\r\x07")


BASE = {"a.weight": torch.ones(4, 4)}


def _adapter(folder, **config):
    save_file(BASE, folder / "base.safetensors")
    said = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "base_model_name_or_path": str(folder / "base.safetensors"),
    }
    (folder / "adapter").mkdir()
    _written(folder / "adapter" / "adapter_config.json", json.dumps(said | config))
    factors = {
        f"base_model.model.a.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 4)), ("B", (4, 2)))
    }
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    return folder / "adapter"


def test_the_adapter_these_are_made_from_is_applied(tmp_path):
    assert torch.equal(open_model(_adapter(tmp_path)).tensor("a.weight"), torch.full((4, 4), 5.0))


@pytest.mark.parametrize("wrong", [
    {"rank_pattern": [1]}, {"rank_pattern": "x"}, {"alpha_pattern": 5}, {"rank_pattern": {"(": 1}},
    {"rank_pattern": {"(a+)+": 2}}, {"alpha_pattern": {"(a|a)*b": 2}}, {"rank_pattern": {".*.*.*.*.*x": 2}},
    {"base_model_name_or_path": 5}, {"base_model_name_or_path": ["a"]}, {"revision": 5}, {"r": 1 << 200}, {"r": 0},
    {"lora_alpha": 10**400}, {"lora_alpha": float("nan")}, {"peft_type": ["LORA"]}, {"x\x1b[2J": 1},
])  # fmt: skip
def test_a_hostile_adapter_configuration_is_refused_with_its_key(tmp_path, wrong):
    (key,) = wrong
    with pytest.raises(CheckpointError, match="adapter") as caught:
        open_model(_adapter(tmp_path, **wrong)).tensor("a.weight")
    assert key in str(caught.value) or "rank" in str(caught.value)


def test_a_table_or_picture_that_would_unpack_to_gigabytes_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array(["x" * 1000]))
    pq.write_table(
        pa.table({"text": words}), tmp_path / "test.parquet", compression="zstd", row_group_size=1 << 20
    )
    with pytest.raises(DataError, match=r"test\.parquet \(.*declares 1,000,000 rows, more than it has bytes"):
        load_table(tmp_path / "test.parquet")


@pytest.mark.parametrize(("name", "text"), [
    ("a.jsonl", '{"text": ' + "[" * 100_000), ("a.json", "[" * 100_000), ("a.json", '[{"a": ' + "9" * 5000 + "}]"),
    ("a.parquet", "PAR1junkPAR1"), ("a.parquet", ""), ("a.csv", ""), ("a.jsonl", "\x00" * 100), ("a.json", "nul"),
    ("a.json", "null"), ("a.jsonl", "null\nnull"), ("a.json", "[null]"), ("a.json", "[[1]]"),
    ("a.jsonl", '{"a": 1}\nnull\n{"a": 2}'), ("a.json", '[{"a": 1}, null]'), ("a.jsonl", '{"a\\u0000b": 1}'),
])  # fmt: skip
def test_damaged_data_are_named(tmp_path, name, text):
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_table(_written(tmp_path / name, text))


def test_splits_of_a_saved_data_set_can_not_lie_outside_it(tmp_path):
    (tmp_path / "data").mkdir()
    load_table(_written(tmp_path / "t.csv", "text\na\n")).save_to_disk(tmp_path / "secret")
    _written(tmp_path / "data" / "dataset_dict.json", json.dumps({"splits": ["../secret"]}))
    with pytest.raises(DataError, match=r"dataset_dict\.json names the split '\.\./secret'"):
        load_table(tmp_path / "data")


def test_a_picture_that_would_unpack_to_gigabytes_is_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "x.png")
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / "x.png")], "label": [0]})
    with pytest.raises(
        DataError, match=r"The image in row 0 \(.*x\.png\) can't be read: DecompressionBombError"
    ):
        encode(table.cast_column("image", datasets.Image()), load_processor(vit(tmp_path / "m"), "image"))


@pytest.mark.parametrize("said", [{"a": 1}, 5, [], [None], "[/x]", ["[/x]"]])
def test_check_reports_whatever_a_configuration_calls_its_network(tmp_path, said):
    base = torch.randn(8, 8)
    models = {"base": base, **{name: base + 0.01 * torch.randn(8, 8) for name in "ab"}}
    for number, (name, weight) in enumerate(models.items()):
        (tmp_path / name).mkdir()
        save_file({"h.0.w": weight}, tmp_path / name / "model.safetensors")
        config = {"architectures": said, "of": f"[bold]{number}[/x]"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    words = ["check", str(tmp_path / "a"), str(tmp_path / "b"), "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "Can be merged" in result.stdout
