"""``mergescope geometry --by-regime`` as it is typed."""

import json

import pytest
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.rundir import read_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family in two regimes."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full", "attention-1"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["geometry", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_regimes_are_compared(made, tmp_path):
    shown = run("--family", made, "--by-regime", "--out", tmp_path)
    lines = [line.split() for line in shown.splitlines()]
    (full,), (attention,) = (
        [line for line in lines if line[:1] == [name]] for name in ("full", "attention-1")
    )
    table = read_table(tmp_path / "geometry.parquet")
    (cosine,) = [
        row["value"]
        for row in table
        if (row["regime"], row["scope"], row["measure"]) == ("full", "model", "cos")
    ]
    assert full[3:6] == [f"{cosine:.3f}"] * 3  # one pair: mean, smallest, largest
    assert float(attention[2].rstrip("%")) > float(full[2].rstrip("%"))  # more is left unchanged
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"regimes.svg", "regimes.png"}
    alone = json.loads(run("--family", made, "--regime", "attention-1", "--json"))
    together = [row for row in json.loads(run("--family", made, "--by-regime", "--json"))]
    assert [{**row, "regime": "attention-1"} for row in alone] == [
        row for row in together if row["regime"] == "attention-1"
    ]


def test_by_regime_takes_a_family_and_no_regime(made):
    with pytest.raises(MergescopeError, match="give --family DIR, and no --regime"):
        run("--family", made, "--regime", "full", "--by-regime")
    with pytest.raises(MergescopeError, match="give --family DIR, and no --regime"):
        run("a", "b", "--base", "base", "--by-regime")
