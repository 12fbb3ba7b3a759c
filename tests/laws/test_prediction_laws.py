"""Laws of the second-order prediction."""

import dataclasses

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.protocols import HeldOut
from mergescope.protocols.prediction import (
    PredictionSettings,
    expand,
    interaction,
    predict,
    predicted_linearity,
)
from mergescope.protocols.prediction.gaps import gap_errors
from mergescope.weights import Point

QUIET = PredictionSettings(progress=False)


def scaled(scale, kind="vit"):
    """A base and fine-tunes whose task vectors are ``scale`` times the same ones."""
    net = make_net(kind).double()
    base, *tuned = family(net, scale=0.01)
    near = {
        name: ms.Checkpoint((base + scale * (model - base)).state_dict(), name=name)
        for name, model in zip("abc", tuned, strict=True)
    }
    data = [(x.double(), y) for x, y in labelled_batches(8, 4)]
    return (
        Point.of(base),
        {name: Point.of(model) for name, model in near.items()},
        HeldOut("noise", data, net),
    )


def linearity_tests(base, models):
    a, b, _ = models.values()
    return {
        "ctl": ms.ctl(a, b, 0.3), "eq1": ms.averaging(models.values()), "eq2": ms.addition(base, a, b),
        "eq3": ms.negation(base, a),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["ctl", "eq1", "eq2", "eq3"])
def test_the_relative_error_of_the_gap_falls_with_the_step(kind):
    errors = []
    for scale in (0.1, 0.05, 0.025):
        base, models, held = scaled(scale)
        test = linearity_tests(base, models)[kind]
        found = expand(base, models, held, test.points, progress=False)
        errors.append([it.error.mean for it in gap_errors([found], test)])
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    # Negation's two sides are even in the step, so that its error falls by the square.
    assert ratios == pytest.approx(np.full_like(ratios, 4.0 if kind == "eq3" else 2.0), rel=0.15)


def test_gaps_grow_with_the_square_of_the_step():
    gaps = []
    for scale in (0.01, 0.02):
        base, models, held = scaled(scale)
        found = expand(base, models, held, progress=False)
        said = predicted_linearity([found], linearity_tests(base, models)["ctl"])
        gaps.append([entry.measures["gap"].mean for entry in said.layers])
    np.testing.assert_allclose(np.array(gaps[1]) / np.array(gaps[0]), 4, rtol=0.02)


def test_the_gap_is_what_the_equations_say():
    base, models, held = scaled(1.0)
    found = expand(base, models, held, progress=False)

    def curvature(one, other):  # f''[tau_i - tau_j, tau_i - tau_j]
        return found.term(one, one) + found.term(other, other) - 2 * found.term(one, other)

    wanted = {
        "ctl": -0.3 * 0.7 / 2 * curvature("a", "b"),
        "eq1": -sum(curvature(*pair) for pair in ("ab", "ac", "bc")) / 18,
        "eq2": -(0.4**2) / 2 * curvature("a", "b"),
        "eq3": -(0.4**2) / 2 * found.term("a", "a"),
    }
    for kind, test in linearity_tests(base, models).items():
        right = sum(float(share) * found.predicted(point) for point, share in test.right)
        np.testing.assert_allclose(found.predicted(test.left) - right, wanted[kind], atol=1e-12)
        said = predicted_linearity([found], test)
        for layer in found.layers:
            gap = found.norms(layer, wanted[kind]) / found.norms(layer, right)
            np.testing.assert_allclose(said[layer].values["gap"], gap, rtol=1e-6)


def test_a_network_that_is_linear_in_its_weights_has_no_gap_and_no_interaction():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    base, *tuned = family(net)
    data = [(x.double(), y) for x, y in labelled_batches(8, 4)]
    models = dict(zip("abc", tuned, strict=True))
    held = {name: HeldOut(name, data, net, name) for name in models}
    found = predict(base, models, held, dataclasses.replace(QUIET, layers="output", measured=True))
    for test in found.tests:
        assert test.predicted["output"].measures["gap"].mean < 1e-8
        if test.kind != "eq3":
            assert test.predicted["output"].measures["cos"].mean == pytest.approx(1)
    assert all(entry.size.mean == 0 and entry.relative.mean == 0 for entry in found.interactions)
    for outcome in found.outcomes:
        if outcome.measured:
            assert outcome.accuracy == outcome.measured


def test_the_order_of_models_makes_no_difference():
    base, models, held = scaled(1.0)
    one = predict(base, models, {"noise": held}, QUIET)
    two = predict(base, dict(reversed(models.items())), {"noise": held}, QUIET)
    for kind, name, other in (
        ("ctl", "a + b", "b + a"),
        ("eq1", "a + b + c", "c + b + a"),
        ("eq3", "b", "b"),
    ):
        for first, second in zip(
            one[kind, name].predicted.layers, two[kind, other].predicted.layers, strict=True
        ):
            for measure in ("gap", "cos", "coef"):
                np.testing.assert_allclose(first.values[measure], second.values[measure], rtol=1e-7)


def test_batches_make_no_difference():
    base, models, held = scaled(1.0)
    whole = dataclasses.replace(
        held, batches=[(torch.cat([x for x, _ in held.batches]), torch.cat([y for _, y in held.batches]))]
    )
    one, two = (expand(base, models, data, progress=False) for data in (held, whole))
    for layer in one.layers:
        np.testing.assert_allclose(one.products[layer], two.products[layer], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(one.logits, two.logits)


def test_a_model_that_is_the_base_interacts_with_nothing():
    base, models, held = scaled(1.0)
    same = ms.Checkpoint(base.state_dict(), name="same")
    found = expand(base, {"a": models["a"], "same": Point.of(same)}, held, progress=False)
    for entry in interaction([found], "a", "same"):
        assert entry.size.mean == 0 and entry.relative.n == 0  # nothing to be relative to
    said = predicted_linearity([found], ms.ctl(models["a"], same))
    alone = predicted_linearity([found], ms.ctl(models["a"], base))
    for one, two in zip(said.layers, alone.layers, strict=True):
        np.testing.assert_allclose(one.values["gap"], two.values["gap"], rtol=1e-9)
