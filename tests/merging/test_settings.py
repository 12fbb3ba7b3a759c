"""Settings: gradients over depth, filters, and which level wins."""

import pytest

from mergescope.merging.settings import Setting, resolve


@pytest.mark.parametrize(
    ("values", "depth", "value"),
    [
        ((0.3,), 0.7, 0.3), ((0, 1), 0, 0), ((0, 1), 1, 1), ((0, 1), 0.25, 0.25),
        ((0, 0.5, 0.3), 0.5, 0.5), ((0, 0.5, 0.3), 0.75, 0.4), ((1, 1, 1), 0.3, 1), ((True, False), 0.4, True),
        ((True, False), 1, False),
    ],
)  # fmt: skip
def test_a_list_is_a_gradient_over_depth(values, depth, value):
    assert Setting((("", values),)).at("w", depth) == pytest.approx(value)


def test_the_first_filter_that_fits_wins_and_none_may_fit():
    setting = Setting((("attn.q", (1.0,)), ("attn", (2.0,)), ("mlp", (3.0,))))
    assert [setting.at(name, 0) for name in ("h.attn.q.w", "h.attn.k.w", "mlp.w", "norm.w")] == [
        1,
        2,
        3,
        None,
    ]
    assert not setting.total and Setting((("x", (1.0,)), ("", (2.0,)))).total


def test_the_most_specific_level_that_gives_a_value_wins():
    special = {"weight": Setting((("mlp", (1.0,)),))}
    general = {"weight": Setting((("", (2.0,)),))}
    assert resolve("weight", (special, general), "mlp.w", 0, 9) == 1
    assert resolve("weight", (special, general), "attn.w", 0, 9) == 2
    assert resolve("weight", (special, {}), "attn.w", 0, 9) == 9
    assert resolve("weight", ({"weight": Setting((("", (0.0,)),))}, general), "w", 0, 9) == 0
