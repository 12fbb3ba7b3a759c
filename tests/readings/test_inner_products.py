import numpy as np
import pytest
import torch

import mergescope as ms
from mergescope.errors import LayerError, MergescopeError, PointError
from mergescope.readings import Batch, inner_products, linearity_measures


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


def near_linear(distance, gap, dim, samples=16):
    """Float32 features m, a, b, base: fine-tunes at a distance from the base, m a gap off their mean.

    Both are relative to what they are measured from.
    """
    generator = torch.Generator().manual_seed(0)
    base, *steps = torch.randn(4, samples, dim, generator=generator, dtype=torch.float64)
    base = 3 * base + 1
    size = distance * base.norm(dim=1, keepdim=True)
    step_a, step_b, off = (torch.nn.functional.normalize(step, dim=1) for step in steps)
    a, b = base + size * step_a, base + size * step_b
    m = (a + b) / 2 + gap * ((a + b) / 2 - base).norm(dim=1, keepdim=True) * off
    return [feature.float() for feature in (m, a, b, base)]


def slow_gaps(m, a, b, base):
    """Gap and relative gap from differences of features in float64, of the same float32 features."""
    m, a, b, base = (feature.double() for feature in (m, a, b, base))
    mean = (a + b) / 2
    away = (m - mean).norm(dim=1)
    return (away / mean.norm(dim=1)).numpy(), (away / (mean - base).norm(dim=1)).numpy()


@pytest.mark.parametrize("dim", [768, 38400])  # a class token's and a token map's, of ViT-B/32
@pytest.mark.parametrize(
    ("distance", "gap", "error"),
    [(0.1, 1e-3, 1e-5), (0.1, 1e-4, 1e-3), (0.01, 1e-3, 1e-3), (0.01, 1e-4, 1e-3), (0.001, 1e-3, 1e-3)],
)
def test_small_gaps_are_right_although_they_are_differences_of_large_numbers(dim, distance, gap, error):
    features = near_linear(distance, gap, dim)
    raw, relative = slow_gaps(*features)
    assert 0.5 * gap < relative.min() and relative.max() < 2 * gap and raw.max() < 1e-4
    reading = feed(ms.InnerProducts(), {"layer": torch.stack(features)}, points="mabo", size=5)
    gram, apart = reading.gram("layer", "mabo"), reading.differences("layer", "mabo")
    got = linearity_measures(gram, [0.5, 0.5], True, apart)
    np.testing.assert_allclose(got["gap"], raw, rtol=error)
    np.testing.assert_allclose(got["gap_rel"], relative, rtol=error)


def test_a_gap_of_1e_4_of_the_feature_itself_is_right_to_five_digits():
    features = near_linear(distance=1.0, gap=1.4e-4, dim=38400)
    raw, _ = slow_gaps(*features)
    assert raw.min() > 0.8e-4 and raw.max() < 1.2e-4
    reading = feed(ms.InnerProducts(), {"layer": torch.stack(features)}, points="mabo")
    got = linearity_measures(reading.gram("layer", "mabo"), [0.5, 0.5])
    np.testing.assert_allclose(got["gap"], raw, rtol=1e-5)


def test_differences_are_of_features_less_the_first_point_and_dead_features_have_no_length():
    f = torch.randn(3, 7, 5)
    f[1, 2] = f[2] = 0
    reading = feed(ms.InnerProducts(), {"layer": f}, size=2)
    apart = (f - f[:1]).double().numpy()[[2, 0, 1]]
    np.testing.assert_allclose(
        reading.differences("layer", "rpq"), np.einsum("pnd,qnd->npq", apart, apart), rtol=1e-12, atol=1e-6
    )
    gram = reading.gram("layer", "pqr")
    assert (gram[:, 2, 2] == 0).all() and gram[2, 1, 1] == 0 and (np.einsum("npp->np", gram)[0, :2] > 0).all()


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


@pytest.mark.parametrize(("later", "together"), [([0, 0, 2], [0, 1, 2, 2, 4]), ([3, 3, 5], [0, 1, 3, 3, 5])])
def test_parts_of_a_pass_count_their_samples_on_and_others_anew(later, together):
    def filled(units):
        reading = ms.InnerProducts()
        reading.start(["a"], ["layer"])
        reading.update(
            Batch({"layer": [torch.ones(len(units), 2)]}, [], None, {}, {"layer": np.array(units)})
        )
        return reading

    first = filled([0, 1])  # of three samples: the last has no row
    first.merge(filled(later))
    assert first.units("layer").tolist() == together


def test_a_batch_without_a_row_adds_nothing(features):
    reading = feed(ms.InnerProducts(), features)
    add(reading, {layer: f[:, :0] for layer, f in features.items()}, 1)
    reading.update(Batch({layer: list(f[:, :0]) for layer, f in features.items()}, [], None))
    assert reading.gram("one", ["p", "q"]).shape == (7, 2, 2)


def test_points_and_layers_that_were_not_traced_are_named_with_near_ones(features):
    reading = feed(ms.InnerProducts(), features, points=("first", "second", "third"))
    for asked in (reading.gram, reading.differences):
        with pytest.raises(PointError, match=r"secnd was not traced\. Did you mean: second\?"):
            asked("one", ["first", "secnd"])
        with pytest.raises(LayerError, match=r"no layer 'ones'\. Did you mean: one\? Layers: one, two\."):
            asked("ones", ["first", "second"])


def test_batches_are_joined_once(features, monkeypatch):
    reading = feed(ms.InnerProducts(), features, size=3)
    joined, calls = np.concatenate, []

    def counted(parts, **how):
        calls.append(len(parts))
        return joined(parts, **how)

    monkeypatch.setattr(np, "concatenate", counted)
    first, again = (reading.gram("one", ["p", "q"]) for _ in range(2))
    reading.differences("one", ["q", "r"])
    assert calls == [3, 3]  # products and squares of three batches
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("ending", ["update", "merge"])
def test_what_was_asked_for_may_grow(features, ending):
    first, rest = ({layer: f[:, part] for layer, f in features.items()} for part in (slice(4), slice(4, 7)))
    reading, other = feed(ms.InnerProducts(), first, size=2), feed(ms.InnerProducts(), rest, size=1)
    early, later = (it.gram("one", ["p", "q"]) for it in (reading, other))
    if ending == "merge":
        reading.merge(other)
    else:
        add(reading, rest, 1)
    whole = feed(ms.InnerProducts(), features).gram("one", ["p", "q"])
    np.testing.assert_allclose(reading.gram("one", ["p", "q"]), whole, rtol=1e-12, atol=1e-12)
    add(other, first)
    np.testing.assert_array_equal(other.gram("one", ["p", "q"])[:3], later)
    np.testing.assert_allclose(reading.gram("one", ["p", "q"])[:4], early, rtol=1e-12, atol=1e-12)
    assert reading.gram("one", ["p", "q"]).shape == (7, 2, 2)
