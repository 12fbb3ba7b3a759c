"""The preset ``paper`` of every study that has it, end to end on miniature copies of the papers' models and data."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import transformers
from miniature_hub import hub
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import DataError, MergescopeError, StudyError
from mergescope.studies.families import read_family
from mergescope.studies.papers.data_sets import Sources
from mergescope.studies.papers.families import (
    FAMILIES,
    family_named,
    local_data,
    tasks_of,
)
from mergescope.studies.papers.full_size import CLIP
from mergescope.studies.papers.spec import paper_studies
from mergescope.studies.papers.workshop import Workshop, with_steps
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows

STUDIES = [study for study in paper_studies() if "paper" in study.family]
STEPS = 2
"""Of every model that is trained."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Families and steps are made once for all studies, as by a user."""
    return tmp_path_factory.mktemp("work")


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, ["study", "run", *map(str, arguments)], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result.stdout


def on_copies(name, root, work, out):
    return run(
        name, "--preset", "paper", "--data-root", root, "--work", work, "--out", out, "--train-steps", STEPS,
        "--workers", 1,
    )  # fmt: skip


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_runs_on_the_papers_models(study, root, work, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    on_copies(study.name, root, work, tmp_path / "out")
    rows = read_rows(tmp_path / "out" / RESULTS)
    assert [row.points for row in rows] == [check.says for check in study.checks]
    assert {row.measure for row in rows} <= {"holds", "does not hold", "inconclusive"}
    about = RunDirectory(tmp_path / "out").read_run()
    said = about["provenance"]
    assert about["preset"] == "paper" and len(said["steps"]) == sum(len(step.regimes) for step in study.steps)
    assert str(root) not in json.dumps([step["command"] for step in said["steps"]])
    trained = study.family["paper"] in FAMILIES
    assert (f"models trained for {STEPS} steps only" in said["cost"]) is trained
    assert (tmp_path / "out" / "report.html").is_file()


def test_models_larger_than_memory_are_streamed(root, work, tmp_path):
    on_copies("ctl-llm-lmc", root, work, tmp_path / "out")
    (step,) = RunDirectory(tmp_path / "out").read_run()["provenance"]["steps"]
    said = RunDirectory(tmp_path / "out").read_run()["provenance"]["data"]["source"]
    assert said == "llama2-13b: wikitext" and "--data wikitext=wikitext" in step["command"]
    text = (work / "steps" / step["run"].rpartition("/")[2] / "run.yaml").read_text()
    assert "executor: streamed" in text


# --- what is trained here


@pytest.fixture
def shop(root, work):
    return Workshop(work / "families", Sources(root), "paper", progress=False, train_steps=STEPS)


def test_families_are_of_the_papers_tasks_and_recipes(shop, root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop.work.parent / "cache"))
    said = {}

    def asked(making):
        try:
            while True:
                out, config = next(making)
                said[out.name.removesuffix("-paper")] = config
        except StopIteration as done:
            return done.value

    whole = dataclasses.replace(shop, train_steps=None)
    for name in ("rotated-digits", "split-images", "one-task", "images", "images-b16", "images-l14"):
        assert asked(FAMILIES[name](whole)).parent == shop.work
    parts = [task["classes"] for task in said["split-cifar1000"]["tasks"].values()]
    assert parts == [list(range(first, first + 5)) for first in (5, 10, 15, 20)]
    assert said["resnet-base0"]["tasks"]["pretraining"]["classes"] == [0, 1, 2, 3, 4]
    assert [said[name]["recipe"]["epochs"] for name in ("resnet-base0", "split-cifar1000")] == [10, 10]
    assert list(said["rotated-mnist0"]["tasks"]) == ["mnist-22.5", "mnist-45", "mnist-67.5", "mnist-90"]
    assert len({json.dumps(task["recipe"]) for task in said["one-clip-task0"]["tasks"].values()}) == 6
    for backbone in ("base-patch32", "base-patch16", "large-patch14"):
        config = said[f"clip-{backbone}-0"]
        assert config["base"] == str(root / "models" / f"clip-vit-{backbone}")
        assert config["tasks"] == {name: f"{name}={root / name}" for name in ("mnist", "svhn")}
        assert (config["preset"], config["head"], "recipe" in config) == ("clip", "zero-shot", False)
    said.clear()
    asked(FAMILIES["images"](dataclasses.replace(whole, sources=Sources(None))))
    (config,) = said.values()
    assert config["base"] == CLIP.format("base-patch32") and len(config["tasks"]) == 8
    assert config["tasks"]["cars"] == "cars"


def test_models_of_few_steps_are_kept_apart(shop):
    made = Path(family_named("rotated-digits", shop))
    assert made.name == f"rotated-mnist0-paper-{STEPS}-steps"
    assert {member.steps for member in read_family(made).members} == {STEPS}
    assert tasks_of(str(made)) == ("mnist-22.5", "mnist-45", "mnist-67.5", "mnist-90")
    assert local_data(str(made), shop.sources) == []


def test_steps_take_the_place_of_every_length():
    config = {
        "preset": "clip", "recipe": {"epochs": 9, "warmup": 1}, "regimes": {"a": {"recipe": {"steps": 7, "lr": 1}}},
        "tasks": {"b": {"data": "x", "recipe": {"epochs": 3}}, "c": "y"},
    }  # fmt: skip
    assert with_steps(config, 5) == {
        "preset": "clip", "recipe": {"steps": 5, "warmup": 1}, "regimes": {"a": {"recipe": {"lr": 1}}},
        "tasks": {"b": {"data": "x", "recipe": {}}, "c": "y"},
    }  # fmt: skip
    assert with_steps({"preset": "clip", "regimes": ["full"]}, 300)["recipe"] == {"steps": 300}


def test_copies_under_the_root_stand_for_the_hub(shop, tmp_path):
    copies = shop.sources.root / "models"
    for name in ("clip8", "clip8:large-patch14", "t5-six", "llama2-13b"):
        assert family_named(name, shop) == f"{name}={copies}"
        assert family_named(name, dataclasses.replace(shop, sources=Sources(tmp_path))) == name
    data = local_data(f"t5-six={copies}", shop.sources)
    assert data == [f"{name}={shop.sources.root / name}" for name in ("imdb", "squad")]
    assert local_data("t5-six", Sources(None)) == []
    with pytest.raises(StudyError, match="no family 't5-sixx'.*Did you mean: t5-six"):
        family_named("t5-sixx", shop)


def test_what_a_search_found_for_a_published_family_can_be_merged(root, tmp_path):
    def told(*words):
        return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False).stdout

    family = [
        "--family",
        f"clip8={root / 'models'}",
        "--data",
        f"mnist={root / 'mnist'}",
        f"svhn={root / 'svhn'}",
    ]
    found = told("search", *family, "--grid", 0, 0.25, "--limit", 0, "--out", tmp_path / "found")
    lam = re.search(r"lambda = ([\d.]+)", found)[1]
    (command,) = re.findall(r"Next: mergescope (.*)", found)
    assert f"weight={float(lam):g} " in command and not (tmp_path / "found" / "recipe.yml").exists()
    told(*command.replace("OUT", str(tmp_path / "merged")).split())
    merged = transformers.CLIPVisionModel.from_pretrained(tmp_path / "merged")
    assert merged.config.model_type == "clip_vision_model"


def test_without_copies_and_network_what_is_missing_is_told(work, tmp_path):
    words = ["ctl-fig2-resnet", "--preset", "paper", "--work", tmp_path / "work", "--out", tmp_path / "out"]
    with pytest.raises(DataError, match="uoft-cs/cifar100.*your network"):
        run(*words, "--workers", 1)
    with pytest.raises(MergescopeError, match="device='abacus' can't be used here"):
        run(*words, "--device", "abacus")
    for option, value in (("--train-steps", 1), ("--device", "cuda")):
        with pytest.raises(StudyError, match=f"digits takes no {option}"):
            run("digits", option, value)


def test_plans_say_on_which_device(tmp_path):
    planned = run("attn-fig5", "--preset", "paper", "--device", "cuda", "--dry-run", "--work", tmp_path)
    assert "mergescope geometry --family images --regime full\n" in planned
    planned = run("attn-table1-b16", "--preset", "paper", "--device", "cuda", "--dry-run", "--work", tmp_path)
    assert "mergescope search --family images-b16 --regime full --limit 0 --device cuda\n" in planned
