"""``mergescope stitch`` as it is typed."""

import json

import pytest
from given_models import family as given_family
from given_models import labels, save_rows, texts
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import LayerError, MergescopeError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family of one regime."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["stitch", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture
def usual(made):
    return ["--family", made, "--lambdas", 0.2, 0.4, "--batch-size", 4]


def test_addition_is_stitched_and_kept(tmp_path, usual):
    out = tmp_path / "run"
    result = run(*usual, "--out", out)
    assert result.exit_code == 0 and "left + right on left" in result.stdout and str(out) in result.stdout
    table = read_rows(out / RESULTS)
    assert {(row.regime, row.kind) for row in table} == {
        ("full", kind)
        for kind in ("accuracy", "stitch-addition", "stitch-addition-single", "stitch-addition-whole")
    }
    mixed = [row for row in table if row.kind == "stitch-addition"]
    assert len(mixed) == 2 * 2 * 2 * 3  # data, measures, coefficients, blocks
    assert {row.layer.rpartition(".")[2] for row in mixed} == {"0", "1", "2"}
    assert "Stitched addition" in (out / "report.html").read_text()
    record = RunDirectory(out).read_run()
    assert record["study"] == "stitch" and record["config"]["settings"]["lams"] == [0.2, 0.4]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: disentangle\n")
    with pytest.raises(StudyError, match="'disentangle', which would be lost"):
        run(*usual, "--out", tmp_path / "other")


@pytest.mark.parametrize("more", [[], ["--negate"]])
def test_json_and_plan_agree_with_what_is_done(usual, more):
    planned = json.loads(run(*usual, *more, "--dry-run", "--json").stdout)
    found = json.loads(run(*usual, *more, "--json").stdout)
    assert found["protocol"] == ("negation" if more else "addition") and found["regime"] == "full"
    for name in ("forward_passes", "rest_passes"):
        assert planned[name] == found["cost"][name] > 0
    assert planned["samples"]["test"] == found["cost"]["samples"] == {"left": 9, "right": 9}
    assert planned["equivalent_passes"] < planned["forward_passes"] + planned["rest_passes"]
    assert f"{planned['rest_passes']} of what follows a block" in run(*usual, *more, "--dry-run").stdout


def test_negation_is_measured_on_the_other_tasks_as_well(usual):
    found = json.loads(run(*usual, "--negate", "--limit", 4, "--layers", "encoder.layer.1", "--json").stdout)
    assert {(score["points"], score["data"]) for score in found["scores"]} == {
        (f"- {task}", data) for task in ("left", "right") for data in ("left", "right")
    }
    assert found["layers"]["left"] == ["backbone.encoder.layer.1"]
    assert {score["accuracy"]["n"] for score in found["scores"]} == {4}
    table = run(*usual, "--negate").stdout
    assert "- left on right" in table and "- right" in table


def test_data_of_another_name_than_the_only_task_are_controls(tmp_path):
    given = given_family(tmp_path, names=("base", "a"))
    data = [
        f"{name}={save_rows(tmp_path / f'{name}.csv', texts(seed=seed), label=labels(10, 2, seed))}"
        for seed, name in enumerate(("a", "control"))
    ]
    usual = ["--base", given["base"], "--models", given["a"], "--data", *data, "--negate", "--lambdas", 0.4]
    found = json.loads(run(*usual, "--json").stdout)
    assert {(score["points"], score["data"]) for score in found["scores"]} == {
        ("- a", data) for data in ("a", "control")
    }
    planned = json.loads(run(*usual, "--dry-run", "--json").stdout)
    assert planned["rest_passes"] == found["cost"]["rest_passes"]


def test_pairs_are_added_as_they_are_named(usual):
    found = json.loads(run(*usual, "--pairs", "right:left", "--json").stdout)
    assert {score["points"] for score in found["scores"] if score["kind"] == "mixed"} == {"right + left"}


def test_mistakes_are_told(usual):
    with pytest.raises(MergescopeError, match="leave --pairs left:right out"):
        run(*usual, "--negate", "--pairs", "left:right")
    with pytest.raises(MergescopeError, match="no task 'middle'"):
        run(*usual, "--pairs", "left:middle")
    with pytest.raises(LayerError, match="matches no module"):
        run(*usual, "--layers", "blocks.*")
    with pytest.raises(StudyError, match="no regime 'attention'"):
        run(*usual, "--regime", "attention")
