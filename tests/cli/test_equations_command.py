"""``mergescope equations`` as it is typed."""

import json

import pytest
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


def test_results_without_a_measure_are_refused(tmp_path, made):
    from mergescope.reports import build_report
    from mergescope.studies.rundir import write_rows

    out = tmp_path / "run"
    run("--family", made, "--tests", "ctl", "--batch-size", 4, "--out", out)
    write_rows(out / RESULTS, [row for row in read_rows(out / RESULTS) if row.measure != "coef"])
    with pytest.raises(StudyError, match="lacks a row of coef of ctl"):
        build_report(out)
