"""Points as a command line names them."""

import pytest
from support import scalars

import mergescope as ms
from mergescope.errors import PointError
from mergescope.studies.named_points import named_point

BASE, A, B, ODD = scalars(base=1, a=2, b=4, odd=7)
MODELS = {"a": A, "b": B, "sst-2 (x)": ODD}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("base", 1), ("a", 2), ("mean", 13 / 3), ("base + sum", 1 + 1 + 3 + 6), ("base + 0.3*sum", 4),
        ("base - 0.5*(a - base)", 0.5), ("(a + b)/2", 3), ("-a + 2*b", 6), ("base + (sst-2 (x) - base)*1/3", 3),
        ("  0.5 * a + .5*sst-2 (x)  ", 4.5),
    ],
)  # fmt: skip
def test_expressions_are_points(text, want):
    assert float(named_point(text, BASE, MODELS).tensor("w")) == pytest.approx(want)


def test_an_expression_is_the_exact_point():
    found = named_point("base + 0.3*sum", BASE, {"a": A, "b": B})
    assert found == BASE + 0.3 * (A - BASE) + 0.3 * (B - BASE) and named_point(
        "a", BASE, MODELS
    ) == ms.Point.of(A)


@pytest.mark.parametrize(
    "text",
    ["1", "a*b", "a + 1", "a / 0", "a(b)", "__import__('os')", "a if a else b", "", "a b", "a ** 2", "1/a"],
)
def test_what_is_no_combination_is_refused(text):
    with pytest.raises(PointError, match=r"is no combination of models|there is no model"):
        named_point(text, BASE, MODELS)


def test_models_only():
    with pytest.raises(PointError, match="its coefficients sum to 0, not 1"):
        named_point("sum", BASE, MODELS)
    with pytest.raises(PointError, match=r"there is no model 'bse'"):
        named_point("bse + sum", BASE, MODELS)
    with pytest.raises(
        PointError, match="there is no model 'sum'"
    ):  # without a base there are no task vectors
        named_point("a + sum", None, MODELS)
