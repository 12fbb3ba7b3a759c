import numpy as np
import pytest
import torch
from support import ConvNet, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import LayerError
from mergescope.tracing.capture import capture, trivially_linear


class Odd(nn.Module):
    """A network with a layer that runs twice and one that never runs."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.twice(self.twice(x).relu()))


def test_a_layer_that_runs_twice_is_refused_by_name():
    net = Odd()
    with pytest.raises(LayerError, match="'twice' runs more than once"):
        ms.trace(family(net, ("a", "b")), [torch.ones(2, 4)], net, layers="twice")
    assert not net.twice._forward_hooks


def test_a_layer_that_never_runs_is_refused_by_name():
    net = Odd()
    with pytest.raises(LayerError, match="do not run in a forward pass of Odd: never"):
        ms.trace(family(net, ("a", "b")), [torch.ones(2, 4)], net, layers=["never", "head"])


def test_a_layer_without_a_tensor_is_refused_by_name():
    class Names(nn.Module):
        def forward(self, x):
            return "text"

    net = Odd()
    net.names = Names()
    net.register_forward_hook(lambda module, args, out: (module.names(args[0]), out)[1])
    with pytest.raises(LayerError, match="'names' returned a str"):
        ms.trace(family(net, ("a", "b")), [torch.ones(2, 4)], net, layers="names")


def test_features_are_what_the_layer_returned_even_if_a_later_one_works_in_place():
    net, (x, _) = make_net("convnet"), labelled_batches(4, 4)[0]
    with torch.no_grad():
        expected = net.blocks[0][1](net.blocks[0][0](x))
        with capture(net, ["blocks.0.1"]) as caught:
            net(x)
    assert (expected < 0).any()
    torch.testing.assert_close(caught["blocks.0.1"], expected.flatten(1))


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = make_net("mlp")
    with pytest.raises(RuntimeError), capture(net, ["blocks.0", "head"]):
        raise RuntimeError
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("net", "layers", "trivial"),
    [
        (ms.MLP((64, 12, 10, 3)), ["blocks.0", "blocks.0.0", "blocks.1.0", "head"], {"blocks.0.0"}),
        (ms.ViT(image=8, patch=4, width=16, depth=1, heads=2), ["patch_embed", "blocks.0"], {"patch_embed"}),
        (ConvNet(), ["blocks.0.0", "blocks.0.1", "blocks.1.0"], {"blocks.0.0"}),
    ],
)
def test_only_what_is_fed_the_input_itself_is_trivial(net, layers, trivial):
    assert trivially_linear(net.eval(), torch.randn(2, 1, 8, 8), layers) == trivial


def test_an_embedding_is_trivial():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert trivially_linear(net, torch.tensor([1, 2]), ["0", "1"]) == {"0"}


def test_a_layer_is_trivial_though_the_network_casts_what_it_is_fed():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x.to(self.first.weight.dtype)))

    net = Casting().bfloat16()
    assert trivially_linear(net, torch.randn(2, 4), ["first", "second"]) == {"first"}
    assert trivially_linear(Casting(), torch.randn(2, 4).double(), ["first", "second"]) == {"first"}


def test_arguments_that_are_no_tensors_are_passed_as_they_are():
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, flag=True, mask=None):
            assert flag is True and mask is None
            return self.second(self.first(x).relu())

    net, x = Flagged(), torch.randn(3, 4)
    points = [ms.Point.of(model) for model in family(net, ("a", "b"))]
    with_flags, alone = (
        ms.trace(points, [batch], net, layers=["first", "second"])
        for batch in ({"flag": True, "mask": None, "x": x}, x)
    )
    assert with_flags.samples == 3 and with_flags.trivial == {"first"}
    grams = [it.reading(ms.InnerProducts).gram("second", points) for it in (with_flags, alone)]
    np.testing.assert_array_equal(*grams)
