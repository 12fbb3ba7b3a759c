"""``mergescope evaluate`` as it is typed."""

import json

import pytest
import yaml
from given_models import family as given_family
from given_models import labels, save_rows, texts
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import CheckpointError, MergescopeError, PointError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, read_rows


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*arguments):
    return json.loads(run("evaluate", *arguments, "--json"))


def accuracies(found):
    return {
        (row["points"], row["data"]): row["mean"] for row in found["results"] if row["measure"] == "accuracy"
    }


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    make_inputs(folder, sure=True)
    inputs = described(folder, regimes=["full", "linearized"])
    return plan_family(read_family_config(inputs), folder / "made").run(progress=False, device="cpu").path


@pytest.fixture(scope="module")
def merged(family, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "ties"
    run(
        "merge",
        "--family",
        family,
        "--regime",
        "full",
        "--method",
        "ties",
        "--parameter",
        "density=0.5",
        "--out",
        out,
    )
    return out


def test_a_familys_models_score_what_fine_tuning_measured(family):
    found = accuracies(told("--family", family, "--regime", "full"))
    models = yaml.safe_load((family / "family.yaml").read_text())["models"]
    for model in models[:2]:
        assert found[model["task"], model["task"]] == pytest.approx(model["results"]["test"]["accuracy"])
    assert {name for name, _ in found} == {"base", "left", "right", "average"}


def test_points_and_merged_directories_are_further_lines(family, merged, tmp_path):
    points = ["--points", "base + 0.5*sum", "mean", f"ties={merged}", "half=0.5*left + 0.5*right"]
    found = accuracies(told("--family", family, "--regime", "full", *points))
    for name in ("base + 0.5*sum", "mean", "half"):  # three ways to write the average
        assert [found[name, task] for task in ("left", "right")] == [
            found["average", task] for task in ("left", "right")
        ]
    shown = run("evaluate", "--family", family, "--regime", "full", *points, "--out", tmp_path / "run")
    lines = [line.split() for line in shown.splitlines()]
    assert ["ties", *(f"{found['ties', task]:.4f}" for task in ("left", "right"))] in [
        line[:3] for line in lines
    ]
    rows = read_rows(tmp_path / "run" / RESULTS)
    assert {row.points for row in rows} == {name for name, _ in found} and rows[0].regime == "full"
    assert {row.measure for row in rows} == {"accuracy", "loss", "mean accuracy", "normalised accuracy"}
    about = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert about["study"] == "evaluate" and about["provenance"]["test"]["data"]["left"]["samples"] == 9
    assert about["provenance"]["says"].splitlines()[0] == "Accuracy"


def test_a_merged_directory_scores_as_the_same_merge_in_memory(family, merged):
    usual = ["--family", family, "--regime", "full"]
    found = accuracies(told(*usual, "--points", f"mine={merged}", f"again={family / 'full' / 'left'}"))
    searched = json.loads(run("search", *usual, "--methods", "ties:density=0.5", "--grid", 0, 1, "--json"))
    for task in ("left", "right"):
        assert found["mine", task] == accuracies(searched)["ties (density 0.5), lambda 1", task]
        assert found["again", task] == found["left", task]


def test_the_plan_says_what_will_be_run(family):
    wanted = ["--family", family, "--regime", "full", "--points", "base + 0.3*sum", "--batch-size", 4]
    plan = told(*wanted, "--dry-run")
    assert plan.pop("estimated_seconds") >= 0
    assert plan == {
        "points": ["base", "left", "right", "average", "base + 0.3*sum"], "samples": {"test": {"left": 9, "right": 9}},
        "forward_passes": 5 * 3 * 2,
    }  # fmt: skip
    assert told(*wanted)["cost"]["forward_passes"] == plan["forward_passes"]
    assert "5 points: base; left; right" in run("evaluate", *wanted, "--dry-run")
    linear = ["--family", family, "--regime", "linearized", "--points", "base + 0.3*sum"]
    assert told(*linear, "--dry-run")["forward_passes"] == told(*linear)["cost"]["forward_passes"] == 3 * 2
    assert told(*linear)["linearized"] and not told(*linear, "--no-linearized")["linearized"]


def test_models_and_data_may_be_named_one_by_one(tmp_path):
    given = given_family(tmp_path)
    data = save_rows(tmp_path / "reviews.csv", texts(), label=labels(10, 2))
    usual = ["--base", given["base"], "--models", given["a"], given["b"], "--data", data]
    found = told(*usual)
    assert {name for name, _ in accuracies(found)} == {"base", "a", "b", "average"}
    assert not [
        row for row in found["results"] if row["measure"] == "normalised accuracy"
    ]  # whose task is it?
    assert "normalised" in run("evaluate", *usual).splitlines()[1]
    few = told(*usual, "--limit", 4)
    assert {row["n"] for row in few["results"]} == {4}


def test_all_data_of_the_only_fine_tune_are_evaluated(tmp_path):
    given = given_family(tmp_path, names=("base", "a"))
    data = [
        f"{name}={save_rows(tmp_path / f'{name}.csv', texts(seed=seed), label=labels(10, 2, seed))}"
        for seed, name in enumerate("xy")
    ]
    usual = ["--base", given["base"], "--models", given["a"], "--data"]
    found, alone = told(*usual, *data), accuracies(told(*usual, data[1]))
    assert set(accuracies(found)) == {(point, name) for point in ("base", "a") for name in "xy"}
    assert accuracies(found)["a", "y"] == alone["a", "a"]
    assert not [row for row in found["results"] if row["measure"] == "normalised accuracy"]


def test_the_names_of_base_and_average_are_taken(family, tmp_path):
    given = given_family(tmp_path)
    data = save_rows(tmp_path / "reviews.csv", texts(), label=labels(10, 2))
    usual = ["--base", f"start={given['base']}", "--data", data, "--models"]
    full = ["--family", family, "--regime", "full", "--points"]
    reserved = {"base": "the pretrained model", "average": "the uniform average of all fine-tunes"}
    for name, what in reserved.items():
        taken = f"'{name}' is what {what} is called here, so none of "
        with pytest.raises(PointError, match=f"{taken}--models"):
            told(*usual, f"{name}={given['a']}", given["b"])
        with pytest.raises(PointError, match=f"{taken}--points"):
            told(*full, f"{name}={family / 'full' / 'left'}", "--dry-run")
    told(*full, "base", "--dry-run")  # the same point under its own name


def test_what_can_not_be_evaluated(family, tmp_path):
    usual = ["--family", family, "--regime", "full"]
    with pytest.raises(PointError, match="its coefficients sum to 0.3, not 1"):
        told(*usual, "--points", "0.3*left")
    with pytest.raises(
        PointError, match=r"there is no model 'lft', and no such directory\. Did you mean: left"
    ):
        told(*usual, "--points", "0.5*lft + 0.5*right")
    with pytest.raises(PointError, match="Two points are called 'left'"):
        told(*usual, "--points", f"left={family / 'full' / 'right'}")
    with pytest.raises(CheckpointError):
        told(*usual, "--points", f"empty={tmp_path}")
    with pytest.raises(MergescopeError, match="--family DIR"):
        told("--regime", "full")
    (tmp_path / "run.yaml").write_text("study: measure\n")
    with pytest.raises(StudyError, match="holds the results of the study 'measure'"):
        told(*usual, "--out", tmp_path)
