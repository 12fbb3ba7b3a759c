import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from support import scalars

import mergescope as ms
from mergescope.errors import MismatchError, PointError
from mergescope.weights import Point, exact


def test_tensors_are_the_combination_in_float64_rounded_once():
    torch.manual_seed(0)
    states = [{"w": torch.randn(50, 3), "b": torch.randn(7)} for _ in range(3)]
    base, a, b = (ms.Checkpoint(state, name=n) for state, n in zip(states, "oab", strict=True))
    point = base + 0.4 * ((a - base) + (b - base))
    for key in ("w", "b"):
        wide = [state[key].double() for state in states]
        expected = wide[0] + 0.4 * ((wide[1] - wide[0]) + (wide[2] - wide[0]))
        torch.testing.assert_close(point.tensor(key).double(), expected, rtol=0, atol=1e-6)
        assert point.tensor(key).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_and_rounded_once(dtype):
    torch.manual_seed(0)
    values = [torch.randn(1000).to(dtype) for _ in range(3)]
    models = [ms.Checkpoint({"w": v}, name=str(i)) for i, v in enumerate(values)]
    expected = (sum(v.double() for v in values) / 3).to(dtype)
    got = ms.mean(models).tensor("w")
    assert got.dtype == dtype
    assert (got != expected).float().mean() < 0.03  # ties; sums in half precision differ in 45 %


def test_float64_stays_float64():
    a, b = (
        ms.Checkpoint({"w": torch.tensor([v], dtype=torch.float64)}, name=str(v)) for v in (1.0, 1 + 2**-40)
    )
    assert ms.lerp(a, b, 0.5).tensor("w").item() == 1 + 2**-41


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        (0.1 + 0.2, Fraction(3, 10)),
        (1 - 0.4 - 0.4, Fraction(1, 5)),
        (1 / 3, Fraction(1, 3)),
        (np.float64(0.35), Fraction(7, 20)),
        (np.int64(2), Fraction(2)),
        (-0.0, Fraction(0)),
        (1e-9, Fraction(1e-9)),
        (Fraction(2, 7), Fraction(2, 7)),
    ],
)
def test_exact_finds_the_fraction_meant(value, fraction):
    assert exact(value) == fraction


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "x", None])
def test_a_coefficient_that_is_no_finite_number_is_refused(bad):
    (a,) = scalars(a=1)
    with pytest.raises(PointError, match=f"finite number, got {bad!r}"):
        a * bad


def test_numpy_numbers_scale_points_from_either_side():
    a, b = scalars(a=1, b=2)
    for factor in (np.float64(0.5), np.float32(0.5), np.int64(3)):
        left, right = factor * (a + b), (a + b) * factor
        assert isinstance(left, Point)
        assert left == right


def test_a_t_that_is_no_fraction_still_gives_a_model():
    a, b = scalars(a=1, b=2)
    t = 0.1234567890123 / 3
    assert Fraction(t) + Fraction(1 - t) != 1  # rounding shows in exact arithmetic
    point = t * a + (1 - t) * b
    assert point.is_model
    assert not point.is_direction


@pytest.mark.parametrize("excess", [1e-6, 1e-9])
def test_a_sum_that_misses_1_by_more_than_rounding_is_no_model(excess):
    a, b = scalars(a=1, b=2)
    assert not (0.5 * a + (0.5 + excess) * b).is_model
    assert not (1e-13 * Point.of(a)).is_direction


def test_what_is_a_model_and_what_a_direction():
    base, a, b = scalars(base=1, a=2, b=4)
    tau = a - base
    assert Point.of(a).is_model and Point.of(a).is_checkpoint
    assert tau.is_direction and not tau.is_model
    assert (base + 0.3 * tau).is_model and not (base + 0.3 * tau).is_checkpoint
    assert not (2 * a).is_model and not (2 * a).is_direction
    assert (a - a).is_direction
    assert (base + 0.4 * tau + 0.4 * (b - base)).coefficient(base) == Fraction(1, 5)
    assert tau.coefficient(b) == 0


def test_printing_orders_by_size_and_drops_unit_factors():
    base, a, b = scalars(base=1, a=2, b=4)
    assert str(base + 0.4 * ((a - base) + (b - base))) == "0.4*a + 0.4*b + 0.2*base"
    assert str(a - base) == "a - base"


def test_integer_entries_that_agree_are_kept_and_zero_in_directions():
    ids = torch.arange(4)
    a, b = (ms.Checkpoint({"ids": ids, "w": torch.tensor([v])}, name=str(v)) for v in (1.0, 2.0))
    assert torch.equal(((a + b) / 2).tensor("ids"), ids)
    assert torch.equal((a - b).tensor("ids"), torch.zeros(4, dtype=torch.int64))


def test_a_batch_counter_comes_from_the_largest_coefficient():
    a, b = (
        ms.Checkpoint({"bn.num_batches_tracked": torch.tensor(n), "w": torch.tensor([1.0 * n])}, name=f"m{n}")
        for n in (5, 9)
    )
    assert ms.lerp(a, b, 0.25).tensor("bn.num_batches_tracked") == 5
    assert ms.lerp(a, b, 0.75).tensor("bn.num_batches_tracked") == 9


def test_other_integers_that_differ_are_an_error_naming_key_and_models():
    a, b = (ms.Checkpoint({"table": torch.tensor([n])}, name=f"model{n}") for n in (1, 2))
    with pytest.raises(PointError, match=r"'table' .*differs between model\d, model\d"):
        ((a + b) / 2).tensor("table")


def test_every_difference_of_keys_shapes_and_dtypes_is_named():
    a = ms.Checkpoint(
        {"only_a": torch.ones(1), "s": torch.ones(2, 3), "t": torch.ones(2), "same": torch.ones(1)}, name="A"
    )
    b = ms.Checkpoint(
        {"only_b": torch.ones(1), "s": torch.ones(3, 2), "t": torch.ones(2).half(), "same": torch.ones(1)},
        name="B",
    )
    with pytest.raises(MismatchError) as caught:
        a + b
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "only_a: missing in B (in A: float32[1])" in text or "only_a: missing in B" in text
    assert "only_b: missing in A" in text
    assert "[2, 3]" in text and "[3, 2]" in text
    assert "float16[2]" in text and "float32[2]" in text
    assert "same" not in "".join(caught.value.problems)
    assert "dtype='float32'" in text


def test_a_missing_key_suggests_the_near_one():
    (a,) = scalars(a=1)
    both = ms.Checkpoint({"layer.weight": torch.ones(1)}, name="n") * 2
    with pytest.raises(PointError, match=r"no tensor 'layer\.wieght'.*Did you mean: layer\.weight"):
        both.tensor("layer.wieght")


@pytest.mark.parametrize("make", [lambda a: a + 3, lambda a: 3 - a, lambda a: a - "x", lambda a: a + None])
def test_adding_what_is_no_point_is_refused(make):
    (a,) = scalars(a=1)
    with pytest.raises(PointError, match="Expected a Point or a Checkpoint, got (int|str|NoneType)"):
        make(a)


def test_points_have_no_product_and_no_division_by_zero():
    a, b = scalars(a=1, b=2)
    with pytest.raises(PointError, match="no product"):
        (a + b) * Point.of(b)
    with pytest.raises(PointError, match="by zero"):
        (a + b) / 0


def test_empty_combinations_are_refused():
    with pytest.raises(PointError, match="at least one"):
        Point([])
    with pytest.raises(PointError, match="at least one"):
        ms.mean([])


def test_a_task_vector_needs_two_models():
    base, a = scalars(base=1, a=2)
    assert ms.task_vector(a, base) == a - base
    with pytest.raises(PointError, match="is not a model"):
        ms.task_vector(a - base, base)


def test_a_point_survives_pickling_equal_with_equal_hash():
    a, b = scalars(a=1, b=2)
    for point in (0.4 * a + 0.6 * b, a - a):
        again = pickle.loads(pickle.dumps(point))
        assert again == point and hash(again) == hash(point)
        assert again.tensor("w") == point.tensor("w")
    assert (a + b).__reduce__()[0] is Point  # rebuilt, since hashes of strings differ between processes


def test_the_digest_is_of_contents_and_coefficients_not_of_names():
    a, b = scalars(a=1, b=2)
    x, y = scalars(x=1, y=2)
    assert ms.lerp(a, b, 0.3).digest == ms.lerp(x, y, 0.3).digest
    assert ms.lerp(a, b, 0.3).digest != ms.lerp(a, b, 0.4).digest


def test_tiny_coefficients_are_kept_and_float_errors_of_complements_are_not():
    assert exact(1e-16) == Fraction(1e-16) != 0
    assert exact(1 - 0.9500000000000001) == Fraction(1, 20)
    assert exact(0.123456789) == Fraction(0.123456789)
