"""LoRA adapters against PEFT's own merging, and those that must be refused."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mergescope as ms
from mergescope.errors import CheckpointError
from mergescope.weights.lora import LoraCheckpoint
from mergescope.weights.references import ModelReference, open_model, parse_model_reference

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

SMALL = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"wide": nn.Conv2d(3, 6, 3, padding=1), "one": nn.Conv2d(6, 5, 1)})
        self.line = nn.Conv1d(5, 5, 3)
        self.head = nn.Linear(5, 5)
        self.attention = nn.MultiheadAttention(8, 2)
        self.groups = nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x):
        return self.head(self.body["one"](self.body["wide"](x)).mean((2, 3)))


def llama(tied=False):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, vocab_size=40, num_key_value_heads=1, tie_word_embeddings=tied)
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=40))


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )


QV = ["q_proj", "v_proj"]
CASES = {
    "plain": (llama, {"target_modules": QV, "lora_alpha": 24}),
    "rslora": (llama, {"target_modules": QV, "use_rslora": True, "lora_alpha": 24}),
    "patterns": (
        llama,
        {
            "target_modules": [*QV, "down_proj"],
            "rank_pattern": {"v_proj": 3, r"layers\.1\.mlp\.down_proj": 5, "_proj": 7},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "oj": 1, r".*\.1\..*": 5},
        },
    ),
    "rslora with patterns": (
        llama,
        {"target_modules": QV, "use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 9}},
    ),
    "some layers": (llama, {"target_modules": QV, "layers_to_transform": [1]}),
    "embedding and head": (llama, {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "tied embedding": (lambda: llama(tied=True), {"target_modules": ["embed_tokens", "q_proj"]}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "bias": "lora_only"}),
    "conv1d and embedding": (gpt2, {"target_modules": ["c_proj", "wte", "wpe"]}),
    "classifier": (bert, {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS", "bias": "all"}),
    "modules to save": (
        bert,
        {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler", "LayerNorm"]},
    ),
    "t5": (t5, {"target_modules": ["q", "wo", "shared"]}),
    "convolutions": (
        Convs, {"target_modules": ["wide", "one", "line", "head"], "modules_to_save": ["groups"]}
    ),
}  # fmt: skip


def trained(make, options, folder, dtype=torch.float32, adapter_dtype=None, merge=True):
    """A base and an adapter on disk, and the state that PEFT merges them to."""
    torch.manual_seed(0)
    base = make().to(dtype)
    if hasattr(base, "save_pretrained"):
        base.save_pretrained(folder / "base")
    else:
        (folder / "base").mkdir()
        save_file(base.state_dict(), folder / "base" / "model.safetensors")
    network = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{"r": 4, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in peft.get_peft_model_state_dict(network).values():  # all that is saved, in place
            value.add_(torch.randn(value.shape, generator=generator).to(value.dtype) * 0.3)
    network.save_pretrained(folder / "adapter")
    if adapter_dtype:
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({k: v.to(adapter_dtype) for k, v in load_file(path).items()}, path)
    if not merge:
        return None
    merged = network.merge_and_unload()
    if hasattr(merged, "save_pretrained"):
        merged.save_pretrained(folder / "merged")
        return load_file(folder / "merged" / "model.safetensors")
    return merged.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_an_applied_adapter_is_what_peft_merges(tmp_path, case):
    wanted = trained(*CASES[case], tmp_path)
    base = ms.Checkpoint(tmp_path / "base")
    applied = LoraCheckpoint(base, tmp_path / "adapter")
    assert set(applied.keys()) == set(wanted)
    changed = 0
    for key, value in wanted.items():
        got = applied.tensor(key)
        assert applied.spec[key] == (tuple(value.shape), value.dtype) == (tuple(got.shape), got.dtype)
        torch.testing.assert_close(got, value, rtol=2e-6, atol=2e-6)
        changed += not torch.equal(got, base.tensor(key))
        rows = got.shape[0] if got.ndim else 1
        middle = rows // 2
        parts = [applied.rows(key, 0, middle), applied.rows(key, middle, rows)]
        torch.testing.assert_close(torch.cat(parts).reshape(got.shape), got, rtol=1e-6, atol=1e-6)
    assert changed >= 2


@pytest.mark.parametrize("case", ["plain", "conv1d", "embedding and head"])
def test_a_bfloat16_base_is_rounded_once(tmp_path, case):
    wanted = trained(*CASES[case], tmp_path, dtype=torch.bfloat16)
    applied = LoraCheckpoint(ms.Checkpoint(tmp_path / "base"), tmp_path / "adapter")
    exact = LoraCheckpoint(ms.Checkpoint(tmp_path / "base", dtype="float64"), tmp_path / "adapter")
    for key, value in wanted.items():
        got, truth = applied.tensor(key), exact.tensor(key)
        assert got.dtype == value.dtype == torch.bfloat16
        ulp = torch.exp2(torch.floor(torch.log2(truth.abs().clamp_min(1e-30))) - 7)
        assert ((got.double() - truth).abs() <= 0.5001 * ulp + 1e-6).all()
        # PEFT rounds the product and the sum, so its error is an ulp of the product larger.
        torch.testing.assert_close(got.float(), value.float(), rtol=2**-7, atol=2**-8)


def test_a_float16_adapter_on_a_float32_base(tmp_path):
    trained(*CASES["plain"], tmp_path, adapter_dtype=torch.float16)
    applied = LoraCheckpoint(ms.Checkpoint(tmp_path / "base"), tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    a, b = (stored[f"base_model.model.{module}.lora_{x}.weight"].float() for x in "AB")
    want = ms.Checkpoint(tmp_path / "base").tensor(f"{module}.weight") + 6 * b @ a
    torch.testing.assert_close(applied.tensor(f"{module}.weight"), want)


def test_an_adapter_saved_with_torch_is_read_too(tmp_path):
    trained(*CASES["plain"], tmp_path)
    base = ms.Checkpoint(tmp_path / "base")
    before = LoraCheckpoint(base, tmp_path / "adapter").digest
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    after = LoraCheckpoint(base, tmp_path / "adapter")
    assert after.digest == before != base.digest
    assert after.files[-1].name == "adapter_model.bin"


@pytest.mark.parametrize("prefix", [("model.", ""), ("", "network.")])
def test_a_base_saved_with_another_prefix_matches(tmp_path, prefix):
    wanted = trained(*CASES["plain"], tmp_path)
    old, new = prefix
    state = {new + k.removeprefix(old): v for k, v in ms.Checkpoint(tmp_path / "base").state_dict().items()}
    applied = LoraCheckpoint(ms.Checkpoint(state), tmp_path / "adapter")
    for key, value in wanted.items():
        torch.testing.assert_close(applied.tensor(new + key.removeprefix(old)), value, rtol=2e-6, atol=2e-6)


def test_it_is_a_checkpoint_with_points_names_and_files(tmp_path):
    wanted = trained(*CASES["plain"], tmp_path)
    base = ms.Checkpoint(tmp_path / "base")
    one, two = (LoraCheckpoint(base, tmp_path / "adapter") for _ in range(2))
    assert (one.name, one.directory, one.config) == ("base+adapter", tmp_path / "base", base.config)
    assert one == two != base and LoraCheckpoint(base, tmp_path / "adapter", name="mine").name == "mine"
    point = base + 0.5 * (one - base)
    key = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(point.tensor(key), (base.tensor(key) + wanted[key]) / 2)
    again = pickle.loads(pickle.dumps(one))
    assert again == one and torch.equal(again.tensor(key), one.tensor(key))
    saved = ms.Checkpoint(ms.save(one, tmp_path / "out"))
    assert saved.digest == one.digest
    with pytest.raises(CheckpointError, match=r"no tensor .*k_proj\.wieght.*Did you mean"):
        one.tensor("model.layers.0.self_attn.k_proj.wieght")
    with pytest.raises(CheckpointError, match=r"rows 0 to 17"):
        one.rows(key, 0, 17)


def test_another_alpha_is_another_checkpoint(tmp_path):
    trained(*CASES["plain"], tmp_path)
    base = ms.Checkpoint(tmp_path / "base")
    before = LoraCheckpoint(base, tmp_path / "adapter")
    edit(tmp_path, lora_alpha=3)
    after = LoraCheckpoint(base, tmp_path / "adapter")
    assert before != after and before.digest != after.digest


def test_a_tokenizer_beside_the_adapter_is_preferred(tmp_path):
    trained(*CASES["plain"], tmp_path)
    base = ms.Checkpoint(tmp_path / "base")
    assert LoraCheckpoint(base, tmp_path / "adapter").tokenizer_directory == tmp_path / "base"
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    assert LoraCheckpoint(base, tmp_path / "adapter").tokenizer_directory == tmp_path / "adapter"


def test_a_vocabulary_that_the_adapter_resized_is_replaced(tmp_path):
    trained(llama, {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}, tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    for key in ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"):
        state[key] = torch.cat([state[key], torch.ones(3, 16)])
    save_file(state, path)
    applied = LoraCheckpoint(ms.Checkpoint(tmp_path / "base"), tmp_path / "adapter")
    assert applied.spec["lm_head.weight"].shape == (43, 16) == applied.tensor("lm_head.weight").shape
    assert torch.equal(applied.rows("model.embed_tokens.weight", 40, 43), torch.ones(3, 16))
    assert applied.config["vocab_size"] == 43

    model = ms.load_model(applied)
    assert model.get_input_embeddings().weight.shape == (43, 16)
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"of": "the adapter"}')
    out = ms.save(applied, tmp_path / "out")
    assert "adapter" in (out / "tokenizer.json").read_text()
    plain = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(plain.lm_head.weight, applied.tensor("lm_head.weight"))


def test_a_network_is_loaded_with_the_adapter_not_without(tmp_path):
    wanted = trained(*CASES["plain"], tmp_path)
    model = ms.load_model(LoraCheckpoint(ms.Checkpoint(tmp_path / "base"), tmp_path / "adapter"))
    key = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(model.state_dict()[key], wanted[key])


# -- refusals ----------------------------------------------------------------------------------


def edit(folder, **changes):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        LoraCheckpoint(ms.Checkpoint(folder / "base"), folder / "adapter")
    return str(caught.value)


@pytest.fixture
def adapter(tmp_path):
    trained(*CASES["plain"], tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    ],
)
def test_variants_that_peft_writes_are_refused_by_name(tmp_path, options, named):
    trained(llama, {"target_modules": ["q_proj", "o_proj"], **options}, tmp_path, merge=False)
    message = refusal(tmp_path)
    assert named in message and "adapter_config.json" in message and "merge_and_unload" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.w"]}, "target_parameters"),
        ({"brand_new_variant": True}, "brand_new_variant: not known"),
        ({"r": 0}, "rank 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": "4"}}, "q_proj: rank '4'"),
        ({"alpha_pattern": {"q_proj(": 4}}, "'q_proj(' is no regular expression"),
        ({"r": 8}, "disagree with the rank 8"),
    ],
)
def test_options_that_change_the_meaning_are_refused_by_name(adapter, changes, named):
    edit(adapter, **changes)
    assert named in refusal(adapter)


def test_every_problem_is_told_at_once(adapter):
    edit(adapter, use_dora=True, lora_bias=True)
    message = refusal(adapter)
    assert "use_dora" in message and "lora_bias" in message


def test_a_magnitude_vector_without_its_option_is_refused(adapter):
    change(
        adapter,
        add={"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(16)},
    )
    assert "lora_magnitude_vector: a part of an adapter variant" in refusal(adapter)


def change(folder, add=(), drop=()):
    path = folder / "adapter" / "adapter_model.safetensors"
    state = {k: v for k, v in load_file(path).items() if k not in drop} | dict(add)
    save_file(state, path)


def test_tensors_that_match_nothing_are_all_listed(adapter):
    extra = {
        "base_model.model.nowhere.q_proj.lora_A.weight": torch.ones(4, 16),
        "base_model.model.nowhere.q_proj.lora_B.weight": torch.ones(16, 4),
        "base_model.model.score.weight": torch.ones(2, 16),
    }
    change(adapter, add=extra)
    message = refusal(adapter)
    assert all(key in message for key in extra) and str(adapter / "base") in message


def test_half_a_pair_is_refused(adapter):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    change(adapter, drop=[key])
    assert "lora_B is missing" in refusal(adapter)


def test_a_base_of_another_width_is_refused_with_both_shapes(adapter):
    wide = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL | {"hidden_size": 32}, vocab_size=40, num_key_value_heads=1)
    )
    wide.save_pretrained(adapter / "base")
    message = refusal(adapter)
    assert (
        "A [4, 16] and B [16, 4] don't make the base's model.layers.0.self_attn.q_proj.weight [32, 32]"
        in message
    )


def test_a_quantised_base_is_refused(adapter):
    path = adapter / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}))
    assert "quantised" in refusal(adapter)


def test_a_grouped_convolution_is_refused(tmp_path):
    trained(Convs, {"target_modules": ["groups"]}, tmp_path, merge=False)
    assert "grouped convolutions are not supported" in refusal(tmp_path)


def test_attention_whose_product_peft_adds_twice_is_refused(tmp_path):
    trained(Convs, {"target_modules": ["attention"]}, tmp_path, merge=False)
    message = refusal(tmp_path)
    assert "attention.lora_A" in message and "MultiheadAttention are not supported" in message


def test_an_adapter_on_a_tied_head_is_refused_with_the_reason(tmp_path):
    trained(lambda: llama(tied=True), {"target_modules": ["lm_head"]}, tmp_path)
    assert "the base ties it to its embedding" in refusal(tmp_path)


def test_an_absent_adapter_or_its_parts_are_named(adapter):
    base = ms.Checkpoint(adapter / "base")
    with pytest.raises(CheckpointError, match="no file or directory"):
        LoraCheckpoint(base, adapter / "nothing")
    with pytest.raises(CheckpointError, match=r"no PEFT adapter: it has no adapter_config\.json"):
        LoraCheckpoint(base, adapter / "base")
    (adapter / "adapter" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors or adapter_model.bin" in refusal(adapter)
    (adapter / "adapter" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in refusal(adapter)


def test_an_adapter_given_as_a_model_says_what_to_write(adapter):
    with pytest.raises(CheckpointError, match=r"holds a PEFT adapter.*BASE\+"):
        ms.Checkpoint(adapter / "adapter")


# -- references --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/base", ("org/base", None, None, None)),
        ("org/base@v1", ("org/base", "v1", None, None)),
        ("org/base+org/lora", ("org/base", None, "org/lora", None)),
        ("org/base@v1+org/lora@v2", ("org/base", "v1", "org/lora", "v2")),
        (" ./a/b ", ("./a/b", None, None, None)),
    ],
)
def test_a_reference_is_taken_apart(text, parts):
    assert parse_model_reference(text) == ModelReference(*parts)


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "a+b@c", "lo@ra", "m@1"):
        (tmp_path / name).mkdir()
    assert parse_model_reference("a+b") == ("a+b", None, None, None)
    assert parse_model_reference("a+b@c") == ("a+b@c", None, None, None)
    assert parse_model_reference("a+b+lo@ra") == ("a+b", None, "lo@ra", None)
    assert parse_model_reference("a+b@c+lo@ra@v2") == ("a+b@c", None, "lo@ra", "v2")
    assert parse_model_reference("m@1@v3") == ("m@1", "v3", None, None)


@pytest.mark.parametrize("text", ["", "+lora", "org/base+", "org/base@", "@v1", "org/base+@v1"])
def test_a_reference_with_an_empty_part_is_refused(text):
    with pytest.raises(CheckpointError, match="has an empty part"):
        parse_model_reference(text)


def test_open_model_opens_bases_and_adapters(adapter):
    base, lora = adapter / "base", adapter / "adapter"
    assert open_model(str(base)) == ms.Checkpoint(base)
    applied = open_model(f"{base}+{lora}", dtype="float64")
    assert isinstance(applied, LoraCheckpoint)
    assert applied.spec["lm_head.weight"].dtype == torch.float64
    with pytest.raises(CheckpointError, match="does not name its base"):
        open_model(lora)
    edit(adapter, base_model_name_or_path=str(base))
    assert open_model(lora) == open_model(f"{base}+{lora}")
    with pytest.raises(CheckpointError, match=r"names the revision 'v1', but 'v2'"):
        open_model("org/x@v1", revision="v2")


def test_a_base_that_is_not_where_the_adapter_says_is_told(adapter):
    lora = adapter / "adapter"
    edit(adapter, base_model_name_or_path="gpt2")
    with pytest.raises(CheckpointError, match=rf"names the base 'gpt2', which .* ORG/NAME\+{lora}") as caught:
        open_model(lora)
    assert str(lora / "adapter_config.json") in str(caught.value)


def test_a_head_that_the_base_lacks_says_how_to_get_one(adapter):
    change(adapter, add={"base_model.model.score.weight": torch.ones(2, 16)})
    assert "score.weight: the head that was trained with the adapter" in refusal(adapter)
    assert "give DIR as the base" in refusal(adapter)


def test_base_and_adapter_are_opened_anew(adapter):
    one = open_model(f"{adapter / 'base'}+{adapter / 'adapter'}")
    again = one.reopened()
    assert again == one and again.name == one.name
    key = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(again.tensor(key), one.tensor(key))
