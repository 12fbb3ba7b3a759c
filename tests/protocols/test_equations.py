"""CTL and Eq. 1 to 3 of a family: what is tested on what, laws, and the slow way."""

import itertools

import numpy as np
import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols.equations import KINDS, EquationSettings, check_equations, points_of
from mergescope.protocols.measure import HeldOut
from mergescope.readings import EDGES, Histogram
from mergescope.weights import Point

QUIET = {"progress": False}


@pytest.fixture
def made():
    net = make_net("mlp")
    base, *tuned = family(net)
    models = dict(zip("abc", tuned, strict=True))
    data = {
        "shared": HeldOut("shared", labelled_batches(seed=3), net),
        "of a": HeldOut("of a", labelled_batches(seed=4), net, owner="a"),
        "of b": HeldOut("of b", labelled_batches(seed=5), net, owner="b"),
    }
    return net, base, models, data


def test_each_test_is_measured_on_the_data_of_its_models(made):
    _, base, models, data = made
    found = check_equations(base, models, data, EquationSettings(**QUIET))
    where = {(test.kind, test.name): test.data for test in found.tests}
    assert where["ctl", "a + b"] == where["eq2", "a + b"] == ("shared", "of a", "of b")
    assert where["ctl", "b + c"] == ("shared", "of b")
    assert where["eq3", "− c"] == ("shared",)
    assert where["eq1", "a + b + c"] == ("shared", "of a", "of b")
    assert [len(found.of(kind)) for kind in KINDS] == [3, 1, 3, 3]
    sizes = {test.name: test.found.samples for test in found.tests if test.kind == "ctl"}
    assert sizes["a + b"] == 30 and sizes["b + c"] == 20


def test_averages_of_all_subsets(made):
    _, base, models, data = made
    found = check_equations(base, models, data, EquationSettings(("eq1",), size=2, **QUIET))
    assert [test.name for test in found.tests] == ["a + b", "a + c", "b + c"]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_slow_way(made, kind):
    net, base, models, data = made
    s = EquationSettings((kind,), alphas=(0.25,), lam=0.3, **QUIET)
    found = check_equations(base, models, {"shared": data["shared"]}, s)
    layer = "blocks.1"
    features = {}

    def feature(point):
        if point not in features:
            ms.load_weights(net, point)
            kept = []
            handle = dict(net.named_modules())[layer].register_forward_hook(
                lambda _module, _inputs, out: kept.append(out.flatten(1).double())
            )
            with torch.no_grad():
                for inputs, _ in data["shared"].batches:
                    net(inputs)
            handle.remove()
            features[point] = torch.cat(kept)
        return features[point]

    origin = Point.of(base)
    tau = {name: Point.of(model) - origin for name, model in models.items()}
    expected = {}
    for a, b in itertools.combinations(models, 2):
        if kind == "ctl":
            sides = (
                0.25 * Point.of(models[a]) + 0.75 * Point.of(models[b]),
                [(models[a], 0.25), (models[b], 0.75)],
            )
        elif kind == "eq2":
            sides = (
                origin + 0.3 * (tau[a] + tau[b]),
                [(origin + 0.6 * tau[a], 0.5), (origin + 0.6 * tau[b], 0.5)],
            )
        else:
            continue
        expected[f"{a} + {b}"] = sides
    if kind == "eq1":
        expected["a + b + c"] = (ms.mean(models.values()), [(model, 1 / 3) for model in models.values()])
    if kind == "eq3":
        expected = {
            f"− {name}": (origin, [(origin + 0.3 * tau[name], 0.5), (origin - 0.3 * tau[name], 0.5)])
            for name in models
        }
    assert [test.name for test in found.tests] == list(expected)
    for test in found.tests:
        left, right = expected[test.name]
        merged = feature(Point.of(left))
        mix = sum(share * feature(Point.of(point)) for point, share in right)
        cos = torch.nn.functional.cosine_similarity(merged, mix, dim=1)
        coef = (merged * mix).sum(1) / (mix * mix).sum(1)
        measures = test.found[layer].measures
        assert measures["cos"].mean == pytest.approx(float(cos.mean()), abs=1e-6)
        assert measures["coef"].mean == pytest.approx(float(coef.mean()), abs=1e-6)


def test_models_that_are_the_base_are_linear(made):
    net, base, _, data = made
    twins = {"a": base, "b": ms.Checkpoint(net.state_dict(), name="b")}
    ms.load_weights(net, base)
    twins["b"] = ms.Checkpoint({key: value.clone() for key, value in net.state_dict().items()}, name="b")
    found = check_equations(base, twins, data, EquationSettings(**QUIET))
    assert all(test.found.verdict.ctl for test in found.tests)
    assert all(
        entry.measures["gap"].mean == pytest.approx(0, abs=1e-6)
        for test in found.tests
        for entry in test.found.layers
    )


def test_a_plan_counts_the_points_that_are_run(made):
    _, base, models, data = made
    s = EquationSettings(**QUIET)
    planned = points_of(base, models, data, s)
    found = check_equations(base, models, data, s)
    assert planned == {name: len(part.points) for name, part in found.passes.items()}


def test_rows_have_every_test_layer_and_measure(made):
    _, base, models, data = made
    found = check_equations(base, models, data, EquationSettings(("ctl", "eq3"), **QUIET))
    rows = found.rows()
    assert {row["kind"] for row in rows} == {"ctl", "eq3"}
    layers = {row["layer"] for row in rows}
    assert layers == {"blocks.0", "blocks.1", "output"}
    assert all(row["forward_passes"] > 0 for row in rows)
    assert "Eq. 3, negation" in str(found)


@pytest.mark.parametrize(
    ("base", "names", "settings", "says"),
    [
        (True, "abc", {"kinds": ("eq4",)}, "no test eq4"),
        (True, "abc", {"kinds": ()}, "no test chosen"),
        (False, "abc", {"kinds": ("eq2",)}, "need a base"),
        (True, "a", {"kinds": ("ctl",)}, "take two models"),
        (True, "abc", {"size": 4}, "no averages of 4"),
        (True, "abc", {"lam": 0.0}, "coefficient of 0"),
        (True, "abc", {"alphas": (0.0,)}, "strictly between 0 and 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(made, base, names, settings, says):
    _, start, models, data = made
    chosen = {name: models[name] for name in names}
    with pytest.raises(MergescopeError, match=says):
        check_equations(start if base else None, chosen, data, EquationSettings(**settings, **QUIET))


def test_data_are_needed(made):
    _, base, models, data = made
    with pytest.raises(MergescopeError, match="no data to measure on"):
        check_equations(base, models, {}, EquationSettings(**QUIET))
    with pytest.raises(MergescopeError, match=r"no data to judge b \+ c"):
        check_equations(base, models, {"of a": data["of a"]}, EquationSettings(("ctl",), **QUIET))


def test_distributions_are_those_of_the_raw_features(made):
    net, base, models, data = made
    held = data["shared"]
    found = check_equations(base, models, {"shared": held}, EquationSettings(("eq2",), lam=0.3, **QUIET))
    origin, (a, b) = Point.of(base), (Point.of(models[name]) for name in "ab")
    sides = [
        origin + 0.3 * (a - origin + b - origin),
        origin + 0.6 * (a - origin),
        origin + 0.6 * (b - origin),
    ]
    raw = []
    for point in sides:
        ms.load_weights(net, point)
        kept = []
        handle = net.blocks[1].register_forward_hook(
            lambda _module, _inputs, out, kept=kept: kept.append(out.flatten(1).double().numpy())
        )
        with torch.no_grad():
            for inputs, _ in held.batches:
                net(inputs)
        handle.remove()
        raw.append(np.concatenate(kept))
    merged, mix = raw[0], (raw[1] + raw[2]) / 2
    along = (merged * mix).sum(1)
    expected = {
        "coef": along / (mix**2).sum(1),
        "cos": along / np.linalg.norm(merged, axis=1) / np.linalg.norm(mix, axis=1),
    }
    for measure, values in expected.items():
        lines = [
            line
            for line in found.distributions()
            if (line["points"], line["layer"], line["measure"]) == ("a + b", "blocks.1", measure)
        ]
        counts, _ = np.histogram(values, bins=EDGES[measure])
        stored = {line["low"]: line["count"] for line in lines}
        assert stored == {low: count for low, count in zip(EDGES[measure], counts, strict=False) if count}
        assert {(line["kind"], line["parameter"], line["trivial"]) for line in lines} == {("eq2", 0.3, False)}


def test_distributions_count_every_live_sample_of_every_split(made):
    _, base, models, data = made
    s = EquationSettings(("ctl",), **QUIET)
    whole = check_equations(base, models, data, s)
    counts = {}
    for line in whole.distributions():
        key = line["points"], line["layer"], line["measure"]
        counts[key] = counts.get(key, 0) + line["count"]
    for row in whole.rows():
        if row["measure"] in EDGES:
            assert counts[row["points"], row["layer"], row["measure"]] == row["n"]

    pair = {name: models[name] for name in "ab"}
    split = [check_equations(base, pair, {name: data[name]}, s) for name in ("of a", "shared")]
    both = check_equations(base, pair, {name: data[name] for name in ("of a", "shared")}, s)

    def counted(tests, layer, measure):
        lines = [line for found in tests for line in found.distributions()]
        return Histogram.read(
            measure, [x for x in lines if (x["layer"], x["measure"]) == (layer, measure)]
        ).counts

    for measure in EDGES:
        for layer in ("blocks.0", "blocks.1", "output"):
            assert counted(split, layer, measure).tolist() == counted([both], layer, measure).tolist()


def test_samples_that_two_tasks_share_are_one_piece_of_evidence(made):
    net, base, models, _ = made

    class Named(list):
        fingerprint = "the same"

    def width(*fingerprints):
        data = {}
        for name, fingerprint in zip("ab", fingerprints, strict=True):
            batches = Named(labelled_batches(24, 8, seed=3))
            batches.fingerprint = fingerprint
            data[name] = HeldOut(name, batches, net, owner=name)
        found = check_equations(base, models, data, EquationSettings(("ctl",), **QUIET))
        (test,) = (test for test in found.tests if test.name == "a + b")
        cos = test.found["blocks.1"].measures["cos"]
        return cos.high - cos.low, cos.n

    once, apart = width("same", "same"), width("one", "other")
    assert once[1] == apart[1] == 48 and once[0] > 1.2 * apart[0]
