"""Whatever is misspelt, the error names what is near it."""

import re

import pytest
import typer
from small_families import described, make_inputs
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError, near_paths
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family

FULL = ("--family", "family", "--regime", "full")
GIVEN = ("--base", "base", "--models", "a=family/full/left", "b=family/full/right", "--data")
TUNED = ("finetune", "--base", "base", "--data", "left", "--out", "never")
RECIPE = "merge_method: tie\nbase_model: base\nmodells: [{model: base}]\n"
FAMILY = "base: base\ntask: {left: left}\nregimes: [full]\nrecipe: {epoch: 3, optimizer: adam}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base, data, a family of one regime, and files with mistakes."""
    folder = make_inputs(tmp_path_factory.mktemp("near"))
    config = read_family_config(described(folder, regimes=["full"]))
    plan_family(config, folder / "family").run(progress=False, device="cpu")
    (folder / "recipe.yml").write_text(RECIPE)
    (folder / "family.yml").write_text(FAMILY)
    (folder / "runs" / "first").mkdir(parents=True)
    return folder


@pytest.fixture
def told(place, monkeypatch):
    """What is told of a command, in one line."""
    monkeypatch.chdir(place)

    def run(*words):
        found = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*words], catch_exceptions=True)
        assert found.exit_code != 0 and not (place / "never").exists()
        if isinstance(found.exception, MergescopeError):
            return " ".join(str(found.exception).split())
        assert isinstance(found.exception, SystemExit), found.exception
        return " ".join(found.stderr.split())

    return run


@pytest.mark.parametrize(
    ("words", "near"),
    [
        # commands and options
        (("measur",), "measure"),
        (("study", "lst"), "list"),
        (("measure", "--modles", "a"), "--models"),
        (("merge", "--overwite", "a", "b"), "--overwrite"),
        # studies, presets, tasks
        (("study", "show", "ctl-fg7"), "ctl-fig7"),
        (("study", "run", "adition"), "addition"),
        (("study", "run", "ctl-fig7", "--preset", "cpuu"), "cpu"),
        (("study", "run", "addition", "--family", "family", "--preset", "quik"), "quick"),
        (("demo", "--tasks", "rotation"), "rotations"),
        # families, regimes, their tasks
        (("measure", "--family", "clip9"), "clip8"),
        (("measure", "--family", "famly"), "family"),
        (("measure", "--family", "family", "--regime", "ful"), "full"),
        (("disentangle", *FULL, "--pairs", "left:rigth"), "right"),
        (("mergeability", "--family", "famly"), "family"),
        ((*TUNED, "--regime", "linearised"), "linearized"),
        # layers, features, executors
        (("measure", *FULL, "--layers", "layer.zero"), "layer.*"),
        (("layers", "base", "--layers", "attentoin"), "attention"),
        (("measure", *FULL, "--features", "lats"), "last"),
        (("measure", *FULL, "--executor", "resdent"), "resident"),
        (("measure", *FULL, "--dtype", "flat32"), "float32"),
        (("measure", *FULL, "--device", "cdua"), "cuda"),
        (("measure", *FULL, "--engine", "rya"), "ray"),
        # methods and what protocols take
        (("merge", *FULL, "--method", "tie", "--out", "never"), "ties"),
        (("merge", *FULL, "--method", "ties", "--parameter", "densty=1", "--out", "never"), "density"),
        (("search", *FULL, "--methods", "tiess"), "ties"),
        (("search", *FULL, "--coefficients", "--objective", "acuracy"), "accuracy"),
        (("predict", *FULL, "--method", "jpv"), "jvp"),
        (("equations", *FULL, "--tests", "clt"), "ctl"),
        (("disentangle", *FULL, "--preset", "atn"), "attn"),
        (("disentangle", *FULL, "--distance", "kll"), "kl"),
        (("curvature", *FULL, "--at", "middpoint"), "midpoint"),
        (("curvature", *FULL, "--end", "larges"), "largest"),
        (("evaluate", *FULL, "--points", "bse + 0.3*sum"), "base"),
        # data sets, splits, columns
        (("finetune", "--base", "base", "--data", "mnst", "--regime", "full", "--out", "never"), "mnist"),
        (("measure", *FULL, "--split", "tst"), "test"),
        (("measure", *GIVEN, "left=left", "--label-column", "labl"), "label"),
        # fine-tuning
        ((*TUNED, "--regime", "full", "--preset", "clp"), "clip"),
        ((*TUNED, "--regime", "full", "--optimizer", "adam"), "adamw"),
        ((*TUNED, "--regime", "full", "--schedule", "cosin"), "cosine"),
        ((*TUNED, "--regime", "full", "--head", "traind"), "trained"),
        ((*TUNED, "--regime", "full", "--device", "cpuu"), "cpu"),
        ((*TUNED, "--regime", "attention", "--patterns", "qery"), "query"),
        # keys of YAML files
        (("merge", "recipe.yml", "never"), "models"),
        (("merge", "recipe.yml", "never"), "ties"),
        (("finetune", "family.yml", "--out", "never"), "tasks"),
        (("finetune", "family.yml", "--out", "never"), "epochs"),
        # files and directories
        (("merge", "recipe.yaml", "never"), "recipe.yml"),
        (("check", "recpe.yml"), "recipe.yml"),
        (("finetune", "family.yaml", "--out", "never"), "family.yml"),
        (("measure", "--base", "bsae", *GIVEN[2:], "left=left"), "base"),
        (("measure", *GIVEN[:3], "family/ful/left", *GIVEN[4:], "left=left"), "family/full"),
        (("measure", *GIVEN, "left=lft"), "left"),
        (("geometry", "family/full/lft", "--base", "base"), "family/full/left"),
        (("evaluate", *FULL, "--points", "merged=bas"), "base"),
        (("layers", "bse"), "base"),
        (("report", "runs/frst"), "runs/first"),
        (("study", "publish", "runs/frst"), "runs/first"),
        (("study", "run", "ctl-fig7", "--data-root", "rns"), "runs"),
        (("demo", "--quick", "--data", "./lft", "--out", "runs/demo"), "left"),
    ],
    ids=lambda it: " ".join(it[:2]) if isinstance(it, tuple) else it,
)
def test_what_is_near_is_told(told, words, near):
    said = told(*words)
    suggested = re.findall(r"(?:Did you mean:? |Possible options: )(.*?)[?)]", said)
    names = [name.strip("' ") for part in suggested for name in part.split(",")]
    assert near in names, said


def test_of_a_missing_path_the_first_part_that_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert near_paths("modles/base/model.safetensors") == " Did you mean: models?"
    assert near_paths("models/bse") == " Did you mean: models/base?"
    assert near_paths(tmp_path / "models" / "bas") == f" Did you mean: {tmp_path / 'models' / 'base'}?"
    assert near_paths("nothing-like-it") == near_paths("") == near_paths("a\0b") == near_paths("/") == ""


def test_every_command_group_suggests(told):
    for name in typer.main.get_command(app).commands:
        assert name in told(name[:-1] + name[-1] * 2)
