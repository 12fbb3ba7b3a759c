import numpy as np
import pytest
import torch

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.readings import Batch, inner_products


def feed(reading, features, points=("p", "q", "r"), size=None):
    """Pass features {layer: (points, samples, dim)} in batches of a size."""
    reading.start(list(points), list(features))
    add(reading, features, size)
    return reading


def add(reading, features, size=None):
    samples = next(iter(features.values())).shape[1]
    for begin in range(0, samples, size or samples):
        part = {layer: list(f[:, begin : begin + (size or samples)]) for layer, f in features.items()}
        reading.update(Batch(part, part[next(iter(part))], None))


@pytest.fixture
def features():
    return {"one": torch.randn(3, 7, 5), "two": torch.randn(3, 7, 11)}


def test_the_gram_matrix_is_every_inner_product_in_float64(features):
    reading = feed(ms.InnerProducts(), features, size=3)
    for layer, f in features.items():
        wide = f.double().numpy()
        expected = np.array([
            [[wide[p, n] @ wide[q, n] for q in range(3)] for p in range(3)] for n in range(7)
        ])
        np.testing.assert_allclose(reading.gram(layer, ["p", "q", "r"]), expected, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(
            reading.gram(layer, ["r", "p"]), expected[:, [2, 0]][:, :, [2, 0]], rtol=1e-13, atol=1e-13
        )


def test_chunks_inside_a_batch_change_nothing(features, monkeypatch):
    whole = feed(ms.InnerProducts(), features).gram("two", ["p", "q", "r"])
    monkeypatch.setattr(inner_products, "CHUNK_BYTES", 8 * 11 * 3 * 2)
    np.testing.assert_allclose(
        feed(ms.InnerProducts(), features).gram("two", ["p", "q", "r"]), whole, rtol=1e-14
    )


def test_groups_keep_only_their_pairs(features):
    reading = feed(ms.InnerProducts(groups=[["p", "q"], ["r"]]), features)
    full = feed(ms.InnerProducts(), features)
    np.testing.assert_array_equal(reading.gram("one", ["q", "p"]), full.gram("one", ["q", "p"]))
    np.testing.assert_array_equal(reading.gram("one", ["r"]), full.gram("one", ["r"]))
    with pytest.raises(MergescopeError, match=r"\['p', 'r'\] was not traced.*one group"):
        reading.gram("one", ["p", "r"])


def test_a_group_of_unknown_points_is_refused():
    with pytest.raises(MergescopeError, match=r"not points of this trace: \['z'\]"):
        ms.InnerProducts(groups=[["p", "z"]]).start(["p"], ["one"])


def test_merging_halves_is_one_pass(features):
    whole = feed(ms.InnerProducts(), features)
    first = feed(ms.InnerProducts(), {layer: f[:, :4] for layer, f in features.items()})
    first.merge(feed(ms.InnerProducts(), {layer: f[:, 4:] for layer, f in features.items()}))
    for layer in features:
        np.testing.assert_allclose(
            first.gram(layer, ["p", "q", "r"]), whole.gram(layer, ["p", "q", "r"]), rtol=1e-14
        )


def test_only_readings_of_the_same_points_and_layers_merge(features):
    first = feed(ms.InnerProducts(), features)
    others = [
        feed(ms.InnerProducts(), features, points=("p", "q", "s")),
        feed(ms.InnerProducts(), {"one": features["one"]}),
        ms.Outputs(),
    ]
    for other in others:
        with pytest.raises(MergescopeError, match="same kind, points and layers"):
            first.merge(other)


def test_groups_must_agree_to_merge(features):
    first = feed(ms.InnerProducts(groups=[["p", "q"], ["r"]]), features)
    with pytest.raises(MergescopeError, match="groups"):
        first.merge(feed(ms.InnerProducts(groups=[["p", "r"], ["q"]]), features))
