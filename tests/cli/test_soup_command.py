"""``mergescope soup`` as it is typed."""

import json

import numpy as np
import pytest
import yaml
from given_models import family as given_family
from given_models import labels, save_rows, texts
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.rundir import RESULTS, read_rows


def run(*arguments):
    """In this process; errors of ours come through."""
    words = ["soup", *(str(argument) for argument in arguments)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    given = given_family(folder)
    data = folder / "reviews"
    data.mkdir()
    for split, count, seed in (("validation", 12, 1), ("test", 10, 2)):
        save_rows(data / f"{split}.csv", texts(count, seed=seed), label=labels(count, 2))
    return ["--models", given["a"], given["b"], "--base", given["base"], "--data", f"reviews={data}"]


def test_soups_are_chosen_on_validation_data_and_told_on_test_data(usual):
    text = run(*usual)
    assert all(name in text for name in ("best", "uniform", "greedy", "ensemble", "Greedy: +"))
    found = json.loads(run(*usual, "--json"))
    measures = {row["measure"] for row in found["results"]}
    assert measures == {"validation accuracy", "test accuracy", "taken"}
    counts = {row["measure"]: row["n"] for row in found["results"] if row["points"].startswith("greedy:")}
    assert counts == {"validation accuracy": 12, "test accuracy": 10}


def test_subsets_are_written_to_a_run_directory(usual, tmp_path):
    text = run(*usual, "--size", 2, "--out", tmp_path / "run", "--layers", "output")
    assert "1 subsets of 2" in text
    rows = read_rows(tmp_path / "run" / RESULTS)
    assert {row.kind for row in rows} == {"averaging"} and {row.layer for row in rows} == {"", "output"}
    weights = [row for row in rows if row.measure == "accuracy of averaged weights"]
    assert [row.points for row in weights] == ["a + b"] and np.isfinite(weights[0].mean)
    described = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert described["study"] == "soup" and "test" in described["config"]


def test_a_dry_run_says_what_it_costs_and_runs_nothing(usual, tmp_path):
    plan = json.loads(run(*usual, "--size", 2, "--dry-run", "--json", "--out", tmp_path / "no"))
    found = json.loads(run(*usual, "--size", 2, "--json"))
    assert plan["forward_passes"] == found["cost"]["forward_passes"] and not (tmp_path / "no").exists()
    plan = json.loads(run(*usual, "--dry-run", "--json"))
    assert plan["samples"] == {"test": {"reviews": 10}, "validation": {"reviews": 12}}


def test_so_many_subsets_are_drawn_with_the_seed(tmp_path):
    given = given_family(tmp_path, names=("base", *"abcd"))
    data = save_rows(tmp_path / "reviews.csv", texts(), label=labels(10, 2))
    words = ["--models", *(given[name] for name in "abcd"), "--data", data, "--size", 2, "--layers", "output"]

    def drawn(*more):
        rows = json.loads(run(*words, "--json", *more))["results"]
        return {row["points"] for row in rows if row["measure"] == "accuracy of averaged weights"}

    assert len(drawn()) == 6 and len(drawn("--subset-limit", 3)) == 3
    assert drawn("--subset-limit", 3, "--seed", 1) != drawn("--subset-limit", 3)


def test_splits_may_change_places(usual):
    plan = json.loads(
        run(*usual, "--validation-split", "test", "--split", "validation", "--dry-run", "--json")
    )
    assert plan["samples"] == {"test": {"reviews": 12}, "validation": {"reviews": 10}}


def test_soups_are_not_chosen_on_what_they_are_judged_by(usual):
    with pytest.raises(StudyError, match="the same for reviews"):
        run(*usual, "--validation-split", "test", "--split", "test")


def test_options_of_the_other_kind_are_refused(usual):
    with pytest.raises(MergescopeError, match="leave --validation-split out"):
        run(*usual, "--size", 2, "--validation-split", "train")
    for more in (["--subset-limit", 3], ["--layers", "output"]):
        with pytest.raises(MergescopeError, match="give --size K, too"):
            run(*usual, *more)
