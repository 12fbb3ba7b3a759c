"""``mergescope equations`` as it is typed."""

import json

import pytest
from given_models import family as given_family
from given_models import save_rows, texts
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, read_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family of one regime."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["equations", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


def test_all_tests_are_made_and_kept(tmp_path, made):
    out = tmp_path / "run"
    result = run("--family", made, "--batch-size", 4, "--out", out)
    assert result.exit_code == 0 and "Eq. 2, addition  left + right" in result.stdout
    rows = read_rows(out / RESULTS)
    assert {(row.kind, row.points) for row in rows} == {
        ("ctl", "left + right"), ("eq1", "left + right"), ("eq2", "left + right"), ("eq3", "− left"),
        ("eq3", "− right"),
    }  # fmt: skip
    assert {row.regime for row in rows} == {"full"}
    assert "the mix of features?" in (out / "report.html").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: stitch\n")
    with pytest.raises(StudyError, match="'stitch', which would be lost"):
        run("--family", made, "--out", tmp_path / "other")


def test_json_and_plan_agree_with_what_is_done(made):
    usual = ["--family", made, "--tests", "eq2", "eq3", "--lambda", 0.5, "--batch-size", 4]
    planned = json.loads(run(*usual, "--dry-run", "--json").stdout)
    found = json.loads(run(*usual, "--json").stdout)
    assert planned["forward_passes"] == found["cost"]["forward_passes"] > 0
    assert planned["samples"]["test"] == found["cost"]["samples"]
    assert {(test["kind"], test["parameter"]) for test in found["tests"]} == {("eq2", 0.5), ("eq3", 0.5)}
    assert "points on a data set" in run(*usual, "--dry-run").stdout


def test_options_reach_the_tests(tmp_path):
    given = given_family(tmp_path, names=("base", "a", "b", "c"))
    data = save_rows(tmp_path / "texts.csv", texts())
    usual = ["--base", given["base"], "--models", *(given[name] for name in "abc"), "--data", data, "--json"]

    def found(*more):
        tests = json.loads(run(*usual, "--tests", "ctl", "eq1", *more).stdout)["tests"]
        return {(it["kind"], it["models"], it["parameter"]): it["layers"] for it in tests}

    pairs = ("a + b", "a + c", "b + c")
    plain = found("--layers", "layer.1")
    assert {layer["layer"] for layers in plain.values() for layer in layers} == {"bert.encoder.layer.1"}
    assert {*plain} == {*(("ctl", pair, 0.5) for pair in pairs), ("eq1", "a + b + c", None)}
    more = found("--layers", "layer.1", "--alphas", 0.2, 0.7, "--size", 2, "--features", "cls")
    assert {*more} == {
        *(("ctl", pair, alpha) for pair in pairs for alpha in (0.2, 0.7)), *(("eq1", pair, None) for pair in pairs),
    }  # fmt: skip
    tokens = found("--layers", "layer.1", "--features", "cls")
    assert all(tokens[key] != layers for key, layers in plain.items())


def test_results_without_a_measure_are_refused(tmp_path, made):
    from mergescope.reports import build_report
    from mergescope.studies.rundir import write_rows

    out = tmp_path / "run"
    run("--family", made, "--tests", "ctl", "--batch-size", 4, "--out", out)
    write_rows(out / RESULTS, [row for row in read_rows(out / RESULTS) if row.measure != "coef"])
    with pytest.raises(StudyError, match="lacks a row of coef of ctl"):
        build_report(out)
