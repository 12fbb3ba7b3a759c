"""Loading, tracing and saving what transformers writes: tiny random models of the families people use."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import family, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.models import key_map, net_config

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 8, "patch_size": 4}


def _bert():
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **SIZES)
    return transformers.BertForSequenceClassification(config)


def _llama(tied=False):
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, **SIZES)
    return transformers.LlamaForCausalLM(config)


def _clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **PIXELS))


def _vit():
    config = transformers.ViTConfig(num_channels=1, num_labels=3, **SIZES, **PIXELS)
    return transformers.ViTForImageClassification(config)


def _text(labels=True):
    generator = torch.Generator().manual_seed(3)
    batch = {
        "input_ids": torch.randint(50, (4, 6), generator=generator),
        "attention_mask": torch.ones(4, 6).long(),
    }
    return batch | ({"labels": torch.arange(4) % 3} if labels else {})


def _pixels(channels):
    return {"pixel_values": torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(3))}


MODELS = {
    "bert": (_bert, _text),
    "llama": (_llama, lambda: _text(labels=False)),
    "tied llama": (lambda: _llama(tied=True), lambda: _text(labels=False)),
    "clip": (_clip, lambda: _pixels(3)),
    "vit": (_vit, lambda: _pixels(1) | {"labels": torch.arange(4) % 3}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each kind of model saved twice, with different weights."""
    root = tmp_path_factory.mktemp("saved")
    for kind, (make, _) in MODELS.items():
        for number, name in enumerate("ab"):
            torch.manual_seed(number)
            make().save_pretrained(root / kind / name)
    return root


def main(output):
    return next(output[k] for k in ("logits", "last_hidden_state") if k in output)


def run(model, batch):
    with torch.no_grad():
        return main(model(**{key: value for key, value in batch.items() if key != "labels"}))


@pytest.mark.parametrize("kind", MODELS)
def test_a_merge_is_traced_saved_and_loaded_by_transformers(saved, tmp_path, kind):
    make, batch = MODELS[kind][0], MODELS[kind][1]()
    a, b = (ms.Checkpoint(saved / kind / name) for name in "ab")
    middle = ms.lerp(a, b, 0.5)
    out = ms.save(middle, tmp_path / "merged")

    loaded, info = type(make()).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ends = [load_file(saved / kind / name / "model.safetensors") for name in "ab"]
    merged = load_file(out / "model.safetensors")
    assert set(merged) == set(ends[0])
    for key, value in merged.items():
        torch.testing.assert_close(value, (ends[0][key].double() + ends[1][key].double()).div(2).float())

    # Whatever transformers computes with the merged directory, the trace computed at the point.
    model = ms.load_model(saved / kind / "a")
    traced = ms.trace([a, b, middle], [batch], model, readings=[ms.InnerProducts()])
    assert len(traced.layers) == 3 and traced.layers[-1] == "output"
    assert all(layer.endswith((".0", ".1")) for layer in traced.layers[:-1])
    expected = run(loaded.eval(), batch).double()
    if expected.ndim == 3:  # maps of tokens: the last one's for a decoder, else their mean
        expected = expected[:, -1] if "llama" in kind else expected.mean(1)
    gram = traced.reading(ms.InnerProducts).gram("output", [middle])[:, 0, 0]
    torch.testing.assert_close(torch.from_numpy(gram), (expected**2).sum(1), rtol=1e-5, atol=1e-9)
    assert torch.equal(run(model, batch), run(type(make()).from_pretrained(saved / kind / "a").eval(), batch))


@pytest.mark.parametrize("kind", MODELS)
def test_shards_and_single_files_are_the_same_model(saved, tmp_path, kind):
    make, batch = MODELS[kind][0], MODELS[kind][1]()
    type(make()).from_pretrained(saved / kind / "a").save_pretrained(
        tmp_path / "sharded", max_shard_size="5KB"
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one, many = ms.Checkpoint(saved / kind / "a"), ms.Checkpoint(tmp_path / "sharded")
    assert one.digest == many.digest
    assert torch.equal(run(ms.load_model(many), batch), run(ms.load_model(one), batch))
    again = ms.save(many, tmp_path / "joined")
    assert ms.Checkpoint(again).digest == one.digest
    assert torch.equal(run(ms.load_model(again), batch), run(ms.load_model(one), batch))


def test_weights_can_be_put_into_every_family(saved):
    for kind, (_, batch) in MODELS.items():
        model, b = ms.load_model(saved / kind / "a"), ms.Checkpoint(saved / kind / "b")
        ms.load_weights(model, b)
        assert torch.equal(run(model, batch()), run(ms.load_model(b), batch())), kind


def test_tied_weights_need_one_name_and_stay_tied(saved):
    model, b = ms.load_model(saved / "tied llama" / "a"), ms.Checkpoint(saved / "tied llama" / "b")
    assert "lm_head.weight" not in b.spec
    ms.load_weights(model, b)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, b.tensor("model.embed_tokens.weight"))


def test_a_headless_checkpoint_fits_the_base_model(saved):
    body = transformers.BertModel.from_pretrained(saved / "bert" / "a", add_pooling_layer=True)
    state = {f"bert.{key}": value for key, value in body.state_dict().items()}
    mapping = key_map(body, ms.Checkpoint(state))
    assert mapping["embeddings.word_embeddings.weight"] == "bert.embeddings.word_embeddings.weight"


def _edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def bert(tmp_path):
    _bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_every_missing_and_unexpected_key_is_an_error_naming_all(bert):
    def change(state):
        del state["classifier.weight"], state["bert.encoder.layer.1.output.dense.bias"]
        state["extra.weight"] = torch.ones(2)

    _edit(bert, change)
    with pytest.raises(MismatchError, match="does not fill BertForSequenceClassification") as caught:
        ms.load_model(bert)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "classifier.weight: missing" in text and "layer.1.output.dense.bias: missing" in text
    assert "extra.weight: not known" in text


def test_a_shape_that_differs_is_named(bert):
    _edit(bert, lambda state: state.update({"classifier.weight": torch.ones(5, 16)}))
    with pytest.raises(
        MismatchError, match=r"classifier\.weight: \[5, 16\] in the checkpoint, \[3, 16\] in the network"
    ):
        ms.load_model(bert)


def test_key_map_names_every_problem_at_once():
    net = make_net("mlp")
    state = dict(net.state_dict())
    del state["head.bias"]
    state["head.weight"] = torch.ones(4, 10)
    state["blocks.2.0.weight"] = torch.ones(1)
    with pytest.raises(MismatchError, match="org/odd.* does not fit MLP, 3 tensor") as caught:
        key_map(net, ms.Checkpoint(state, name="org/odd"))
    text = "\n".join(caught.value.problems)
    assert "head.bias: missing in the checkpoint (the network has [3])" in text
    assert "head.weight: [4, 10] in the checkpoint, [3, 10] in the network" in text
    assert "blocks.2.0.weight: not in the network" in text


def test_a_tensor_that_is_missing_is_not_excused_by_an_empty_one():
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))
    with pytest.raises(MismatchError, match="b: missing"):
        key_map(net, ms.Checkpoint({"a": torch.zeros(0)}))


def test_load_weights_keeps_dtype_identity_and_gradient_flags():
    net = make_net("mlp").double()
    net.head.weight.requires_grad_(False)
    before = dict(net.named_parameters())
    _, a = family(make_net("mlp"), ("base", "a"))
    ms.load_weights(net, a)
    for name, parameter in net.named_parameters():
        assert parameter is before[name] and parameter.dtype == torch.float64
        assert torch.equal(parameter.float(), a.tensor(name))
    assert not net.head.weight.requires_grad and net.head.bias.requires_grad


@pytest.mark.parametrize("config", [None, {}, {"hidden_size": 3}])
def test_a_directory_that_does_not_say_its_architecture_is_refused(tmp_path, config):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path.name} has no config\.json with a model_type.*model="
    ):
        ms.load_model(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(CheckpointError, match="no-such-model"):
        ms.load_model(tmp_path)


def pickled(folder, shards):
    """Turn a saved model into what torch.save wrote before there were safetensors."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    files = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    where = {key: files[i % shards] for i, key in enumerate(state)}
    for file in files:
        torch.save({key: value for key, value in state.items() if where[key] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_directories_load_like_safetensors(bert, shards):
    batch = _text()
    expected = run(ms.load_model(bert), batch)
    pickled(bert, shards)
    assert torch.equal(run(ms.load_model(bert), batch), expected)


def test_a_fine_tune_comes_with_its_head_and_a_base_without(saved, tmp_path):
    body = transformers.BertModel.from_pretrained(saved / "bert" / "a")
    body.save_pretrained(tmp_path / "base")
    base, tuned = ms.load_model(tmp_path / "base"), ms.load_model(saved / "bert" / "a")
    assert (type(base), type(tuned)) == (
        transformers.BertModel,
        transformers.BertForSequenceClassification,
    )
    with torch.no_grad():
        pooled = base(**_text(labels=False)).pooler_output
        assert torch.equal(tuned.classifier(pooled), run(tuned, _text()))


@pytest.mark.parametrize("named", [None, [], ["NoSuchClass"], ["logging"], "BertModel"])
def test_a_configuration_that_names_no_class_gives_the_body(saved, tmp_path, named):
    transformers.BertModel.from_pretrained(saved / "bert" / "a").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": named}))
    assert type(ms.load_model(tmp_path)) is transformers.BertModel
    assert type(ms.empty_model(tmp_path)) is transformers.BertModel


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_dtypes(saved, tmp_path, kind):
    if kind == "bert":
        source = tmp_path / "half"
        transformers.BertForSequenceClassification.from_pretrained(
            saved / "bert" / "a", dtype=torch.bfloat16
        ).save_pretrained(source)
    else:
        net = make_net("mlp")
        source = ms.save(ms.Checkpoint(net.bfloat16().state_dict()), tmp_path / "half")
        (source / "config.json").write_text(json.dumps(net_config(net)))
    wanted = {"float32": torch.float32, "float16": torch.float16, "auto": torch.bfloat16}
    for name, dtype in wanted.items():
        assert {entry.dtype for entry in ms.load_model(source, dtype=name).parameters()} == {dtype}
    assert next(ms.load_model(source).parameters()).dtype == torch.float32
    assert next(ms.load_model(source, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["flaot32", "int8", torch.int64, "float"])
def test_a_wrong_dtype_is_named_before_anything_is_read(dtype):
    with pytest.raises(MergescopeError, match=r"can't be loaded in dtype=.*Use one of float32, bfloat16"):
        ms.load_model("org/absent", dtype=dtype)


def test_a_device_that_is_not_there_is_named_before_anything_is_read(saved):
    with pytest.raises(MergescopeError, match=r"device='gpu' can't be used here: .*'cpu'"):
        ms.load_model("org/absent", device="gpu")
    place = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(ms.load_model(saved / "bert" / "a", device=place).parameters()).device.type == place


QUIET = """
import json, sys, warnings
import transformers
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging
import mergescope as ms

def state():
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()

before = state()
for folder in sys.argv[1:]:
    ms.load_model(folder)
    ms.empty_model(folder)
try:
    ms.load_model(sys.argv[1] + "/absent")
except ms.MergescopeError:
    pass
print(json.dumps([before, state()]))
print("--- now transformers itself ---", file=sys.stderr, flush=True)
transformers.AutoModel.from_pretrained(sys.argv[1])
"""


def test_loading_is_silent_and_leaves_the_settings_of_transformers_alone(saved, bert):
    pickled(bert, 3)
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_HUB_DISABLE", "TRANSFORMERS_", "PYTEST"))
    } | {"TRANSFORMERS_VERBOSITY": "info"}
    folders = [str(saved / kind / "a") for kind in ("bert", "llama", "clip")] + [str(bert)]
    done = subprocess.run(
        [sys.executable, "-c", QUIET, *folders], capture_output=True, text=True, env=environment, check=True
    )
    ours, theirs = done.stderr.split("--- now transformers itself ---\n")
    before, after = json.loads(done.stdout)
    assert ours == ""
    assert before == after == [20, True, False]
    assert theirs  # what a user lets transformers say is said again


def test_a_head_for_another_task_is_left_out(tmp_path):
    # bert-base-uncased says BertForMaskedLM, and holds what BertForPreTraining has.
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=30
    )
    whole = transformers.BertForPreTraining(config)
    whole.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}))
    network = ms.load_model(tmp_path)
    assert type(network).__name__ == "BertForMaskedLM"
    assert torch.equal(network.cls.predictions.bias, whole.cls.predictions.bias)
    checkpoint = ms.Checkpoint(tmp_path)
    assert not any("pooler" in key for key in key_map(network, checkpoint).values())
    del whole.bert.encoder.layer[0]
    with pytest.raises(MismatchError, match="encoder.layer.0"):
        key_map(network, ms.Checkpoint(whole.state_dict()))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_what_wrappers_put_before_names_is_overlooked(wrapper):
    net = make_net("mlp")
    state = {f"{wrapper}{key}": value + 1 for key, value in net.state_dict().items()}
    ms.load_weights(net, ms.Checkpoint(state, name="wrapped"))
    assert all(torch.equal(value, state[wrapper + key]) for key, value in net.state_dict().items())
