"""GGUF files, written as llama.cpp's converter writes them, and read back."""

import json

import pytest
import torch
from architectures import transformers
from given_models import save_tokenizer
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli import app
from mergescope.errors import CheckpointError, MismatchError
from mergescope.models import gguf as gguf_module
from mergescope.models.gguf import described, load_gguf

gguf = pytest.importorskip("gguf")

HEADS, KEYS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama(tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def write(path, net, kind="F32", file_type=None, leave_out=()):
    """A GGUF file of a network: matrices quantised, rotary weights interleaved as llama.cpp wants them."""
    config = net.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if file_type is not None:
        writer.add_file_type(file_type)
    for key, value in net.state_dict().items():
        if key in leave_out:
            continue
        array = value.float().numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KEYS)):
            if part in key:
                rows, columns = array.shape
                array = (
                    array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
                )
        path_, _, block = key.removesuffix(".weight").partition("layers.")
        number, _, part = block.partition(".")
        name = f"blk.{number}.{NAMES[part]}.weight" if block else f"{NAMES[path_]}.weight"
        quantised = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(net):
    with torch.no_grad():
        return net(input_ids=torch.arange(12).view(2, 6)).logits


def test_a_file_gives_the_network_that_it_was_made_of(tmp_path):
    net = llama()
    read, checkpoint = load_gguf(write(tmp_path / "tiny.gguf", net))
    assert checkpoint.name == "tiny (GGUF in F32)"
    assert set(checkpoint.spec) == set(net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(checkpoint.tensor(key), value), key
    assert torch.equal(logits(read), logits(net)) and not read.training


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.1)])
def test_a_quantised_file_is_dequantised_and_remembers_what_it_was(tmp_path, kind, error):
    net = llama()
    path = write(tmp_path / f"tiny.{kind}.gguf", net, kind)
    read, checkpoint = load_gguf(path)
    assert checkpoint.name == f"tiny (dequantised from {kind})"
    key = "model.layers.1.self_attn.q_proj.weight"
    rounded, exact = checkpoint.tensor(key), net.state_dict()[key]
    assert rounded.dtype == torch.float32
    assert 0 < torch.dist(rounded, exact) / exact.norm() < error
    assert torch.equal(logits(ms.load_model(path)), logits(read))


def test_the_network_and_its_checkpoint_are_measured_like_any_other(tmp_path):
    net, a = load_gguf(write(tmp_path / "a.gguf", llama()))
    _, b = load_gguf(write(tmp_path / "b.gguf", llama(), "Q4_1"))
    test = ms.ctl(a, b)
    traced = ms.trace(test.points, [{"input_ids": torch.arange(12).view(2, 6)}], net)
    rows = ms.linearity(traced, test)
    assert [row.layer for row in rows.layers] == ["model.layers.0", "model.layers.1", "output"]


def test_the_command_measures_a_file_with_its_directory_of_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [write(tmp_path / f"{kind}.gguf", llama(), kind) for kind in ("F32", "Q8_0", "Q4_1")]
    words = tmp_path / "words"
    save_tokenizer(words)
    (tmp_path / "texts.txt").write_text("the film was good\nso boring and bad\n")
    said = CliRunner().invoke(app, [
        "measure", "--base", str(files[0]), "--models", f"eight={files[1]}", f"four={files[2]}", "--data",
        str(tmp_path / "texts.txt"), "--tokenizer", str(words), "--json",
    ])  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {pair["a"] + pair["b"] for pair in found["pairs"]} >= {"eightfour"}
    assert {row["model"] for row in found["losses"]} >= {"eight", "four"}


def test_tied_weights_are_one_tensor(tmp_path):
    net = llama(tied=True)
    path = write(tmp_path / "tiny.gguf", net, leave_out=["lm_head.weight"])
    read, checkpoint = load_gguf(path)
    assert "lm_head.weight" not in checkpoint.spec and "model.embed_tokens.weight" in checkpoint.spec
    ms.load_weights(read, checkpoint)
    assert torch.equal(logits(read), logits(net))


@pytest.mark.parametrize(
    ("name", "file_type", "expected"),
    [
        ("tiny-Q8_0.gguf", 15, "tiny-Q8_0 (dequantised from Q4_K_M)"),
        ("tiny.q4_k_m.gguf", 15, "tiny (dequantised from Q4_K_M)"),
        ("tiny-Q8_0.gguf", None, "tiny (dequantised from Q8_0)"),
        ("tiny.gguf", 999, "tiny (dequantised from Q8_0)"),
    ],
)
def test_the_name_says_what_the_header_says(tmp_path, name, file_type, expected):
    assert described(write(tmp_path / name, llama(), "Q8_0", file_type)) == expected


def test_dtype_and_directories(tmp_path):
    write(tmp_path / "tiny.Q8_0.gguf", llama(), "Q8_0")
    net, checkpoint = load_gguf(tmp_path, dtype="bfloat16")
    assert {spec.dtype for spec in checkpoint.spec.values()} == {torch.bfloat16} == {net.dtype}
    assert type(ms.load_model(tmp_path)) is transformers.LlamaForCausalLM
    empty = ms.empty_model(tmp_path)
    assert all(entry.is_meta for entry in empty.parameters())
    assert {name: entry.shape for name, entry in empty.named_parameters()} == {
        name: entry.shape for name, entry in net.named_parameters()
    }

    write(tmp_path / "tiny.Q4_1.gguf", llama(), "Q4_1")
    with pytest.raises(
        CheckpointError, match=r"holds 2 GGUF files .tiny.Q4_1.gguf, tiny.Q8_0.gguf.. Name one"
    ):
        load_gguf(tmp_path)


def test_a_directory_with_other_weights_is_no_gguf_file(tmp_path):
    write(tmp_path / "tiny.gguf", llama())
    net = ms.MLP((4, 3, 2))
    ms.save(ms.Checkpoint(net.state_dict()), tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(
        json.dumps({"model_type": "mergescope-mlp", "sizes": [4, 3, 2]})
    )
    (tmp_path / "tiny.gguf").rename(tmp_path / "net" / "tiny.gguf")
    assert isinstance(ms.load_model(tmp_path / "net"), ms.MLP)
    with pytest.raises(CheckpointError, match=r"is neither a \.gguf file nor a directory with just one"):
        load_gguf(tmp_path / "net")


def test_loading_is_silent(tmp_path, capfd):
    path = write(tmp_path / "tiny.gguf", llama(), "Q8_0")
    capfd.readouterr()
    load_gguf(path)
    ms.empty_model(path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_tensor_is_an_error(tmp_path):
    path = write(tmp_path / "tiny.gguf", llama(), leave_out=["model.layers.1.mlp.up_proj.weight"])
    with pytest.raises(MismatchError, match="does not fill LlamaForCausalLM") as caught:
        load_gguf(path)
    assert caught.value.problems == ["model.layers.1.mlp.up_proj.weight: missing in the checkpoint"]


@pytest.mark.parametrize("size", [0, 3, 100, 2000, -64])
def test_a_damaged_file_is_named(tmp_path, size):
    path = write(tmp_path / "tiny.gguf", llama())
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
        load_gguf(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (load_gguf, ms.load_model, ms.empty_model):
        with pytest.raises(CheckpointError, match=r"There is no file '.*absent\.gguf'"):
            read(tmp_path / "absent.gguf")


def test_two_processes_that_dequantise_one_file_share_the_result(tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", llama())
    load = gguf_module.load_model

    def meanwhile(path):
        monkeypatch.setattr(gguf_module, "load_model", load)
        assert gguf_module.dequantise(path, tmp_path / "out") == tmp_path / "out"
        return load(path)

    monkeypatch.setattr(gguf_module, "load_model", meanwhile)
    assert gguf_module.dequantise(tmp_path / "tiny.gguf", tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "config.json").is_file()
