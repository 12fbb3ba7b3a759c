"""What must hold of coefficients, whatever is searched by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.protocols.coefficients import SearchSettings, search_coefficients
from mergescope.protocols.coefficients.objectives import OBJECTIVES
from mergescope.protocols.coefficients.space import CoefficientSpace

QUICK = SearchSettings(progress=False, grid=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=1)


def inputs(kind="mlp"):
    net = make_net(kind)
    base, a, b, _ = family(net)
    held = {name: ms.HeldOut(name, labelled_batches(24, 12, seed=n), net) for n, name in enumerate("ab")}
    return net, base, {"a": a, "b": b}, held


@pytest.mark.parametrize("groups", [1, 2])
def test_coefficients_0_are_the_base_and_those_of_one_model_are_it(groups):
    _, base, models, _ = inputs("vit")
    space = CoefficientSpace(ms.Point.of(base), {k: ms.Point.of(m) for k, m in models.items()}, groups)
    assert space.point(space.uniform(0)) == ms.Point.of(base)
    assert all(space.point(space.single(task)) == ms.Point.of(model) for task, model in models.items())
    assert space.point(space.uniform(0.3)) == base + 0.3 * ((models["a"] - base) + (models["b"] - base))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_models_that_are_the_base_change_nothing_and_keep_the_grids_answer(objective):
    _, base, _, held = inputs()
    twins = {name: ms.Checkpoint(base.state_dict(), name=name) for name in held}
    found = search_coefficients(base, twins, held, settings=replace(QUICK, objective=objective))
    assert found.kept == "grid" and found.grid.lam == 0 and set(found.coefficients.values()) == {0.0}
    assert len({round(score, 6) for score in found.grid.scores.values()}) == 1


@pytest.mark.parametrize("objective", ["loss", "agreement"])
def test_batches_change_nothing(objective):
    net, base, models, held = inputs()
    found = []
    for size in (4, 24):
        cut = {}
        for name, data in held.items():
            x, y = (torch.cat(parts) for parts in zip(*data.batches, strict=True))
            cut[name] = replace(data, batches=list(zip(x.split(size), y.split(size), strict=True)))
        found.append(search_coefficients(base, models, cut, settings=replace(QUICK, objective=objective)))
    one, other = found
    assert one.kept == other.kept
    np.testing.assert_allclose(list(one.coefficients.values()), list(other.coefficients.values()), atol=2e-3)
    np.testing.assert_allclose(list(one.grid.scores.values()), list(other.grid.scores.values()), atol=1e-5)
