"""``mergescope theorems`` as it is typed."""

import json

import pytest
from small_families import described, make_inputs, save_task
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows

TASKS = ("left", "right", "third")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family of three tasks in two regimes."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    save_task(folder / "third", 2)
    tasks = {name: str(folder / name) for name in TASKS}
    config = described(folder, regimes=["full", "linearized"], tasks=tasks)
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["theorems", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture
def usual(made):
    return ["--family", made, "--regime", "full", "--batch-size", 4]


def test_a_family_is_checked_and_kept(tmp_path, usual):
    out = tmp_path / "run"
    result = run(*usual, "--out", out)
    assert result.exit_code == 0 and str(out / "report.html") in result.stdout.replace("\n", "")
    table = read_rows(out / RESULTS)
    assert {row.kind for row in table} == {
        "theorem 3.3", "theorem 4.2", "theorem 4.3", "transitivity", "tally",
    }  # fmt: skip
    for name in ("Theorem 3.3", "Theorem 4.2", "Theorem 4.3 at 0.167", "Theorem 4.3 at 0.4", "Transitivity"):
        said = next(line for line in result.stdout.splitlines() if line.startswith(f"{name}: the premises"))
        rows = {row.measure: row for row in table if row.kind == "tally" and row.points == name}
        assert f"hold in {rows['premise holds'].mean:.0f} of {rows['premise holds'].n} cases" in said
    record = RunDirectory(out).read_run()
    assert record["study"] == "theorems" and set(record["provenance"]["test"]["models"]) == {"base", *TASKS}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: digits\n")
    with pytest.raises(StudyError, match="'digits', which would be lost"):
        run(*usual, "--out", tmp_path / "other")


@pytest.mark.parametrize("regime", ["full", "linearized"])
def test_json_and_plan_agree_with_what_is_done(usual, regime):
    more = [*usual, "--regime", regime]
    planned = json.loads(run(*more, "--dry-run", "--json").stdout)
    found = json.loads(run(*more, "--json").stdout)
    linear = regime == "linearized"
    assert planned["linearized"] == found["linearized"] == linear
    # 3.3: three models and two midpoints; pairs: three and three; 4.2: one mean more; 4.3: the base besides, twice.
    each = 3 + 1 + 4 * 4 if linear else 5 + 6 + 7 + 2 * 8
    assert planned["forward_passes"] == found["cost"]["forward_passes"] == each * 9
    assert planned["coefficients"] == pytest.approx([1 / 6, 0.4])
    counts = {count["theorem"]: count for count in found["counts"]}
    layers = 4  # three blocks and the output
    assert counts["Theorem 3.3"]["cases"] == 6 and counts["Theorem 4.2"]["cases"] == 3 * layers
    assert counts["Transitivity"]["cases"] == 3 * 3 * layers
    for count in counts.values():
        assert count["proved"] == count["provable"]
        if (
            linear and count["theorem"] != "Theorem 3.3"
        ):  # all is affine: every premise holds, and every conclusion
            assert count["both"] == count["cases"] == count["premises"]
    assert {entry["data"] for entry in found["gaps"]} == set(TASKS)


def test_thresholds_and_coefficients_reach_the_counts(usual):
    def counts(*more):
        found = json.loads(run(*usual, *more, "--json").stdout)
        return {count["theorem"]: count for count in found["counts"]}

    strict = counts(
        "--gap", 1e-9, "--loss", 1e-9, "--coefficients", 0.1, "--layers", "layer.1", "--pairs", "left:third"
    )
    loose = counts(
        "--gap", 99, "--loss", 99, "--coefficients", 0.1, "--layers", "layer.1", "--pairs", "left:third"
    )
    assert list(strict) == ["Theorem 3.3", "Theorem 4.2", "Theorem 4.3 at 0.1", "Transitivity"] == list(loose)
    assert strict["Theorem 3.3"]["cases"] == 2
    for name in ("Theorem 4.2", "Theorem 4.3 at 0.1", "Transitivity"):
        assert strict[name]["premises"] == strict[name]["conclusions"] == 0 < strict[name]["cases"]
        assert loose[name]["both"] == loose[name]["cases"]
    assert "coefficients of Theorem 4.3: 0.167, 0.4" in run(*usual, "--dry-run").stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pairs", "left"], "'left' is no pair"),
        (["--pairs", "left:middle"], "no task 'middle'"),
        (["--gap", 0], "makes no threshold"),
        (["--coefficients", 0], "coefficient of 0"),
        (["--layers", "nothing"], "matches no module"),
        (["--regime", "ful"], "no regime 'ful'"),
    ],
)
def test_mistakes_are_told(usual, more, message):
    with pytest.raises(MergescopeError, match=message):
        run(*usual, *more)
