import math

import numpy as np
import pytest

from mergescope.readings.regression import least_squares


def test_a_least_squares_line_is_numpys():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal(20), rng.standard_normal(20)
    found = least_squares(x, y)
    np.testing.assert_allclose((found.slope, found.intercept), np.polyfit(x, y, 1))
    assert found.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert 0 <= found.r2_interval[0] < found.r2_interval[1] <= 1


@pytest.mark.parametrize(
    "x, y, slope", [([1, 2], [1, 2], math.nan), ([1, 1, 1], [1, 2, 3], math.nan), ([1, 2, 3], [4, 4, 4], 0.0)]
)
def test_what_does_not_vary_has_no_r2(x, y, slope):
    found = least_squares(np.array(x), np.array(y))
    assert math.isnan(found.r2) and found.slope == pytest.approx(slope, nan_ok=True)
