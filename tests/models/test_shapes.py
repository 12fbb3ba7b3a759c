"""Shapes from fake tensors against those of real forward passes."""

import json
import logging

import pytest
import torch
from architectures import KNOWN, build, transformers
from support import make_net
from torch import nn

import mergescope as ms
from mergescope.models import net_config
from mergescope.models.architecture import Architecture
from mergescope.models.calling import dummy_inputs
from mergescope.models.features import Features
from mergescope.models.layers import feature_of, find_layers
from mergescope.models.shapes import TOKENS, layer_shapes, skeleton

EXPERTS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM")
FOUR = transformers.__version__.startswith("4.")


def copied(net, folder):
    net.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [type(net).__name__]}))
    return skeleton(Architecture.of(folder))


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_are_those_of_a_real_forward_pass(name, tmp_path):
    real = build(name)
    layers = find_layers(real)
    seen = {}
    for layer in layers[:-1]:
        hook = lambda *args, layer=layer: seen.update({layer: feature_of(args[-1], layer)})  # noqa: E731
        real.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        seen["output"] = feature_of(Features.of(real).call(real, dummy_inputs(real, TOKENS)), "output")

    found = layer_shapes(copied(real, tmp_path), layers)
    if FOUR and name in EXPERTS:  # its experts look at who was chosen
        assert found == dict.fromkeys(layers)
        return
    assert list(found) == layers
    for layer, shape in found.items():
        assert tuple(TOKENS if size is None else size for size in shape) == tuple(seen[layer].shape[1:]), (
            layer
        )
        assert (None in shape) == (real.main_input_name == "input_ids" and seen[layer].shape[1] == TOKENS)


def test_own_networks_have_shapes():
    assert layer_shapes(make_net("mlp"), ["blocks.1", "output"]) == {"blocks.1": (10,), "output": (3,)}
    assert layer_shapes(make_net("vit"), ["blocks.0", "patch_embed"]) == {
        "blocks.0": (5, 16),
        "patch_embed": (16, 2, 2),
    }


def test_what_runs_before_a_network_fails_has_its_shape(caplog):
    class Curious(nn.Module):
        settings = {"sizes": [4]}

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = self.first(x)
            return self.second(x) if x.sum() > 0 else x

    with caplog.at_level(logging.ERROR):
        found = layer_shapes(Curious(), ["first", "second", "output"])
    assert found == {"first": (3,), "second": None, "output": None}
    assert not caplog.records


def test_inputs_that_no_one_can_make_up_leave_shapes_unknown():
    class Sounds(nn.Module):
        main_input_name = "input_features"

        def forward(self, input_features):
            return input_features

    assert layer_shapes(Sounds(), ["output"]) == {"output": None}


def test_a_text_is_tried_alone_where_images_in_it_need_marks():
    class Looking(nn.Module):
        main_input_name = "input_ids"
        config = transformers.LlavaConfig()

        def __init__(self):
            super().__init__()
            self.eye, self.tongue = nn.Linear(3, 2), nn.Embedding(9, 5)

        def forward(self, input_ids, pixel_values=None):
            if pixel_values is not None:
                self.eye(pixel_values.mean((2, 3)))
                raise ValueError("Image features and image tokens do not match")
            return self.tongue(input_ids)

    assert layer_shapes(Looking(), ["eye", "tongue"]) == {"eye": (2,), "tongue": (None, 5)}


def test_an_empty_network_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(net_config(make_net("vit"))))
    net = ms.empty_model(tmp_path)
    assert all(entry.is_meta for entry in net.parameters()) and not net.training
    assert layer_shapes(net, ["blocks.1"]) == {"blocks.1": (5, 16)}
