"""``mergescope layers``, run in this process."""

import json

import pytest
import torch
import typer
from huggingface_hub import constants
from tiny_transformers import tiny, transformers
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli.layers import layers
from mergescope.errors import CheckpointError, LayerError
from mergescope.models import net_config

APP = typer.Typer()
APP.command()(layers)


def run(*arguments):
    done = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(APP, [str(part) for part in arguments])
    if done.exception:
        raise done.exception
    return done.stdout


def described(*arguments):
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Configurations only: there are no weights to read."""
    root = tmp_path_factory.mktemp("saved")
    for kind in ("llama", "bert", "vit", "t5"):
        net = tiny(kind)
        net.config.architectures = [type(net).__name__]
        net.config.save_pretrained(root / kind)
    (root / "net").mkdir()
    net = ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=3)
    (root / "net" / "config.json").write_text(json.dumps(net_config(net)))
    return root


def test_the_table_says_names_classes_shapes_parameters_family_and_features(saved):
    lines = [" ".join(line.split()) for line in run(saved / "llama").splitlines()]
    net = tiny("llama")
    count = sum(entry.numel() for entry in net.model.layers[0].parameters())
    total = sum(entry.numel() for entry in net.parameters())
    assert lines[0] == f"llama: LlamaForCausalLM, {total:,} parameters"
    assert f"model.layers.0 LlamaDecoderLayer tokens x 16 {count:,}" in lines
    assert f"output LlamaForCausalLM tokens x 50 {total:,}" in lines
    assert "Family: Llama, Qwen, Mistral, Gemma, Phi, ModernBERT." in lines
    assert "Kind: decoder; --features auto means last (the last token that counts)." in lines


@pytest.mark.parametrize(
    ("kind", "features", "shapes"),
    [
        ("llama", "last", {"model.layers.1": ["tokens", 16], "output": ["tokens", 50]}),
        ("bert", "all", {"bert.encoder.layer.1": ["tokens", 16], "output": [3]}),
        ("vit", "all", {"output": [3]}),
        ("t5", "mean", {"encoder.block.0": ["tokens", 16], "decoder.block.1": [1, 16], "output": [1, 50]}),
        ("net", "all", {"blocks.0": [5, 16], "output": [3]}),
    ],
)
def test_json_has_the_same(saved, kind, features, shapes):
    found = described(saved / kind)
    assert found["features"]["auto"] == features and found["family"] and not found["guessed"]
    rows = {row["name"]: row for row in found["layers"]}
    assert list(rows)[-1] == "output"
    for name, shape in shapes.items():
        assert rows[name]["shape"] == shape
    assert rows["output"]["parameters"] == found["parameters"]


def test_layers_can_be_named(saved):
    found = described(
        saved / "llama", "--layers", "mlp.*_proj", "--layers", "output", "--layers", "embed_tokens"
    )
    projections = [f"model.layers.{i}.mlp.{part}_proj" for i in range(2) for part in ("gate", "up", "down")]
    assert [row["name"] for row in found["layers"]] == ["model.embed_tokens", *projections, "output"]
    assert found["layers"][1]["shape"] == ["tokens", 32] and found["family"] is None
    assert "Layers as named." in run(saved / "llama", "--layers", "norm")
    with pytest.raises(LayerError, match="'mlp.gat_proj' matches no module.*Did you mean: .*mlp.gate_proj"):
        run(saved / "llama", "--layers", "mlp.gat_proj")


def test_a_guess_is_called_one_and_unknown_shapes_are_question_marks(tmp_path):
    sizes = {
        "embed_dim": 16,
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [4, 8, 8, 8],
        "num_attention_heads": [1] * 4,
    }
    net = transformers.PvtModel(transformers.PvtConfig(image_size=32, **sizes))
    net.config.architectures = ["PvtModel"]
    net.config.save_pretrained(tmp_path / "pvt")
    found = described(tmp_path / "pvt")
    assert found["guessed"] and found["family"] is None
    assert [row["class"] for row in found["layers"][:-1]] == ["PvtLayer"] * 8
    assert "Family: unknown. These are a guess" in run(tmp_path / "pvt")

    net = transformers.ASTModel(
        transformers.ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    net.config.architectures = ["ASTModel"]
    net.config.save_pretrained(tmp_path / "sounds")
    assert {row["shape"] for row in described(tmp_path / "sounds")["layers"]} == {None}
    assert " ? " in run(tmp_path / "sounds")


def test_a_model_larger_than_any_memory_has_layers(tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 65536}
    config |= {
        "intermediate_size": 262144,
        "num_hidden_layers": 3,
        "num_attention_heads": 512,
        "vocab_size": 200000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = described(tmp_path)
    assert found["parameters"] > 200e9
    assert found["layers"][0]["shape"] == ["tokens", 65536]


def test_a_hub_id_in_the_cache_needs_its_configuration_only(saved):
    commit = "0123456789" * 4
    snapshot = f"models--org--tiny/snapshots/{commit}"
    cache = constants.HF_HUB_CACHE
    folder = type(saved)(cache) / snapshot
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((saved / "bert" / "config.json").read_text())
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert described("org/tiny")["class"] == "BertForSequenceClassification"
    assert described(f"org/tiny@{commit}")["model"] == "org/tiny"
    with pytest.raises(
        CheckpointError, match="'org/absent' is neither a local path nor a model whose config.json"
    ):
        run("org/absent")
    with pytest.raises(CheckpointError, match="at revision 'v9'"):
        run("org/tiny@v9")
    with pytest.raises(CheckpointError, match="There is no file or directory './no/where'"):
        run("./no/where")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no config.json with a model_type"),
        ("[1]", "has no config.json with a model_type"),
        ("{", "config.json is not valid JSON"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
    ],
)
def test_a_directory_without_a_usable_configuration_is_an_error(tmp_path, config, said):
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=said):
        run(tmp_path)
