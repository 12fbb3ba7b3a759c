"""Mergeability: planted relations are found, useless figures are not, and nothing held out is ever seen."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from mergeable_cases import LETTERS, planted
from tuned_tasks import TASKS, held_out, tuned

import mergescope as ms
from mergescope.errors import MergescopeError, StudyError
from mergescope.protocols.evaluation import evaluate
from mergescope.protocols.mergeability import (
    PREDICTORS,
    Case,
    MergeabilitySettings,
    analyse,
    collect,
    content,
    expected,
    groups_of,
    read_rules,
    write_rules,
)
from mergescope.protocols.mergeability import rules as rules_module
from mergescope.protocols.mergeability import scores as scores_module
from mergescope.protocols.mergeability.known import weight_figures
from mergescope.protocols.mergeability.outcomes import Family, outcomes
from mergescope.protocols.mergeability.predictors import candidates, over_pairs
from mergescope.protocols.mergeability.rules import Table, chosen_held_out, fitted
from mergescope.protocols.mergeability.rules import held_out as left_out
from mergescope.protocols.mergeability.scores import less_error, pearson, score, spearman, within_units
from mergescope.protocols.mergeability.told import findings, headline, table_lines
from mergescope.weights import Point
from mergescope.weights.geometry import geometry


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals need not be smooth here."""
    monkeypatch.setattr(scores_module, "RESAMPLES", 60)


def test_a_planted_relation_is_found_and_a_useless_figure_is_not():
    found = analyse(planted("conflict"))
    verdict = found.verdict("weights")
    assert verdict.rule.predictor == "conflict" and verdict.beats
    assert verdict.rule.slope == pytest.approx(-0.9, abs=0.03)
    assert verdict.rule.per_doubling == pytest.approx(-0.2, abs=0.02)
    assert set(verdict.chosen.values()) == {"conflict"}
    assert verdict.left_tasks.mae.value < 0.02 and verdict.left_networks.mae.value < 0.02
    by_name = {it.predictor: it for it in found.of("average")}
    assert by_name["conflict"].within.high < -0.8
    assert by_name["cosine"].within.low < 0.1 and by_name["cosine"].within.high > -0.1
    controls = {name: said.mae.value for name, said in verdict.controls.items()}
    assert controls["constant"] > controls["models"] > 3 * verdict.left_tasks.mae.value
    assert "sign conflict predicts" in headline(found)


def test_where_nothing_is_planted_the_verdict_says_so():
    found = analyse(planted("nothing", noise=0.1))
    verdict = found.verdict("weights")
    assert not verdict.beats
    assert verdict.gained["models"].low <= 0 < verdict.gained["constant"].value
    assert headline(found).startswith("Nothing measured beforehand")
    assert any("number of models alone" in sentence for sentence in findings(found))


def test_a_figure_no_better_than_the_bases_accuracy_does_not_beat_it():
    found = analyse(planted("base"))
    assert not found.verdict("weights").beats
    assert found.verdict("weights").best_control == "base"


def test_what_the_bases_accuracy_tells_as_well_helps_but_does_not_beat_it():
    cases = [
        replace(case, predictors={**case.predictors, "base": -case.predictors["conflict"]}) for case in planted()
    ]  # fmt: skip
    verdict = analyse(cases).verdict("weights")
    assert verdict.helps and not verdict.beats
    assert "better than all controls do" in headline(
        analyse(cases)
    ) and "Nearest is sign conflict" in headline(analyse(cases))


def test_held_out_predictions_do_not_change_with_what_is_held_out():
    """Whatever the outcomes of a task's cases are, rules that are asked about them never saw them."""
    cases = planted()
    pairs = [case for case in cases if len(case.models) == 2]
    moved = [
        replace(case, outcomes={name: 7.0 for name in case.outcomes}) if "a" in case.models else case for case in pairs
    ]  # fmt: skip
    names = ["conflict", "cosine"]
    honest, other = (Table.of(some, "average") for some in (pairs, moved))
    out = honest.left_out("task")["a"]
    rest = np.ones(len(pairs), dtype=bool)
    only = {"a": out}
    results = []
    for table in (honest, other):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Table, "left_out", lambda self, by: only)
            results.append(left_out(table, names)[out])
    np.testing.assert_array_equal(*results)
    # The same with rules that are fitted on all cases: they see the change, so the check above can fail.
    leaking = [rules_module._applied(table, table.x, rest, out) for table in (honest, other)]
    assert np.abs(leaking[0] - leaking[1]).max() > 0.1


def test_the_choice_of_a_figure_never_sees_what_is_held_out():
    cases = planted("conflict")
    # With the task "a", the average follows another figure, as strongly.
    cases = [
        case if "a" not in case.models
        else replace(case, outcomes={**case.outcomes, "average": 5 * case.predictors["cosine"]})
        for case in cases
    ]  # fmt: skip
    _, chosen = chosen_held_out(Table.of(cases, "average"), ["cosine", "conflict"])
    assert chosen["a"] == "conflict"


def test_held_out_is_what_a_slow_loop_finds():
    table = Table.of(planted(units=3), "average")
    found = left_out(table, ["length"])[:, 0]
    x = np.column_stack([np.ones(len(table.y)), table.doublings, table.column("length")])
    for place, case in enumerate(table.cases[:12]):
        said = []
        for task in case.models:
            seen = [i for i, other in enumerate(table.cases) if task not in other.models]
            root = np.sqrt(table.weights[seen])[:, None]
            line = np.linalg.lstsq(x[seen] * root, table.y[seen] * root[:, 0], rcond=None)[0]
            said.append(np.clip(x[place] @ line, table.y[seen].min(), table.y[seen].max()))
        assert found[place] == pytest.approx(np.mean(said), abs=1e-9)


def test_units_count_alike():
    cases = planted(units=2)
    many = [case for case in cases if case.family == "f0"]
    few = [case for case in cases if case.family == "f1"][:4]
    table = Table.of([*many, *few], "average")
    assert table.weights[table.units == 0].sum() == pytest.approx(table.weights[table.units == 1].sum())
    perfect = np.where(table.units == 0, table.y, table.y + 1)
    assert score(table, perfect).mae.value == pytest.approx(0.5)


def test_intervals_are_over_units_not_over_cases():
    cases = planted("nothing", units=4, noise=0.0)
    shifts = {f"f{unit}": 0.1 * unit for unit in range(4)}
    cases = [
        replace(case, outcomes={**case.outcomes, "average": case.outcomes["average"] + shifts[case.family]})
        for case in cases
    ]  # fmt: skip
    table = Table.of(cases, "average")
    flat = np.full(len(table.y), table.y.mean())
    whole = score(table, flat).mae
    # Were cases independent, 80 of them would give an interval a fraction of this wide.
    naive = 2 * 1.96 * np.abs(table.y - flat).std() / math.sqrt(len(table.y))
    assert whole.high - whole.low > 1.5 * naive
    one = Table.of([case for case in cases if case.family == "f0"], "average")
    assert math.isnan(score(one, one.y).mae.low)


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    x, y = rng.integers(5, size=30).astype(float), rng.normal(size=30)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])


def test_within_units_overlooks_what_is_between_them():
    units = np.repeat(np.arange(3), 6)
    x = np.tile(np.arange(6.0), 3) + 100 * units
    y = -np.tile(np.arange(6.0), 3) + 100 * units
    assert spearman(x, y) > 0.5
    assert within_units(x, y, units).value == pytest.approx(-1)


def test_less_error_is_positive_where_the_rule_is_better():
    table = Table.of(planted(), "average")
    assert less_error(table, table.y, table.y + 0.2).value == pytest.approx(0.2)


def test_linearised_cases_and_those_without_figures_take_no_part():
    cases = planted(units=3)
    blind = [replace(case, predictors={**case.predictors, "conflict": math.nan}) for case in cases[:2]]
    linear = [replace(case, linearized=True) for case in cases[:3]]
    found = analyse([*cases, *blind, *linear])
    assert len(found.tables["average"].cases) == len(cases)
    assert any("linearised" in note for note in found.notes) and any("lack" in note for note in found.notes)


def test_too_few_cases_or_tasks_are_refused():
    with pytest.raises(StudyError, match="too few"):
        analyse(planted()[:2])
    same = [replace(case, models=("a", "b")) for case in planted(units=2)]
    with pytest.raises(StudyError, match="share a task"):
        analyse(same)


@pytest.fixture
def ruled(tmp_path):
    path = tmp_path / "rule.json"
    write_rules(content(analyse(planted("conflict"))), path)
    return path


def test_a_rule_file_tells_what_to_expect(ruled):
    said = expected("weights", {"models": 2.0, "conflict": 0.2}, "Net", path=ruled)
    assert said.helps and said.inside and said.predictor == "conflict"
    assert said.value == pytest.approx(1.2 - 0.18 - 0.2, abs=0.02) and said.error < 0.02
    assert (
        "rule: sign conflict 0.2" in said.text
        and "Outside" not in said.text
        and "not reliably" not in said.text
    )
    json.dumps(said.to_dict(), allow_nan=False)
    assert expected("features", {"models": 2.0}, path=ruled) is None


def test_what_was_not_validated_is_told(ruled):
    figures = {"models": 2.0, "conflict": 0.2}
    for changed, network, linear, word in (
        ({"conflict": 0.9}, "Net", False, "sign conflict 0.9"),
        ({"models": 9.0}, "Net", False, "9 models"),
        ({}, "Llama", False, "the network Llama"),
        ({}, "Net", True, "models of a linearised"),
    ):
        said = expected("weights", {**figures, **changed}, network, linearized=linear, path=ruled)
        assert not said.inside and f"Outside of what was validated: {word}" in said.text


def test_without_the_figure_the_number_of_models_is_left(ruled):
    said = expected("weights", {"models": 2.0, "conflict": math.nan}, path=ruled)
    assert not said.helps and said.predictor is None and "has no value here" in said.text


def test_of_another_network_the_error_is_that_on_left_out_networks(ruled, tmp_path):
    content_of = json.loads(ruled.read_text())
    figures = {"models": 2.0, "conflict": 0.2}
    for errors, helps in ((0.3, False), (0.1, True)):
        for rule in content_of["rules"]:
            rule |= {"networks_mae": errors, "networks_models_mae": 0.2}
        changed = tmp_path / f"{errors}.json"
        changed.write_text(json.dumps(content_of))
        assert expected("weights", figures, "Net", path=changed).helps
        said = expected("weights", figures, "Llama", path=changed)
        assert said.helps == helps and said.error == min(errors, 0.2)
        assert ("on left-out networks sign conflict erred by 0.30" in said.text) != helps


def test_the_bases_accuracy_is_gone_by_where_it_tells_more(tmp_path):
    path = tmp_path / "rule.json"
    found = analyse(planted("base"))
    assert found.bases["average"].helps and found.bases["average"].left_tasks.mae.value < 0.02
    assert any("takes labels but no merge" in sentence for sentence in findings(found))
    write_rules(content(found), path)
    figures = {"models": 2.0, "conflict": 0.2, "cosine": 0.2, "length": 0.2}
    assert expected("weights", figures, path=path).predictor is None
    said = expected("weights", {**figures, "base": 0.3}, path=path)
    assert said.predictor == "base" and said.helps and said.value == pytest.approx(1.0 - 0.27, abs=0.02)
    assert "the base's own normalised accuracy 0.30" in said.text


def test_a_figure_that_beats_the_bases_accuracy_goes_first(ruled):
    said = expected("weights", {"models": 2.0, "conflict": 0.2, "base": 0.3}, path=ruled)
    assert said.predictor == "conflict"


def test_a_rule_that_does_not_help_is_not_used(tmp_path):
    path = tmp_path / "rule.json"
    write_rules(content(analyse(planted("nothing", noise=0.1))), path)
    said = expected("weights", {"models": 2.0, "conflict": 0.2, "cosine": 0.2, "length": 0.2}, path=path)
    assert (
        not said.helps
        and "nothing known from weights" in said.text
        and "measure the merge itself" in said.text
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda said: said.update(version=99), "newer"), (lambda said: said.pop("rules"), "can't be read"),
        (lambda said: said["rules"][0]["rule"].update(predictor="conflit"), "Did you mean: conflict"),
        (lambda said: said["rules"][0]["rule"].pop("slope"), "can't be read"),
    ],
)  # fmt: skip
def test_damaged_rule_files_are_refused(ruled, tmp_path, change, match):
    said = json.loads(ruled.read_text())
    change(said)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(said))
    with pytest.raises(StudyError, match=match):
        read_rules(bad)


def test_absent_rule_files_and_unknown_levels_are_refused(tmp_path):
    with pytest.raises(StudyError, match="There is no rule file"):
        read_rules(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(StudyError, match="can't be read"):
        read_rules(tmp_path / "text.json")
    with pytest.raises(StudyError, match="Did you mean: weights"):
        expected("weight", {"models": 2.0})


def test_the_rules_in_the_package_can_be_read_and_used():
    found = read_rules()
    for level in ("weights", "features", "derivatives"):
        said = expected(level, dict.fromkeys(PREDICTORS, 0.1) | {"models": 2.0})
        assert 0 <= said.value <= 1.2 and said.error > 0
    assert found["cases"] > 100 and len(found["networks"]) >= 3


def trained():
    net, base, models = tuned()
    points = {task: Point.of(model) for task, model in models.items()}
    validation, test = held_out(20, 60), held_out(40, 80)
    sums = geometry(base, list(models.values())).total
    return net, base, points, validation, test, sums


@pytest.fixture(scope="module")
def collected():
    _, base, points, validation, test, sums = trained()
    settings = MergeabilitySettings(features=40, derivatives=10, progress=False)
    return collect(("own", "full"), Point.of(base), points, validation, test, sums, settings)[0]


def test_collected_cases_have_every_figure(collected):
    assert [case.models for case in collected] == [*groups_of(TASKS, (), 1), TASKS]
    for case in collected:
        assert set(case.predictors) == set(PREDICTORS)
        assert all(math.isfinite(value) for value in case.predictors.values())
        assert 0 < case.outcomes["average"] <= 1.1
        assert case.network == "MLP" and case.predictors["models"] == len(case.models)
        assert Case.of(json.loads(json.dumps(case.to_dict()))) == case


def test_figures_of_a_pair_are_those_of_measure_and_predict(collected):
    net, base, points, validation, _, _ = trained()
    case = next(case for case in collected if case.models == ("one", "two"))
    few = [
        replace(held, batches=ms.protocols.subset.subset(held.batches, 40, 0))
        for name, held in validation.items() if name in case.models
    ]  # fmt: skip
    found = ms.measure(base, {name: points[name] for name in case.models}, few).pairs[0]
    gaps = {entry.layer: entry.measures["gap"].mean for entry in found.middle.evidence}
    assert case.predictors["gap_output"] == pytest.approx(gaps.pop("output"), rel=1e-4)
    assert case.predictors["gap_layer"] == pytest.approx(max(gaps.values()), rel=1e-4)
    assert case.predictors["error_barrier"] == pytest.approx(found.barrier.error_barrier, abs=1e-9)
    # Of a pair, the gap of Eq. 1 is that of CTL at one half.
    assert case.predictors["eq1_gap_output"] == pytest.approx(case.predictors["gap_output"], rel=1e-6)


def test_outcomes_are_those_of_evaluating_each_merge(collected):
    net, base, points, validation, test, _ = trained()
    case = next(case for case in collected if case.models == ("one", "three"))
    few = {task: test[task] for task in case.models}
    average = ms.mean([points[task] for task in case.models])
    said = evaluate({task: [points[task], average] for task in few}, few, progress=False)
    want = np.mean([said[task].accuracy(average) / said[task].accuracy(points[task]) for task in few])
    assert case.outcomes["average"] == pytest.approx(want)


def test_coefficients_are_chosen_without_test_data():
    _, base, points, validation, test, _ = trained()
    groups, scales = [("one", "two"), TASKS], (0.5, 1.0, 2.0)
    found = [
        outcomes(Family(Point.of(base), points, validation, data, None, False), groups, scales, 0.2)
        for data in (test, held_out(60, 30))
    ]
    for group in groups:
        assert found[0][group].chosen == found[1][group].chosen
        assert found[0][group].base == found[1][group].base
        assert found[0][group].figures != found[1][group].figures


def test_groups_with_a_model_that_learnt_nothing_are_left_out():
    net, base, points, validation, test, sums = trained()
    state = {key: points["one"].tensor(key) for key in points["one"].spec}
    wrong = [
        (x, (torch.func.functional_call(net, state, (x,)).argmax(1) + 1) % 5) for x, _ in test["one"].batches
    ]
    never = {**test, "one": replace(test["one"], batches=wrong)}
    settings = MergeabilitySettings(features=20, derivatives=0, progress=False)
    found, notes = collect(("own", "full"), Point.of(base), points, validation, never, sums, settings)
    assert [case.models for case in found] == [("two", "three")]
    assert "3 groups are left out" in notes[0] and "(one)" in notes[0]
    assert "predicted_gap_output" not in found[0].predictors


def test_in_a_linearised_network_there_are_no_gaps_to_tell():
    _, base, points, validation, test, sums = trained()
    settings = MergeabilitySettings(linearized=True, sizes=(), progress=False)
    found, notes = collect(("own", "linear"), Point.of(base), points, validation, test, sums, settings)
    assert all(case.linearized and "gap_output" not in case.predictors for case in found)
    assert any("no gaps to tell" in note for note in notes)


def test_weight_figures_of_orthogonal_and_of_equal_task_vectors():
    base = torch.tensor([0.0, 0.0, 2.0, 0.0])
    a, b = base + torch.tensor([1.0, 0, 0, 0]), base + torch.tensor([0, 1.0, 0, 0])
    one = weight_figures(ms.weights.sums.Sums.of(base, [a, b]), [0, 1])
    assert one["kept"] == 0.5 and one["cosine"] == 0 and one["length"] == 0.5
    assert one["apart"] == pytest.approx(math.sqrt(2) / 2) and one["lost"] == pytest.approx(
        math.sqrt(0.5) / 2
    )
    same = weight_figures(ms.weights.sums.Sums.of(base, [a, a.clone()]), [0, 1])
    assert same["kept"] == 1 and same["cosine"] == 1 and same["lost"] == same["apart"] == 0


def test_the_worst_pair_is_the_one_furthest_from_linear():
    pairs = [
        {"cosine": 0.1, "gap_output": 0.3, "baseline_output": 0.9},
        {"cosine": 0.5, "gap_output": 0.1, "baseline_output": 0.6},
    ]
    found = over_pairs(pairs)
    assert found["cosine_worst_pair"] == 0.1 and found["gap_output_worst_pair"] == 0.3
    assert found["baseline_output_worst_pair"] == 0.9  # 1 - cos: the larger, the further apart
    assert not any(name.startswith(("eq1_", "loss_")) for name in candidates("features"))


def test_groups_are_drawn_with_the_seed_and_never_twice():
    found = groups_of(LETTERS, (3, 4, 8), 2, 10, seed=1)
    assert (
        found == groups_of(LETTERS, (3, 4, 8), 2, 10, seed=1) != groups_of(LETTERS, (3, 4, 8), 2, 10, seed=2)
    )
    assert len(set(found)) == len(found) == 15 and tuple(LETTERS) in found
    with pytest.raises(StudyError, match="two models or more"):
        groups_of("a", (), 1)
    with pytest.raises(MergescopeError, match="positive"):
        MergeabilitySettings(scales=(0.0,))


def test_tables_name_every_rule():
    found = analyse(planted())
    lines = table_lines(found)
    assert sum("sign conflict" in line for line in lines) >= 4
    assert asdict(fitted(found.tables["average"], None))["predictor"] is None
