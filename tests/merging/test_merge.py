"""Merges from recipe to directory, against plain torch, for many families of models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from written_models import KINDS, build, entry, loads, mean_of, save_family, tensors, write_model

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError, MismatchError
from mergescope.merging.merge import merge, parse_size
from mergescope.merging.plan import make_plan
from mergescope.merging.recipe import read_recipe


@pytest.mark.parametrize("kind", KINDS)
def test_linear_and_task_arithmetic_equal_plain_torch_and_load(tmp_path, kind):
    paths = save_family(tmp_path, kind)
    base, a, b = (tensors(path) for path in paths.values())
    models = [entry(paths["a"], weight=0.25), entry(paths["b"], weight=0.5)]
    out = merge({"merge_method": "linear", "models": models}, tmp_path / "mean")
    made = tensors(out)
    assert set(made) == set(a)
    for key, value in made.items():
        torch.testing.assert_close(value, (a[key] * 0.25 + b[key] * 0.5) / 0.75)
    loads(out, kind)
    # base + lambda (b - a): an analogy, with a negation in it
    models = [entry(paths["base"]), entry(paths["a"], weight=-1), entry(paths["b"], weight=1)]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(paths["base"]), "models": models}
    made = tensors(merge(recipe | {"parameters": {"lambda": 0.5}}, tmp_path / "edited"))
    for key, value in made.items():
        torch.testing.assert_close(value, base[key] + 0.5 * (b[key] - a[key]), rtol=1e-4, atol=1e-6)
    loads(tmp_path / "edited", kind)


def test_an_analogy_is_one_recipe_written_in_two_ways_and_one_point(tmp_path):
    paths = save_family(tmp_path, "gpt2", ("a", "b", "c"))
    a, b, c = (ms.Checkpoint(path) for path in paths.values())
    point = c + (b - a)
    moved = [entry(paths["b"], weight=1), entry(paths["a"], weight=-1)]
    recipes = (
        {"merge_method": "task_arithmetic", "base_model": str(paths["c"]), "models": moved},
        {"merge_method": "linear", "models": [entry(paths["c"], weight=1), *moved]},
    )
    made = [tensors(merge(recipe, tmp_path / f"out{n}")) for n, recipe in enumerate(recipes)]
    made.append(tensors(ms.save(point, tmp_path / "saved")))
    for key in point.spec:
        expected = c.tensor(key).double() + (b.tensor(key).double() - a.tensor(key).double())
        for state in made:
            torch.testing.assert_close(state[key].double(), expected, rtol=1e-5, atol=1e-6)
    for name in ("out0", "out1", "saved"):
        loads(tmp_path / name, "gpt2")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_stacked_layers_load_and_generate(tmp_path, kind):
    paths = save_family(tmp_path, kind, ("a", "b"))
    slices = [
        {"sources": [{"model": str(paths["a"]), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(paths["b"]), "layer_range": [1, 3]}]},
    ]
    out = merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config.get("num_hidden_layers") or config.get("n_layer")) == 4
    assert "layer_types" not in config or len(config["layer_types"]) == 4
    loads(out, kind)


def test_one_tower_can_be_stacked(tmp_path):
    paths = save_family(tmp_path, "clip", ("a",))
    whole, ranges = [entry(paths["a"])], ([0, 3], [1, 3])
    slices = [{"sources": [{"model": str(paths["a"]), "layer_range": span}]} for span in ranges]
    rest = ("vision_model", "visual_projection", "text_projection", "logit_scale")
    modules = {"text_model": {"slices": slices}, **{name: {"models": whole} for name in rest}}
    out = merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (
        config["text_config"]["num_hidden_layers"] == 5 and config["vision_config"]["num_hidden_layers"] == 3
    )
    loads(out, "clip")


def cut(model, *ranges):
    return {"slices": [{"sources": [{"model": str(model), "layer_range": list(span)}]} for span in ranges]}


@pytest.mark.parametrize("counted", [True, False])
def test_both_stacks_of_a_t5_can_be_put_together_anew(tmp_path, counted):
    paths = save_family(tmp_path, "t5", ("a", "b"))
    config = json.loads((paths["a"] / "config.json").read_text())
    if not counted:  # num_layers then counts for the decoder as well
        del config["num_decoder_layers"]
        (paths["a"] / "config.json").write_text(json.dumps(config))
    modules = {
        "encoder": {
            "slices": [*cut(paths["b"], (1, 2))["slices"], *cut(paths["a"], (0, 2), (1, 2))["slices"]]
        },
        "decoder": cut(paths["a"], (1, 2), (0, 1), (1, 2)),
        "shared": {"models": [entry(paths["a"])]},
    }
    out = merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (4, 3)
    a, b, made = (tensors(path) for path in (*paths.values(), out))
    origin = {"encoder": [(b, 1), (a, 0), (a, 1), (a, 1)], "decoder": [(a, 1), (a, 0), (a, 1)]}
    attention = "layer.0.SelfAttention.{}.weight"
    for side, blocks in origin.items():
        for number, (state, block) in enumerate(blocks):
            for part in (attention.format("q"), attention.format("o"), "layer.0.layer_norm.weight"):
                assert torch.equal(
                    made[f"{side}.block.{number}.{part}"], state[f"{side}.block.{block}.{part}"]
                )
        # The first block holds the position bias of all blocks: it stays there, wherever that block went.
        bias = f"{side}.block.0.{attention.format('relative_attention_bias')}"
        assert torch.equal(made[bias], blocks[0][0][bias])
        assert sum("relative_attention_bias" in key and side in key for key in made) == 1
        assert torch.equal(made[f"{side}.final_layer_norm.weight"], a[f"{side}.final_layer_norm.weight"])
    loads(out, "t5")


@pytest.mark.parametrize(("side", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_one_side_of_a_bart_can_be_stacked(tmp_path, side, other):
    (path,) = save_family(tmp_path, "bart", ("a",)).values()
    whole = {"models": [entry(path)]}
    rest = {f"model.{other}": whole, "model.shared": whole, "final_logits_bias": whole}
    modules = {f"model.{side}": cut(path, (0, 2), (1, 2)), **rest}
    out = merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config[f"{side}_layers"], config[f"{other}_layers"]) == (3, 2)
    loads(out, "bart")


@pytest.mark.parametrize("decoder", [1, 2, 3])
def test_layer_ranges_of_an_encoder_and_a_decoder_need_modules(tmp_path, decoder):
    (path,) = save_family(tmp_path, "t5", ("a",), num_decoder_layers=decoder).values()
    with pytest.raises(
        MismatchError, match=r"\(decoder\.block, encoder\.block\), so layer_range is ambiguous"
    ):
        merge({"merge_method": "passthrough", **cut(path, (0, 1), (0, 1))}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [("tied", "free"), ("free", "tied")])
def test_tied_and_untied_heads_mix(tmp_path, order):
    build("tied llama", 1).save_pretrained(tmp_path / "tied")
    build("llama", 2).save_pretrained(tmp_path / "free")
    out = merge(mean_of(*(tmp_path / name for name in order)), tmp_path / "out")
    tied, free = tensors(tmp_path / "tied"), tensors(tmp_path / "free")
    made = loads(out, "llama")
    head = (tied["model.embed_tokens.weight"] + free["lm_head.weight"]) / 2
    torch.testing.assert_close(made.lm_head.weight.data, head)
    assert "tie_word_embeddings" in (out / "README.md").read_text()


def test_a_head_that_is_stored_but_tied_is_left_out(tmp_path):
    build("tied llama", 1).save_pretrained(tmp_path / "a")
    build("tied llama", 2).save_pretrained(tmp_path / "b")
    state = tensors(tmp_path / "b")
    write_model(tmp_path / "b", state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    out = merge(mean_of(tmp_path / "a", tmp_path / "b"), tmp_path / "out")
    assert "lm_head.weight" not in tensors(out)
    loads(out, "tied llama")


def two(folder, size=3, **files):
    for k, name in enumerate("ab"):
        state = {f"w{n}": torch.randn(40, 50) for n in range(size)} | {
            "s": torch.tensor(float(k)),
            "e": torch.ones(0, 3),
        }
        write_model(folder / name, state, **files)
    return folder / "a", folder / "b"


def test_side_files_metadata_mode_and_nothing_stale(tmp_path):
    files = {"generation_config__json": "{}", "tokenizer__json": "{}", "preprocessor_config__json": "{}"}
    a, b = two(tmp_path, config={"dtype": "float32"}, **files)
    old = os.umask(0o027)
    try:
        out = merge(mean_of(a, b, out_dtype="bf16"), tmp_path / "out")
    finally:
        os.umask(old)
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json",
        "README.md", "mergescope.yml",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {
        0o640
    } and out.stat().st_mode & 0o777 == 0o750
    assert ms.Checkpoint(out).metadata["format"] == "pt"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    (out / "stale.txt").write_text("x")
    merge(mean_of(a, b), out, overwrite=True, max_shard_size=9000)
    assert not (out / "stale.txt").exists() and not (out / "model.safetensors").exists()
    merge(mean_of(a, b), out, overwrite=True)
    assert len(list(out.glob("model*"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "out"}


def test_threads_and_shards_change_no_bit(tmp_path):
    paths = save_family(tmp_path, "llama")
    build("llama", 1).save_pretrained(tmp_path / "cut", max_shard_size="8KB")
    models = [entry(paths["a"], weight=0.3, density=0.5), entry(paths["b"], weight=0.9, density=0.5)]
    recipe = {"merge_method": "dare_ties", "base_model": str(paths["base"]), "models": models}
    first = tensors(merge(recipe, tmp_path / "t1", threads=1, seed=3))
    for name, settings in (("t2", {"threads": 2}), ("t4", {"threads": 4, "max_shard_size": "8KB"})):
        again = tensors(merge(recipe, tmp_path / name, seed=3, **settings))
        assert set(again) == set(first) and all(torch.equal(again[key], first[key]) for key in first)
    assert (tmp_path / "t4" / "model.safetensors.index.json").is_file()
    loads(tmp_path / "t4", "llama")
    models[0]["model"] = str(tmp_path / "cut")
    again = tensors(merge(recipe, tmp_path / "from-shards", seed=3))
    assert all(torch.equal(again[key], first[key]) for key in first)


@pytest.mark.parametrize("method", ["linear", "dare_linear"])
@pytest.mark.parametrize(("written", "given", "meant"), [(None, 5, 5), (3, 5, 5), (3, None, 3), (3, 0, 0)])
def test_the_recipe_inside_makes_the_same_again(tmp_path, method, written, given, meant):
    a, b = two(tmp_path)
    density = {} if method == "linear" else {"density": 0.5}
    recipe = {"merge_method": method, "base_model": str(a), "models": [entry(b, weight=1.0, **density)]}
    recipe |= {} if written is None else {"seed": written}
    out = merge(recipe, tmp_path / "out", seed=given)
    assert f"Seed: {meant}." in (out / "README.md").read_text()
    again = merge(out / "mergescope.yml", tmp_path / "again")
    bytes_of = (out / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == bytes_of
    assert (again / "mergescope.yml").read_text() == (out / "mergescope.yml").read_text()
    assert (again / "README.md").read_text() == (out / "README.md").read_text()
    other = merge(recipe, tmp_path / "other", seed=meant + 1)
    assert ((other / "model.safetensors").read_bytes() == bytes_of) == (method == "linear")


def test_a_plan_is_merged_with_the_seed_it_was_made_with(tmp_path):
    a, b = two(tmp_path)
    plan = make_plan(read_recipe(mean_of(a, b, seed=4)))
    assert plan.seed == 4 and "seed: 4" in (merge(plan, tmp_path / "out") / "mergescope.yml").read_text()
    with pytest.raises(MergescopeError, match="has its seed already"):
        merge(plan, tmp_path / "other", seed=4)
    with pytest.raises(MergescopeError, match="non-negative integer, got -1"):
        merge(mean_of(a, b), tmp_path / "other", seed=-1)


@pytest.mark.parametrize("method", ["linear", "ties", "tsv", "model_stock"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_name_the_model_and_the_tensor(tmp_path, method, value):
    a, b = two(tmp_path)
    state = tensors(b)
    state["w1"][3, 4] = value
    write_model(tmp_path / "bad", state)
    models = [entry(a), entry(b), entry(tmp_path / "bad")]
    recipe = {"merge_method": method, "base_model": str(a), "models": models}
    if method in ("linear", "ties"):
        recipe["parameters"] = {"weight": 0 if method == "linear" else 1, "normalize": False}
    with pytest.raises(CheckpointError, match="'w1' has NaN or infinite values in .*bad"):
        merge(recipe, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "bad"}


@pytest.mark.parametrize("method", ["model_stock", "karcher"])
def test_a_nan_in_another_part_of_the_tensor_names_the_model(tmp_path, method, monkeypatch):
    monkeypatch.setattr("mergescope.merging.streams.CHUNK", 100)  # two rows
    a, b = two(tmp_path)
    state = tensors(b)
    state["w1"][-1, 4] = float("nan")
    bad = write_model(tmp_path / "bad", state)
    recipe = {"merge_method": method, "models": [entry(a), entry(b), entry(bad)]}
    recipe |= {"base_model": str(a)} if method == "model_stock" else {}
    with pytest.raises(CheckpointError, match=f"'w1' has NaN or infinite values in {bad}"):
        merge(recipe, tmp_path / "out")


def test_weights_that_sum_to_zero_and_overflow_are_refused(tmp_path):
    a, b = two(tmp_path)
    recipe = {"merge_method": "linear", "models": [entry(a, weight=1), entry(b, weight=-1)]}
    with pytest.raises(MergescopeError, match="sum to zero"):
        merge(recipe, tmp_path / "out")
    recipe["models"][1]["parameters"]["weight"] = 1e6
    with pytest.raises(CheckpointError, match="does not fit float16"):
        merge(recipe | {"out_dtype": "fp16", "parameters": {"normalize": False}}, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "breadcrumbs_ties"])
@pytest.mark.parametrize(("density", "kept"), [(0, (0, 0, 0)), ([1, 0], (1, 0.5, 0))])
def test_density_0_leaves_the_base_where_it_is_reached(tmp_path, method, density, kept):
    base, a = ({f"h.{n}.w": torch.randn(30, 20) for n in range(3)} for _ in "ba")
    paths = [write_model(tmp_path / name, state) for name, state in (("base", base), ("a", a))]
    models = [entry(paths[1], weight=1.0, density=density)]
    parameters = {"rescale": False, "normalize": False}
    recipe = {"merge_method": method, "base_model": str(paths[0]), "models": models, "parameters": parameters}
    made = tensors(merge(recipe, tmp_path / "out"))
    for share, (key, value) in zip(kept, made.items(), strict=True):
        moved = value != base[key]
        assert float(moved.float().mean()) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
        torch.testing.assert_close(value[moved], a[key][moved])


def test_outputs_that_would_destroy_something_are_refused(tmp_path):
    a, b = two(tmp_path / "in")
    (tmp_path / "file").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    for out, overwrite, said in (
        (a, True, "is or holds the input"), (tmp_path / "in", True, "is or holds the input"),
        (tmp_path / "home", False, "exists"), (tmp_path / "file", True, "is a file"),
        (tmp_path / "home", True, "no model"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=said):
            merge(mean_of(a, b), out, overwrite=overwrite)
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(CheckpointError, match="is or holds the input"):
        merge(mean_of(a, b), tmp_path / "link", overwrite=True)
    assert (a / "model.safetensors").is_file() and (tmp_path / "home" / "thesis.tex").is_file()


def test_same_size_but_other_tokens_is_refused_and_a_union_merges_end_to_end(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = ["<unk>", *(f"t{n}" for n in range(39))]
    moved = [words[0], *reversed(words[1:])]
    for seed, (name, order) in enumerate({"a": words, "b": moved}.items()):
        table = models.WordLevel({word: n for n, word in enumerate(order)}, unk_token="<unk>")
        build("llama", seed).save_pretrained(tmp_path / name)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(table), unk_token="<unk>").save_pretrained(
            tmp_path / name
        )
    with pytest.raises(MismatchError, match="other ids"):
        merge(mean_of(tmp_path / "a", tmp_path / "b"), tmp_path / "out")
    out = merge(mean_of(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), tmp_path / "out")
    a, b, made = (tensors(tmp_path / name)["lm_head.weight"] for name in ("a", "b", "out"))
    torch.testing.assert_close(made[5], (a[5] + b[moved.index(words[5])]) / 2)
    assert AutoTokenizer.from_pretrained(out).get_vocab()[words[5]] == 5
    loads(out, "llama")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


def test_batchnorm_statistics_are_noted_or_re_estimated(tmp_path):
    batches = [torch.randn(8, 1, 6, 6) for _ in range(3)]
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        net = Net()
        for batch in batches:
            net(batch)
        write_model(tmp_path / name, net.state_dict())
    recipe = mean_of(tmp_path / "a", tmp_path / "b")
    plain = merge(recipe, tmp_path / "plain")
    assert "BatchNorm" in (plain / "README.md").read_text()
    network = Net()
    before = network.conv.weight.clone()
    out = merge(recipe, tmp_path / "out", calibration=batches, network=network)
    assert "re-estimated" in (out / "README.md").read_text() and torch.equal(before, network.conv.weight)
    network.load_state_dict(tensors(out))
    means = torch.stack([network.conv(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(tensors(out)["bn.running_mean"], means)
    assert not torch.allclose(tensors(plain)["bn.running_mean"], means, atol=1e-4)


@pytest.mark.parametrize("size", ["", "0", "1.2.3GB", ".", "five", "-1"])
def test_what_is_no_size(size):
    with pytest.raises(MergescopeError, match="no size"):
        parse_size(size)


MEMORY = """
import resource, sys, threading, time
from pathlib import Path
import mergescope.merging.methods, torch
from mergescope.merging.merge import merge
from mergescope.merging.recipe import read_recipe
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
recipe = read_recipe(sys.argv[1])
start, peak, stop = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.005):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch); thread.start()
merge(recipe, sys.argv[2], threads=2)
stop.set(); thread.join()
print(peak - start)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    for name in "ab":
        state = {f"h.{n}.w": torch.randn(5000, 2500).bfloat16() for n in range(11)}
        write_model(tmp_path / name, state | {"wte.weight": torch.randn(10000, 1250).bfloat16()})
    (tmp_path / "r.yml").write_text(yaml.safe_dump(mean_of(tmp_path / "a", tmp_path / "b")))
    shown = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "r.yml"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sum(path.stat().st_size for path in Path(tmp_path / "out").iterdir()) > 290e6
    assert int(shown.stdout) < 400_000


def test_variances_stay_positive_where_deltas_are_enlarged(tmp_path):
    base = write_model(tmp_path / "base", {"bn.running_var": torch.ones(64), "w": torch.ones(64)})
    tuned = write_model(
        tmp_path / "a", {"bn.running_var": torch.full((64,), 0.8), "w": torch.full((64,), 0.8)}
    )
    models = [entry(tuned, weight=1.0, density=0.1)]
    recipe = {"merge_method": "dare_linear", "base_model": str(base), "models": models}
    made = tensors(merge(recipe, tmp_path / "out"))
    assert made["w"].min() < 0 == made["bn.running_var"].min()
