"""``mergescope search`` as it is typed."""

import json

import pytest
import yaml
from given_models import family as given_family
from given_models import labels, make, save, save_rows, texts
from small_families import described, make_inputs, save_task
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import DataError, MergescopeError, PointError, StudyError
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.forgetting import task_negation
from mergescope.protocols.measure import Settings
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.studies.given import DataOptions
from mergescope.studies.protocol_runs import open_parts
from mergescope.studies.rundir import RESULTS, read_rows

GRID = ("--grid", 0, 0.25, 0.5, 1, "--no-extend")


def run(*arguments):
    """In this process; errors of ours come through."""
    words = ["search", *(str(argument) for argument in arguments)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*arguments):
    return json.loads(run(*arguments, "--json"))


def by(found, **fixed):
    return [row for row in found["results"] if all(row[name] == value for name, value in fixed.items())]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    make_inputs(folder)
    for shift, task in enumerate(("left", "right")):
        save_task(folder / task, shift, train=90)
    inputs = described(folder, regimes=["full", "linearized"])
    return plan_family(read_family_config(inputs), folder / "made").run(progress=False, device="cpu").path


@pytest.fixture
def full(family):
    return ["--family", family, "--regime", "full", *GRID]


def test_addition_is_what_the_protocol_finds(family, full):
    found = told(*full)
    settings = ArithmeticSettings((0, 0.25, 0.5, 1), extend=False, progress=False)
    splits = ("validation", "test")
    parts = open_parts(str(family), "full", None, (), DataOptions((), limit=None), splits, Settings())
    assert parts["validation"].data["left"].model is parts["test"].data["left"].model  # held once
    test = parts["test"]
    want = task_addition(test.base, test.models, parts["validation"].tasks, test.tasks, settings)
    tuned = by(found, kind="addition", points=f"lambda = {want.lam:g} (tuned)", measure="normalised accuracy")
    assert [row["mean"] for row in tuned] == [want.tuned.normalised.mean]
    scores = by(found, kind="lambda-search", measure="validation normalised accuracy")
    assert {row["parameter"]: row["mean"] for row in scores} == want.search.choice.scores
    shown = run(*full).splitlines()
    assert shown[:-1] == str(want).splitlines()[:-1]  # the last line has the seconds


def test_validation_and_test_are_different_samples(family, full):
    plan = told(*full, "--dry-run")
    assert plan["samples"] == {"validation": {"left": 9, "right": 9}, "test": {"left": 9, "right": 9}}
    with pytest.raises(StudyError, match="Validation and test data are the same for left, right"):
        told(*full, "--split", "validation")
    with pytest.raises(StudyError, match=r"\(--validation-split, --split\)"):
        told(*full, "--validation-split", "test")


@pytest.mark.parametrize(
    ("more", "lams"),
    [(("--no-extend",), {0, 0.25}), (("--up-to", 0.25), {0, 0.25}), (("--up-to", 0.5), {0, 0.25, 0.5})],
)
def test_the_grid_goes_on_while_its_end_is_best(full, more, lams):
    found = told(*full[:4], "--grid", 0, 0.25, *more)  # of which 0.25 is the better one
    scores = by(found, kind="lambda-search", measure="validation normalised accuracy")
    assert {row["parameter"] for row in scores} == lams


def test_the_split_to_choose_on_may_be_another_one(full):
    plan = told(*full, "--validation-split", "train", "--limit", 20, "--dry-run")
    assert plan["samples"] == {"validation": {"left": 20, "right": 20}, "test": {"left": 9, "right": 9}}


@pytest.mark.parametrize("regime", ["full", "linearized"])
@pytest.mark.parametrize("more", [(), ("--negate",), ("--methods", "linear", "task_arithmetic", "ties")])
def test_the_plan_is_what_it_costs_at_most(family, regime, more):
    usual = ["--family", family, "--regime", regime, *GRID, *more]
    plan, found = told(*usual, "--dry-run"), told(*usual)
    assert 0.7 * plan["forward_passes"] <= found["cost"]["forward_passes"] <= plan["forward_passes"]
    assert found["linearized"] == (regime == "linearized")
    assert "forward passes of a batch" in run(*usual, "--dry-run")


def test_a_task_is_forgotten(full, tmp_path):
    shown = run(*full, "--negate", "--control", 0.5, "--out", tmp_path / "run")
    assert "control accuracy on the mean of the other tasks, at least 50 %" in shown
    rows = read_rows(tmp_path / "run" / RESULTS)
    assert {row.kind for row in rows} == {"negation", "negation-search"}
    lams = {row.parameter for row in rows if row.measure == "validation target accuracy"}
    assert lams == {0, 0.25, 0.5, 1} and {row.points for row in rows} >= {"base", "lambda = 1", "tuned"}
    about = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert about["study"] == "search" and about["config"]["settings"]["control_share"] == 0.5
    assert about["provenance"]["validation"]["data"]["left"]["samples"] == 9
    assert run(*full, "--out", tmp_path / "run")  # results of a search are replaced by those of another
    assert {row.kind for row in read_rows(tmp_path / "run" / RESULTS)} == {"lambda-search", "addition"}


def test_methods_are_compared(full):
    found = told(*full, "--methods", "usual", "dare_linear:density=0.5")
    names = {row["points"].split(",")[0] for row in by(found, kind="merging")}
    assert names == {
        "base", "single-task models", "linear", "task_arithmetic", "ties", "dare_ties", "tsv", "iso_c",
        "dare_linear (density 0.5)",
    }  # fmt: skip
    table = run(*full, "--methods", "ties").splitlines()
    assert table[0].split()[-4:] == ["needs", "merge", "s", "passes"] and len(table) == 6


def test_what_was_found_is_a_recipe(family, full, tmp_path):
    shown = run(*full, "--out", tmp_path / "addition")
    recipe = tmp_path / "addition" / "recipe.yml"
    assert f"Next: mergescope merge {recipe} OUT" in shown
    merged = CliRunner().invoke(app, ["merge", str(recipe), str(tmp_path / "merged")], catch_exceptions=False)
    assert merged.exit_code == 0, merged.output
    lam = yaml.safe_load(recipe.read_text())["models"][0]["parameters"]["weight"]
    evaluate = ["evaluate", "--family", family, "--regime", "full", "--json", "--points"]
    points = [f"merged={tmp_path / 'merged'}", f"same=base + {lam} * sum"]
    found = json.loads(CliRunner().invoke(app, [*map(str, evaluate), *points]).stdout)
    losses = {
        name: [row["mean"] for row in by(found, points=name, measure="loss")] for name in ("merged", "same")
    }
    assert losses["merged"] == pytest.approx(losses["same"], rel=1e-5)
    run(*full[:-1], "--coefficients", "--objective", "loss", "--out", tmp_path / "own")
    assert len(yaml.safe_load((tmp_path / "own" / "recipe.yml").read_text())["models"]) == 2
    for name, more in (
        ("negated", ["--negate"]),
        ("layered", ["--coefficients", "--groups", "2", "--objective", "loss"]),
    ):
        run(*full[:-1], *more, "--out", tmp_path / name)
        assert not (tmp_path / name / "recipe.yml").exists()
    run("--family", family, "--regime", "linearized", *GRID, "--out", tmp_path / "linear")
    assert not (tmp_path / "linear" / "recipe.yml").exists()  # it would be run in another network


@pytest.mark.parametrize("regime", ["full", "linearized"])
def test_coefficients_are_searched(family, regime, tmp_path):
    usual = ["--family", family, "--regime", regime, *GRID[:-1], "--coefficients", "--objective", "loss"]
    plan = told(*usual, "--random", "--dry-run")
    assert plan["coefficients"] == 2 and plan["forward_passes"] > 0
    shown = run(*usual, "--random", "--out", tmp_path / "run")
    assert "Kept: the" in shown and "Report: " in shown
    rows = read_rows(tmp_path / "run" / RESULTS)
    assert {row.points for row in rows} >= {"base", "grid", "random", "surrogate"}
    assert {(row.data, row.layer) for row in rows if row.measure == "coefficient"} == {
        ("left", "1/1"), ("right", "1/1"),
    }  # fmt: skip
    found = told(*usual, "--groups", 3)
    assert found["linearized"] == (regime == "linearized")
    assert {row["layer"] for row in by(found, measure="coefficient")} == {"1/3", "2/3", "3/3"}
    assert found["cost"]["forward_passes"] <= told(*usual, "--groups", 3, "--dry-run")["forward_passes"]


def test_coefficients_need_no_labels(tmp_path):
    given = given_family(tmp_path, change=0.02)
    data = [
        f"{task}={save_rows(tmp_path / task / 'some.csv', texts(12, seed))}" for seed, task in enumerate("ab")
    ]
    usual = [
        "--base",
        given["base"],
        "--models",
        given["a"],
        given["b"],
        "--data",
        *data,
        *GRID[:-1],
        "--coefficients",
    ]
    assert set(told(*usual, "--objective", "agreement", "--dry-run")["samples"]) == {"validation"}
    for objective in ("agreement", "entropy"):
        found = told(*usual, "--objective", objective)
        assert {row["measure"] for row in by(found, points="grid")} == {
            f"validation {objective}", "evaluated points", "coefficient", "at_end",
        }  # fmt: skip
    with pytest.raises(DataError):  # one file has no validation split, which labelled searches want
        told(*usual)


def test_coefficients_of_language_models(tmp_path):
    base = make("LlamaForCausalLM")
    places = {"base": save(base, tmp_path / "base")}
    for seed, name in enumerate("ab", 1):
        places[name] = save(make("LlamaForCausalLM", seed, base, 0.02), tmp_path / name)
        for split, count in (("validation", 12), ("test", 8)):
            save_rows(tmp_path / "data" / name / f"{split}.csv", texts(count, seed))
    data = [f"{name}={tmp_path / 'data' / name}" for name in "ab"]
    models = [places["a"], places["b"]]
    found = told("--base", places["base"], "--models", *models, "--data", *data, *GRID[:-1], "--coefficients")
    (loss,) = by(found, points="grid", measure="test loss")
    assert loss["n"] == 16 and loss["low"] < loss["mean"] < loss["high"]


def test_models_may_be_named_one_by_one(tmp_path):
    given = given_family(tmp_path)
    for task, shift in (("a", 0), ("b", 1)):
        for split, count in (("validation", 12), ("test", 10)):
            kinds = [(row + shift) % 2 for row in range(count)]
            (tmp_path / f"data-{task}").mkdir(exist_ok=True)
            save_rows(
                tmp_path / f"data-{task}" / f"{split}.csv", texts(count, seed=count + shift), label=kinds
            )
    usual = ["--base", given["base"], "--models", given["a"], given["b"], *GRID]
    data = ["--data", f"a={tmp_path / 'data-a'}", f"b={tmp_path / 'data-b'}"]
    found = told(*usual, *data)
    assert {row["n"] for row in by(found, kind="addition", measure="accuracy")} == {10}
    with pytest.raises(MergescopeError, match="This needs the data of every fine-tune's task"):
        told(*usual, "--data", tmp_path / "data-a")
    with pytest.raises(MergescopeError, match="Give a base: --base"):
        told(*usual[2:], *data)
    alone = save_rows(tmp_path / "alone.csv", texts(), label=labels(10, 2))
    with pytest.raises(DataError):  # a file without a validation split
        told(*usual, "--data", f"a={alone}", f"b={alone}")


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--coefficients", "--dry-run"]])
def test_several_data_sets_of_one_fine_tune_are_refused(tmp_path, more):
    given, data = given_family(tmp_path, names=("base", "a")), []
    for shift, name in enumerate("xy"):
        for split, count in (("validation", 12), ("test", 10)):
            save_rows(
                tmp_path / name / f"{split}.csv", texts(count, seed=count + shift), label=labels(count, 2)
            )
        data.append(f"{name}={tmp_path / name}")
    with pytest.raises(MergescopeError, match="the data of every fine-tune's task.* one for each of a"):
        told("--base", given["base"], "--models", given["a"], "--data", *data, *more)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """A language model, two fine-tunes of it, and texts of their tasks and of a third kind, by name."""
    folder = tmp_path_factory.mktemp("speakers")
    start = make("LlamaForCausalLM")
    for seed, name in enumerate(("base", "rude", "terse")):
        save(make("LlamaForCausalLM", seed, start) if seed else start, folder / name)
    for shift, name in enumerate(("rude", "terse", "wiki")):
        for split, count in (("validation", 16), ("test", 12)):
            save_rows(folder / "texts" / name / f"{split}.csv", texts(count, seed=10 * shift + count))
    return folder


def negated(folder, *models):
    data = [f"{name}={folder / 'texts' / name}" for name in models]
    return [
        "--base",
        folder / "base",
        "--models",
        *(folder / name for name in models),
        "--data",
        *data,
        *GRID,
        "--negate",
    ]


@pytest.mark.parametrize("models", [("rude",), ("rude", "terse")])
def test_negation_keeps_control_data_up(speakers, tmp_path, models):
    wiki = speakers / "texts" / "wiki"
    words = [*negated(speakers, *models), "--control-data", wiki]
    plan, found = told(*words, "--dry-run"), told(*words, "--out", tmp_path / "run")
    tuned = by(found, kind="negation", points="tuned", measure="target accuracy")
    known = [row for row in tuned if row["parameter"] in (0, 1)]  # a pass on each of two data sets less
    assert plan["forward_passes"] == found["cost"]["forward_passes"] + 2 * len(known)
    assert plan["samples"]["validation control"] == {"wiki": 16}
    every = (*models, "wiki")
    data = DataOptions(tuple(f"{name}={speakers / 'texts' / name}" for name in every), limit=None)
    references = [str(speakers / name) for name in (*models, "base")]  # a model for each data set
    named = [*references[:-1], f"wiki={references[-1]}"]
    parts = open_parts(None, None, references[-1], named, data, ("validation", "test"), Settings())
    held = [{name: part.data[name] for name in models} for part in parts.values()]
    control = tuple(part.data["wiki"] for part in parts.values())
    points = {name: parts["test"].models[name] for name in models}
    settings = ArithmeticSettings((0, 0.25, 0.5, 1), extend=False, progress=False)
    want = task_negation(parts["test"].base, points, *held, settings, control=control)
    assert [row["mean"] for row in found["results"]] == [row["mean"] for row in want.rows()]
    assert want.test[0].control["rude"].mean != want.test[0].target["rude"].mean
    shown = run(*words)
    assert "control accuracy on wiki, at least 95 %" in shown and "test, tuned" in shown
    stored = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert stored["provenance"]["validation control"]["data"]["wiki"]["samples"] == 16
    assert "validation control: 16 samples of wiki" in (tmp_path / "run" / "report.html").read_text()


def test_control_data_that_can_judge_nothing_are_refused(speakers, full, tmp_path):
    words = negated(speakers, "rude")
    wiki = speakers / "texts" / "wiki"
    with pytest.raises(MergescopeError, match="needs control data: give some .--control-data"):
        told(*words)
    with pytest.raises(MergescopeError, match="--control-data is of --negate: give it too"):
        told(*words[:-1], "--control-data", wiki)
    for spec in (speakers / "texts" / "rude", f"rude={wiki}"):
        place = str(spec).partition("=")[2] or spec
        with pytest.raises(DataError, match=f"called like the task 'rude'.*: NAME={place}\\."):
            told(*words, "--control-data", spec)
    with pytest.raises(DataError, match="wikipedia"):
        told(*words, "--control-data", speakers / "texts" / "wikipedia")
    with pytest.raises(MergescopeError, match="heads of their own: leave --control-data out"):
        told(*full, "--negate", "--control-data", wiki)
    body = make("BertModel")
    save(body, tmp_path / "body")
    save(make("BertForSequenceClassification", 1, body), tmp_path / "a")
    for split in ("validation", "test"):
        save_rows(tmp_path / "x" / f"{split}.csv", texts(9, seed=len(split)), label=labels(9, 2))
    with pytest.raises(MergescopeError, match="heads of their own: leave --control-data out"):
        told("--base", tmp_path / "body", "--models", tmp_path / "a", "--data", f"a={tmp_path / 'x'}", "--negate",
             "--control-data", f"y={tmp_path / 'x'}")  # fmt: skip
    save_rows(tmp_path / "one" / "test.csv", texts(8, seed=3))
    with pytest.raises(MergescopeError, match="validation"):
        told(*words, "--control-data", tmp_path / "one")


def test_what_is_wrong_is_said_before_anything_is_run(full):
    with pytest.raises(MergescopeError, match=r"no merge method 'tie'\. Did you mean: ties"):
        told(*full, "--methods", "tie")
    with pytest.raises(MergescopeError, match="slerp merges at most 1 models besides the base, not 2"):
        told(*full, "--methods", "slerp:t=0.5", "--dry-run")
    with pytest.raises(MergescopeError, match="run one after the other"):
        told(*full, "--negate", "--methods", "ties")
    with pytest.raises(MergescopeError, match="are of the search for --coefficients"):
        told(*full, "--random")
    with pytest.raises(MergescopeError, match="--extend and --up-to are of the search for one coefficient"):
        told(*full[:-1], "--coefficients", "--up-to", 2)
    with pytest.raises(MergescopeError, match="--control is of --negate"):
        told(*full, "--control", 0.5)
    with pytest.raises(MergescopeError, match=r"no objective 'los'\. Did you mean: loss"):
        told(*full[:-1], "--coefficients", "--objective", "los")
    with pytest.raises(PointError, match="Give numbers from 0 on"):
        told(*full[:4], "--grid", 1, 0.5)
