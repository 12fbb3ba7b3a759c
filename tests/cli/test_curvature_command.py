"""``mergescope curvature`` as it is typed."""

import json

import pytest
from small_families import described, make_inputs
from tunable_bases import animals, hf_resnet
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family in three regimes."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full", "linearized"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["curvature", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture
def usual(made):
    return ["--family", made, "--regime", "full", "--batch-size", 4, "--tolerance", 0.1]


def test_a_family_is_measured_and_kept(tmp_path, usual):
    out = tmp_path / "run"
    result = run(*usual, "--out", out)
    assert result.exit_code == 0 and str(out / "report.html") in result.stdout.replace("\n", "")
    for said in (
        "Largest eigenvalue",
        "Theorem 5.1: the bound holds for",
        "Convention: lambda is the largest",
    ):
        assert said in result.stdout
    table = read_rows(out / RESULTS)
    assert {row.kind for row in table} == {
        "eigenvalue of base", "eigenvalue of fine-tune", "eigenvalue of pair", "along own", "along", "theorem 5.1",
    }  # fmt: skip
    tops = {(row.kind, row.points, row.data) for row in table if row.measure == "eigenvalue"}
    assert tops == {
        *(("eigenvalue of base", "base", data) for data in ("left", "right")),
        *(("eigenvalue of fine-tune", data, data) for data in ("left", "right")),
        *(("eigenvalue of pair", "left + right", data) for data in ("left", "right")),
    }
    record = RunDirectory(out).read_run()
    assert record["study"] == "curvature" and record["config"]["settings"]["at"] == "midpoint"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: digits\n")
    with pytest.raises(StudyError, match="'digits', which would be lost"):
        run(*usual, "--out", tmp_path / "other")


@pytest.mark.parametrize("at", ["midpoint", "base", "line"])
def test_json_and_plan_agree_with_what_is_done(usual, at):
    more = [*usual, "--at", at, "--max-steps", 2]
    planned = json.loads(run(*more, "--dry-run", "--json").stdout)
    found = json.loads(run(*more, "--json").stdout)
    places = {"midpoint": 3, "base": 2, "line": 6}[at]  # the line ends at both models
    assert planned["eigenvalues"] == {"left": places, "right": places}
    assert len(found["eigenvalues"]) == 2 * places and all(it["products"] == 2 for it in found["eigenvalues"])
    batches, directions, runs = 2 * 3, 2 + 1, 2 + 1
    assert planned["products"] == found["cost"]["products"] == batches * (2 * places + directions)
    assert found["cost"]["forward_passes"] == batches * runs
    assert planned["forward_passes"] == batches * runs + 10 * planned["products"]
    assert planned["pairs"] == ["left:right"] and planned["estimated_seconds"] >= 0
    assert [(pair["data"], pair["name"]) for pair in found["pairs"]] == [
        ("left", "left + right"), ("right", "left + right"),
    ]  # fmt: skip
    assert found["cases"] == 2 and found["held"] == sum(pair["holds"] for pair in found["pairs"])
    assert [(entry["task"], entry["data"], entry["own"]) for entry in found["along"]] == [
        ("left", "left", True), ("right", "left", False), ("left", "right", False), ("right", "right", True),
    ]  # fmt: skip


def test_options_reach_the_measurement(usual):
    more = [
        "--pairs",
        "right:left",
        "--alpha",
        0.25,
        "--end",
        "magnitude",
        "--term",
        "midpoint",
        "--limit",
        4,
    ]
    found = json.loads(run(*usual, *more, "--json").stdout)
    assert found["samples"] == {"left": 4, "right": 4}
    assert {pair["name"] for pair in found["pairs"]} == {"right + left"}
    quarter = json.loads(run(*usual, *more[:-2], "--limit", 4, "--alpha", 0.5, "--json").stdout)
    for one, other in zip(found["pairs"], quarter["pairs"], strict=True):
        assert one["distance"] == pytest.approx(other["distance"])
        assert one["bound"] / one["eigenvalue"] == pytest.approx(0.75 * other["bound"] / other["eigenvalue"])
    assert "1 pairs; 6 eigenvalues, of about 10 steps each" in run(*usual, "--dry-run").stdout


def test_a_smaller_tolerance_takes_more_products(usual):
    more = ["--at", "base", "--limit", 4, "--json"]
    counts = [
        json.loads(run(*usual, *more, "--tolerance", it).stdout)["cost"]["products"] for it in (0.5, 1e-6)
    ]
    assert counts[0] < counts[1]


def test_batchnorm_on_batches_is_the_curvature_of_another_loss(tmp_path):
    for seed, name in enumerate(("base", "a", "b")):
        hf_resnet(tmp_path / name, seed)
    data = animals(tmp_path / "animals", rows=1, size=16)
    words = ["--base", tmp_path / "base", "--models", tmp_path / "a", tmp_path / "b", "--data", data]
    more = ["--at", "base", "--max-steps", 1, "--limit", 4]
    assert run(*words, *more).exit_code == 0
    with pytest.raises(MergescopeError, match="batchnorm='batch' gives the curvature of another function"):
        run(*words, *more, "--batchnorm", "batch")


def test_models_that_are_named_one_by_one_share_data_that_are_nobodys(made):
    models = [f"{name}={made / 'full' / name}" for name in ("left", "right")]
    arguments = ["--base", made.parent / "base", "--models", *models, "--batch-size", 4, "--tolerance", 0.1]
    named = [f"{name}={made.parent / name}" for name in ("left", "right")]
    found = json.loads(run(*arguments, "--data", *named, "--max-steps", 2, "--json").stdout)
    assert {entry["data"] for entry in found["eigenvalues"]} == {"left", "right"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pairs", "left"], "'left' is no pair"),
        (["--pairs", "left:middle"], "no task 'middle'"),
        (["--alpha", 1], "not strictly between 0 and 1"),
        (["--at", "middle"], r"at can't be 'middle'"),
        (["--term", "bse"], r"Did you mean: base"),
        (["--end", "smallest"], "an upper end"),
        (["--batchnorm", "train"], "no mode 'train'"),
        (["--regime", "linearized"], r"no second derivatives of its own(.|\n)*--no-linearized"),
        (["--regime", "ful"], "no regime 'ful'"),
    ],
)
def test_mistakes_are_told(usual, more, message):
    with pytest.raises(MergescopeError, match=message):
        run(*usual, *more)


def test_weights_that_were_trained_linearised_are_measured_if_asked_for(usual):
    more = ["--regime", "linearized", "--no-linearized", "--max-steps", 2, "--limit", 4]
    assert json.loads(run(*usual, *more, "--json").stdout)["cases"] == 2
