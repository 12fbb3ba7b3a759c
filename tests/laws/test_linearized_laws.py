"""What must hold of every linearised network: it is affine in its weights, exactly."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import batches_for, tiny
from torch import nn

import mergescope as ms
from mergescope.models.loading import load_weights
from mergescope.training import Linearized, linearized_network

TRANSFORMERS = ("bert", "clip", "llama", "t5")


def double(batch):
    if not isinstance(batch, dict):
        return batch[0].double(), batch[1]
    return {key: value.double() if key == "pixel_values" else value for key, value in batch.items()}


def widened(kind):
    """A network, a base and fine-tunes far from it, and data, in float64."""
    net = (make_net(kind) if kind in NETS else tiny(kind)).double()
    data = labelled_batches() if kind in NETS else batches_for(kind, labels=False)
    return net, family(net, scale=0.5), [double(batch) for batch in data]


TESTS = {
    "ctl": lambda base, a, b, c: ms.ctl(a, b, 0.3, reference=base),
    "averaging": lambda base, a, b, c: ms.averaging([a, b, c], reference=base),
    "addition": lambda base, a, b, c: ms.addition(base, a, b),
    "negation": lambda base, a, b, c: ms.negation(base, a),
}


@pytest.mark.parametrize("kind", [*NETS, *TRANSFORMERS])
@pytest.mark.parametrize("name", TESTS)
def test_cross_task_linearity_is_exact_at_every_layer(kind, name):
    net, models, data = widened(kind)
    test = TESTS[name](*models)
    # Every point runs by itself: the affine executor would presuppose what is to be shown.
    traced = ms.trace(test.points, data, linearized_network(net, models[0]), executor="resident")
    result = ms.linearity(traced, test)
    assert len(result.layers) == len(ms.find_layers(net)) > 1
    for entry in result.layers:
        # The gap is a root of differences of inner products: half of the digits are left of it.
        np.testing.assert_allclose(entry.values["gap"], 0, atol=1e-5)
        np.testing.assert_allclose(entry.values["cos"], 1, atol=1e-10)
        np.testing.assert_allclose(entry.values["coef"], 1, atol=1e-6)  # T5 and Llama normalise in float32


@pytest.mark.parametrize("kind", [*NETS, *TRANSFORMERS])
def test_the_network_itself_is_far_from_that(kind):
    net, models, data = widened(kind)
    test = TESTS["ctl"](*models)
    result = ms.linearity(ms.trace(test.points, data, net), test)
    assert max(entry.measures["gap"].mean for entry in result.layers) > 0.01


def outputs(model, base, points, x):
    found = []
    for point in points:
        load_weights(model, point)
        with torch.no_grad():
            found.append(model(x))
    return found


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(("one", "two"), [(0.5, 0.5), (1.0, -2.0), (3.0, 3.0), (0.0, 1.0)])
def test_a_whole_grid_follows_from_three_outputs(kind, one, two):
    net, (base, a, b, _), data = widened(kind)
    model, x = linearized_network(net, base), data[0][0]
    points = [base, a, b, base + one * (a - base) + two * (b - base)]
    zero, at_a, at_b, at_both = outputs(model, base, points, x)
    torch.testing.assert_close(
        at_both, zero + one * (at_a - zero) + two * (at_b - zero), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", NETS)
def test_task_vectors_of_disjoint_weights_do_not_disturb_each_other(kind):
    net, (base, a, _, _), data = widened(kind)
    model, x = linearized_network(net, base), data[0][0]
    keys = [name for name, _ in net.named_parameters()]
    parts = []
    for half in (keys[::2], keys[1::2]):
        state = base.state_dict() | {key: a.tensor(key) for key in half}
        parts.append(ms.Checkpoint(state, name=f"{len(half)} of {half[0]}"))
    both = parts[0] + (parts[1] - base)
    zero, first, second, together = outputs(model, base, [base, *parts, both], x)
    torch.testing.assert_close(together - zero, (first - zero) + (second - zero), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["vit", "packed vit"])
def test_the_remainder_of_the_network_is_of_second_order(kind):
    net, (base, a, _, _), data = widened(kind)
    model, x = linearized_network(make_net(kind).double(), base), data[0][0]
    errors = []
    for step in (1e-3, 1e-4):
        point = base + step * (a - base)
        (linear,), (plain,) = outputs(model, base, [point], x), outputs(net, base, [point], x)
        errors.append(float((linear - plain).norm()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_a_network_that_is_linear_in_its_weights_is_its_own_linearisation():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x = labelled_batches()[0][0].double()
    model = Linearized(net)
    with torch.no_grad():
        net[1].weight.mul_(-7.0).add_(0.3)
        torch.testing.assert_close(model(x), net(x), rtol=1e-12, atol=1e-12)
