"""What must hold of every weight disentanglement error, whatever the network."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement
from mergescope.protocols.measure import HeldOut

KINDS = [kind for kind in NETS if kind != "convnet"]  # far extrapolations of its variances are negative
DISTANCES = ["predictions", "kl"]


def settings(**more):
    return DisentanglementSettings(**{"points": 5, "reach": 2.0, "progress": False} | more)


def given(kind, scale=0.5):
    net = make_net(kind)
    base, a, b, _ = family(net, scale=scale)
    test = {n: HeldOut(n, labelled_batches(10, 4, seed=i), net, n) for i, n in enumerate("ab")}
    return base, {"a": a, "b": b}, test


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("linearized", [False, True])
def test_on_an_axis_only_the_other_tasks_term_is_left(kind, distance, linearized):
    # f(th_0 + a1 tau_1) is compared with itself on D_1, but with f(th_0) on D_2.
    s = settings(distance=distance, linearized=linearized)
    found = disentanglement(*given(kind), s)["a", "b"]
    zero = found.coefficients.index(0)
    np.testing.assert_array_equal(found.parts[0][:, zero], 0)
    np.testing.assert_array_equal(found.parts[1][zero, :], 0)
    assert found.error[zero, zero] == 0
    assert (found.parts[1][[0, -1], zero] > 0).all() and (found.parts[0][zero, [0, -1]] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_swapping_the_tasks_transposes_the_grid(kind, distance):
    base, models, test = given(kind)
    one, other = (
        disentanglement(base, models, test, settings(distance=distance, pairs=(pair,)))[pair]
        for pair in (("a", "b"), ("b", "a"))
    )
    np.testing.assert_array_equal(one.error, other.error.T)
    np.testing.assert_array_equal(one.parts, other.parts[::-1].transpose(0, 2, 1))
    for name, summary in one.summaries.items():
        assert summary.mean == pytest.approx(other.summaries[name].mean)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_within_their_bounds(kind):
    found = disentanglement(*given(kind, scale=2.0), settings())["a", "b"]
    assert (found.parts >= 0).all() and (found.parts <= 1).all() and found.error.max() > 0.5
    divergence = disentanglement(*given(kind), settings(distance="kl"))["a", "b"]
    assert (divergence.parts >= 0).all() and divergence.error.max() > 0


class Halves(nn.Module):
    """Two networks side by side, of which each sees one half of the input."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.left(x[:, :4]) + self.right(x[:, 4:]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("linearized", [False, True])
def test_task_vectors_of_disjoint_supports_are_disentangled(distance, linearized):
    torch.manual_seed(0)
    net = Halves().eval()
    state = net.state_dict()
    base = ms.Checkpoint(state, name="base")
    models, test = {}, {}
    for name, part in (("a", "left"), ("b", "right")):
        moved = {k: v + torch.randn_like(v) * (part in k) for k, v in state.items()}
        models[name] = ms.Checkpoint(moved, name=name)
        x = torch.randn(8, 8)
        x[:, slice(4, 8) if part == "left" else slice(0, 4)] = 0  # what the other half sees
        test[name] = HeldOut(name, [x], net, name)
    s = settings(distance=distance, linearized=linearized)
    found = disentanglement(base, models, test, s)["a", "b"]
    np.testing.assert_allclose(found.error, 0, atol=1e-9)
    share = found.summaries["share below of the square"]
    assert (share.mean, share.low, share.high) == (1, 1, 1)
    # The vectors do change what the networks say: the other way round, nothing is disentangled.
    swapped = {"a": HeldOut("a", test["b"].batches, net, "a"), "b": HeldOut("b", test["a"].batches, net, "b")}
    assert disentanglement(base, models, swapped, s)["a", "b"].error.max() > 0.1


def test_a_task_vector_of_zero_changes_nothing():
    base, models, test = given("mlp")
    still = {"a": models["a"], "b": ms.Checkpoint(base.state_dict(), name="b")}
    found = disentanglement(base, still, test, settings(distance="kl"))["a", "b"]
    np.testing.assert_array_equal(found.parts[0], 0)
    np.testing.assert_array_equal(found.parts[1], np.broadcast_to(found.parts[1][:, :1], (5, 5)))


def test_a_linear_network_that_is_linearised_is_the_same():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    base, a, b, _ = family(net, scale=0.5)
    test = {n: HeldOut(n, labelled_batches(10, 4, seed=i), net, n) for i, n in enumerate("ab")}
    s = settings(distance="kl")
    one, other = (
        disentanglement(
            base, {"a": a, "b": b}, test, DisentanglementSettings(**vars(s) | {"linearized": linear})
        )
        for linear in (False, True)
    )
    assert other.forward_passes == 2 * 3 * 3 < one.forward_passes
    np.testing.assert_allclose(one["a", "b"].error, other["a", "b"].error, rtol=1e-4, atol=1e-6)
