"""Weights written into a network in place are those that a point says it has, to the last bit."""

import pytest
import torch

import mergescope as ms
from mergescope.errors import PointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
COMBINATIONS = {
    "checkpoint": lambda base, a, b: ms.Point.of(a),
    "average": lambda base, a, b: ms.mean([base, a, b]),
    "negated": lambda base, a, b: base - 0.7 * (a - base) - 1.3 * (b - base),
    "direction": lambda base, a, b: a - b,
    "one scaled": lambda base, a, b: -2.5 * ms.Point.of(a),
}


def models(dtype):
    generator = torch.Generator().manual_seed(0)
    return [ms.Checkpoint({"w": torch.randn(33, 7, generator=generator).to(dtype)}, name=n) for n in "oab"]


@pytest.mark.parametrize("into", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", COMBINATIONS)
def test_into_gives_the_bits_of_tensor(which, dtype, into):
    point = COMBINATIONS[which](*models(dtype))
    out = torch.full((33, 7), float("nan"), dtype=into)
    place = out.data_ptr()
    point.into("w", out)
    assert torch.equal(out, point.tensor("w").to(into)) and out.data_ptr() == place


VIEWS = {
    "transposed": ((7, 33), lambda whole: whole.T),
    "every second column": ((33, 14), lambda whole: whole[:, ::2]),
    "a slice of three": ((33, 3, 7), lambda whole: whole[:, 1]),
}


@pytest.mark.parametrize("which", COMBINATIONS)
@pytest.mark.parametrize("view", VIEWS)
def test_memory_that_is_not_contiguous_is_written_to_and_nothing_beside_it(which, view):
    shape, cut = VIEWS[view]
    point = COMBINATIONS[which](*models(torch.float32))
    whole = torch.zeros(shape)
    out = cut(whole)
    assert not out.is_contiguous()
    point.into("w", out)
    assert torch.equal(out, point.tensor("w"))
    assert int((whole != 0).sum()) == out.numel()


def test_integers_are_written_as_tensor_gives_them_or_refused():
    one, two, other = (
        ms.Checkpoint({"w": torch.tensor(v)}, name=n)
        for n, v in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 3]))
    )
    out = torch.zeros(2).long()
    ms.mean([one, two]).into("w", out)
    assert out.tolist() == [1, 2]
    with pytest.raises(PointError, match="integer tensor 'w'"):
        ms.mean([one, other]).into("w", out)


def test_a_missing_key_is_refused_with_a_near_match():
    a, b, _ = models(torch.float32)
    for point in (ms.Point.of(a), ms.mean([a, b])):
        with pytest.raises(PointError, match="has no tensor 'v'"):
            point.into("v", torch.empty(33, 7))
