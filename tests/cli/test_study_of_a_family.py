"""``mergescope study run NAME --family DIR``: the studies that are a command on somebody's family."""

import pytest
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies import STUDIES
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows

OF_FAMILIES = [study for study in STUDIES if study.command]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family of one regime."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"), sure=True)
    config = described(folder, regimes=["full"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["study", "run", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("study", OF_FAMILIES, ids=lambda study: study.name)
def test_every_study_and_preset_is_a_command_that_runs(made, study):
    if study.name == "averaging":  # of three models, and with heads of one label space
        with pytest.raises(MergescopeError, match="2 models have no subsets of 3"):
            run("averaging", "--family", made, "--out", made.parent / "never")
        return
    for preset in study.presets:
        shown = run(study.name, "--family", made, "--preset", preset, "--dry-run")
        assert shown.startswith(f"mergescope {study.command[0]} ")
        assert study.name == "geometry" or "forward passes of a batch" in shown


def test_a_run_is_the_commands_run(made, tmp_path):
    shown = run(
        "addition", "--family", made, "--regime", "full", "--preset", "quick", "--out", tmp_path / "run"
    )
    assert "Addition: lambda" in shown and str(tmp_path / "run" / "report.html") in shown.replace("\n", "")
    assert RunDirectory(tmp_path / "run").read_run()["study"] == "search"
    assert {row.kind for row in read_rows(tmp_path / "run" / RESULTS)} == {"addition", "lambda-search"}
    run("geometry", "--family", made, "--out", tmp_path / "geometry")
    assert (tmp_path / "geometry" / "geometry.parquet").is_file()


def test_what_does_not_go_together_is_told(made):
    with pytest.raises(StudyError, match="give --family DIR"):
        run("addition")
    with pytest.raises(StudyError, match="makes its own models: leave --family"):
        run("digits", "--family", made)
    with pytest.raises(StudyError, match="leave --data, --tasks and --workers out"):
        run("addition", "--family", made, "--workers", 2)
    for name in ("digits", "ctl-fig7", "addition"):
        with pytest.raises(MergescopeError, match="--regime full chooses models of a family"):
            run(name, "--regime", "full")
    with pytest.raises(StudyError, match="leave --data and --tasks out"):
        run("ctl-fig7", "--data", "x")
    with pytest.raises(StudyError, match="trained already: leave --train-steps out"):
        run("ctl-fig7", "--family", made, "--train-steps", 2)
    with pytest.raises(StudyError, match=r"no preset 'quik'\. Did you mean: quick"):
        run("addition", "--family", made, "--preset", "quik")
