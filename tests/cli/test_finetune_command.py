"""``mergescope finetune`` as it is typed, and ``--family`` of the commands that take what it made."""

import json
import shutil

import pytest
import yaml
from entered import entered
from small_families import contents, described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, MismatchError, StudyError
from mergescope.progress import progress_bar
from mergescope.weights import Checkpoint


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def usual(inputs):
    return [
        "finetune", "--base", inputs / "base", "--data", inputs / "left", f"other={inputs / 'right'}",
        "--regime", "full", "attention", "--epochs", 1, "--batch", 8, "--lr", "1e-3", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(usual, tmp_path_factory):
    """The directory, and what was printed."""
    out = tmp_path_factory.mktemp("made") / "family"
    return out, run(*usual, "--out", out).stdout


def test_one_command_makes_a_family_and_says_what_is_next(made):
    out, said = made
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["accuracy"] == ["full", "attention-1"] and set(rows) >= {"left", "other", "seconds"}
    models = yaml.safe_load((out / "family.yaml").read_text())["models"]
    assert [model["path"] for model in models] == [
        "full/left", "full/other", "attention-1/left", "attention-1/other",
    ]  # fmt: skip
    assert float(rows["left"][0]) == pytest.approx(models[0]["results"]["test"]["accuracy"], abs=5e-4)
    assert float(rows["other"][1]) == pytest.approx(models[3]["results"]["test"]["accuracy"], abs=5e-4)
    assert f"Next: mergescope measure --family {out} --regime full" in said.replace("\n", "")


def test_the_same_command_again_changes_nothing(usual, made):
    before = contents(made[0])
    found = json.loads(run(*usual, "--out", made[0], "--json").stdout)
    assert found == yaml.safe_load((made[0] / "family.yaml").read_text()) | {"base": found["base"]}
    assert contents(made[0]) == before


def test_a_dry_run_prints_what_trains_and_writes_nothing(usual, tmp_path):
    said = run(*usual, "--out", tmp_path / "family", "--dry-run", "--lora-rank", 2, "--regime", "lora").stdout
    told = " ".join(said.split())
    assert "6 of 6 models to train from base" in told and "attention-1 trains 3,123 of 7,419 weights" in told
    assert "encoder.layer.*.attention.self.query.lora_A.weight 2 x 16 3 96" in told and "lr 0.001" in told
    found = json.loads(run(*usual, "--out", tmp_path / "family", "--dry-run", "--json").stdout)
    assert [model["steps"] for model in found["models"]] == [3] * 4 and list(found["trains"]) == [
        "full",
        "attention-1",
    ]
    assert not list(tmp_path.iterdir())


def test_a_file_says_the_same_as_the_command_line(inputs, made, tmp_path):
    tasks = {"left": str(inputs / "left"), "other": str(inputs / "right")}
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(described(inputs, tasks=tasks)))
    before = contents(made[0])
    run("finetune", tmp_path / "family.yaml", "--out", made[0], "--device", "cpu")
    assert contents(made[0]) == before
    with pytest.raises(MergescopeError, match="put --lr, --seed there"):
        run("finetune", tmp_path / "family.yaml", "--out", made[0], "--lr", 1, "--seed", 2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora-rank", 4], "--lora-rank: none of the regimes full, attention takes it"),
        (["--regime", "full"], "Two regimes are called 'full'"),
        (["--preset", "clp"], "Did you mean: clip?"),
        (["--lr", -1], "lr=-1.0"),
        (["--device", "cuda:7"], "no device 'cuda:7'"),
        (["--head", "forzen-random"], "Did you mean: frozen-random?"),
        (["--label-column", "lable"], "Did you mean: label?"),
        (["--paradigm", 7], "no regime 'attention-7'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(usual, tmp_path, more, said):
    with pytest.raises(MergescopeError) as caught:
        run(*usual, "--out", tmp_path / "family", *more)
    assert said in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_missing_is_named(usual):
    with pytest.raises(MergescopeError, match="Give --out DIR"):
        run(*usual)
    with pytest.raises(MergescopeError, match="--data, --regime missing"):
        run("finetune", "--base", "x", "--out", "y")


def test_mistakes_exit_with_2_and_no_traceback(usual, made):
    before = contents(made[0])
    arguments = [*usual, "--out", made[0], "--weight-decay", 0.5]
    done = entered(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    assert "recipe.weight_decay: 0.01, now 0.5 (full/left, " in done.stderr and contents(made[0]) == before


def test_every_field_of_the_recipe_and_of_the_data_reaches_the_plan(usual, inputs, tmp_path):
    options = {
        "--optimizer": "sgd", "--momentum": 0, "--steps": 5, "--weight-decay": 0.1, "--warmup": 2,
        "--schedule": "cosine", "--clip": 0, "--accumulate": 2, "--label-smoothing": 0.1, "--save-every": 3,
        "--evaluate-every": 4, "--limit": 9, "--seed": 3, "--keep": "best", "--max-length": 6, "--text-column": "text",
        "--head": "frozen-random",
        "--preset": "mc-sgd", "--precision": "no",
    }  # fmt: skip
    given = [*usual, *(item for pair in options.items() for item in pair), "--out", tmp_path / "f"]
    from mergescope.cli import finetune as command
    from mergescope.studies.family_file import read_family_config

    seen = {}

    def keep(mapping):
        seen["config"] = read_family_config(mapping)
        raise StudyError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mergescope.studies.family_file.read_family_config", keep)
        with pytest.raises(StudyError, match="enough"):
            run(*given)
    (tune, *_) = seen["config"].fine_tunes("encoder").values()
    recipe = tune.recipe
    for name, value in options.items():
        field = name[2:].replace("-", "_")
        wanted = None if name == "--clip" else value
        if name != "--preset":
            assert getattr(recipe if hasattr(recipe, field) else tune, field) == wanted, name
    assert (recipe.lr, recipe.batch) == (1e-3, 8) and command.VARIADIC[0] == "--data"


def test_a_family_is_measured_on_its_own_tasks(made, tmp_path):
    found = json.loads(run("measure", "--family", made[0], "--regime", "full", "--limit", 0, "--json").stdout)
    assert found["models"] == ["left", "other"]
    models = yaml.safe_load((made[0] / "family.yaml").read_text())["models"]
    recorded = {model["task"]: model["results"]["test"] for model in models if model["regime"] == "full"}
    for entry in found["losses"]:
        if entry["model"] == entry["data"]:
            assert entry["accuracy"]["mean"] == pytest.approx(recorded[entry["model"]]["accuracy"])
            assert entry["loss"]["mean"] == pytest.approx(recorded[entry["model"]]["loss"], abs=1e-5)
    shown = run("measure", "--family", made[0], "--regime", "attention-1", "--out", tmp_path / "run").stdout
    assert "left + other" in shown and (tmp_path / "run" / "report.html").is_file()


def test_other_data_take_the_place_of_the_tasks(made, inputs):
    data = inputs / "left" / "test.csv"
    arguments = [
        "measure",
        "--family",
        made[0],
        "--regime",
        "full",
        "--data",
        f"texts={data}",
        "--dry-run",
        "--json",
    ]
    assert json.loads(run(*arguments).stdout)["samples"] == {"texts": 9}


def test_a_family_is_checked_compared_and_merged(made, inputs, tmp_path):
    assert "Can be merged" in run("check", "--family", made[0], "--regime", "full").stdout
    compared = json.loads(run("geometry", "--family", made[0], "--regime", "attention-1", "--json").stdout)
    distances = {
        (row["name"], row["model"]): row["value"] for row in compared if row["measure"] == "distance"
    }
    assert distances["mlp", "left"] == distances["mlp", "other"] == 0 < distances["attention q", "other"]
    shown = run(
        "merge", "--family", made[0], "--regime", "full", "--method", "task_arithmetic", "--parameter", "weight=0.3",
        "--out", tmp_path / "merged",
    ).stdout  # fmt: skip
    assert "3 models" in shown
    text = {"merge_method": "task_arithmetic", "base_model": str(inputs / "base"), "parameters": {"weight": 0.3},
            "models": [{"model": str(made[0] / "full" / task)} for task in ("left", "other")]}  # fmt: skip
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(text))
    run("merge", tmp_path / "recipe.yml", tmp_path / "by-hand")
    assert Checkpoint(tmp_path / "merged").digest == Checkpoint(tmp_path / "by-hand").digest


@pytest.mark.parametrize(
    "command", [["measure"], ["check"], ["geometry"], ["merge", "--method", "linear", "--out", "m"]]
)
def test_a_regime_has_to_be_chosen_and_the_base_has_to_be_the_familys(made, inputs, tmp_path, command):
    with pytest.raises(StudyError, match=r"several regimes: full \(left, other\); attention-1"):
        run(*command, "--family", made[0])
    with pytest.raises(MergescopeError, match="--family DIR"):
        run(*command, "--regime", "full")
    shutil.copytree(made[0], tmp_path / "moved")
    with pytest.raises(MismatchError, match="is not the base of the family"):
        run(*command, "--family", tmp_path / "moved", "--regime", "full", "--base", made[0] / "full" / "left")


def test_models_beside_a_family_are_refused(made):
    for arguments in (["check", "x"], ["geometry", "x"], ["measure", "--models", "x"]):
        with pytest.raises(MergescopeError, match="names the models"):
            run(*arguments, "--family", made[0], "--regime", "full")
    with pytest.raises(MergescopeError, match="takes the place of the recipe"):
        run("merge", "recipe.yml", "out", "--family", made[0])
    with pytest.raises(MergescopeError, match="Give --out DIR"):
        run("merge", "--family", made[0], "--method", "linear")
    with pytest.raises(MergescopeError, match="NAME=VALUE"):
        run("merge", "--family", made[0], "--method", "linear", "--out", "m", "--parameter", "weight")
    with pytest.raises(MergescopeError, match="mergescope merge RECIPE OUT"):
        run("merge")


def test_the_progress_bar_tells_the_loss(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("left, full", 2) as advance:
        advance(1, "loss 0.125")
    assert "left, full (loss 0.125)" in capsys.readouterr().err
