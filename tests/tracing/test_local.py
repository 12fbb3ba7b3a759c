"""Local linearity: each layer on the reference's input to it."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import batches_for, tiny
from torch import nn

import mergescope as ms
from mergescope.errors import PointError

EXECUTORS = ("resident", "batched")


class Chain(nn.Module):
    """Layers without activations: each is linear in its own weights, the chain is not."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), activation()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def chain_data():
    return list(torch.randn(10, 6, generator=torch.Generator().manual_seed(4)).split(4))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_local_features_by_hand(executor):
    net, batches = Chain(nn.Tanh), chain_data()
    base, a, b = family(net, ("base", "a", "b"), scale=0.5)
    test = ms.ctl(a, b, reference=base)
    traced = ms.trace(test.points, batches, net, local=base, executor=executor)
    x = torch.cat(batches).double()
    given = x
    for number in range(3):
        weight, bias = f"blocks.{number}.0.weight", f"blocks.{number}.0.bias"
        fed = {
            point: torch.tanh(given @ point.tensor(weight).double().T + point.tensor(bias).double())
            for point in test.points
        }
        stacked = torch.stack([fed[point] for point in test.points], dim=1)
        got = traced.reading(ms.InnerProducts, local=True).gram(f"blocks.{number}", test.points)
        np.testing.assert_allclose(got, (stacked @ stacked.mT).numpy(), rtol=1e-5, atol=1e-6)
        given = fed[ms.Point.of(base)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("alpha", [0.3, 1.4])
def test_layers_that_are_linear_in_their_own_weights_have_no_local_gap(executor, alpha):
    net = Chain()
    base, a, b = family(net, ("base", "a", "b"), scale=1.0)
    test = ms.ctl(a, b, alpha, reference=base)
    traced = ms.trace(test.points, chain_data(), net, local=base, executor=executor)
    local, whole = (ms.linearity(traced, test, local=it) for it in (True, False))
    assert [entry.layer for entry in local.layers] == ["blocks.0", "blocks.1", "blocks.2"]
    for entry in local.layers:
        np.testing.assert_allclose(entry.values["gap"], 0, atol=1e-5)
        np.testing.assert_allclose(entry.values["cos"], 1, atol=1e-8)
    for entry in whole.layers[1:]:  # what the chain makes of it is not linear
        assert entry.measures["gap"].mean > 0.05


def test_a_layer_that_bends_has_a_local_gap():
    net = Chain(nn.Tanh)
    base, a, b = family(net, ("base", "a", "b"), scale=1.0)
    test = ms.ctl(a, b, reference=base)
    result = ms.linearity(ms.trace(test.points, chain_data(), net, local=base), test, local=True)
    assert all(entry.measures["gap"].mean > 0.05 for entry in result.layers)


@pytest.mark.parametrize("kind", [*NETS, "llama", "bert"])
def test_a_local_pass_changes_nothing_else(kind):
    net, batches = (make_net(kind), labelled_batches()) if kind in NETS else (tiny(kind), batches_for(kind))
    base, a, b = family(net, ("base", "a", "b"))
    test = ms.ctl(a, b, reference=base)
    plain, local = (ms.trace(test.points, batches, net, local=it) for it in (None, base))
    for layer in plain.layers:
        np.testing.assert_array_equal(
            *(t.reading(ms.InnerProducts, local=False).gram(layer, test.points) for t in (plain, local))
        )
    if kind == "llama":
        return  # no labels, no losses
    for point in plain.points:
        np.testing.assert_array_equal(*(t.reading(ms.Outputs).losses(point) for t in (plain, local)))


@pytest.mark.parametrize("kind", NETS)
def test_the_references_own_local_features_are_its_features(kind):
    net = make_net(kind)
    base, a = family(net, ("base", "a"))
    traced = ms.trace([a, base], labelled_batches(), net, local=base)
    for layer in traced.layers[:-1]:
        whole, local = (traced.reading(ms.InnerProducts, local=it).gram(layer, [base]) for it in (0, 1))
        np.testing.assert_array_equal(whole, local)


@pytest.mark.parametrize("executor", [*EXECUTORS, "streamed"])
def test_passes_are_counted(executor):
    net, batches = make_net("vit"), labelled_batches(10, 4)
    base, a, b, _ = family(net)
    test = ms.ctl(a, b, reference=base)
    traced = ms.trace(test.points, batches, net, local=base, executor=executor)
    # The batched executor runs the reference once more, alone: the layers' inputs can't leave a mapped pass.
    assert traced.forward_passes == {"batched": 5}.get(executor, 4) * 3
    assert traced.local_passes == 3 * 3
    without = ms.trace(
        test.points, batches, net, local=base, executor=executor, readings=[ms.Outputs()], layers="output"
    )
    assert without.forward_passes == 4 * 3 and without.local_passes == 0


def test_a_layer_inside_another_is_measured_too():
    net, batches = make_net("vit"), labelled_batches()
    base, a, b, _ = family(net)
    layers = ["blocks.1", "blocks.1.attn"]
    traced = ms.trace([base, a, b], batches, net, layers=layers, local=base)
    alone = ms.trace([base, a, b], batches, net, layers=layers[1:], local=base)
    np.testing.assert_array_equal(
        *(t.reading(ms.InnerProducts, local=True).gram(layers[1], [base, a, b]) for t in (traced, alone))
    )


def test_the_reference_must_be_traced():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    with pytest.raises(PointError, match="local= must be one of the traced points, got Point.base."):
        ms.trace([a, b], labelled_batches(), net, local=base)
