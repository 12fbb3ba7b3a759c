"""Where tensors are in a network, and what its configuration says about it."""

import pytest

from mergescope.errors import MergescopeError
from mergescope.merging.blocks import comes_before_blocks, depth_of, main_stack, place_of, stacks
from mergescope.merging.configs import layer_count_path, restack, set_dtype

MOE = [f"model.layers.{n}.mlp.experts.{e}.w1.weight" for n in range(3) for e in range(8)]


def test_the_first_number_is_the_blocks():
    assert place_of(MOE[9]).index == 1 and place_of(MOE[9]).rest == "mlp.experts.1.w1.weight"
    assert place_of("encoder.block.4.layer.0.SelfAttention.q.weight").stack == "encoder.block"
    assert place_of("classifier.weight").stack == ""
    assert stacks(MOE) == {"model.layers": 3}


def test_depth_runs_from_0_to_1_and_is_0_outside():
    counts = {"h": 5, "one": 1}
    assert [depth_of(f"h.{n}.w", counts) for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert depth_of("one.0.w", counts) == 1
    assert depth_of("wte.weight", counts) == depth_of("lm_head.weight", counts) == 0


def test_layer_ranges_speak_of_the_stack_that_the_configuration_counts():
    assert main_stack(MOE, {"num_hidden_layers": 3}, "m") == "model.layers"
    both = ["text.layers.0.w", "text.layers.1.w", *(f"vision.layers.{n}.w" for n in range(4))]
    assert main_stack(both, {"num_hidden_layers": 2}, "m") == "text.layers"
    with pytest.raises(MergescopeError, match="several stacks"):
        main_stack(["encoder.block.0.w", "decoder.block.0.w"], None, "m")
    with pytest.raises(MergescopeError, match="no numbered blocks"):
        main_stack(["fc.weight"], None, "m")


def test_embeddings_come_before_the_blocks_and_heads_after():
    early = [
        "model.embed_tokens.weight",
        "transformer.wpe.weight",
        "vit.embeddings.cls_token",
        "shared.weight",
    ]
    assert all(map(comes_before_blocks, early))
    late = ["lm_head.weight", "model.norm.weight", "classifier.bias", "embed_out.weight", "embed_out.bias"]
    assert not any(map(comes_before_blocks, late))


@pytest.mark.parametrize(
    ("config", "stack", "path"),
    [
        ({"n_layer": 3}, "transformer.h", ("n_layer",)),
        ({"num_layers": 2, "num_decoder_layers": 3}, "encoder.block", ("num_layers",)),
        ({"num_layers": 2, "num_decoder_layers": 3}, "decoder.block", ("num_decoder_layers",)),
        ({"encoder_layers": 2, "decoder_layers": 3, "num_hidden_layers": 2}, "model.decoder.layers", ("decoder_layers",)),  # noqa: E501
        ({"num_hidden_layers": 2}, "model.decoder.layers", ("num_hidden_layers",)),
        ({"vision_config": {"num_hidden_layers": 2}}, "vision_model.encoder.layers", ("vision_config", "num_hidden_layers")),  # noqa: E501
        ({}, "h", None),
        (None, "h", None),
    ],
)  # fmt: skip
def test_where_layers_are_counted(config, stack, path):
    assert layer_count_path(config, stack) == path


def test_restacking_changes_the_count_and_every_list_with_one_item_a_layer():
    a = {
        "num_hidden_layers": 2,
        "layer_types": ["full", "sliding"],
        "eos_token_id": [1, 2],
        "mlp_layer_types": ["x", "y"],
    }
    config = dict(a)
    restack(config, "model.layers", [(a, 0), (a, 1), (a, 1)])
    assert config == {
        "num_hidden_layers": 3, "layer_types": ["full", "sliding", "sliding"], "eos_token_id": [1, 2],
        "mlp_layer_types": ["x", "y", "y"],
    }  # fmt: skip


def test_the_dtype_is_named_in_every_part():
    config = {"dtype": "float32", "text_config": {"torch_dtype": None, "hidden": 2}}
    set_dtype(config, "bfloat16")
    assert config == {"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16", "hidden": 2}}
