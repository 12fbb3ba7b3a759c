"""A pass may be split: halves merged are one pass, and more points in it change nothing."""

import numpy as np
import pytest
from support import NETS, family, labelled_batches, make_net

import mergescope as ms


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
