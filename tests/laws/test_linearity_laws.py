"""What must hold of every measure, whatever the network and the data."""

import itertools

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.readings import linearity_measures

MODELS = [(kind, name) for kind in NETS for name in ("ctl", "averaging", "addition")]


def result_of(kind, name, batches=None, scale=0.2):
    net = make_net(kind)
    base, a, b, c = family(net, scale=scale)
    tests = {
        "ctl": lambda: ms.ctl(a, b, 0.3, reference=base),
        "averaging": lambda: ms.averaging([a, b, c], reference=base),
        "addition": lambda: ms.addition(base, a, b),
    }
    test = tests[name]()
    return ms.linearity(ms.trace(test.points, batches or labelled_batches(10, 4), net), test)


@pytest.mark.parametrize(("kind", "name"), MODELS)
def test_gap_squared_is_coef_squared_over_cos_squared_minus_2_coef_plus_1(kind, name):
    for entry in result_of(kind, name).layers:
        for suffix in ("", "_rel"):
            cos, coef, gap = (entry.values[measure + suffix] for measure in ("cos", "coef", "gap"))
            assert (gap > 1e-4).all()
            np.testing.assert_allclose(gap**2, coef**2 / cos**2 - 2 * coef + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", NETS)
def test_models_that_are_the_same_are_perfectly_linear(kind):
    net = make_net(kind)
    _, a, _, _ = family(net)
    test = ms.ctl(a, ms.Checkpoint(a.state_dict(), name="twin"), 0.5)
    traced = ms.trace(test.points, labelled_batches(), net)
    assert len(traced.points) == 1 and traced.forward_passes == len(labelled_batches())
    for entry in ms.linearity(traced, test).layers:
        np.testing.assert_allclose(entry.values["cos"], 1, rtol=1e-12)
        np.testing.assert_allclose(entry.values["coef"], 1, rtol=1e-12)
        np.testing.assert_allclose(entry.values["gap"], 0, atol=1e-7)
        assert np.isnan(entry.values["gap_between"]).all()


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_the_line_are_perfectly_linear(alpha):
    net = make_net("mlp")
    _, a, b, _ = family(net, scale=3.0)
    test = ms.ctl(a, b, alpha)
    traced = ms.trace(test.points, labelled_batches(), net)
    assert len(traced.points) == 2
    for entry in ms.linearity(traced, test).layers:
        np.testing.assert_allclose(entry.values["cos"], 1, rtol=1e-12)
        np.testing.assert_allclose(entry.values["gap"], 0, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.7])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_network_that_is_linear_in_its_weights_has_no_gap(alpha, scale):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    base, a, b, c = family(net, scale=scale)
    for test in (
        ms.ctl(a, b, alpha, reference=base),
        ms.averaging([a, b, c]),
        ms.addition(base, a, b),
        ms.negation(base, a),
    ):
        result = ms.linearity(
            ms.trace(test.points, labelled_batches(classes=5), net, layers=["1", "output"]), test
        )
        assert result["1"].trivial
        for entry in result.layers:
            np.testing.assert_allclose(entry.values["cos"], 1, atol=1e-8)
            np.testing.assert_allclose(entry.values["coef"], 1, atol=1e-4)
            np.testing.assert_allclose(entry.values["gap"], 0, atol=1e-4)


def test_a_network_that_is_not_linear_in_its_weights_has_a_gap():
    for entry in result_of("mlp", "ctl", scale=1.0).layers:
        assert entry.measures["gap"].mean > 0.05 and entry.measures["cos"].mean < 0.999


def gram(*features):
    stacked = np.stack(features, axis=1)
    return stacked @ stacked.swapaxes(1, 2)


M, A, B = np.random.default_rng(0).normal(size=(3, 8, 20))


@pytest.mark.parametrize("factor", [0.1, 3.0, -1.0, -2.5])
def test_coef_scales_with_the_left_feature_and_cos_keeps_its_sign(factor):
    one, two = (linearity_measures(gram(m, A, B), (0.4, 0.6)) for m in (M, factor * M))
    np.testing.assert_allclose(two["coef"], factor * one["coef"], rtol=1e-9)
    np.testing.assert_allclose(two["cos"], np.sign(factor) * one["cos"], rtol=1e-9)


def test_a_negated_feature_has_cosine_minus_one():
    got = linearity_measures(gram(-(0.4 * A + 0.6 * B), A, B), (0.4, 0.6))
    np.testing.assert_allclose(got["cos"], -1, rtol=1e-12)
    np.testing.assert_allclose(got["coef"], -1, rtol=1e-12)
    np.testing.assert_allclose(got["gap"], 2, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_no_measure_depends_on_the_unit_of_the_features(factor):
    one, two = (linearity_measures(gram(s * M, s * A, s * B), (0.4, 0.6)) for s in (1, factor))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-9, err_msg=name)


def test_no_measure_depends_on_the_order_of_the_right_points():
    one, two = linearity_measures(gram(M, A, B), (0.4, 0.6)), linearity_measures(gram(M, B, A), (0.6, 0.4))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-9, err_msg=name)


def test_a_rotation_of_feature_space_changes_nothing():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]
    one, two = (linearity_measures(gram(M @ q, A @ q, B @ q), (0.4, 0.6)) for q in (np.eye(20), turn))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_batch_size_changes_nothing(kind, size):
    x, y = (torch.cat(part) for part in zip(*labelled_batches(10, 10), strict=True))
    whole = result_of(kind, "ctl", [(x, y)])
    split = result_of(kind, "ctl", list(zip(x.split(size), y.split(size), strict=True)))
    for one, two in zip(whole.layers, split.layers, strict=True):
        for name, values in one.values.items():
            np.testing.assert_allclose(two.values[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_order_of_samples_and_models_changes_no_mean():
    net = make_net("mlp")
    base, a, b, c = family(net)
    batches = labelled_batches(10, 4)
    means = []
    for models in itertools.permutations([a, b, c]):
        test = ms.averaging(models, reference=base)
        for data in (batches, batches[::-1]):
            result = ms.linearity(ms.trace(test.points, data, net), test)
            means.append([[s.mean for s in entry.measures.values()] for entry in result.layers])
    np.testing.assert_allclose(means, np.broadcast_to(means[0], np.shape(means)), rtol=1e-5)
