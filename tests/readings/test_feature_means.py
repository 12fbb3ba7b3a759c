"""The centre: a pass with ``centre=`` measures features less the mean feature of a point."""

import numpy as np
import pytest
import torch
from slow_reference import feature_maps
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import padded, texts, tiny

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError, PointError
from mergescope.readings import Batch, FeatureMeans


def products(maps):
    stacked = np.stack(maps, axis=1)
    return stacked @ stacked.swapaxes(1, 2)


@pytest.mark.parametrize("executor", ["resident", "batched"])
@pytest.mark.parametrize("kind", NETS)
def test_a_centred_trace_is_one_of_features_less_their_mean(kind, executor):
    net, batches = make_net(kind), labelled_batches(10, 4)
    base, a, b, _ = family(net)
    test = ms.ctl(a, b, reference=base)
    traced = ms.trace(test.points, batches, net, centre=base, executor=executor)
    assert traced.forward_passes == 5 * len(batches)
    middle, _ = feature_maps(net, base.state_dict(), batches, traced.layers)
    maps = [feature_maps(net, point.state_dict(), batches, traced.layers)[0] for point in test.points]
    for layer in traced.layers:
        expected = products([map_[layer] - middle[layer].mean(0) for map_ in maps])
        got = traced.reading(ms.InnerProducts).gram(layer, test.points)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_centre_needs_not_be_among_the_points_but_a_model():
    net, batches = make_net("mlp"), labelled_batches()
    base, a, b, _ = family(net)
    traced = ms.trace([a, b], batches, net, centre=ms.mean([a, b, base]))
    assert len(traced.points) == 2 and traced.forward_passes == 3 * len(batches)
    with pytest.raises(PointError, match="is no model"):
        ms.trace([a, b], batches, net, centre=a - base)


def test_a_centre_that_combines_gets_statistics_of_its_own():
    net, batches = make_net("convnet"), labelled_batches()
    _, a, b, _ = family(net, scale=0.3)
    middle = ms.lerp(a, b, 0.5)
    traced = ms.trace([middle], batches, net, layers="output", centre=middle, calibration=batches)
    plain = ms.trace([middle], batches, net, layers="output", calibration=batches)
    got, raw = (t.reading(ms.InnerProducts).gram("output", [middle])[:, 0, 0] for t in (traced, plain))
    # Around its own mean, the sum of squares is smaller by that of the mean, and no other centre's is.
    outputs = []
    net.load_state_dict(middle.state_dict())
    ms.reestimate_batchnorm(net, batches)
    with torch.no_grad():
        for x, _ in batches:
            outputs.append(net.eval()(x).double())
    mean = torch.cat(outputs).mean(0)
    np.testing.assert_allclose(raw.sum() - got.sum(), 10 * float(mean @ mean), rtol=1e-4)


def test_texts_of_different_lengths_have_no_mean_over_all_tokens():
    net, batches = tiny("bert"), [padded(texts((4, 2))), padded(texts((6, 3)))]
    base, a = family(net, ("base", "a"))
    with pytest.raises(
        LayerError, match=r"'bert.encoder.layer.0' have 96 entries in one batch and 64 in another.*Choose"
    ):
        ms.trace([a], batches, net, centre=base)
    assert ms.trace([a], batches, net, centre=base, features="mean").samples == 4


def test_tokens_count_alike_in_the_mean_over_each():
    reading = FeatureMeans()
    reading.start(["a", "b"], ["layer"])
    for rows in ([[1.0], [2.0], [6.0]], [[11.0]]):
        feature = torch.tensor(rows)
        reading.update(Batch({"layer": [feature, 2 * feature]}, [], None))
    assert reading.mean("a", "layer").tolist() == [5.0] and reading.mean("b", "layer").tolist() == [10.0]


def test_halves_merged_are_one_reading():
    whole, first, rest = (FeatureMeans() for _ in range(3))
    parts = [torch.randn(3, 4), torch.randn(5, 4)]
    for reading, given in ((whole, parts), (first, parts[:1]), (rest, parts[1:])):
        reading.start(["a"], ["layer"])
        for feature in given:
            reading.update(Batch({"layer": [feature]}, [], None))
    first.merge(rest)
    torch.testing.assert_close(first.mean("a", "layer"), torch.cat(parts).double().mean(0))
    assert torch.equal(first.mean("a", "layer"), whole.mean("a", "layer"))
    other = FeatureMeans()
    other.start(["b"], ["layer"])
    with pytest.raises(MergescopeError, match="same kind, points and layers"):
        first.merge(other)
    with pytest.raises(MergescopeError, match="make a new FeatureMeans"):
        whole.start(["a"], ["layer"])
