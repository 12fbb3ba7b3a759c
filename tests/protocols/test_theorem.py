import math
from itertools import combinations

import numpy as np
import pytest
import torch
from exact_curvature import double_batches, doubled, exact_hessian, mean_loss
from support import ConvNet, family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem import TheoremSettings, check_theorem
from mergescope.protocols.theorem_result import TheoremPair, fitted
from mergescope.readings import Summary


def given(scale=0.3):
    net, (base, *models, other) = doubled(ms.MLP((64, 4, 4, 3)), names=("p", "a", "b", "c", "q"), scale=scale)
    triples = {
        f"{a.name} {b.name} of {start.name}": (start, a, b)
        for start in (base, other)
        for a, b in combinations(models, 2)
    }
    return net, double_batches(labelled_batches(10, 4)), triples


@torch.no_grad()
def loss(net, point, batches):
    net.load_state_dict(ms.Point.of(point).state_dict())
    return float(mean_loss(net, batches))


@pytest.mark.parametrize("alpha", [0.5, 0.25])
@pytest.mark.parametrize("at", ["midpoint", "base", "line"])
@pytest.mark.parametrize("term", ["base", "midpoint"])
def test_every_figure_is_the_slow_one(at, term, alpha):
    net, batches, triples = given()
    line = (0.0, 0.4, 1.0)
    s = TheoremSettings(alpha, at, line, term=term, tolerance=1e-7, max_steps=200, progress=False)
    found = check_theorem(triples, HeldOut("data", batches, net), s)
    assert [pair.name for pair in found.pairs] == list(triples) and found.samples == 10
    for name, (base, a, b) in triples.items():
        pair, middle, d = found[name], alpha * a + (1 - alpha) * b, a - b
        gap = loss(net, middle, batches) - alpha * loss(net, a, batches) - (1 - alpha) * loss(net, b, batches)
        assert pair.gap.mean == pytest.approx(gap, abs=1e-6) and pair.gap.n == 10
        assert pair.losses == pytest.approx((loss(net, a, batches), loss(net, b, batches)), rel=1e-5)
        flat = np.concatenate([d.tensor(key).flatten().numpy() for key, _ in net.named_parameters()])
        assert pair.distance == pytest.approx(flat @ flat)
        half = alpha * (1 - alpha) / 2
        hessian = exact_hessian(net, ms.Point.of(base if term == "base" else middle), batches)
        assert pair.term == pytest.approx(-half * flat @ hessian @ flat, rel=1e-6)
        places = {"midpoint": [middle], "base": [base], "line": [t * a + (1 - t) * b for t in line]}[at]
        top = max(np.linalg.eigvalsh(exact_hessian(net, ms.Point.of(place), batches))[-1] for place in places)
        assert pair.converged and pair.eigenvalue == pytest.approx(top, rel=1e-6)
        assert pair.bound == pytest.approx(half * top * (flat @ flat), rel=1e-6)
        assert pair.holds == (abs(gap) <= pair.bound)


def test_the_operator_norm_is_the_larger_end():
    net, batches, triples = given(scale=1.0)
    held = HeldOut("data", batches, net)
    few = dict(list(triples.items())[:2])
    found = check_theorem(
        few, held, TheoremSettings(end="magnitude", at="base", tolerance=1e-6, max_steps=200, progress=False)
    )
    for name, (base, *_) in few.items():
        every = np.linalg.eigvalsh(exact_hessian(net, ms.Point.of(base), batches))
        assert found[name].eigenvalue == pytest.approx(np.abs(every).max(), rel=1e-5)
    assert "largest eigenvalue in absolute value" in str(found)


def planted(gaps, eigenvalues, distances, terms):
    return [
        TheoremPair(
            f"pair {i}", Summary(g, 0, g, g, 1, 0), (0, 0), e, 0, True, d, t, e * d / 8
        )
        for i, (g, e, d, t) in enumerate(zip(gaps, eigenvalues, distances, terms, strict=True))
    ]  # fmt: skip


def test_regressions_find_what_explains_planted_gaps():
    rng = np.random.default_rng(0)
    eigenvalues, distances = rng.uniform(1, 3, 60), rng.uniform(1, 3, 60)
    terms = rng.standard_normal(60)
    found = fitted(planted(0.01 * eigenvalues * distances, eigenvalues, distances, terms))
    assert found["|gap|", "product"].r2 == pytest.approx(1) and found[
        "gap", "product"
    ].slope == pytest.approx(0.01)
    for alone in ("lambda", "distance"):
        assert 0.2 < found["|gap|", alone].r2 < 0.8
    assert found["gap", "exact term"].r2 < 0.2
    signed = fitted(planted(2 * terms, eigenvalues, distances, terms))
    assert signed["gap", "exact term"].slope == pytest.approx(2)
    assert signed["gap", "exact term"].r2 == pytest.approx(1) == signed["|gap|", "exact term"].r2
    assert signed["|gap|", "product"].r2 < 0.2


def test_an_eigenvalue_at_one_shared_base_is_said_to_explain_nothing():
    net, batches, triples = given()
    held = HeldOut("data", batches, net)
    at_base = TheoremSettings(at="base", progress=False)
    of_one = {name: triple for name, triple in triples.items() if triple[0].name == "p"}
    shared, several = (check_theorem(some, held, at_base) for some in (of_one, triples))
    assert math.isnan(shared.regressions["|gap|", "lambda"].r2)
    assert shared.regressions["|gap|", "product"].r2 == pytest.approx(
        shared.regressions["|gap|", "distance"].r2
    )
    assert any("all pairs share one base" in note for note in shared.notes)
    assert math.isfinite(several.regressions["|gap|", "lambda"].r2)
    assert not any("all pairs share one base" in note for note in several.notes)
    measures = [row["measure"] for row in shared.rows()]
    assert "R^2 of |gap| on distance" in measures and "R^2 of |gap| on lambda" not in measures


def test_the_result_prints_and_has_rows():
    net, batches, triples = given()
    s = TheoremSettings(max_steps=2, progress=False)
    found = check_theorem(triples, HeldOut("data", batches, net), s)
    said = str(found)
    assert f"the bound holds for {found.held} of {len(triples)} pairs" in said
    for words in (
        "at each pair's merged point", "H at each pair's pretrained checkpoint", "at a = 0.5", "|gap| on product",
        "lambda has not converged", "pairs share models",
    ):  # fmt: skip
        assert words in said, words
    pair = found.pairs[0]
    first = {row["measure"]: row for row in found.rows() if row["points"] == pair.name}
    assert first["gap"]["mean"] == pair.gap.mean and first["|gap|"]["mean"] == abs(pair.gap.mean)
    assert first["bound holds"]["mean"] == pair.holds and first["lambda"]["high"] > first["lambda"]["mean"]
    with pytest.raises(PointError, match="Did you mean: a b of p"):
        found["a b f p"]


def test_moving_running_statistics_are_told_of():
    net = ConvNet().eval()
    base, a, b, _ = family(net)
    found = check_theorem(
        {"a b": (base, a, b)}, HeldOut("data", labelled_batches(), net), TheoremSettings(progress=False)
    )
    assert any("running statistics" in note for note in found.notes)
    assert found.regressions["gap", "product"].n == 1 and math.isnan(found.regressions["gap", "product"].r2)


def refusals():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    data, ok = labelled_batches(), {"a b": (base, a, b)}

    def with_settings(**more):
        s = TheoremSettings(**{"progress": False} | more)
        return lambda: check_theorem(ok, HeldOut("data", data, net), s)

    yield with_settings(alpha=1), MergescopeError, "alpha = 1 is not strictly between"
    yield with_settings(at="middle"), MergescopeError, "at can't be 'middle'.*midpoint"
    yield with_settings(term="bse"), MergescopeError, "Did you mean: base"
    yield with_settings(end="smallest"), MergescopeError, "an upper end"
    yield with_settings(batchnorm="train"), MergescopeError, "BatchNorm has no mode 'train'"
    yield with_settings(at="line", line=()), MergescopeError, "Name their alphas"
    quiet = TheoremSettings(progress=False)
    yield lambda: check_theorem({}, HeldOut("d", data, net), quiet), PointError, "there is none"
    yield (
        lambda: check_theorem({"x": (base, a, a)}, HeldOut("d", data, net), quiet),
        PointError,
        "x is a model with",
    )
    bare = [x for x, _ in data]
    yield lambda: check_theorem(ok, HeldOut("d", bare, net), quiet), DataError, "labels"


@pytest.mark.parametrize("case", range(9))
def test_settings_and_pairs_that_make_no_sense_are_refused(case):
    call, kind, said = list(refusals())[case]
    with pytest.raises(kind, match=said):
        call()


def test_losses_of_one_function_are_not_bounded_by_the_curvature_of_another():
    net, batches, triples = given()
    normed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4)).double()
    with pytest.raises(MergescopeError, match="the curvature of another function"):
        check_theorem(triples, HeldOut("data", batches, normed), TheoremSettings(batchnorm="batch"))
