"""``mergescope predict`` as it is typed."""

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
from mergescope.studies.predicted import SURFACES
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows, read_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family in three regimes."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    config = described(folder, regimes=["full", "attention", "linearized"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture
def usual(made):
    return ["--family", made, "--regime", "full", "--batch-size", 4]


def test_a_family_is_predicted_and_kept(tmp_path, usual):
    out = tmp_path / "run"
    result = run(*usual, "--measure", "--out", out)
    assert result.exit_code == 0 and str(out) in result.stdout
    for said in ("left + right", "third order takes over", "Best predicted coefficient"):
        assert said in result.stdout
    table = read_rows(out / RESULTS)
    assert {row.kind for row in table} == {
        "interaction", "prediction", "predicted", "measured", "surface",
        *(f"{how}-{kind}" for how in ("predicted", "measured") for kind in ("ctl", "eq2", "eq3")),
    }  # fmt: skip
    assert {row.regime for row in table} == {"full"}
    gaps = {
        (row.kind, row.layer): row.mean for row in table if row.measure == "gap" and row.kind.endswith("-ctl")
    }
    layers = {layer for _, layer in gaps}
    assert "output" in layers and len(layers) == 4
    figures = {(row.measure, row.layer): row.mean for row in table if row.kind == "prediction"}
    for layer in layers:  # deeper layers are further from quadratic, but gaps keep their order
        assert gaps["predicted-ctl", layer] == pytest.approx(gaps["measured-ctl", layer], rel=0.3)
        assert figures["r2", layer] > 0.98 and figures["takes over", layer] > 2
    assert figures["slope", min(layers)] == pytest.approx(1, abs=0.05)
    cells = read_table(out / SURFACES)
    assert len(cells) == 21 * 21 + 10 and {cell["pair"] for cell in cells} == {"left + right"}
    assert (out / "report.html").is_file() and (out / "figures" / "surfaces.png").is_file()
    record = RunDirectory(out).read_run()
    assert record["study"] == "predict" and record["config"]["settings"]["measured"] is True
    assert set(record["provenance"]["test"]["models"]) == {"base", "left", "right"}
    again = run(*usual, "--out", out)  # results are replaced
    assert again.exit_code == 0 and {row.kind for row in read_rows(out / RESULTS)}.isdisjoint({"measured"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("study: digits\n")
    with pytest.raises(StudyError, match="'digits', which would be lost"):
        run(*usual, "--out", tmp_path / "other")


@pytest.mark.parametrize(
    "more", [[], ["--measure"], ["--method", "differences"], ["--regime", "attention-1"]]
)
def test_json_and_plan_agree_with_what_is_done(usual, more):
    planned = json.loads(run(*usual, *more, "--dry-run", "--json").stdout)
    found = json.loads(run(*usual, *more, "--json").stdout)
    assert (
        planned["derivatives"] == found["cost"]["derivatives"] == (0 if "differences" in more else 2 * 3 * 3)
    )
    assert planned["forward_passes"] == found["cost"]["forward_passes"] + 7 * planned["derivatives"]
    assert planned["samples"] == {"test": {"left": 9, "right": 9}} and planned["estimated_seconds"] >= 0
    assert planned["pairs"] == ["left:right"]
    assert [(test["kind"], test["models"]) for test in found["tests"]] == [
        ("ctl", "left + right"), ("eq2", "left + right"), ("eq3", "left"), ("eq3", "right"),
    ]  # fmt: skip
    assert len(found["outcomes"]) == 21 and 0 <= found["best"] <= 1
    (square,) = found["surfaces"]
    assert square["tasks"] == ["left", "right"] and len(square["normalised"]) == 21
    compared = "--measure" in more
    assert bool(found["agreement"]) == compared
    for test in found["tests"]:
        for layer in test["layers"]:
            assert layer["predicted"]["gap"]["n"] == 18 if test["kind"] in ("ctl", "eq2") else 9
            assert (layer["measured"] is not None) == (layer["gap_error"] is not None) == compared
    assert (sum(outcome["measured"] is not None for outcome in found["outcomes"]) == 4) == compared


def test_options_reach_the_prediction(usual):
    more = [
        "--pairs",
        "right:left",
        "--alphas",
        0.2,
        0.7,
        "--lambdas",
        0.3,
        "--layers",
        "layer.1",
        "--limit",
        4,
    ]
    found = json.loads(run(*usual, *more, "--json").stdout)
    assert [(test["kind"], test["models"], test["coefficient"]) for test in found["tests"]] == [
        ("ctl", "right + left", 0.2), ("ctl", "right + left", 0.7), ("eq2", "right + left", 0.3),
        ("eq3", "left", 0.3), ("eq3", "right", 0.3),
    ]  # fmt: skip
    layers = [layer["layer"] for layer in found["tests"][0]["layers"]]
    assert len(layers) == 2 and layers[0].endswith("layer.1") and layers[1] == "output"
    assert found["samples"] == {"left": 4, "right": 4}
    few = json.loads(run(*usual, "--measure", "--checked", 0.1, 0.9, "--limit", 4, "--json").stdout)
    assert [it["coefficient"] for it in few["outcomes"] if it["measured"]] == [0.1, 0.9]
    tokens = json.loads(run(*usual, *more, "--features", "cls", "--json").stdout)
    gaps = [it["tests"][0]["layers"][0]["predicted"]["gap"]["mean"] for it in (found, tokens)]
    assert gaps[0] != gaps[1]
    text = run(*usual, "--dry-run").stdout
    assert "1 pairs; 18 second derivatives of a batch; 1 models are run as well" in text


def test_a_family_that_was_trained_linearised_is_predicted_if_asked_for(usual):
    with pytest.raises(MergescopeError, match=r"nothing to predict\.(.|\n)*--no-linearized"):
        run(*usual, "--regime", "linearized")
    found = json.loads(run(*usual, "--regime", "linearized", "--no-linearized", "--json").stdout)
    assert found["tests"][0]["layers"][-1]["predicted"]["gap"]["mean"] > 0


def test_llamas_are_predicted_exactly(tmp_path):
    # silu's derivative has no derivative of its own in forward mode: it is written out.
    given = given_family(tmp_path, kind="LlamaForCausalLM", change=0.02)
    rows = save_rows(tmp_path / "texts" / "test.csv", texts(6))
    words = ["--base", given["base"], "--models", given["a"], given["b"], "--data", rows.parent, "--limit", 6]
    found = json.loads(run(*words, "--measure", "--json").stdout)
    assert found["cost"]["derivatives"] == 3  # of one batch, none of them by differences
    (ctl,) = [test for test in found["tests"] if test["kind"] == "ctl"]
    for layer in ctl["layers"]:
        if not layer["trivial"]:
            gaps = [layer[of]["gap"]["mean"] for of in ("predicted", "measured")]
            assert gaps[0] == pytest.approx(gaps[1], rel=0.3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pairs", "left"], "'left' is no pair"),
        (["--pairs", "left:middle"], "no task 'middle'"),
        (["--alphas", 1], "between 0 and 1"),
        (["--method", "jpv"], "no way 'jpv'"),
        (["--regime", "ful"], "no regime 'ful'"),
        (["--layers", "nothing"], "matches no module"),
    ],
)
def test_mistakes_are_told(usual, more, message):
    with pytest.raises(MergescopeError, match=message):
        run(*usual, *more)
