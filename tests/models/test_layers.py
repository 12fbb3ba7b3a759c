from types import SimpleNamespace

import pytest
import torch
from architectures import KNOWN, build, text, transformers
from support import ConvNet, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError
from mergescope.models.features import Features
from mergescope.models.layers import FAMILIES, LayerChoice, feature_of, layer_choice


def test_blocks_are_the_blocks_and_the_output():
    assert ms.find_layers(ms.MLP()) == ["blocks.0", "blocks.1", "output"]
    assert ms.find_layers(make_net("vit")) == ["blocks.0", "blocks.1", "output"]
    assert ms.find_layers(make_net("vit"), ("blocks",)) == ["blocks.0", "blocks.1", "output"]


@pytest.mark.parametrize("name", KNOWN)
def test_the_blocks_of_every_known_family_are_all_of_them_in_order_and_run_once(name):
    _, batch, classes = KNOWN[name]
    net = build(name)
    choice = layer_choice(net)
    *blocks, output = choice.names
    assert output == "output" and choice.family and not choice.guessed
    modules = dict(net.named_modules())
    # Named by their class, whatever their path is in this version of transformers.
    assert blocks == [path for path, module in modules.items() if type(module).__name__ in classes]
    assert len(blocks) == sum(classes.values())

    ran = []
    for block in blocks:
        modules[block].register_forward_hook(lambda *_, block=block: ran.append(block))
    with torch.no_grad():
        Features.of(net).call(net, batch())
    tower = lambda block: block.split(".")[0]  # noqa: E731 (a model of two towers may run either first)
    assert sorted(ran, key=tower) == sorted(blocks, key=tower)


def test_every_line_of_the_table_is_the_one_that_takes_its_own_layout():
    for family, patterns in FAMILIES:
        for pattern in patterns:
            net = nested(pattern.replace(".*", ".0", pattern.count("*") - 1).removesuffix(".*"), block)
            choice = layer_choice(net)
            assert choice.family == family, pattern
            assert len(choice.names) == 3 and not choice.guessed


def nested(path, leaf=lambda: nn.Linear(1, 1)):
    """A network with two layers at a dotted path."""
    net = nn.Module()
    add(net, path, leaf)
    return net


def add(net, path, leaf, count=2):
    *parts, last = path.split(".")
    for part in parts:
        if not hasattr(net, part):
            setattr(net, part, nn.Module())
        net = getattr(net, part)
    setattr(net, last, nn.ModuleList(leaf() for _ in range(count)))


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


@pytest.mark.parametrize(
    "path",
    [
        "vision_model.encoder.layers",
        "encoder.layers",
        "bert.encoder.layer",
        "model.layers",
        "gpt_neox.layers",
        "transformer.h",
        "h",
        "model.decoder.layers",
        "distilbert.transformer.layer",
        "visual.transformer.resblocks",
        "vit.layers",
        "_blocks",
        "layers",
        "layer",
        "0.auto_model.encoder.layer",
    ],
)
def test_known_layouts_are_found_with_and_without_prefix(path):
    assert ms.find_layers(nested(path)) == [f"{path}.0", f"{path}.1", "output"]


def test_both_towers_are_taken_whatever_families_they_are_of():
    net = nested("visual.transformer.resblocks", block)
    add(net, "transformer.resblocks", block)
    assert len(ms.find_layers(net)) == 5
    net = nested("model.vision_tower.encoder.layers", block)
    add(net, "model.language_model.layers", block, 3)
    choice = layer_choice(net)
    assert [name.split(".")[1] for name in choice.names[:-1]] == ["vision_tower"] * 2 + ["language_model"] * 3
    assert "CLIP" in choice.family and " + " in choice.family and not choice.guessed


def test_lists_of_the_same_name_inside_blocks_and_heads_are_no_blocks():
    net = nested("model.layers", lambda: nested("mlp.layers", block))
    add(net, "box_head.layers", lambda: nn.Linear(2, 2), 4)
    assert ms.find_layers(net) == ["model.layers.0", "model.layers.1", "output"]
    # One block only, so that nothing repeats the list inside it.
    net = nn.Module()
    add(net, "layers", lambda: nested("mlp.layers", block), 1)
    assert ms.find_layers(net) == ["layers.0", "output"]
    # Inside the blocks of a layout that the table does not know.
    net = nested("xs", lambda: nested("mlp.layers", block))
    assert layer_choice(net) == LayerChoice(("xs.0", "xs.1", "output"), None, guessed=True)


def test_a_list_of_lists_has_no_blocks_that_are_lists():
    net = nested("encoder.block", lambda: nn.ModuleList([block(), block()]))
    expected = tuple(f"encoder.block.{i}.{j}" for i in range(2) for j in range(2))
    assert layer_choice(net) == LayerChoice((*expected, "output"), None, guessed=True)


def test_a_family_that_fits_a_small_part_of_a_network_makes_its_blocks_a_guess():
    net = nested("decoder.layers", block)
    add(net, "encoder.stack", block, 3)
    choice = layer_choice(net)
    assert choice.guessed and len(choice.names) == 6
    net = nested("decoder.layers", lambda: nn.Sequential(nn.Linear(9, 9), nn.ReLU()))
    add(net, "encoder.stack", block, 3)
    assert layer_choice(net).names == ("decoder.layers.0", "decoder.layers.1", "output")


def test_layers_that_were_named_are_neither_known_nor_guessed():
    assert layer_choice(make_net("mlp"), "head") == LayerChoice(("head",))


@pytest.mark.parametrize("name", ["AlbertModel", "AlbertForSequenceClassification"])
def test_shared_layers_are_refused_with_the_reason(name):
    kind = getattr(transformers, name)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    net = kind(transformers.AlbertConfig(embedding_size=8, num_hidden_layers=3, **sizes)).eval()
    with pytest.raises(LayerError, match=rf"{name} .ALBERT.*same weights for all of its 3 layers.*'output'"):
        ms.find_layers(net)
    batch = {key: value for key, value in text().items() if key == "input_ids"}
    with pytest.raises(LayerError, match="runs more than once"):
        ms.trace([ms.Checkpoint(net.state_dict())], [batch], net, layers="albert_layer_groups.*")
    assert ms.trace([ms.Checkpoint(net.state_dict())], [batch], net, layers="output").samples == 2
    unshared = kind(
        transformers.AlbertConfig(embedding_size=8, num_hidden_layers=2, num_hidden_groups=2, **sizes)
    )
    assert len(ms.find_layers(unshared)) == 3


def test_guessed_layers_can_be_traced():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            wide = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(3)]
            self.stages = nn.ModuleDict({"a": nn.Sequential(*wide)})
            self.top = nn.Linear(64, 3)

        def forward(self, x):
            return self.top(self.stages["a"](x.flatten(1)))

    net = Odd().eval()
    traced = ms.trace([ms.Checkpoint(net.state_dict())], labelled_batches(), net)
    assert traced.layers == ("stages.a.0", "stages.a.1", "stages.a.2", "output")


def test_patterns_are_suffixes_with_one_star_a_segment():
    net = make_net("vit")
    assert ms.find_layers(net, "attn") == ["blocks.0.attn", "blocks.1.attn"]
    assert ms.find_layers(net, "blocks.1.*.out_proj") == ["blocks.1.attn.out_proj"]
    assert "blocks.0.attn.out_proj" not in ms.find_layers(net, "blocks.*")
    assert ms.find_layers(net, "attn.out_proj") == ["blocks.0.attn.out_proj", "blocks.1.attn.out_proj"]


def test_the_order_is_the_networks_and_the_output_is_last():
    net = make_net("vit")
    assert ms.find_layers(net, ["output", "head", "norm", "blocks.0"]) == [
        "blocks.0",
        "norm",
        "head",
        "output",
    ]
    assert ms.find_layers(net, "output") == ["output"]


@pytest.mark.parametrize("pattern", ["bloks.*", "block.*", "blocks.*.atn"])
def test_a_mistyped_pattern_gets_a_near_match(pattern):
    with pytest.raises(LayerError, match=r"matches no module of ViT.* Did you mean: .*blocks") as caught:
        ms.find_layers(make_net("vit"), pattern)
    assert repr(pattern) in str(caught.value)


def test_a_part_of_a_segment_is_no_match():
    with pytest.raises(LayerError, match="'ead' matches no module"):
        ms.find_layers(make_net("mlp"), "ead")


def test_an_unknown_layout_lists_modules_and_layouts():
    with pytest.raises(
        LayerError, match=r"No known block layout in Sequential.*its modules include 0, 1.*Llama"
    ):
        ms.find_layers(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))


def test_the_feature_of_an_output():
    x = torch.ones(2, 3)
    ids = torch.ones(2, dtype=torch.int64)
    assert feature_of(x, "l") is x
    assert feature_of((x, None), "l") is x
    assert feature_of((ids, x), "l") is x
    assert feature_of(SimpleNamespace(logits=x, last_hidden_state=None), "l") is x
    assert feature_of(SimpleNamespace(logits=None, last_hidden_state=x), "l") is x
    for nothing in (None, "text", (ids,), SimpleNamespace(loss=x), []):
        with pytest.raises(LayerError, match=f"'the.layer' returned a {type(nothing).__name__}"):
            feature_of(nothing, "the.layer")


def test_the_convnet_of_these_tests_has_blocks():
    assert ms.find_layers(ConvNet()) == ["blocks.0", "blocks.1", "output"]
