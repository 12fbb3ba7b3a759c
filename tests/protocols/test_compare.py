"""Merge methods in one protocol: in memory as on disk, tuned as addition is, and never on test data."""

import planted
import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import MergescopeError, PointError
from mergescope.merging.in_memory import merge_in_memory, parameter_values
from mergescope.merging.merge import merge
from mergescope.merging.methods import METHODS
from mergescope.protocols import HeldOut
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.compare import DEFAULT_METHODS, Way, compare_methods
from mergescope.protocols.tuning import ArithmeticSettings

TENTHS = tuple(i / 10 for i in range(11))
QUICK = ArithmeticSettings(TENTHS, extend=False, progress=False)
NEEDED = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.2}}


def number_of(method):
    return min(3, method.most or 3)


def given(method):
    names = {parameter.name for parameter in method.parameters}
    sparse = {"density": 0.5} if "density" in names and method.name != "task_arithmetic" else {}
    return {**NEEDED.get(method.name, {}), **sparse}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same models in memory and as directories."""
    folder = tmp_path_factory.mktemp("models")
    models = family(make_net("vit"))
    for model in models:
        ms.save(model, folder / model.name)
    return folder, models


@pytest.mark.parametrize("name", sorted(METHODS))
def test_merging_in_memory_is_merging(saved, tmp_path, name):
    folder, (base, *models) = saved
    method = METHODS[name]
    models = models[: number_of(method)]
    weights = {"weight": 1.0} if any(p.name == "weight" for p in method.parameters) else {}
    recipe = {
        "merge_method": name, "parameters": {**weights, **given(method)},
        "models": [{"model": str(folder / model.name)} for model in models],
    }  # fmt: skip
    if method.base != "none":
        recipe["base_model"] = str(folder / "base")
    want = ms.Checkpoint(merge(recipe, tmp_path / "out", seed=3, progress=False))
    found = merge_in_memory(name, models, base if method.base != "none" else None, given(method), seed=3)
    assert list(found.spec) == list(base.spec)
    for key in want.spec:
        torch.testing.assert_close(found.tensor(key), want.tensor(key), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS.items() if any(p.name == "lambda" for p in m.parameters)]
)
def test_lambda_moves_along_a_line_from_the_base(name):
    base, *models = family(make_net("mlp"))
    parameters = given(METHODS[name])
    line = Way(name, parameters).line(ms.Point.of(base), [ms.Point.of(model) for model in models], seed=1)
    for lam in (0.0, 0.4, 1.7):
        slow = merge_in_memory(name, models, base, {**parameters, "lambda": lam}, seed=1)
        for key in base.spec:
            torch.testing.assert_close(line(lam).tensor(key), slow.tensor(key), rtol=1e-4, atol=1e-5)
    assert line(0.0) == ms.Point.of(base)


def test_integers_and_scalars_are_merged():
    first, second = (
        ms.Checkpoint({"steps": torch.tensor(3), "scale": torch.tensor(v)}, name=str(v)) for v in (1.0, 4.0)
    )
    found = merge_in_memory("linear", [first, second])
    assert int(found.tensor("steps")) == 3 and float(found.tensor("scale")) == 2.5
    other = ms.Checkpoint({"steps": torch.tensor(4), "scale": torch.tensor(4.0)}, name="other")
    with pytest.raises(PointError, match="integer tensor 'steps'"):
        merge_in_memory("linear", [first, other])


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("tie", {}, r"no merge method 'tie'\. Did you mean: ties"),
        ("ties", {"densty": 1}, r"no parameter 'densty'\. Did you mean: density"),
        ("ties", {"density": 1.5}, "can't have density = 1.5: give a number from 0 to 1, or one a model"),
        ("ties", {"density": [0.5]}, "or one a model"),
        ("ties", {"density": "much"}, "can't have density = 'much'"),
        ("slerp", {"t": 0.5}, "merges at most 1 models besides the base, not 2"),
    ],
)  # fmt: skip
def test_what_a_method_can_not_do(name, parameters, says):
    base, a, b, _ = family(make_net("mlp"))
    with pytest.raises(MergescopeError, match=says):
        merge_in_memory(name, [a, b], base, parameters)


def test_bases_and_numbers_that_methods_need():
    _, a, b, _ = family(make_net("mlp"))
    with pytest.raises(MergescopeError, match="ties needs a base"):
        merge_in_memory("ties", [a, b])
    with pytest.raises(MergescopeError, match="slerp needs t: 0 gives the base"):
        parameter_values(METHODS["slerp"], 1, {})


# -- the comparison --------------------------------------------------------------------------------


def compared(ways, at=0.5, test_at=None, settings=QUICK):
    base, models = planted.family()
    validation, test = (
        {task: planted.peak(task, peak) for task in "ab"} for peak in (at, at if test_at is None else test_at)
    )
    return compare_methods(base, models, validation, test, [Way.parse(text) for text in ways], settings)


def test_every_method_is_reported_as_it_is_and_tuned():
    found = compared(["linear", "task_arithmetic", "ties:lambda=0.5"])
    names = [(line.scores.name, line.needs) for line in found.methods]
    assert names == [
        ("linear", "none"),
        ("task_arithmetic, lambda 1", "none"),
        ("task_arithmetic, lambda 0.5 (tuned)", "validation labels"),
        ("ties (lambda 0.5)", "none"),
    ]
    average, one, tuned, _ = found.methods
    assert (average.scores.mean.mean, tuned.scores.mean.mean) == (1, 1)  # the average is at 0.5 as well
    assert one.scores.mean.mean == pytest.approx(5 / 9) and (one.points, one.forward_passes) == (0, 0)
    assert (tuned.points, tuned.forward_passes) == (11, 2 * 11 * 3)
    table = str(found).splitlines()
    assert table[0].split()[-4:] == ["needs", "merge", "s", "passes"] and len(table) == 1 + 2 + 4 + 1
    assert "validation labels" in table[5] and table[5].split()[-1] == "66"


def test_task_arithmetic_is_tuned_as_task_addition_is():
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.3)
    models = {"a": a, "b": b}
    validation, test = (
        {task: HeldOut(task, labelled_batches(40, 8, seed=n + shift), net) for n, task in enumerate(models)}
        for shift in (0, 7)
    )
    addition = task_addition(base, models, validation, test, QUICK)
    found = compare_methods(base, models, validation, test, settings=QUICK)
    lines = {line.scores.name: line.scores for line in found.methods}
    tuned = lines[f"task_arithmetic, lambda {addition.lam:g} (tuned)"]
    assert (tuned.accuracy, tuned.mean, tuned.normalised) == (
        addition.tuned.accuracy, addition.tuned.mean, addition.tuned.normalised,
    )  # fmt: skip
    assert lines["linear"].accuracy == addition.test[2].accuracy
    assert found.references[1].accuracy == addition.test[1].accuracy
    assert len(found.methods) == 2 * len(DEFAULT_METHODS) - 1


def test_test_data_choose_no_coefficient():
    ways = ["task_arithmetic", "tsv", "iso_c", "ties"]
    for honest, other, mixed in zip(
        *(compared(ways, *peaks).methods for peaks in ((0.3,), (0.8,), (0.3, 0.8))), strict=True
    ):
        if honest.needs == "validation labels":
            assert honest.scores.parameter == mixed.scores.parameter
            if honest.scores.name.startswith("task_arithmetic"):
                assert (honest.scores.parameter, other.scores.parameter) == (
                    0.3,
                    0.8,
                )  # it would have mattered
    with pytest.raises(MergescopeError, match="are the test data as well"):
        base, models = planted.family()
        same = {task: planted.peak(task, 0.5) for task in "ab"}
        compare_methods(base, models, same, same)


def test_a_grids_end_is_marked():
    rising = {task: planted.held(task, [0.1 * n + 0.05 for n in range(15)]) for task in "ab"}
    test = {task: planted.held(task, [0.1 * n + 0.05 for n in range(15)]) for task in "ab"}
    base, models = planted.family()
    found = compare_methods(base, models, rising, test, [Way("task_arithmetic")], QUICK)
    assert found.methods[1].at_end and "at the grid's end" in str(found)
    said = {row["measure"]: row for row in found.rows() if row["measure"] in ("at_end", "evaluated points")}
    assert said["at_end"]["mean"] == 1 and said["at_end"]["points"] == found.methods[1].scores.name
    assert said["evaluated points"]["mean"] == found.methods[1].points
    more = ArithmeticSettings(TENTHS, limit=2.0, progress=False)
    found = compare_methods(base, models, rising, test, [Way("task_arithmetic")], more)
    assert not found.methods[1].at_end and found.methods[1].scores.parameter == 1.5


def test_in_the_linearised_network_a_merged_model_takes_two_passes():
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.3)
    models = {"a": a, "b": b}
    validation, test = (
        {task: HeldOut(task, labelled_batches(40, 8, seed=n + shift), net) for n, task in enumerate(models)}
        for shift in (0, 7)
    )
    fast, slow = (
        compare_methods(
            base, models, validation, test, [Way("ties"), Way("task_arithmetic")],
            ArithmeticSettings(TENTHS, extend=False, linearized=True, executor=executor, progress=False),
        )
        for executor in ("auto", "resident")
    )  # fmt: skip
    assert fast.linearized and fast.methods[1].forward_passes == 2 * 2 * 5
    assert slow.methods[1].forward_passes == 11 * 2 * 5
    for one, other in zip(fast.methods, slow.methods, strict=True):
        assert one.scores.parameter == pytest.approx(other.scores.parameter, nan_ok=True)
        assert one.scores.mean.mean == pytest.approx(other.scores.mean.mean)


def test_ways_are_read_from_text():
    assert Way.parse("ties:density=0.5,normalize=false").parameters == {"density": 0.5, "normalize": False}
    assert Way.parse("ties:density=0.5").label == "ties (density 0.5)" and Way("ties").has_scale
    assert not Way.parse("ties:lambda=1").has_scale and not Way("linear").has_scale
    with pytest.raises(
        MergescopeError, match=r"no merge method 'taskarithmetic'\. Did you mean: task_arithmetic"
    ):
        Way.parse("taskarithmetic")
    with pytest.raises(MergescopeError, match="'density' is no parameter"):
        Way.parse("ties:density")
    with pytest.raises(MergescopeError, match="Named twice: ties"):
        compared(["ties", "ties"])
    with pytest.raises(MergescopeError, match="slerp merges at most 1"):
        compared(["ties", "slerp:t=0.5"])


def test_papers_parameters_are_used_unless_others_are_given():
    base, *models = family(make_net("mlp"))
    points = [ms.Point.of(model) for model in models]
    for name, density in (("ties", 0.2), ("dare_ties", 0.1), ("dare_linear", 0.1)):
        for given, want in (({}, density), ({"density": 0.6}, 0.6)):
            found = Way(name, given).line(ms.Point.of(base), points, seed=2)(1.0)
            slow = merge_in_memory(name, models, base, {"density": want}, seed=2)
            for key in base.spec:
                torch.testing.assert_close(found.tensor(key), slow.tensor(key))
