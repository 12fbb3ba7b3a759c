import pytest
from support import scalars

import mergescope as ms
from mergescope.errors import PointError
from mergescope.protocols import GRID, addition_line, choose, normalised_accuracy


def test_the_grid_is_that_of_task_arithmetic():
    assert len(GRID) == 21 and (GRID[0], GRID[1], GRID[-1]) == (0.0, 0.05, 1.0)


def test_the_line_adds_all_task_vectors_with_one_coefficient():
    base, a, b = scalars(base=1, a=2, b=4)
    points = addition_line(base, [a, b])
    assert list(points) == list(GRID) and len(set(points.values())) == 21
    assert points[0.0] == ms.Point.of(base)
    assert points[0.3] == base + 0.3 * (a - base) + 0.3 * (b - base)
    with pytest.raises(PointError, match="at least one"):
        addition_line(base, [])


def test_the_best_score_wins_and_among_equals_the_smallest_edit():
    choice = choose({0.0: 0.2, 0.5: 0.9, 0.75: 0.9, 1.0: 0.4})
    assert (choice.lam, choice.score, choice.at_end) == (0.5, 0.9, False)
    assert choose({0.0: 0.2, 1.0: 0.4}).at_end
    with pytest.raises(PointError, match="no coefficients"):
        choose({})


def test_normalised_accuracy_is_a_mean_of_ratios_not_a_ratio_of_means():
    assert normalised_accuracy({"a": 0.2, "b": 0.9}, {"a": 0.4, "b": 1.0}) == pytest.approx((0.5 + 0.9) / 2)
    with pytest.raises(PointError, match=r"zero or missing for \['a', 'b'\]"):
        normalised_accuracy({"a": 0.2, "b": 0.9}, {"a": 0.0})
