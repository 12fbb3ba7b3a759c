"""A pass may be split: halves merged are one pass, and more points, padding or batches change nothing."""

import numpy as np
import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import padded, texts, tiny

import mergescope as ms
from mergescope.readings import bootstrap


@pytest.mark.parametrize("kind", NETS)
def test_two_halves_merged_are_one_pass(kind):
    net, batches = make_net(kind), labelled_batches(12, 3)
    base, a, b, _ = family(net)
    test = ms.ctl(a, b, reference=base)
    whole = ms.trace(test.points, batches, net)
    half = ms.trace(test.points, batches[:2], net)
    rest = ms.trace(test.points, batches[2:], net)
    for kind_of in (ms.InnerProducts, ms.Outputs):
        half.reading(kind_of).merge(rest.reading(kind_of))
    for layer in whole.layers:
        np.testing.assert_array_equal(
            half.reading(ms.InnerProducts).gram(layer, test.points),
            whole.reading(ms.InnerProducts).gram(layer, test.points),
        )
    for point in whole.points:
        np.testing.assert_array_equal(
            half.reading(ms.Outputs).losses(point), whole.reading(ms.Outputs).losses(point)
        )
        np.testing.assert_array_equal(
            half.reading(ms.Outputs).correct(point), whole.reading(ms.Outputs).correct(point)
        )


@pytest.mark.parametrize("kind", NETS)
def test_other_points_in_the_pass_and_their_order_change_nothing(kind):
    net, batches = make_net(kind), labelled_batches()
    base, a, b, c = family(net)
    alone = ms.trace([a, b], batches, net).reading(ms.InnerProducts)
    crowd = ms.trace([c, b, ms.mean([a, c]), base, a], batches, net).reading(ms.InnerProducts)
    points = [ms.Point.of(a), ms.Point.of(b)]
    for layer in alone.layers:
        np.testing.assert_allclose(crowd.gram(layer, points), alone.gram(layer, points), rtol=1e-12)


@pytest.mark.parametrize("kind", NETS)
def test_a_second_pass_gives_the_same_numbers(kind):
    net, batches = make_net(kind), labelled_batches()
    points = family(net)
    one, two = (ms.trace(points, batches, net) for _ in range(2))
    for layer in one.layers:
        np.testing.assert_array_equal(
            *(t.reading(ms.InnerProducts).gram(layer, t.points) for t in (one, two))
        )


CHOICES = [
    (kind, side, choice)
    for kind, side in (("bert", "right"), ("llama", "right"), ("llama", "left"))
    for choice in ("all", "mean", "last", "cls", "each")
]


def of_texts(kind, side, choice, size, longer=0, points=2):
    net, some = tiny(kind), texts((6, 3, 1, 5, 4))
    batches = [padded(some[i : i + size], side, longer) for i in range(0, len(some), size)]
    readings = [ms.InnerProducts(), *([ms.NextTokenLoss()] if kind == "llama" else [])]
    return ms.trace(
        family(net, ("base", "a", "b")[:points], scale=0.05), batches, net, features=choice, readings=readings
    )


@pytest.mark.parametrize(("kind", "side", "choice"), CHOICES)
@pytest.mark.parametrize(("size", "longer"), [(1, 0), (2, 0), (5, 0), (5, 4)])
def test_how_texts_are_batched_and_padded_changes_nothing(kind, side, choice, size, longer):
    one, two = of_texts(kind, side, choice, 3), of_texts(kind, side, choice, size, longer)
    for layer in one.layers:
        mine, other = (t.reading(ms.InnerProducts) for t in (one, two))
        expected = mine.gram(layer, one.points)
        assert len(expected) == (19 if choice == "each" and layer != "output" else 5)
        np.testing.assert_allclose(
            other.gram(layer, two.points), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )
        np.testing.assert_array_equal(mine.units(layer), other.units(layer))
    if kind == "llama":
        for point in one.points:
            losses = [t.reading(ms.NextTokenLoss).losses(point) for t in (one, two)]
            np.testing.assert_allclose(*losses, rtol=1e-4)


def test_halves_of_texts_merged_are_one_pass_token_by_token():
    net, some = tiny("llama"), texts((6, 3, 1, 5))
    base, a = family(net, ("base", "a"), scale=0.05)
    batches = [padded(some[:1]), padded(some[1:3]), padded(some[3:])]
    whole, half, rest = (
        ms.trace([base, a], part, net, features="each", readings=[ms.InnerProducts()])
        for part in (batches, batches[:2], batches[2:])
    )
    layer = whole.layers[0]
    inner = half.reading(ms.InnerProducts)
    inner.merge(rest.reading(ms.InnerProducts))
    expected = whole.reading(ms.InnerProducts)
    np.testing.assert_array_equal(inner.gram(layer, [base, a]), expected.gram(layer, [base, a]))
    np.testing.assert_array_equal(inner.units(layer), expected.units(layer))


def test_tokens_of_one_text_stand_or_fall_together():
    """Ten times the same token is one piece of evidence, not ten."""
    net, count = tiny("llama"), 8
    ids = torch.arange(10, 10 + count).unsqueeze(1).expand(count, 10)
    base, a, b = family(net, ("base", "a", "b"), scale=0.05)
    test = ms.ctl(a, b, reference=base)
    split = [{"input_ids": part} for part in ids.split(3)]
    traced = ms.trace(test.points, split, net, features="each", layers="layers.0")
    entry = ms.linearity(traced, test, seed=1).layers[0]
    single = ms.trace(test.points, [{"input_ids": ids[:, :1]}], net, features="each", layers="layers.0")
    for name, summary in entry.measures.items():
        values = entry.values[name]
        assert len(values) == summary.n == 80
        np.testing.assert_allclose(
            values.reshape(count, 10).std(1), 0, atol=1e-4
        )  # the same all along a text
        texts_alone = ms.linearity(single, test, seed=1).layers[0].measures[name]
        np.testing.assert_allclose(
            [summary.low, summary.high], [texts_alone.low, texts_alone.high], rtol=1e-3, atol=1e-5
        )
        (tokens_alone,) = bootstrap(values[:, None], seed=1)
        # As if there were ten times the evidence, the interval would be sqrt(10) times as narrow.
        assert summary.high - summary.low > 2.5 * (tokens_alone.high - tokens_alone.low) > 0
