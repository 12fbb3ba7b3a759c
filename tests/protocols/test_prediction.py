"""What merges would do, predicted: against traced points, closed forms, and what must be refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import MergescopeError, PointError
from mergescope.protocols import HeldOut, evaluate
from mergescope.protocols.prediction import (
    PredictionSettings,
    expand,
    expansion,
    interaction,
    interaction_matrix,
    measured_linearity,
    predict,
    predicted_linearity,
    predicted_logits,
    predicted_normalised,
)
from mergescope.protocols.prediction.agreement import crossing
from mergescope.protocols.prediction.gaps import along, gap_errors, remainders
from mergescope.protocols.prediction.predict import plan
from mergescope.protocols.prediction.surface import measured_logits, scored
from mergescope.protocols.resume import resumable
from mergescope.weights import Point

QUIET = PredictionSettings(progress=False)


class Squares(nn.Module):
    """A quadratic in the weights: its expansion to second order is the whole of it."""

    def __init__(self, classes=3):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, classes)), nn.Parameter(torch.randn(4, classes))

    def forward(self, x):
        return (x @ self.w) ** 2 + x @ self.v


def noise(samples=12, size=5, seed=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (samples,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def squares(scale=0.5):
    net = Squares().double()
    base, *tuned = family(net, scale=scale)
    models = dict(zip("abc", tuned, strict=True))
    return base, models, {name: HeldOut(name, noise(seed=i), net, name) for i, name in enumerate(models)}


def vit(scale=0.02, double=True):
    net = make_net("vit")
    net = net.double() if double else net
    base, *tuned = family(net, scale=scale)
    models = dict(zip("abc", tuned, strict=True))
    data = [(x.to(next(net.parameters()).dtype), y) for x, y in labelled_batches(12, 5)]
    return base, models, {name: HeldOut(name, data, net, name) for name in models}


def points_of(models):
    return {name: Point.of(model) for name, model in models.items()}


# -- exact where the network is quadratic ----------------------------------------------------------


def test_a_quadratic_network_is_predicted_exactly():
    base, models, held = squares()
    settings = dataclasses.replace(
        QUIET, measured=True, layers="output", alphas=(0.3, 0.5), checked=(0.5, 1.0), probes=(0.4,)
    )
    found = predict(base, models, held, settings)
    kinds = {(test.kind, test.parameter) for test in found.tests if not math.isnan(test.parameter)}
    assert kinds == {("ctl", 0.3), ("ctl", 0.5), ("eq2", 0.4), ("eq3", 0.4)}
    assert [test.name for test in found.tests if test.kind == "eq1"] == ["a + b + c"]
    for test in found.tests:
        for measure, values in test.predicted["output"].values.items():
            np.testing.assert_allclose(values, test.measured["output"].values[measure], rtol=1e-4, atol=1e-6)
        assert test.predicted["output"].measures["gap"].mean > 0.01
        assert test.errors[0].error.mean < 1e-5
    (at,) = found.agreements
    assert at.slope == pytest.approx(1, abs=1e-5) and at.r2 == pytest.approx(1) and at.error < 1e-5
    assert at.takes_over > 1e3
    for outcome in found.outcomes:
        if outcome.measured:
            assert outcome.normalised == outcome.measured_normalised
            assert outcome.accuracy == outcome.measured
    assert sum(bool(outcome.measured) for outcome in found.outcomes) == 2
    for data in found.expansions.values():
        merged = 0.5 * Point.of(models["a"]) + 0.8 * Point.of(models["b"]) - 0.3 * Point.of(base)
        net = held["a"].model
        net.load_state_dict(merged.state_dict())
        x = torch.cat([x for x, _ in held[data.name].batches])
        got = predicted_logits(data, {"a": 0.5, "b": 0.8})
        torch.testing.assert_close(got.double(), net(x).detach(), rtol=1e-4, atol=1e-4)


def test_a_surface_is_what_merged_models_score():
    base, models, held = squares()
    values = (-0.4, 0.0, 0.4, 0.5, 1.0)
    found = predict(
        base, models, held, dataclasses.replace(QUIET, layers="output", square=values, measured=True)
    )
    assert [it.tasks for it in found.surfaces] == [("a", "b"), ("a", "c"), ("b", "c")]
    tau = {name: Point.of(model) - base for name, model in models.items()}
    for it in found.surfaces:
        points = [[base + a * tau[it.tasks[0]] + b * tau[it.tasks[1]] for b in values] for a in values]
        flat = [point for line in points for point in line]
        said = evaluate([*flat, *models.values()], held, progress=False)
        shares = []
        for place, task in enumerate(it.tasks):
            true = np.array([[said[task].accuracy(point) for point in line] for line in points])
            np.testing.assert_allclose(it.accuracy[place], true)
            shares.append(true / said[task].accuracy(models[task]))
        np.testing.assert_allclose(it.normalised, np.mean(shares, axis=0))
        inside = it.normalised[1:, 1:]  # the search box is [0, 1]
        assert it.worth.mean == pytest.approx(inside.max()) == it.best.normalised
        assert it.normalised[tuple(values.index(value) for value in it.best.coefficients)] == inside.max()
        spots = {spot.coefficients: spot for spot in it.measured}
        assert {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4)} <= spots.keys()
        for at in ((1.0, 0.0), (0.5, 0.5), (0.4, 0.4)):
            assert it.normalised[tuple(map(values.index, at))] == pytest.approx(spots[at].normalised)
        assert sum(cell["measured"] for cell in it.cells()) == len(spots)
        assert len(it.cells()) == len(values) ** 2 + len(spots)
    assert predict(base, models, held, dataclasses.replace(QUIET, layers="output", square=())).surfaces == ()
    with pytest.raises(MergescopeError, match="No coefficient of the square is in the search box"):
        predict(base, models, held, dataclasses.replace(QUIET, square=(-1.0, 2.0)))


class Cubes(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x):
        return (x * self.w) ** 3


def test_the_third_order_takes_over_where_it_is_as_large_as_the_second():
    # (w + l t)^3: second order 3 w l^2 t^2, third l^3 t^3, equal at l = 3 w / t.
    base, tuned = (
        ms.Checkpoint({"w": torch.tensor([w], dtype=torch.float64)}, name=str(w)) for w in (2.0, 2.5)
    )
    x = torch.rand(6, 1, dtype=torch.float64) + 0.5
    held = {"noise": HeldOut("noise", [x], Cubes(), logits=False)}
    found = predict(base, {"a": tuned}, held, dataclasses.replace(QUIET, measured=True, layers="output"))
    assert found.agreements[0].takes_over == pytest.approx(3 * 2.0 / 0.5, rel=1e-4)
    data = found.expansions["noise"]
    np.testing.assert_allclose(remainders(data, "a", 0.2)["output"], 0.2 / 12, rtol=1e-4)
    with pytest.raises(PointError, match="was not run on noise"):
        remainders(data, "a", 0.3)


def test_where_a_line_crosses():
    assert crossing({0.5: np.array([0.25, 0.25, np.nan])}) == 2
    assert crossing({0.5: np.array([0.9]), 1.0: np.array([3.0])}) == pytest.approx(0.5 / 0.9)
    assert crossing({0.5: np.array([0.0])}) == math.inf
    growing = {0.1: np.array([3.0]), 0.2: np.array([2.0]), 0.4: np.array([1.5])}  # kinks
    assert crossing(growing) == 0 and crossing({0.1: np.array([0.4]), 0.4: np.array([0.3])}) > 0
    assert math.isnan(crossing({})) and math.isnan(crossing({1.0: np.array([np.nan])}))


# -- the same conventions as elsewhere ---------------------------------------------------------------


def test_points_of_the_pass_measure_what_a_trace_measures():
    base, models, held = vit()
    tests = [
        ms.ctl(models["a"], models["b"], 0.3, reference=base), ms.averaging(models.values(), reference=base),
        ms.addition(base, models["a"], models["b"]), ms.negation(base, models["c"]),
    ]  # fmt: skip
    every = [point for test in tests for point in test.points]
    found = expand(Point.of(base), points_of(models), held["a"], every, progress=False)
    traced = ms.trace(every, held["a"].batches, held["a"].model, progress=False)
    assert found.layers == traced.layers and found.trivial == traced.trivial
    for test in tests:
        one, two = measured_linearity([found], test), ms.linearity(traced, test)
        assert one.samples == two.samples == 12
        for layer in traced.layers:
            assert one[layer].measures.keys() == two[layer].measures.keys()
            for measure, values in two[layer].values.items():
                np.testing.assert_allclose(one[layer].values[measure], values, rtol=1e-5, atol=1e-9)


def test_small_task_vectors_are_predicted_well():
    base, models, held = vit(scale=0.003)
    found = predict(base, models, held, dataclasses.replace(QUIET, measured=True))
    for at in found.agreements:
        assert (
            not at.trivial and 0.85 < at.slope < 1.15 and at.r2 > 0.9 and at.error < 0.2 and at.takes_over > 2
        )
    gap = found["ctl", "a + b"]
    assert gap.data == ("a", "b") and gap.predicted.samples == 24
    measured, predicted = (it["output"].measures["gap"] for it in (gap.measured, gap.predicted))
    assert predicted.low <= predicted.mean <= predicted.high and predicted.mean == pytest.approx(
        measured.mean, rel=0.1
    )
    for outcome in found.outcomes:
        if outcome.measured_normalised:
            assert outcome.normalised.mean == pytest.approx(outcome.measured_normalised.mean, abs=0.1)


def test_layers_that_are_linear_in_the_weights_are_marked():
    base, models, held = vit()
    found = predict(base, models, held, dataclasses.replace(QUIET, layers=["patch_embed"], measured=True))
    by_layer = {at.layer: at for at in found.agreements}
    assert by_layer["patch_embed"].trivial and math.isnan(by_layer["patch_embed"].slope)
    test = found["ctl", "a + b"]
    assert test.predicted["patch_embed"].trivial and test.predicted["patch_embed"].measures["gap"].mean < 1e-9
    assert [entry.layer for entry in test.predicted.evidence] == ["output"]


def test_interactions_are_second_derivatives_over_first_ones():
    base, models, held = squares()
    found = expand(Point.of(base), points_of(models), held["a"], layers="output", progress=False)
    (entry,) = interaction([found], "a", "b")
    x = torch.cat([x for x, _ in held["a"].batches])
    w = base.tensor("w")
    tau = {
        name: {key: model.tensor(key) - base.tensor(key) for key in "wv"} for name, model in models.items()
    }
    slope = {name: 2 * (x @ w) * (x @ it["w"]) + x @ it["v"] for name, it in tau.items()}
    mixed = 2 * (x @ tau["a"]["w"]) * (x @ tau["b"]["w"])
    wanted = mixed.norm(dim=1) / (slope["a"].norm(dim=1) * slope["b"].norm(dim=1)).sqrt()
    assert entry.relative.mean == pytest.approx(float(wanted.mean()), rel=1e-6)
    assert entry.size.mean == pytest.approx(float(mixed.norm(dim=1).mean()), rel=1e-6)
    names, matrix = interaction_matrix([entry, *interaction([found], "b", "b")], "output")
    assert names == ["a", "b"] and matrix[0, 1] == matrix[1, 0] == entry.relative.mean
    assert np.isnan(matrix[0, 0]) and matrix[1, 1] > 0


def test_accuracy_is_normalised_by_the_fine_tunes_own():
    base, models, held = vit()
    found = predict(base, models, held, QUIET)
    shares = []
    for task, data in found.expansions.items():
        own, _ = scored(data, measured_logits(data, Point.of(models[task])))
        hits, _ = scored(data, predicted_logits(data, {"a": 0.2, "c": 0.7}))
        shares.append(hits.mean() / own.mean())
    said = predicted_normalised(found.expansions, {"a": 0.2, "c": 0.7})
    assert said.mean == pytest.approx(np.mean(shares)) and said.low <= said.mean <= said.high
    at = {outcome.lam: outcome for outcome in found.outcomes}
    assert len(at) == 21 and found.best == max(at.values(), key=lambda it: (it.normalised.mean, -it.lam))
    evaluated = evaluate([base], held, progress=False)
    assert {task: said.mean for task, said in at[0.0].accuracy.items()} == evaluated.accuracies(base)


def test_tokens_and_texts_without_classes_have_gaps_but_no_accuracy():
    from tiny_transformers import batches_for, tiny

    net = tiny("gpt2")
    base, a, b, _ = family(net, scale=0.01)
    batches = [
        {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        for batch in batches_for("gpt2")
    ]
    held = {"texts": HeldOut("texts", batches, net)}
    found = predict(base, {"a": a, "b": b}, held, dataclasses.replace(QUIET, features="each"))
    data = found.expansions["texts"]
    assert found.outcomes == () and found.best is None and "accuracy is not predicted" in found.notes[0]
    layer = data.layers[0]
    assert len(data.units[layer]) == 19 and set(data.units[layer]) == {0, 1, 2, 3, 4}
    assert found["ctl", "a + b"].predicted[layer].measures["gap"].n == 19
    with pytest.raises(MergescopeError, match="predicts no classes"):
        predicted_logits(data, {})


def test_accuracy_is_predicted_on_the_data_of_a_task_alone():
    base, models, held = squares()
    alone, settings = {"a": models["a"]}, dataclasses.replace(QUIET, layers="output")
    control = dataclasses.replace(held["b"], name="control", owner="a")
    one = predict(base, alone, {"a": held["a"]}, settings)
    both = predict(base, alone, {"a": held["a"], "control": control}, settings)
    assert one.outcomes and both.outcomes == one.outcomes
    unclear = predict(base, alone, {"x": held["a"], "y": control}, settings)
    assert unclear.outcomes == () and "accuracy is not predicted" in unclear.notes[0]


def test_data_sets_of_the_same_samples_are_no_more_evidence_than_one():
    base, models, held = squares()
    del models["c"]
    batches, settings = Marked(held["a"].batches), dataclasses.replace(QUIET, layers="output")
    two = {name: dataclasses.replace(held["a"], name=name, owner=name, batches=batches) for name in models}
    one = {"x": dataclasses.replace(held["a"], name="x", owner=None)}
    shared, alone = (predict(base, models, data, settings) for data in (two, one))
    twice, once = (found["ctl", "a + b"].predicted["output"].measures["gap"] for found in (shared, alone))
    assert (twice.low, twice.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert {outcome.normalised.n for outcome in shared.outcomes} == {12}


# -- results, cost, resuming -----------------------------------------------------------------------


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("method", ["jvp", "differences"])
def test_the_plan_says_what_is_done(measured, method):
    base, models, held = vit()
    settings = dataclasses.replace(QUIET, measured=measured, method=method, checked=(0.5,), probes=(0.2,))
    planned, found = plan(base, models, held, settings), predict(base, models, held, settings)
    batches = 3
    assert found.forward_passes == sum(planned["passes_a_batch"].values()) * batches
    assert found.derivatives == planned["derivatives_a_batch"] * batches * 3
    assert planned["derivatives_a_batch"] == (6 if method == "jvp" else 0)
    assert planned["pairs"] == ["a:b", "a:c", "b:c"] and len(found.samples) == 3
    assert planned["points"]["a"] == len(found.expansions["a"].points)
    assert (planned["points"]["a"] == 1) != measured


def test_results_are_rows_and_a_table():
    base, models, held = vit()
    found = predict(base, models, held, dataclasses.replace(QUIET, measured=True))
    table = found.rows()
    kinds = {row["kind"] for row in table}
    assert {
        f"{how}-{kind}" for how in ("predicted", "measured") for kind in ("ctl", "eq1", "eq2", "eq3")
    } <= kinds
    assert kinds >= {"interaction", "prediction", "predicted", "measured"}
    from mergescope.studies.rundir import Row

    assert all(Row(network="n", regime="r", **row) for row in table)
    text = str(found)
    for said in (
        "a + b",
        "third order takes over",
        "normalised accuracy",
        "Best predicted",
        "measured gap",
        "Interaction",
    ):
        assert said in text
    unmeasured = str(predict(base, {"a": models["a"]}, {"a": held["a"]}, QUIET))
    assert "measured" not in unmeasured and "third order" not in unmeasured
    with pytest.raises(MergescopeError, match=r"ctl of a \+ d was not predicted. Predicted: ctl of a \+ b"):
        found["ctl", "a + d"]


class Marked(list):
    fingerprint = "these"


def test_a_pass_that_a_killed_run_finished_is_not_made_again(tmp_path, monkeypatch):
    base, models, held = vit(double=False)
    held = {"a": dataclasses.replace(held["a"], owner=None, batches=Marked(held["a"].batches))}
    made = []
    real = expansion.second_order
    monkeypatch.setattr(
        expansion, "second_order", lambda *args, **more: made.append(1) or real(*args, **more)
    )

    class Killed(Exception):
        pass

    def run(fail):
        with resumable(tmp_path / "passes"):
            found = predict(base, {"a": models["a"], "b": models["b"]}, held, QUIET)
            if fail:
                raise Killed
        return found

    with pytest.raises(Killed):
        run(True)
    first = run(False)
    assert len(made) == 1
    again = run(False)
    assert len(made) == 2  # nothing is kept of a run that is done
    both = list(zip(first.rows(), again.rows(), strict=True))
    assert len(both) > 50
    for one, other in both:  # torch's derivatives differ in their last digits from run to run, some versions'
        close = {
            name: pytest.approx(value, rel=1e-4, abs=1e-7, nan_ok=True) if isinstance(value, float) else value
            for name, value in one.items()
            if name not in ("seconds", "peak_bytes")
        }
        assert {name: other[name] for name in close} == close


# -- what must not pass ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": (0.5, 1.0)}, "between 0 and 1, got 1"),
        ({"lams": (0.0,)}, "coefficient of 0"),
        ({"probes": (0.0,)}, "coefficient of 0"),
        ({"method": "jpv"}, "no way 'jpv'"),
        ({"pairs": (("a", "d"),)}, "no task 'd'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    base, models, held = vit()
    with pytest.raises(MergescopeError, match=message):
        predict(base, models, held, dataclasses.replace(QUIET, **change))


def test_models_and_data_that_do_not_fit_are_refused():
    base, models, held = vit()
    with pytest.raises(MergescopeError, match="nothing to predict: give"):
        predict(base, {}, held, QUIET)
    with pytest.raises(MergescopeError, match="no data to predict on"):
        predict(base, models, {}, QUIET)
    with pytest.raises(MergescopeError, match="no data to judge b"):
        predict(base, models, {"a": held["a"]}, QUIET)
    with pytest.raises(MergescopeError, match="nothing to predict. Evaluate merges"):
        predict(base, models, held, dataclasses.replace(QUIET, linearized=True))
    middle = ms.mean([models["a"], models["b"]])
    with pytest.raises(PointError, match="m is a combination"):
        predict(base, {"m": middle}, {"n": HeldOut("n", held["a"].batches, held["a"].model)}, QUIET)
    data = expand(Point.of(base), {"a": Point.of(models["a"])}, held["a"], progress=False)
    with pytest.raises(PointError, match="made of b"):
        predicted_linearity([data], ms.ctl(models["a"], models["b"]))
    with pytest.raises(PointError, match="is no model"):
        data.predicted(models["a"] - base)
    with pytest.raises(PointError, match="was not run on a"):
        gap_errors([data], ms.negation(base, models["a"]))
    unlabelled = HeldOut("x", [x for x, _ in held["a"].batches], held["a"].model, "a")
    bare = expand(Point.of(base), {"a": Point.of(models["a"])}, unlabelled, progress=False)
    with pytest.raises(MergescopeError, match="x: the data have no labels"):
        scored(bare, predicted_logits(bare, {}))


def test_the_point_along_a_task_vector():
    base, models, _ = vit()
    assert along(Point.of(base), Point.of(models["a"]), 1.0) == Point.of(models["a"])
