import numpy as np
import pytest
import slow_reference
import torch
from support import NETS, family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.premises import disentangled_from_pairs, many_from_pairs, no_barrier

QUIET = {"progress": False}


def features(net, point, batches):
    """Outputs of a point, one row a sample."""
    return slow_reference.feature_maps(net, ms.Point.of(point).state_dict(), batches, [])[1]


def test_a_barrier_is_the_sum_of_its_parts_and_the_convex_one_is_never_positive():
    net, batches = make_net("vit"), labelled_batches(12, 5)
    _, a, b, c = family(net, scale=0.5)
    found = no_barrier({"a, b": (a, b), "a, c": (a, c)}, HeldOut("data", batches, net), **QUIET)
    labels = torch.cat([y for _, y in batches]).tolist()
    for line, (one, other) in zip(found.checked, ((a, b), (a, c)), strict=True):
        logits = [features(net, point, batches) for point in (one, other, (one + other) / 2)]
        logits.append([(x + y) / 2 for x, y in zip(*logits[:2], strict=True)])
        first, second, middle, mixed = (
            np.mean([slow_reference.loss_and_hit(z, y)[0] for z, y in zip(rows, labels, strict=True)])
            for rows in logits
        )
        said = line.conclusions
        assert line.premises["difference of losses"].mean == pytest.approx(first - second, abs=1e-5)
        assert said["barrier"].mean == pytest.approx(middle - (first + second) / 2, abs=1e-5)
        assert said["part of non-linearity"].mean == pytest.approx(middle - mixed, abs=1e-5)
        assert said["convex part"].mean == pytest.approx(mixed - (first + second) / 2, abs=1e-5)
        assert said["convex part"].high <= 0
        assert 0 < line.premises["cos"].mean < 1


def test_a_network_that_is_linear_in_its_weights_has_no_part_of_non_linearity():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    _, a, b, _ = family(net, scale=0.5)
    line = no_barrier({"a, b": (a, b)}, HeldOut("data", labelled_batches(), net), **QUIET).checked[0]
    assert line.premises["cos"].mean == pytest.approx(1) == line.premises["coef"].mean
    assert line.conclusions["part of non-linearity"].mean == pytest.approx(0, abs=1e-6)
    assert line.conclusions["barrier"].mean < -0.01


@pytest.mark.parametrize("kind", NETS)
def test_the_steps_bound_the_gap_of_all_at_every_layer(kind):
    net = make_net(kind)
    _, *models = family(net, scale=0.3)
    held = HeldOut("data", labelled_batches(), net)
    found = many_from_pairs({model.name: model for model in models}, held, **QUIET)
    assert len(found.checked) > 1
    for line in found.checked:
        assert line.conclusions["gap of all"].mean <= line.conclusions["sum of steps"].mean + 1e-6
        assert line.premises["largest of pairs"].mean >= 0
    assert found.checked[-1].conclusions["gap of all"].mean > 0.01


def test_every_gap_is_the_slow_one():
    net, batches = make_net("mlp"), labelled_batches()
    _, a, b, c = family(net, scale=0.5)
    line = many_from_pairs(
        {"a": a, "b": b, "c": c}, HeldOut("data", batches, net), layers="output", **QUIET
    ).checked[0]
    f = {
        name: torch.as_tensor(features(net, point, batches)) for name, point in (("a", a), ("b", b), ("c", c))
    }
    mean = torch.as_tensor(features(net, (a + b + c) / 3, batches))
    half = {
        name: torch.as_tensor(features(net, point, batches))
        for name, point in (("ab", (a + b) / 2), ("ac", (a + c) / 2), ("bc", (b + c) / 2))
    }

    def gap(left, right):
        return float(((left - right).norm(dim=1) / right.norm(dim=1)).mean())

    mixed = (f["a"] + f["b"] + f["c"]) / 3
    pairs = [gap(half[x + y], (f[x] + f[y]) / 2) for x, y in ("ab", "ac", "bc")]
    second = half["ab"] - (f["a"] + f["b"]) / 2
    third = mean - f["c"] / 3 - 2 * half["ab"] / 3
    steps = [pairs[0], gap(mean, f["c"] / 3 + 2 * half["ab"] / 3)]
    bound = (2 / 3 * second.norm(dim=1) + third.norm(dim=1)) / mixed.norm(dim=1)
    assert line.premises["largest of pairs"].mean == pytest.approx(max(pairs), rel=1e-4)
    assert line.premises["largest of steps"].mean == pytest.approx(max(steps), rel=1e-4)
    assert line.conclusions["gap of all"].mean == pytest.approx(gap(mean, mixed), rel=1e-4)
    assert line.conclusions["sum of steps"].mean == pytest.approx(float(bound.mean()), rel=1e-4)


def test_two_models_have_one_step_that_is_their_pair():
    net = make_net("mlp")
    _, a, b, _ = family(net, scale=0.5)
    for line in many_from_pairs({"a": a, "b": b}, HeldOut("d", labelled_batches(), net), **QUIET).checked:
        gaps = {value.mean for value in (*line.premises.values(), *line.conclusions.values())}
        assert max(gaps) == pytest.approx(min(gaps))


def test_equal_models_have_no_gap():
    net = make_net("mlp")
    _, a, *_ = family(net)
    held = HeldOut("d", labelled_batches(), net)
    for line in many_from_pairs({"a": a, "b": a, "c": a}, held, **QUIET).checked:
        assert line.conclusions["gap of all"].mean == pytest.approx(0, abs=1e-6)


def test_theorem_4_3_is_about_points_k_times_farther_out():
    net, batches = make_net("mlp"), labelled_batches()
    base, a, b, _ = family(net, scale=0.5)
    held = {name: HeldOut(name, batches, net, name) for name in "ab"}
    found = disentangled_from_pairs(base, {"a": a, "b": b}, held, 0.4, layers="output", **QUIET)
    traced = ms.trace(ms.addition(base, a, b, 0.4).points, batches, net)
    gap = ms.linearity(traced, ms.addition(base, a, b, 0.4))["output"].measures["gap"].mean
    zero, far = (
        torch.as_tensor(features(net, point, batches))
        for point in (base, base + 0.8 * (ms.Point.of(a) - base))
    )
    effect = float(((far - zero).norm(dim=1) / zero.norm(dim=1)).mean())
    on_a, on_b = (line.conclusions for line in found.checked)
    assert on_a["gap of all"].mean == pytest.approx(gap, rel=1e-4)
    assert on_a["effect of own"].mean == pytest.approx(effect, rel=1e-4)
    assert on_b["effect of others"].mean == pytest.approx(effect, rel=1e-4)
    assert on_a["effect of others"].mean == pytest.approx(on_b["effect of own"].mean)


def test_results_print_and_have_rows():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    held = HeldOut("digits", labelled_batches(), net)
    found = no_barrier({"a, b": (a, b)}, held, **QUIET)
    assert str(found).startswith("Theorem 3.3: a convex loss")
    assert str(found).splitlines()[-1].startswith("a, b digits output")
    measures = [row["measure"] for row in found.rows()]
    assert measures[:2] == ["premise: difference of losses", "premise: cos"]
    assert measures[-1] == "conclusion: convex part" and found.rows()[0]["n"] == 10


def refusals():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    held = HeldOut("data", labelled_batches(), net)
    bare = HeldOut("data", [x for x, _ in labelled_batches()], net)
    embeds = HeldOut("data", labelled_batches(), net, logits=False)
    yield lambda: no_barrier({}, held, **QUIET), PointError, "there is none"
    yield lambda: no_barrier({"x": (a, b)}, bare, **QUIET), DataError, "have no labels"
    yield lambda: no_barrier({"x": (a, b)}, embeds, **QUIET), MergescopeError, "no logits of classes"
    yield lambda: many_from_pairs({"a": a}, held, **QUIET), PointError, "two models or more"
    only_a = {"a": held}
    yield (
        lambda: disentangled_from_pairs(base, {"a": a, "b": b}, only_a, **QUIET),
        PointError,
        "no data for b",
    )


@pytest.mark.parametrize("case", range(5))
def test_what_can_not_be_checked_is_refused(case):
    call, kind, said = list(refusals())[case]
    with pytest.raises(kind, match=said):
        call()
