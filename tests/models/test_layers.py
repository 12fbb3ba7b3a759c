from types import SimpleNamespace

import pytest
import torch
from support import ConvNet, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError
from mergescope.models.layers import feature_of


def test_blocks_are_the_blocks_and_the_output():
    assert ms.find_layers(ms.MLP()) == ["blocks.0", "blocks.1", "output"]
    assert ms.find_layers(make_net("vit")) == ["blocks.0", "blocks.1", "output"]


def nested(path):
    """A network with two layers at a dotted path."""
    net = nn.Module()
    *parts, last = path.split(".")
    here = net
    for part in parts:
        setattr(here, part, nn.Module())
        here = getattr(here, part)
    setattr(here, last, nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]))
    return net


@pytest.mark.parametrize(
    "path",
    [
        "vision_model.encoder.layers",
        "encoder.layers",
        "bert.encoder.layer",
        "model.layers",
        "transformer.h",
        "h",
        "model.decoder.layers",
        "distilbert.transformer.layer",
        "visual.transformer.resblocks",
        "layers",
    ],
)
def test_known_layouts_are_found_with_and_without_prefix(path):
    assert ms.find_layers(nested(path)) == [f"{path}.0", f"{path}.1", "output"]


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
