"""LoRA: merged weights by hand, adapters that can be read again, and what can't be adapted."""

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from support import labelled_batches, make_net
from tiny_transformers import batches_for, tiny
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError
from mergescope.models import WithHead, linear_head
from mergescope.models.towers import headless
from mergescope.training import regime
from mergescope.training.lora import adapted_modules
from mergescope.weights.lora import LoraCheckpoint

KINDS = ("bert", "vit", "clip", "t5", "gpt2", "llama", "packed vit")


def network(kind):
    return make_net(kind) if kind == "packed vit" else tiny(kind)


def train(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def by_hand(model, before, scale):
    """Base plus s B A, from the factors' names alone."""
    state = {name: value.detach() for name, value in model.named_parameters()}
    merged = dict(before)
    for name, a in state.items():
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").split(".lora_A.")[0]
            product = scale * state[name.replace("lora_A", "lora_B")] @ a
            turned = ".c_" in layer  # GPT-2 stores its matrices transposed
            merged[f"{layer}.weight"] = before[f"{layer}.weight"] + (product.T if turned else product)
    return merged


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_base_plus_the_scaled_product_of_the_factors(kind, rslora):
    net = network(kind)
    before = copy.deepcopy(net.state_dict())
    made = regime("lora", rank=4, alpha=6, rslora=rslora)
    model = made.prepare(net)
    untrained = made.state(model)
    assert all(torch.equal(untrained[key], value) for key, value in before.items())
    train(model)
    state = made.state(model)
    expected = by_hand(model, before, 6 / (math.sqrt(4) if rslora else 4))
    assert list(state) == list(before)
    changed = {key for key in before if not torch.equal(state[key], before[key])}
    assert changed == {f"{name}.weight" for name in adapted_modules(network(kind))}
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("kind", ["bert", "clip", "gpt2", "t5"])
def test_the_merged_network_computes_what_was_trained(kind):
    net, merged = network(kind), network(kind)
    made = regime("lora", rank=2)
    model = made.prepare(net).eval()
    train(model)
    inputs = {key: value for key, value in batches_for(kind)[0].items() if key != "labels"}
    if kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    merged.load_state_dict(made.state(model))
    with torch.no_grad():
        one, two = (next(iter(each(**inputs).values())) for each in (model, merged))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_the_adapter_beside_the_checkpoint_gives_the_same_weights(kind, tmp_path):
    net = network(kind)
    base_state = {key: value.clone() for key, value in net.state_dict().items()}
    if kind == "gpt2":
        del base_state["lm_head.weight"]  # tied
    save_file(base_state, tmp_path / "base.safetensors")
    made = regime("lora", rank=4, alpha=6, rslora=True)
    model = made.prepare(net)
    train(model)
    made.extra_files(model, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists(), "the folder itself holds merged weights"
    again = LoraCheckpoint(ms.Checkpoint(tmp_path / "base.safetensors"), tmp_path / "adapter")
    state = made.state(model)
    for key in base_state:
        torch.testing.assert_close(again.tensor(key), state[key], rtol=1e-5, atol=1e-6, msg=key)


def test_only_the_factors_change_in_training_and_what_is_named():
    net = make_net("vit")
    before = copy.deepcopy(net.state_dict())
    made = regime("lora", rank=2, also=["head.bias"])
    model = made.prepare(net)
    x, y = labelled_batches(6, 6)[0]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    names = {f"{name}.weight" for name in adapted_modules(make_net("vit"))} | {"head.bias"}
    for key, value in made.state(model).items():
        assert torch.equal(value, before[key]) == (key not in names), key


def test_trained_parameters_are_the_factors_and_the_scale_is_recorded():
    model = regime("lora", rank=2).prepare(make_net("vit"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 4 * 2 * (16 + 16)
    made = regime("lora", rank=2, alpha=0.5, rslora=True)
    assert made.metadata() == {"regime": "lora", "lora_rank": "2", "lora_alpha": "0.5", "lora_rslora": "true"}
    assert regime("lora", rank=8).metadata()["lora_alpha"] == "16"
    targeted = regime("lora", rank=2, targets=["mlp.*"]).prepare(make_net("vit"))
    assert all(".mlp." in name for name, p in targeted.named_parameters() if p.requires_grad)


def test_the_seed_decides_the_start():
    starts = []
    for globally, seed in enumerate((0, 0, 1)):
        net = make_net("vit", seed=7)
        torch.manual_seed(globally)
        model = regime("lora", rank=2, seed=seed).prepare(net)
        starts.append([p.detach() for name, p in model.named_parameters() if "lora_A" in name])
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not torch.equal(starts[0][0], starts[2][0])


def test_the_global_random_state_is_left_alone():
    net = make_net("vit")
    state = torch.get_rng_state()
    regime("lora", rank=2).prepare(net)
    assert torch.equal(torch.get_rng_state(), state)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([
            nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "mlp": nn.Linear(8, 8)})
        ])


def test_what_takes_no_factors_is_named():
    with pytest.raises(
        LayerError, match=r"blocks.0.attn.in_proj of Packed belongs to a torch.nn.MultiheadAttention"
    ):
        regime("lora").prepare(Packed())
    assert adapted_modules(Packed(), ["mlp"]) == ["blocks.0.mlp"]
    with pytest.raises(LayerError, match="patch_embed of ViT is a Conv2d; LoRA factors go on linear layers"):
        regime("lora", targets=["patch_embed"]).prepare(make_net("vit"))
    with pytest.raises(LayerError, match="position of ViT is a parameter of its own"):
        regime("lora", targets=["position"]).prepare(make_net("vit"))
    with pytest.raises(LayerError, match=r"LoRA would change head.weight of ViT, which is frozen"):
        regime("lora", targets=["head", "mlp.*"], frozen=["head"]).prepare(make_net("vit"))


def test_settings_that_make_no_sense_are_refused():
    for settings, message in (
        ({"rank": 0}, "rank >= 1"),
        ({"rank": 2.5}, "rank must be a whole number, got 2.5"),
        ({"alpha": "16"}, "alpha must be a number, got '16'"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"rslora": 1}, "rslora must be True or False"),
        ({"targets": "mlp"}, "targets must be a list of names"),
    ):
        with pytest.raises(MergescopeError, match=message):
            regime("lora", **settings)


@pytest.mark.parametrize("kind", ["bert", "vit", "clip"])
def test_the_adapter_of_a_network_with_a_head_fits_the_base_in_peft(kind, tmp_path):
    peft = pytest.importorskip("peft")
    base = headless(network(kind))
    again = copy.deepcopy(base)
    made = regime("lora", rank=4, alpha=6, also=["head"])
    model = made.prepare(WithHead(base, linear_head(8, ("a", "b"), 0)))
    train(model)
    made.extra_files(model, tmp_path)
    applied = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().state_dict()
    state = made.state(model)
    for key, value in applied.items():
        torch.testing.assert_close(value, state[f"backbone.{key}"], rtol=1e-5, atol=1e-6, msg=key)
