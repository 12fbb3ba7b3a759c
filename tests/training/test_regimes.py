"""What each regime lets change: counts, names, and that nothing else moves."""

import copy

import numpy as np
import pytest
import torch
from support import make_net
from tiny_transformers import tiny, transformers
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError
from mergescope.models.heads import linear_head
from mergescope.models.with_head import WithHead
from mergescope.training import REGIMES, regime, trainable_table
from mergescope.training.selectors import (
    PROJECTIONS,
    attention_family,
    attention_stems,
    linear_stems,
    stem_of,
    with_stems,
)

PARADIGMS = [name for name in REGIMES if name.startswith("attention")]


def trained(net):
    return [name for name, parameter in net.named_parameters() if parameter.requires_grad]


def count(net):
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def on_meta(kind, **settings):
    model, config = getattr(transformers, kind[0]), getattr(transformers, kind[1])
    with torch.device("meta"):
        return model(config(**settings))


def tower(width, depth, patch):
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
    return on_meta(
        ("CLIPVisionModel", "CLIPVisionConfig"), patch_size=patch, num_attention_heads=width // 64, **sizes
    )


class Block(nn.Module):
    def __init__(self, attention, width):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = attention
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})


class OpenClip(nn.Module):
    """Names and shapes of open_clip's vision tower."""

    def __init__(self, width, depth, patch):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(nn.MultiheadAttention(width, width // 64), width) for _ in range(depth)
        )
        self.proj = nn.Parameter(torch.zeros(width, 512))


class Timm(nn.Module):
    """Names and shapes of timm's vision transformer."""

    def __init__(self, width, depth):
        super().__init__()
        attention = (
            nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
            for _ in range(depth)
        )
        self.blocks = nn.ModuleList(Block(each, width) for each in attention)
        self.head = nn.Linear(width, 10)


@pytest.mark.parametrize(
    ("width", "depth", "patch", "expected"), [(768, 12, 32, 28_311_552), (1024, 24, 14, 100_663_296)]
)
def test_paradigm_1_trains_the_published_number_of_parameters(width, depth, patch, expected):
    with torch.device("meta"):
        nets = [OpenClip(width, depth, patch), Timm(width, depth)]
    for net in [tower(width, depth, patch), *nets]:
        assert count(regime("attention-1").prepare(net)) == expected


BASE = {"hidden_size": 768, "num_hidden_layers": 12}
FAMILIES = {
    "GPT-2": (("GPT2LMHeadModel", "GPT2Config"), {}, 12 * 4 * 768**2),
    "T5, MPNet": (("T5ForConditionalGeneration", "T5Config"), {}, 18 * 4 * 512**2),
    "BERT, RoBERTa, ELECTRA, ViT (transformers 4)": (("BertModel", "BertConfig"), {}, 12 * 4 * 768**2),
    "DistilBERT": (("DistilBertModel", "DistilBertConfig"), {}, 6 * 4 * 768**2),
    "Llama, Qwen, Mistral, Gemma, ViT (transformers 5)": (
        ("LlamaForCausalLM", "LlamaConfig"),
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        3 * 3 * 64**2,
    ),
    "GPT-2 + GPT-2 cross-attention": (
        ("GPT2LMHeadModel", "GPT2Config"),
        {"add_cross_attention": True, "n_layer": 2},
        2 * 8 * 768**2,
    ),
    "GPT-NeoX, Bloom, Falcon": (("BloomModel", "BloomConfig"), {"n_layer": 2}, 2 * 4 * 64**2),
    "DeBERTa": (
        ("DebertaV2Model", "DebertaV2Config"),
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        2 * 4 * 64**2,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_paradigm_1_counts_the_attention_matrices_of_every_family(family):
    kind, settings, expected = FAMILIES[family]
    net = on_meta(kind, **settings)
    assert attention_family(net) == family
    assert count(regime("attention-1").prepare(net)) == expected
    biases = [name for name, _ in net.named_parameters() if stem_of(name)[0] in attention_stems(net)]
    assert set(trained(regime("attention-2").prepare(net))) == set(biases)


def test_every_line_of_the_table_is_found_by_its_own_names():
    for line in PROJECTIONS:
        net = nn.Module()
        for end in line.ends:
            parts = f"blocks.0.self_attn.{end}".split(".")
            place = net
            for part in parts:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.weight = nn.Parameter(torch.zeros(2, 2))
        assert attention_family(net) == line.family
        assert len(attention_stems(net)) == len(line.ends)


def test_the_readings_of_paradigms_3_and_4_differ_by_what_is_outside_the_blocks():
    with torch.device("meta"):
        net = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(num_hidden_layers=2))
    width, inner = 768, 3072
    blocks = 2 * (4 * width**2 + 2 * width * inner)
    assert count(regime("attention-3").prepare(net)) == blocks
    assert count(regime("attention-4").prepare(net)) == blocks + 2 * (5 * width + inner)
    assert count(regime("attention-3-literal").prepare(net)) == blocks + 512 * width
    assert set(trained(net)) - set(trained(regime("attention-3").prepare(net))) == {
        "visual_projection.weight"
    }


def test_linear_layers_know_packed_matrices_and_gpt2s():
    gpt = on_meta(("GPT2LMHeadModel", "GPT2Config"), n_layer=1)
    assert [stem.split("h.0.")[1] for stem in linear_stems(gpt, literal=False)] == [
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    ]  # fmt: skip
    with torch.device("meta"):
        packed = OpenClip(64, 1, 8)
    assert [stem.split("resblocks.0.")[1] for stem in linear_stems(packed, literal=False)] == [
        "attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj",
    ]  # fmt: skip
    assert "transformer.resblocks.0.attn.in_proj_bias" in with_stems(
        packed, attention_stems(packed), biases=True
    )


class Normed(nn.Module):
    """A transformer behind convolution and BatchNorms, one of them without weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, affine=False))
        self.body = ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=3)

    def forward(self, x):
        return self.body(self.stem(x))


def two_steps(net):
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    net.train()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(net(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", PARADIGMS)
def test_two_steps_of_adamw_change_exactly_what_the_regime_lets_change(name):
    net = Normed()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    chosen = regime(name, frozen=["body.head"])
    net = chosen.prepare(net)
    two_steps(net)
    for key, value in chosen.state(net).items():
        assert torch.equal(value, before[key]) == (key not in trained(net)), key
    assert trained(net) and not any(
        key.startswith(("stem", "body.head", "body.norm")) for key in trained(net)
    )


def test_full_fine_tuning_changes_everything_but_the_frozen():
    net = Normed()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    two_steps(regime("full", frozen=["body.head", "stem.0"]).prepare(net))
    same = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert same == {key for key in before if key.startswith(("body.head", "stem.0"))}


def test_a_regime_can_follow_another_on_the_same_network():
    net = regime("full").prepare(regime("attention-1").prepare(Normed()))
    before = net.stem[0].running_mean.clone()
    two_steps(net)
    assert trained(net) == [name for name, _ in net.named_parameters()]
    assert not torch.equal(net.stem[0].running_mean, before)


@pytest.mark.parametrize("name", ["full", "attention-1", "linearized"])
def test_also_trains_a_head_that_is_named_and_frozen_one_that_is(name):
    net = regime(name, also=["head"], frozen=["blocks.0"]).prepare(make_net("vit"))
    assert {"head.weight", "head.bias"} <= set(trained(net))
    assert not any(each.startswith("blocks.0") for each in trained(net))
    assert "blocks.1.attn.q_proj.weight" in trained(net)


def test_names_of_limits_are_checked():
    with pytest.raises(LayerError, match=r"frozen='haed' is no parameter of MLP.*Did you mean: head"):
        regime("full", frozen=["haed"]).prepare(make_net("mlp"))
    with pytest.raises(LayerError, match=r"head.bias of MLP: both frozen and also"):
        regime("full", frozen=["head"], also=["head.bias"]).prepare(make_net("mlp"))
    with pytest.raises(LayerError, match="Nothing of MLP is left to train"):
        regime("full", frozen=["blocks", "head"]).prepare(make_net("mlp"))
    with pytest.raises(MergescopeError, match=r"frozen must be a list of names.*\['head'\]"):
        regime("full", frozen="head")


def test_unknown_regimes_and_options_suggest_known_ones():
    with pytest.raises(MergescopeError, match=r"no regime 'atention-1'. Did you mean: attention-1.*lora \("):
        regime("atention-1")
    with pytest.raises(MergescopeError, match="lora has no option 'rnk'. Did you mean: rank"):
        regime("lora", rnk=3)
    with pytest.raises(MergescopeError, match="full has no option 'rank'. It has none"):
        regime("full", rank=3)
    with pytest.raises(
        MergescopeError, match="linearized has no option '_digest'. Its options are checkpointing"
    ):
        regime("linearized", _digest="")
    with pytest.raises(MergescopeError, match="checkpointing must be True or False, got 1"):
        regime("linearized", checkpointing=1)
    with pytest.raises(MergescopeError, match="patterns must be a list of names, got 'q'"):
        regime("attention-1", patterns="q")
    with pytest.raises(MergescopeError, match="attention-3 trains linear layers.*patterns have no meaning"):
        regime("attention-3", patterns=["q"])


def test_matching_nothing_or_everything_is_an_error():
    with pytest.raises(LayerError, match=r"No attention matrices are known in MLP.*blocks.*patterns"):
        regime("attention-1").prepare(make_net("mlp"))
    with pytest.raises(LayerError, match="would train every parameter of MLP"):
        regime("attention-4-literal").prepare(make_net("mlp"))
    with pytest.raises(LayerError, match="ModuleDict has no linear layers"):
        regime("attention-3-literal").prepare(nn.ModuleDict({"conv": nn.Conv1d(1, 1, 1)}))
    with pytest.raises(LayerError, match=r"blocks of .* aren't known.*attention-3-literal"):
        regime("attention-3").prepare(nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Conv1d(1, 1, 1)}))


def test_an_attention_module_without_one_of_the_four_is_named():
    attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj", "mix")})
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": attention})])})
    with pytest.raises(
        LayerError, match=r"'layers.0.self_attn' of ModuleDict has weights q_proj, k_proj, v_proj, mix"
    ):
        attention_stems(net)
    assert trained(
        regime("attention-1", patterns=["self_attn.?_proj".replace("?", "*"), "mix"]).prepare(net)
    ) == [f"layers.0.self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "mix")]
    with pytest.raises(LayerError, match=r"pattern 'q_prj' matches no weight.*Did you mean: q_proj"):
        regime("attention-1", patterns=["q_prj"]).prepare(net)


def test_attention_in_a_pooling_head_is_no_attention_module_of_the_blocks():
    net = on_meta(("SiglipVisionModel", "SiglipVisionConfig"), num_hidden_layers=2)
    assert len(attention_stems(net)) == 8 and not any("head" in stem for stem in attention_stems(net))


@pytest.mark.parametrize("name", REGIMES)
def test_the_table_says_what_training_changes_and_leaves_the_network_alone(name):
    net = make_net("vit")
    flags, before = [p.requires_grad for p in net.parameters()], copy.deepcopy(net.state_dict())
    rows = trainable_table(net, regime(name, frozen=["head"]))
    assert [p.requires_grad for p in net.parameters()] == flags
    assert list(net.state_dict()) == list(before) and not any(p.is_meta for p in net.parameters())
    made = regime(name, frozen=["head"]).prepare(net)
    *parts, total = rows
    assert total.pattern == "total" and total.trained == count(made)
    assert (
        total.parameters == sum(p.numel() for p in made.parameters()) == sum(row.parameters for row in parts)
    )
    assert total.tensors == len(list(made.parameters()))
    assert all(row.trained in (0, row.parameters) for row in parts)
    by_pattern = {row.pattern: row for row in parts}
    if name == "attention-1":
        row = by_pattern["blocks.*.attn.q_proj.weight"]
        assert (row.shape, row.tensors, row.parameters, row.trains) == ((16, 16), 2, 512, True)
        assert not by_pattern["blocks.*.attn.q_proj.bias"].trains


def test_the_table_of_a_large_network_needs_no_memory():
    rows = trainable_table(tower(768, 12, 32), regime("attention-1"))
    assert (rows[-1].trained, rows[-1].parameters) == (28_311_552, 87_456_000)


def test_every_regime_says_what_it_is():
    for name in REGIMES:
        made = regime(name, base_digest="abc")
        assert made.name == name and made.metadata()["regime"] == name
        assert all(isinstance(value, str) for value in made.metadata().values())
    assert regime("attention-3-literal").metadata() == {
        "regime": "attention-3-literal", "paradigm": "3", "reading": "literal",
    }  # fmt: skip
    assert regime("linearized", base_digest="abc").metadata() == {
        "regime": "linearized", "linearized": "true", "base_digest": "abc",
    }  # fmt: skip
    with pytest.raises(MergescopeError, match=r"around, which is not known yet.*prepare\(model\) first"):
        regime("linearized").metadata()


def test_the_digest_of_the_base_is_taken_when_it_is_not_given():
    net = make_net("mlp")
    base = ms.Checkpoint(net.state_dict())
    made = regime("linearized")
    made.prepare(net)
    assert made.metadata()["base_digest"] == base.digest


@pytest.mark.parametrize("kind", ["bert", "vit", "clip", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("name", REGIMES)
def test_the_state_has_the_networks_own_names_and_values_before_training(kind, name):
    net = tiny(kind)
    before = copy.deepcopy(net.state_dict())
    made = regime(name, base_digest="abc")
    state = made.state(made.prepare(net))
    assert list(state) == list(before)
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert not any(value.requires_grad for value in state.values())


@pytest.mark.parametrize("name", REGIMES)
def test_a_backbone_with_a_frozen_head_trains_in_every_regime(name):
    net = WithHead(tiny("vit").vit, linear_head(16, ["a", "b", "c"], seed=0))
    made = regime(name, frozen=["head"])
    before = copy.deepcopy(net.state_dict())
    ready = made.prepare(net)
    optimizer = torch.optim.AdamW([p for p in ready.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(ready(pixel_values=torch.ones(3, 1, 8, 8)).logits, torch.arange(3))
        loss.backward()
        optimizer.step()
    state = made.state(ready)
    moved = {key for key, value in state.items() if not torch.equal(value, before[key])}
    assert list(state) == list(before) and moved and not any(key.startswith("head.") for key in moved)


@pytest.mark.parametrize("name", REGIMES)
def test_the_loop_trains_every_regime(name):
    images = torch.randn(40, 1, 8, 8)
    split = ms.Split(images, (images.sum((1, 2, 3)) > 0).long(), np.arange(40))
    net = make_net("vit")
    made = regime(name, frozen=["patch_embed"])
    before = copy.deepcopy(net.state_dict())
    model = made.prepare(net)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    recipe = ms.Recipe("adamw", lr=3e-3, epochs=8, batch=20, weight_decay=0.1)
    losses = ms.fit(model, split, recipe, seed=0, trainable=chosen, progress=False)
    state = made.state(model)
    assert losses[-1] < losses[0] and list(state) == list(before)
    assert torch.equal(state["patch_embed.weight"], before["patch_embed.weight"])
    assert not torch.equal(state["blocks.1.attn.v_proj.weight"], before["blocks.1.attn.v_proj.weight"])
