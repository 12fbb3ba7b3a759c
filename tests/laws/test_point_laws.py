"""Points form a vector space with exact coefficients, and equal points are the same point."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from support import family, make_net, scalars

import mergescope as ms
from mergescope.weights import Point

BASE, A, B, C = scalars(base=1, a=2, b=4, c=8)


def random_point(rng):
    numbers = (rng.choice([0, 1, -1, 0.1, 0.4, 1 / 3, -0.25, 2]) for _ in range(3))
    return Point(list(zip(rng.sample([BASE, A, B, C], 3), numbers, strict=True)))


@pytest.mark.parametrize("seed", range(30))
def test_vector_space_axioms(seed):
    rng = random.Random(seed)
    p, q, r = (random_point(rng) for _ in range(3))
    s, t = (rng.choice([0.1, 0.3, 1 / 7, -2, 0, 0.05 * rng.randrange(20)]) for _ in range(2))
    laws = [
        (p + q, q + p),
        ((p + q) + r, p + (q + r)),
        (s * (p + q), s * p + s * q),
        ((Fraction(str(s)) if s == 0 else s) * p + t * p, (ms.weights.exact(s) + ms.weights.exact(t)) * p),
        (p - q, p + (-1) * q),
        (p + (q - q), p),
        ((p - p) + q, q),
        (1 * p, p),
        (-1 * (-p), p),
        (0 * p, q - q),
        (((p - p) + q) - q, (q - q) + (p - p)),
    ]
    for number, (left, right) in enumerate(laws):
        assert left == right, number
        assert hash(left) == hash(right), number


def test_many_ways_to_write_the_same_addition():
    tau_a, tau_b = A - BASE, B - BASE
    ways = [
        BASE + 0.4 * (tau_a + tau_b),
        BASE + 0.4 * tau_a + 0.4 * tau_b,
        0.4 * tau_b + BASE + 0.4 * tau_a,
        0.2 * BASE + 0.4 * A + 0.4 * B,
        (1 - 0.4 - 0.4) * BASE + 0.4 * A + 0.4 * B,
        BASE * (1 - 2 * 0.4) + 0.4 * (A + B),
        ms.mean([BASE + 0.8 * tau_a, BASE + 0.8 * tau_b]),
        ms.lerp(BASE, (A + B) / 2, 0.8),
        sum([0.4 * A, 0.4 * B, 0.2 * BASE]),
        ((A + B) * 2 + BASE) / 5,
        Point({A: 0.4, BASE: 0.2, B: np.float64(0.4)}),
    ]
    assert len(set(ways)) == 1
    assert len({way.digest for way in ways}) == 1
    assert len({way.tensor("w").item() for way in ways}) == 1


@pytest.mark.parametrize("count", [3, 11, 21, 101])
def test_every_linspace_coefficient_gives_an_exact_line(count):
    for i, alpha in enumerate(np.linspace(0, 1, count)):
        exactly = Point([(A, Fraction(i, count - 1)), (B, 1 - Fraction(i, count - 1))])
        assert alpha * A + (1 - alpha) * B == exactly
        assert ms.lerp(B, A, float(alpha)) == exactly
        assert exactly.is_model


def test_the_ends_of_a_line_are_its_checkpoints():
    assert ms.lerp(A, B, 0) == Point.of(A)
    assert ms.lerp(A, B, 1) == Point.of(B)
    assert ms.lerp(A, B, 1).is_checkpoint
    assert ms.lerp(A, B, 0.5) == ms.lerp(B, A, 0.5) == ms.mean([A, B])


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_averaging_commutes_with_permutation_bit_for_bit(kind):
    models = family(make_net(kind))
    results = [ms.mean(order) for order in itertools.permutations(models)]
    assert len(set(results)) == 1
    first = results[0].state_dict()
    for other in results[1:]:
        assert all(torch.equal(value, first[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_one_model_averages_to_itself_bit_for_bit(kind):
    base, a, b, _ = family(make_net(kind))
    for point in (ms.mean([a]), ms.lerp(a, b, 0), ms.lerp(b, a, 1), base + (a - base), (a + a) / 2):
        for key, value in a.state_dict().items():
            assert torch.equal(point.tensor(key), value)


def test_equal_content_is_one_checkpoint_whatever_its_name():
    again = ms.Checkpoint(A.state_dict(), name="other name")
    assert again == A and hash(again) == hash(A)
    assert Point.of(again) == Point.of(A)
    assert (again - A).is_direction and (again - A) == 0 * Point.of(B)


def test_zeros_of_different_architectures_are_different():
    wide = ms.Checkpoint({"w": torch.ones(5)}, name="wide")
    assert wide - wide != A - A


def test_a_checkpoint_equals_the_point_that_it_is_and_finds_it_in_a_table():
    a, b = (ms.Checkpoint({"w": torch.full((2,), v)}, name="m") for v in (1.0, 2.0))
    assert a == 1 * a and 1 * a == a and a != 1 * b and 2 * a != a
    assert {1 * a: "found"}[a] == "found" and {a: "found"}[(a + b) - b] == "found"
