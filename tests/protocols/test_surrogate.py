"""Polynomials in the coefficients, from few evaluated points."""

import numpy as np
import pytest
import torch

from mergescope.errors import MergescopeError
from mergescope.protocols.coefficients.surrogate import Surrogate, design


def polynomial(axes, order, seed=0):
    rng = np.random.default_rng(seed)
    linear, square = rng.normal(size=(axes, 2, 3)), rng.normal(size=(axes, axes, 2, 3)) * (order - 1)
    return lambda c: 1.5 + np.tensordot(c, linear, 1) + np.einsum("i,j,ijab->ab", c, c, square)


@pytest.mark.parametrize(("axes", "order"), [(1, 1), (4, 1), (1, 2), (2, 2), (5, 2)])
def test_polynomials_of_its_order_are_predicted_exactly_everywhere(axes, order):
    values_at = polynomial(axes, order)
    positions = design(axes, order)
    values = torch.from_numpy(np.stack([values_at(c) for c in positions]))
    for at in np.random.default_rng(1).uniform(-2, 3, (5, axes)):
        said = Surrogate(positions, order).predict(at, values)
        np.testing.assert_allclose(said, values_at(at), rtol=1e-8, atol=1e-8)


def test_one_order_too_few_does_not_fit():
    values_at = polynomial(3, 2)
    positions = design(3, 1)
    said = Surrogate(positions, 1).predict(
        [0.5, 0.5, 0.5], torch.tensor([values_at(c)[0, 0] for c in positions])
    )
    assert abs(float(said) - values_at(np.full(3, 0.5))[0, 0]) > 0.1


def test_it_is_least_squares_of_every_sample_and_output_by_itself():
    rng = np.random.default_rng(0)
    positions = np.concatenate([design(3), rng.uniform(0, 1, (9, 3))])
    values = rng.normal(size=(len(positions), 4, 2))
    surrogate, at = Surrogate(positions), np.array([0.3, 0.7, 0.2])

    def terms(c):
        return [1, *c, *(c[i] * c[j] for i in range(3) for j in range(i, 3))]

    matrix = np.array([terms(c) for c in positions])
    for sample in range(4):
        for output in range(2):
            fitted = np.linalg.lstsq(matrix, values[:, sample, output], rcond=None)[0]
            said = surrogate.predict(at, torch.from_numpy(values))[sample, output]
            assert float(said) == pytest.approx(terms(at) @ fitted, abs=1e-8)


def test_weights_sum_to_1_also_if_points_are_too_few_for_all_terms():
    positions = design(6, limit=16)
    surrogate = Surrogate(positions)
    assert surrogate.terms == 28 > len(positions) == 16
    assert float(surrogate.weights(np.full(6, 0.4)).sum()) == pytest.approx(1)
    for number, position in enumerate(positions):  # it goes through what was evaluated
        expected = np.eye(len(positions))[number]
        np.testing.assert_allclose(surrogate.weights(position), expected, atol=1e-6)


def test_predictions_have_gradients():
    surrogate = Surrogate(design(2))
    at = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([c[0] * c[1] + 3 * c[0] for c in design(2)])
    surrogate.predict(at, values).backward()
    np.testing.assert_allclose(at.grad, [0.4 + 3, 0.2], atol=1e-6)


def test_designs_hold_the_base_first_and_keep_to_their_limit():
    whole = design(6)
    assert len(whole) == 28 and len({tuple(c) for c in whole}) == 28 and not whole[0].any()
    few = design(6, limit=20, seed=3)
    assert len(few) == 20 and {tuple(c) for c in few} < {tuple(c) for c in whole}
    assert (design(6, limit=20, seed=3) == few).all() and (design(6, limit=20, seed=4) != few).any()
    assert len(design(6, limit=10)) == 7
    with pytest.raises(MergescopeError, match="at least 7 points, and 6 are allowed"):
        design(6, limit=6)
    with pytest.raises(MergescopeError, match="Choose 1 or 2"):
        Surrogate(whole, 3)
