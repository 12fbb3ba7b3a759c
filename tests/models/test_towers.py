"""What a head is put on: the image tower of a CLIP, the body of a classifier or language model."""

import pytest
import torch
from tiny_transformers import SIZES, TEXT, tiny

import mergescope as ms
from mergescope.errors import MergescopeError, MismatchError
from mergescope.models import WithHead, linear_head
from mergescope.models.features import kind_of_model
from mergescope.models.towers import headless

transformers = pytest.importorskip("transformers")
PIXELS = {**SIZES, "image_size": 8, "patch_size": 4}


def clip():
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=PIXELS, projection_dim=12)
    return transformers.CLIPModel(config).eval()


def siglip():
    torch.manual_seed(0)
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=PIXELS)).eval()


def images():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_image_tower_of_a_clip_gives_its_image_embeddings():
    model = clip()
    tower = headless(model)
    assert kind_of_model(tower) == "image" and kind_of_model(model) != "image"
    mine = {entry.data_ptr() for entry in tower.parameters()}
    assert mine == {
        entry.data_ptr() for name, entry in model.named_parameters() if name.startswith(("vision", "visual"))
    }, "the same memory, and nothing else"
    found = model.get_image_features(pixel_values=images())
    expected = found if isinstance(found, torch.Tensor) else found.pooler_output
    network = WithHead(model, linear_head(12, ["a", "b"], 0)).eval()
    torch.testing.assert_close(network(pixel_values=images()).embedding, expected)


@torch.no_grad()
def test_the_image_tower_of_a_siglip_gives_its_image_embeddings():
    model = siglip()
    network = WithHead(model, linear_head(16, ["a", "b"], 0)).eval()
    found = model.get_image_features(pixel_values=images())
    expected = found if isinstance(found, torch.Tensor) else found.pooler_output
    torch.testing.assert_close(network(pixel_values=images()).embedding, expected)


@pytest.mark.parametrize("make", [clip, siglip])
def test_a_whole_checkpoint_is_seen_as_its_image_tower(tmp_path, make):
    model = make()
    model.save_pretrained(tmp_path)
    base = ms.Checkpoint(tmp_path)
    network = WithHead(ms.load_model(base), linear_head(12 if make is clip else 16, ["a", "b"], 0))
    view = network.view(base)
    assert set(view.names) == set(network.state_dict()) - network.head_entries
    assert not any(key.startswith(("text_", "logit")) for key in view.names.values())
    assert set(view.names.values()) <= set(base.spec)


def test_a_tower_of_another_shape_is_still_refused(tmp_path):
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config={**PIXELS, "hidden_size": 8}, projection_dim=12
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    network = WithHead(clip(), linear_head(12, ["a"], 0))
    with pytest.raises(MismatchError, match="visual_projection.weight"):
        network.view(ms.Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("kind", "body"), [("bert", "bert"), ("vit", "vit"), ("llama", "model"), ("gpt2", "transformer")]
)
def test_of_a_network_with_a_head_the_body_is_taken(kind, body):
    network = tiny(kind)
    assert headless(network) is getattr(network, body)
    assert headless(headless(network)) is headless(network)


def test_towers_that_transformers_has_no_class_for_are_refused():
    class Pair(torch.nn.Module):
        vision_model = text_model = visual_projection = None

    with pytest.raises(MergescopeError, match="image tower of a Pair can't be taken out"):
        headless(Pair())
