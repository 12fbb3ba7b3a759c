"""``mergescope mergeability`` as it is typed, and what it makes other commands say."""

import json
from dataclasses import replace

import pytest
import yaml
from given_models import make, save
from small_families import described, save_task
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.protocols.mergeability import MergeabilitySettings, read_rules
from mergescope.studies import mergeable
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.given import DataOptions
from mergescope.studies.mergeable import find_units
from mergescope.studies.mergeable_results import CASES, RULES, read_cases
from mergescope.studies.rundir import RESULTS, read_rows

NAMES = ("left", "right", "top", "bottom")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family of four tasks in three regimes."""
    folder = tmp_path_factory.mktemp("inputs")
    save(make("BertModel"), folder / "base")
    tasks = {name: str(save_task(folder / name, place, 240, 24)) for place, name in enumerate(NAMES)}
    config = described(folder, tasks=tasks, regimes=["full", "attention", "attention-2"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(command, *arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, [command, *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def quick(made):
    return [
        "--family",
        made,
        "--limit",
        24,
        "--groups",
        1,
        "--scales",
        "1,2",
        "--derivatives",
        4,
        "--batch-size",
        24,
    ]


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, run("mergeability", *quick, "--out", out, "--rules", out.parent / "rules.json")


def test_a_run_keeps_cases_rules_and_a_report(finished):
    out, shown = finished
    assert "Best rule at each level" in shown and str(out / "report.html") in shown.replace("\n", "")
    cases = read_cases(out)
    assert len(cases) == 3 * (6 + 1 + 1)
    assert {case.unit for case in cases} == {
        f"family {label}" for label in ("full", "attention-1", "attention-2")
    }
    assert {case.network for case in cases} == {"Bert"}
    rows = read_rows(out / RESULTS)
    assert {row.kind for row in rows} >= {"predictor", "outcome", "chosen", "related", "rule from weights"}
    told = [row for row in rows if row.kind == "outcome" and row.measure == "average"]
    assert sorted(row.mean for row in told) == sorted(case.outcomes["average"] for case in cases)
    assert read_rules(out / RULES) == read_rules(out.parent / "rules.json")
    page = (out / "report.html").read_text()
    assert "<svg" in page and "left-out tasks" in page and "http" not in page.replace("http://www.w3.org", "")
    assert (out / "figures" / "held-out.svg").is_file()
    config = yaml.safe_load((out / "run.yaml").read_text())["config"]
    assert config["families"] == {"family": ["full", "attention-1", "attention-2"]}


def test_a_killed_run_goes_on_and_nothing_is_collected_twice(quick, finished, tmp_path, monkeypatch):
    out, _ = finished
    real, seen = mergeable.collect, []

    def collect(name, *arguments):
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(name, *arguments)

    monkeypatch.setattr(mergeable, "collect", collect)
    CliRunner().invoke(app, ["mergeability", *map(str, quick), "--out", str(tmp_path / "run")])
    assert len(seen) == 2 and not (tmp_path / "run" / CASES).exists()
    again = run("mergeability", *quick, "--out", tmp_path / "run", "--json")
    assert [name[1] for name in seen] == ["full", "attention-1", "attention-1", "attention-2"]
    assert json.loads((tmp_path / "run" / CASES).read_text()) == json.loads((out / CASES).read_text())
    assert json.loads(again)["cases"] == 24


def test_other_samples_are_collected_anew(quick, finished):
    out, _ = finished
    plan = json.loads(run("mergeability", *quick, "--out", out, "--dry-run", "--json"))
    assert all(line["there"] for line in plan["units"]) and plan["estimated_seconds"] == 0
    changed = ["23" if word == 24 else word for word in quick]
    plan = json.loads(run("mergeability", *changed, "--out", out, "--dry-run", "--json"))
    assert not any(line["there"] for line in plan["units"]) and plan["forward_passes"] > 0


@pytest.mark.parametrize("left", [("attention-1",), ("full", "attention-1")])
def test_cases_of_other_samples_are_never_mixed(left, quick, finished, tmp_path, monkeypatch):
    out, _ = finished
    (tmp_path / "run" / "units").mkdir(parents=True)
    for label in left:  # what a killed run, and one that finished, left of other validation data
        (file,) = (out / "units").glob(f"family-{label}-*.json")
        found = json.loads(file.read_text())
        if label == "attention-1":
            found["data"]["validation"]["top"] = "other"
        (tmp_path / "run" / "units" / file.name).write_text(json.dumps(found))
    real, seen = mergeable.collect, []
    monkeypatch.setattr(mergeable, "collect", lambda name, *more: seen.append(name[1]) or real(name, *more))
    shown = run("mergeability", *quick, "--regime", "full", "attention-1", "--out", tmp_path / "run")
    assert seen == ["full", "attention-1"]
    assert "family attention-1: collected again, since an earlier run read other data" in shown
    expected = [case for case in json.loads((out / CASES).read_text()) if case["regime"] != "attention-2"]
    assert json.loads((tmp_path / "run" / CASES).read_text()) == expected


def test_the_data_that_a_model_was_trained_with_are_in_the_key(made):
    (unit, *_), settings, data = find_units([str(made)]), MergeabilitySettings(), DataOptions(())
    members = tuple(replace(member, key="other") for member in unit.family.members)
    other = replace(unit, family=replace(unit.family, members=members))
    assert unit.key(data, settings) != other.key(data, settings)


def test_pairs_and_their_seed_reach_the_cases(quick, finished):
    out, _ = finished
    plan = json.loads(run("mergeability", *quick, "--pairs", 2, "--dry-run", "--json"))
    assert {line["cases"] for line in plan["units"]} == {2 + 1 + 1}
    plan = json.loads(run("mergeability", *quick, "--seed", 1, "--out", out, "--dry-run", "--json"))
    assert not any(line["there"] for line in plan["units"])


def test_a_plan_is_printed_and_nothing_is_made(quick, tmp_path):
    shown = run("mergeability", *quick, "--dry-run", "--out", tmp_path / "run")
    assert "family full: 8 cases" in shown and "forward passes of a batch" in shown
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_told(made, tmp_path):
    with pytest.raises(StudyError, match="No family has a regime 'ful'. Did you mean: full"):
        run("mergeability", "--family", made, "--regime", "ful")
    plan = run(
        "mergeability", "--family", made, "--regime", "family/full", "attention-2", "--dry-run", "--json"
    )
    assert [line["regime"] for line in json.loads(plan)["units"]] == ["full", "attention-2"]
    with pytest.raises(StudyError, match="is no family"):
        run("mergeability", "--family", tmp_path)
    with pytest.raises(MergescopeError, match="are no numbers"):
        run("mergeability", "--family", made, "--scales", "one")
    with pytest.raises(StudyError, match="has no cases.json"):
        read_cases(tmp_path)
    (tmp_path / CASES).write_text("[{}]")
    with pytest.raises(StudyError, match="lacks family"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("check", ()), ("measure", ("--limit", 6, "--no-local")),
        ("predict", ("--limit", 24, "--batch-size", 12)),
    ],
)  # fmt: skip
def test_other_commands_tell_what_to_expect(made, command, options):
    usual = ["--family", made, "--regime", "full", *options]
    shown = run(command, *usual).replace("\n", " ")
    assert (
        "Expected normalised accuracy of the average: " in shown and "docs/results/mergeability.md" in shown
    )
    said = json.loads(run(command, *usual, "--json"))["expected"]
    assert 0 <= said["value"] <= 1.2 and said["error"] > 0 and said["text"].split(":")[0] in shown


def test_without_two_fine_tunes_of_a_base_nothing_is_expected(made):
    models = [made / "full" / name for name in NAMES[:2]]
    assert json.loads(run("check", *models, "--json"))["expected"] is None
