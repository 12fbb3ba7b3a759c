"""Curvature of a family: the same numbers as taken one by one, and each pair on its own tasks' data."""

from dataclasses import replace

import numpy as np
import pytest
from exact_curvature import double_batches, doubled, exact_hessian
from support import labelled_batches

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols import family_curvature as module
from mergescope.protocols.curvature import eigenvalues
from mergescope.protocols.family_curvature import FamilyCurvatureSettings, family_curvature, plan
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem import check_theorem

EXACT = FamilyCurvatureSettings(tolerance=1e-7, max_steps=200, progress=False)


def given(owned=True):
    net, (base, *models) = doubled(ms.MLP((64, 4, 4, 3)), names=("p", "a", "b", "c"), scale=0.3)
    models = {model.name: model for model in models}
    held = {
        name: HeldOut(name, double_batches(labelled_batches(10, 4, seed=i)), net, name if owned else None)
        for i, name in enumerate(models if owned else ("common",))
    }
    return net, base, models, held


def test_every_eigenvalue_and_curvature_is_the_slow_one():
    net, base, models, held = given()
    found = family_curvature(base, models, held, EXACT)
    for peak in found.peaks:
        one, _, other = peak.name.partition(" + ")
        place = base if peak.kind == "base" else models[one]
        if peak.kind == "pair":
            place = (models[one] + models[other]) / 2
        exact = exact_hessian(net, ms.Point.of(place), held[peak.data].batches)
        assert peak.found.value == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-6)
    for entry in found.along:
        tau = models[entry.task] - base
        flat = np.concatenate([tau.tensor(key).flatten().numpy() for key, _ in net.named_parameters()])
        exact = exact_hessian(net, ms.Point.of(base), held[entry.data].batches)
        assert entry.curvature == pytest.approx(flat @ exact @ flat, rel=1e-6)
        assert entry.length == pytest.approx(flat @ flat)
        assert entry.bound == pytest.approx(np.linalg.eigvalsh(exact)[-1] * (flat @ flat), rel=1e-6)
        assert entry.own == (entry.task == entry.data) and abs(entry.share) <= 1


def test_the_operator_norm_bounds_by_its_size(monkeypatch):
    def negative(*asked):
        top = eigenvalues(*asked)
        return replace(top, found=replace(top.found, values=(-abs(top.value),)))

    monkeypatch.setattr(module, "eigenvalues", negative)
    _, base, models, held = given()
    found = family_curvature(base, models, held, replace(EXACT, end="magnitude", max_steps=3, tolerance=0))
    of_base = {peak.data: peak.found.value for peak in found.peaks if peak.kind == "base"}
    assert all(value < 0 for value in of_base.values())
    for entry in found.along:
        assert entry.bound == pytest.approx(abs(of_base[entry.data]) * entry.length)
    assert all(pair.bound > 0 for _, pair in found.pairs)


def test_pairs_are_judged_on_each_of_their_tasks_data():
    _, base, models, held = given()
    found = family_curvature(base, models, held, EXACT)
    assert [(data, pair.name) for data, pair in found.pairs] == [
        ("a", "a + b"), ("a", "a + c"), ("b", "a + b"), ("b", "b + c"), ("c", "a + c"), ("c", "b + c"),
    ]  # fmt: skip
    assert {(peak.kind, peak.name) for peak in found.peaks if peak.data == "b"} == {
        ("base", "base"), ("fine-tune", "b"), ("pair", "a + b"), ("pair", "b + c"),
    }  # fmt: skip
    alone = check_theorem({"b + c": (base, models["b"], models["c"])}, held["c"], EXACT.theorem)["b + c"]
    pair = found.checks["c"]["b + c"]
    for field in ("eigenvalue", "distance", "term", "bound"):
        assert getattr(pair, field) == pytest.approx(getattr(alone, field), rel=1e-6)
    assert pair.gap.mean == pytest.approx(alone.gap.mean)
    assert found.regressions["|gap|", "product"].n == 6
    assert found.held == sum(pair.holds for _, pair in found.pairs)
    assert found.looseness == pytest.approx(np.median([p.bound / abs(p.gap.mean) for _, p in found.pairs]))


def test_data_that_are_nobodys_judge_all():
    _, base, models, held = given(owned=False)
    found = family_curvature(base, models, held, EXACT)
    assert len(found.pairs) == 3 and [peak.name for peak in found.peaks][:4] == ["base", "a", "b", "c"]
    assert all(entry.own for entry in found.along)


@pytest.mark.parametrize("at", ["midpoint", "base", "line"])
@pytest.mark.parametrize("term", ["base", "midpoint"])
def test_the_plan_counts_what_is_done(at, term):
    _, base, models, held = given()
    settings = FamilyCurvatureSettings(at=at, term=term, max_steps=3, tolerance=0, progress=False)
    planned, found = plan(base, models, held, settings), family_curvature(base, models, held, settings)
    assert sum(planned["eigenvalues"].values()) == len(found.peaks)
    assert found.products == 3 * sum(planned["products_a_batch"].values())  # batches of 10 samples by 4
    assert found.forward_passes == 3 * sum(planned["runs_a_batch"].values())
    rows = found.rows()
    assert sum(row["measure"] == "eigenvalue" for row in rows) == len(found.peaks)
    assert "not converged" in str(found)


def test_what_can_not_be_measured_is_refused():
    net, base, models, held = given()
    with pytest.raises(MergescopeError, match=r"no data to judge a \+ b"):
        family_curvature(base, models, {"c": held["c"]}, EXACT)
    with pytest.raises(MergescopeError, match="two fine-tuned models"):
        family_curvature(base, {"a": models["a"]}, held, EXACT)
    mute = {"x": HeldOut("x", labelled_batches(), net, logits=False)}
    with pytest.raises(MergescopeError, match="x: MLP predicts no classes"):
        family_curvature(base, models, mute, EXACT)
