"""``mergescope measure`` as it is typed."""

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from entered import entered
from given_models import family, labels, make, save, save_rows, texts
from safetensors.torch import load_file, save_file
from tunable_bases import animals, hf_resnet
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import LayerError, MergescopeError, StudyError
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows

ENTRY = Path(sysconfig.get_path("scripts")) / "mergescope"


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["measure", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


def entry(*arguments, **how):
    return subprocess.run(
        [str(ENTRY), "measure", *map(str, arguments)], capture_output=True, text=True, check=False, **how
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Names to paths of a base, two fine-tunes and data."""
    folder = tmp_path_factory.mktemp("given")
    return {**family(folder), "data": save_rows(folder / "reviews.csv", texts(), label=labels(10, 2))}


@pytest.fixture
def usual(given):
    return ["--base", given["base"], "--models", given["a"], given["b"], "--data", given["data"]]


def measured(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("limit", [0, 4])
def test_many_values_may_be_listed_or_repeated(given, usual, limit):
    a, b = given["a"], given["b"]
    same = [
        usual,
        ["--models", a, "--models", b, "--data", given["data"], "--base", given["base"]],
        [f"--models={a}", b, f"--base={given['base']}", "--data", given["data"]],
    ]
    results = [measured(*arguments, "--limit", limit, "--layers", "blocks") for arguments in same]
    for result in results:
        result["cost"] = {name: result["cost"][name] for name in ("samples", "forward_passes")}
    assert results[0] == results[1] == results[2]
    assert results[0]["models"] == ["a", "b"] and results[0]["cost"]["samples"] == (limit or 10)


def test_options_reach_the_measurement(usual):
    found = measured(*usual, "--alphas", "0.25", "0.75", "--layers", "encoder.layer.*", "output", "--features", "cls",
                     "--no-local", "--batch-size", 5, "--max-length", 4)  # fmt: skip
    (pair, *_) = found["pairs"]
    assert [entry["alpha"] for entry in pair["propagated"]] == [0.25, 0.75] and pair["local"] == []
    layers = [entry["layer"] for entry in pair["propagated"][0]["layers"]]
    assert layers == [*(f"bert.encoder.layer.{n}" for n in range(3)), "output"]
    assert found["cost"]["features"] == "encoder: cls" and found["cost"]["forward_passes"] == 9 * 2
    assert any("cut off" in note for note in found["notes"])
    one = measured(*usual, "--layers", "output")
    assert [entry["layer"] for entry in one["pairs"][0]["propagated"][0]["layers"]] == ["output"]


def test_calibration_is_recorded_though_there_is_nothing_to_calibrate(tmp_path, usual):
    assert run(*usual, "--calibrate", "--out", tmp_path).exit_code == 0
    assert RunDirectory(tmp_path).read_run()["config"]["calibrate"] is True


def test_statistics_of_merged_networks_are_estimated_again(tmp_path):
    state = load_file(hf_resnet(tmp_path / "base") / "model.safetensors")
    for seed, name in enumerate("ab", 1):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.05 * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
            for key, value in state.items()
        }
        shutil.copytree(tmp_path / "base", tmp_path / name)
        save_file(moved, tmp_path / name / "model.safetensors", {"format": "pt"})
    data = animals(tmp_path / "animals", rows=1, size=16)
    words = ("--models", tmp_path / "a", tmp_path / "b", "--data", data, "--layers", "output")
    kept, anew = (
        {entry["model"]: entry["loss"]["mean"] for entry in measured(*words, *more)["losses"]}
        for more in ((), ("--calibrate",))
    )
    assert (
        kept["a"] == anew["a"] and kept["b"] == anew["b"] and kept["a + b, merged"] != anew["a + b, merged"]
    )


def test_features_are_centred_at_the_bases_mean(given, usual):
    more = ["--features", "mean", "--batch-size", 5]
    plain, centred = measured(*usual, *more), measured(*usual, *more, "--centred")
    assert centred["cost"]["forward_passes"] == plain["cost"]["forward_passes"] + 2  # a pass for the mean
    for one, other in zip(plain["pairs"], centred["pairs"], strict=True):
        # Differences stay what they are, and are larger beside what is left of the features.
        gaps = [[layer["gap"]["mean"] for layer in it["propagated"][0]["layers"]] for it in (one, other)]
        assert all(before < after for before, after in zip(*gaps, strict=True))
    with pytest.raises(MergescopeError, match="give a base, or leave centred out"):
        run("--models", given["a"], given["b"], "--data", given["data"], "--centred")


def test_the_seed_draws_the_intervals_of_barriers_too(usual):
    barriers = [measured(*usual, "--no-local", "--seed", seed)["pairs"][0]["barrier"] for seed in (0, 1)]
    assert barriers[0].pop("loss_interval") != barriers[1].pop("loss_interval")
    assert barriers[0]["loss"] == barriers[1]["loss"]


@pytest.mark.parametrize(
    ("value", "said"),
    [("-0.5", "greater than or equal to 0"), ("1.5", "less than or equal to 1"), ("half", "number")],
)
def test_alphas_that_are_none_are_refused(usual, value, said):
    refused = run(*usual, "--alphas", "0.5", value)
    told = " ".join(refused.stderr.replace("│", " ").split())
    assert refused.exit_code == 2 and "'--alphas'" in told and said in told
    with pytest.raises(MergescopeError, match="strictly between"):
        run(*usual, "--alphas", 0, 1)


def test_a_pattern_with_a_typing_error_gets_a_near_match(usual):
    with pytest.raises(
        LayerError, match=r"'encoder.layr.\*' matches no module .*Did you mean: encoder.layer.\*"
    ):
        run(*usual, "--layers", "encoder.layr.*")


def test_a_dry_run_costs_what_the_run_does_and_writes_nothing(tmp_path, usual):
    arguments = [*usual, "--alphas", "0.25", "0.5", "--batch-size", 4]
    plan = json.loads(run(*arguments, "--dry-run", "--json", "--out", tmp_path / "run").stdout)
    cost = measured(*arguments)["cost"]
    assert {name: plan[name] for name in ("points", "forward_passes", "local_passes")} == {
        name: cost[name] for name in ("points", "forward_passes", "local_passes")
    }
    shown = run(*arguments, "--dry-run").stdout
    assert "3 models, 3 pairs" in shown and "10 of reviews" in shown and "4 layers (features: all)" in shown
    assert f"{plan['forward_passes']} forward passes of a batch, and {plan['local_passes']} through" in shown
    assert not (tmp_path / "run").exists()


def test_results_are_written_and_written_again(tmp_path, usual):
    first = run(*usual, "--out", tmp_path / "run")
    assert first.exit_code == 0 and "Report: " in first.stdout and "report.html" in first.stdout
    assert {row.parameter for row in read_rows(tmp_path / "run" / RESULTS) if row.kind == "ctl"} == {0.5}
    assert run(*usual, "--alphas", 0.25, "--out", tmp_path / "run").exit_code == 0
    assert {row.parameter for row in read_rows(tmp_path / "run" / RESULTS) if row.kind == "ctl"} == {0.25}
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.parquet", "run.yaml", "report.html"} <= names and not any(
        "tmp" in name for name in names
    )


def test_what_can_not_be_written_is_told_before_anything_is_measured(tmp_path, given, usual):
    (tmp_path / "file").write_text("mine")
    absent = ["--models", tmp_path / "absent", tmp_path / "gone", "--data", given["data"]]
    with pytest.raises(StudyError, match="file can't be used as a run directory"):
        run(*absent, "--out", tmp_path / "file")
    RunDirectory(tmp_path / "digits").write_run("digits", "quick", {}, {})
    with pytest.raises(StudyError, match="Choose another --out"):
        run(*absent, "--out", tmp_path / "digits")


def test_names_come_before_paths(tmp_path, given):
    found = measured("--models", f"x={given['a']}", f"y={given['b']}", "--data", f"x={given['data']}",
                     f"y={given['data']}")  # fmt: skip
    assert found["models"] == ["x", "y"] and found["base"] is None
    assert found["pairs"][0]["data"] == ["x", "y"] and len(found["losses"]) == 6


def test_standard_output_is_json_and_nothing_else(tmp_path, given):
    start = make("BertForMaskedLM")
    save(start, tmp_path / "base")
    save(make("BertForSequenceClassification", 1, start, num_labels=2), tmp_path / "tuned", tokenizer=False)
    save_rows(tmp_path / "long.csv", [" ".join(["w1"] * 99)] * 3, label=[0, 1, 0])
    done = entry("--base", tmp_path / "base", "--models", tmp_path / "tuned", "--data", tmp_path / "long.csv", "--json",
                 "--out", tmp_path / "run")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))
    assert found["pairs"][0]["kind"] == "PT–FT" and found["losses"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_verdicts_and_reasons_are_printed(usual):
    done = entered("measure", *usual, "--dtype", "bfloat16", columns=100)
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "a + b (FT–FT): Lowest cos",
        "not linear",
        "bert.encoder.layer.",
        "forward passes",
        "Loss barrier",
    ):
        assert part in done.stdout, part
    assert "computed in bfloat16: against float32" in " ".join(done.stdout.split())


def test_mistakes_exit_with_2_and_no_traceback(tmp_path, given):
    save(make("GPT2LMHeadModel"), tmp_path / "gpt")
    done = entered("measure", "--models", given["a"], tmp_path / "gpt", "--data", given["data"])
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert (
        done.stderr.startswith("Error: a, gpt have no common body") and "gpt shares no tensor" in done.stderr
    )
