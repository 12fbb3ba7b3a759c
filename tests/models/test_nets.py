import pytest
import torch
from support import make_net
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import CheckpointError, DataError
from mergescope.models import find_layers, has_running_statistics, net_config
from mergescope.models.efficientnet_lite import EfficientNetLite
from mergescope.models.nets import Attention, net_from_config


def _resnet(running_statistics):
    return ms.ResNet(
        image=8, channels=1, width=4, stages=(1, 1), classes=3, running_statistics=running_statistics
    ).eval()


SAVED = {
    **{kind: lambda kind=kind: make_net(kind) for kind in ("mlp", "vit", "packed vit")},
    "resnet": lambda: _resnet(False),
    "resnet with statistics": lambda: _resnet(True),
}


@pytest.mark.parametrize("kind", SAVED)
def test_a_net_saves_and_loads_as_a_directory(tmp_path, kind):
    net = SAVED[kind]()
    out = ms.save(ms.Checkpoint(net.state_dict(), name="net"), tmp_path / "net", config=net_config(net))
    again = ms.load_model(out)
    assert type(again) is type(net) and not again.training
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_ctls_mlp_has_its_published_size():
    assert sum(p.numel() for p in ms.MLP().parameters()) == 785 * 100 + 101 * 100 + 101 * 10


@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_softmax_of_scaled_products(packed):
    net = Attention(8, 2, packed)
    x = torch.randn(3, 5, 8)
    if packed:
        q, k, v = net.qkv(x).split(8, dim=-1)
    else:
        q, k, v = net.q_proj(x), net.k_proj(x), net.v_proj(x)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = q[..., h] @ k[..., h].mT / 4**0.5
        heads.append(scores.softmax(-1) @ v[..., h])
    torch.testing.assert_close(net(x), net.out_proj(torch.cat(heads, -1)))


def test_packed_and_separate_weights_compute_the_same():
    separate, packed = make_net("vit"), make_net("packed vit")
    state = separate.state_dict()
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"blocks.{i}.attn.{p}_proj.{kind}") for p in "qkv"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    packed.load_state_dict(state)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(packed(x), separate(x))


RESNET20 = {"stages": (3, 3, 3), "width": 16, "classes": 10}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1_109_240),  # the reduced ResNet-18 of GEM and MC-SGD with 100 classes
        (RESNET20, 272_474),  # ResNet-20 with convolutions as shortcuts; 0.27 M in He et al. 2016
    ],
)
def test_resnets_have_their_published_sizes(settings, count):
    net = ms.ResNet(**settings)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(p.numel() for p in ms.ResNet(**settings, running_statistics=True).parameters()) == count


def test_resnet_20_has_the_depth_and_widths_of_its_table():
    net = ms.ResNet(**RESNET20)
    x = net.stem(torch.zeros(1, 3, 32, 32))
    shapes = [tuple(x.shape[1:])] + [tuple((x := block(x)).shape[1:]) for block in net.blocks]
    assert shapes == [(16, 32, 32)] * 4 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    paths = [name for name, module in net.named_modules() if name and "shortcut" not in name]
    weights = [name for name in paths if "conv" in name or name in ("stem.0", "head")]
    assert len(weights) == 20
    assert find_layers(net) == [*(f"blocks.{n}" for n in range(9)), "output"]


@pytest.mark.parametrize("running_statistics", [False, True])
def test_a_resnet_is_what_torch_functions_compute(running_statistics):
    net = ms.ResNet(
        image=8, channels=1, width=4, stages=(1, 1), classes=3, running_statistics=running_statistics
    )
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(6, 1, 8, 8) + 1)
    net.eval()
    entries = net.state_dict()

    def norm(x, name):
        statistics = (entries[f"{name}.running_mean"], entries[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, entries[f"{name}.weight"], entries[f"{name}.bias"])

    def batch_norm(x, name):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        weight, bias = (entries[f"{name}.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    normed = norm if running_statistics else batch_norm
    x = torch.randn(5, 1, 8, 8)
    h = normed(F.conv2d(x, entries["stem.0.weight"], padding=1), "stem.1").relu()
    for number, stride in enumerate((1, 2)):
        at = f"blocks.{number}"
        inner = normed(
            F.conv2d(h, entries[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.norm1"
        ).relu()
        inner = normed(F.conv2d(inner, entries[f"{at}.conv2.weight"], padding=1), f"{at}.norm2")
        if number:
            h = normed(F.conv2d(h, entries[f"{at}.shortcut.0.weight"], stride=2), f"{at}.shortcut.1")
        h = (inner + h).relu()
    expected = F.linear(h.mean((2, 3)), entries["head.weight"], entries["head.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert has_running_statistics(net) is running_statistics


def test_efficientnet_lite_saves_loads_and_refuses_sides_that_strides_leave_a_rest_of(tmp_path):
    net = EfficientNetLite(image=32, channels=1, width=0.1, classes=3).eval()
    out = ms.save(ms.Checkpoint(net.state_dict(), name="net"), tmp_path / "net", config=net_config(net))
    again = ms.load_model(out)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), net(x)) and net(x).shape == (2, 3)
    assert find_layers(net) == [*(f"_blocks.{n}" for n in range(16)), "output"]
    assert has_running_statistics(net)
    for shape in ([1, 48, 32], [3, 32, 32]):
        with pytest.raises(
            DataError, match=r"takes images \[1, height, width\] whose sides are multiples of 32"
        ):
            net(torch.zeros(2, *shape))


def test_images_of_another_shape_are_refused():
    grey = torch.zeros(2, 1, 8, 8)
    with pytest.raises(DataError, match=r"takes images \[3, height, width\], got \[1, 8, 8\]"):
        ms.ResNet()(grey)
    with pytest.raises(DataError, match=r"takes images \[1, 28, 28\], got \[1, 8, 8\]"):
        ms.ViT()(grey)
    with pytest.raises(DataError, match="takes 784 numbers a sample, got 64"):
        ms.MLP()(grey)


def test_a_configuration_says_only_what_a_net_knows():
    config = {**net_config(ms.MLP((4, 3, 2))), "dtype": "float32"}
    assert net_from_config(config).settings == {"sizes": [4, 3, 2]}
    with pytest.raises(CheckpointError, match=r"mergescope-mlp has no setting 'size'\. Did you mean: sizes"):
        net_from_config({"model_type": "mergescope-mlp", "size": [4, 2]})
