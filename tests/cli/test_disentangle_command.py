"""``mergescope disentangle`` as it is typed."""

import json

import pytest
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.cli.disentangle import parse_pairs
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.disentangled import GRIDS
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows, read_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family in two regimes."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full", "linearized"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["disentangle", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture
def usual(made):
    return ["--family", made, "--regime", "full", "--preset", "attn", "--points", 3, "--batch-size", 4]


def test_a_family_is_measured_and_kept(tmp_path, usual, made):
    out = tmp_path / "run"
    result = run(*usual, "--out", out)
    assert result.exit_code == 0 and "left + right" in result.stdout and str(out) in result.stdout
    table = read_rows(out / RESULTS)
    assert {row.measure for row in table} == {
        f"{what} of the {where} (predictions)"
        for what in ("mean error", "share below")
        for where in ("square", "box")
    }
    assert {(row.regime, row.kind, row.points) for row in table} == {
        ("full", "disentanglement", "left + right")
    }
    assert {row.forward_passes for row in table} == {2 * 9 * 3}  # 0 is on the grid; 9 samples, batches of 4
    cells = read_table(out / GRIDS)
    assert len(cells) == 9
    assert {(cell["alpha 1"], cell["alpha 2"]) for cell in cells} == {
        (a, b) for a in (-2, 0, 2) for b in (-2, 0, 2)
    }
    assert "Weight disentanglement error" in (out / "report.html").read_text()
    record = RunDirectory(out).read_run()
    assert record["study"] == "disentangle" and record["config"]["settings"]["reach"] == 2.0
    assert set(record["provenance"]["test"]["models"]) == {"base", "left", "right"}
    again = run(*usual, "--out", out)  # results are replaced
    assert again.exit_code == 0 and read_table(out / GRIDS) == cells
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: digits\n")
    with pytest.raises(StudyError, match="'digits', which would be lost"):
        run(*usual, "--out", tmp_path / "other")


def test_json_and_plan_agree_with_what_is_done(made, usual):
    for more in (["--regime", "full"], ["--regime", "linearized"]):
        planned = json.loads(run(*usual, *more, "--dry-run", "--json").stdout)
        found = json.loads(run(*usual, *more, "--json").stdout)
        assert planned["forward_passes"] == found["cost"]["forward_passes"]
        assert planned["samples"] == {"test": {"left": 9, "right": 9}} and planned["estimated_seconds"] >= 0
        assert planned["linearized"] == found["linearized"] == (more[1] == "linearized")
        (pair,) = found["pairs"]
        assert pair["tasks"] == ["left", "right"] and pair["error"][1][1] == 0
        assert pair["coefficients"] == [-2, 0, 2]
    # Three checkpoints serve the grid.
    assert planned["forward_passes"] == 2 * 3 * 3
    text = run(*usual, "--dry-run").stdout
    assert "1 pairs of tasks in the network" in text and "54 forward passes" in text


def test_options_reach_the_measurement(usual):
    more = ["--pairs", "right:left", "--distance", "kl", "--layer", "backbone", "--features", "mean", "--reach", 1,
            "--box", 0, 0.5, "--threshold", 5, "--limit", 4, "--linearized"]  # fmt: skip
    found = json.loads(run(*usual, *more, "--json").stdout)
    (pair,) = found["pairs"]
    assert pair["tasks"] == ["right", "left"] and pair["samples"] == [4, 4]
    assert pair["coefficients"] == [-1, 0, 1] and found["box"] == [0, 0.5] and found["linearized"]
    assert (found["distance"], found["layer"], found["threshold"]) == ("kl", "backbone", 5)
    assert pair["summaries"]["share below of the square"]["mean"] == 1
    assert pair["summaries"]["mean error of the box"]["mean"] == 0  # the one point in it is the base
    assert any("post-hoc" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "tangents"], "Did you mean: tangent"),
        (["--pairs", "left"], "'left' is no pair"),
        (["--pairs", "left:middle"], "no task 'middle'"),
        (["--box", 1], "two ends"),
        (["--box", 1, 0], "two ends"),
        (["--distance", "l2"], "no distance"),
        (["--reach", -1], "reach above 0"),
        (["--regime", "ful"], "no regime 'ful'"),
    ],
)
def test_mistakes_are_told(usual, more, message):
    with pytest.raises(MergescopeError, match=message):
        run(*usual, *more)


def test_pairs_as_they_are_typed():
    assert parse_pairs(None) is parse_pairs([]) is None
    for text in ("a", ":b", "a:"):
        with pytest.raises(MergescopeError, match="Name two with a colon"):
            parse_pairs([text])
