"""``--engine ray`` as it is typed: what every command says is what it says without."""

import json

import pytest
from small_families import described, make_inputs, weights_of
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import MergescopeError
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.tracing.engines import chosen_engine, running_on
from mergescope.tracing.ray_cluster import require_ray
from mergescope.tracing.ray_engine import RayEngine

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

COSTS = ("seconds", "peak", "bytes")


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = make_inputs(tmp_path_factory.mktemp("inputs"), sure=True)
    config = described(folder, regimes=["full", "linearized"])
    return plan_family(read_family_config(config), folder / "family").run(progress=False, device="cpu").path


@pytest.fixture(scope="module")
def cluster():
    require_ray()
    ray.init(
        "local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


def test_a_plan_starts_nothing(family):
    said = run("evaluate", "--family", family, "--regime", "full", "--engine", "ray", "--dry-run")
    assert "forward passes" in said and not ray.is_initialized()


@pytest.fixture(scope="module")
def engine(cluster):
    """Two workers, and what they were asked to do."""
    with RayEngine(workers=2) as made:
        asked, plain = [], made.map

        def counted(function, items, label, done=None):
            asked.append(label)
            return plain(function, items, label, done)

        made.map = counted
        yield made, asked


def compared(one, other, at=""):
    """Require two results to be equal to rounding, but for what they cost; how many numbers were compared."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        kept = [key for key in one if not any(cost in key for cost in COSTS)]
        return sum(compared(one[key], other[key], f"{at}/{key}") for key in kept)
    if isinstance(one, list):
        assert len(one) == len(other), at
        pairs = enumerate(zip(one, other, strict=True))
        return sum(
            compared(*both, f"{at}/{number}")
            for number, both in pairs
            if not (isinstance(both[0], dict) and any(cost in str(both[0].get("measure")) for cost in COSTS))
        )
    assert other == (pytest.approx(one, rel=1e-5, abs=1e-6) if isinstance(one, float) else one), at
    return int(isinstance(one, float))


def test_a_command_starts_what_it_is_told_to(family, cluster, monkeypatch):
    made, labels = [], []

    class Seen(RayEngine):
        def __init__(self, *given):
            made.append(given)
            super().__init__(*given)

        def map(self, function, items, label, done=None):
            labels.append(label)
            return super().map(function, items, label, done)

    monkeypatch.setattr("mergescope.tracing.ray_engine.RayEngine", Seen)
    words = ("measure", "--family", family, "--regime", "full", "--batch-size", 2, "--json")
    one = json.loads(run(*words))
    assert not made
    other = json.loads(run(*words, "--engine", "ray", "--workers", 1, "--num-cpus", 1))
    assert made == [(None, 1, 1, 0)] and labels
    assert compared(one, other) > 100 and chosen_engine() is None


def test_the_address_and_gpus_of_workers_reach_the_engine(family, monkeypatch):
    made = []

    def refused(*given):
        made.append(given)
        raise MergescopeError("enough")

    monkeypatch.setattr("mergescope.tracing.ray_engine.RayEngine", refused)
    words = ("measure", "--family", family, "--regime", "full", "--engine", "ray")
    with pytest.raises(MergescopeError, match="enough"):
        run(*words, "--address", "head:6379", "--workers", 3, "--num-gpus", 0.5)
    assert made == [("head:6379", 3, 1, 0.5)]


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "--regime", "linearized"),
        ("equations",),
        ("evaluate", "--points", "base + 0.3*sum"),
        ("search", "--grid", 0, 0.5, 1, "--no-extend"),
        ("search", "--coefficients", "--objective", "loss"),
        ("predict", "--measure"),
        ("disentangle", "--points", 3),
        ("soup",),
        ("stitch",),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_every_command_says_what_it_says_in_this_process(family, engine, words):
    made, asked = engine
    before = len(asked)
    regime = () if "--regime" in words else ("--regime", "full")
    usual = (*words, "--family", family, *regime, "--batch-size", 2, "--json")
    one = json.loads(run(*usual))
    with running_on(made):
        other = json.loads(run(*usual))
    assert compared(one, other) > 10
    assert set(asked[before:]) == {"tracing"}


def test_models_of_a_family_are_the_same_wherever_they_are_trained(family, engine, tmp_path):
    folder, (made, asked) = family.parent, engine
    words = (
        "finetune", "--base", folder / "base", "--data", folder / "left", folder / "right", "--regime", "full",
        "--epochs", 1, "--batch", 8, "--lr", "1e-3", "--device", "cpu",
    )  # fmt: skip
    run(*words, "--out", tmp_path / "here")
    with running_on(made):
        run(*words, "--out", tmp_path / "there")
    assert weights_of(tmp_path / "here") == weights_of(tmp_path / "there") != {}
    assert asked[-1] == "fine-tuning there"


def test_a_study_of_a_family_runs_on_the_engine(family, engine, tmp_path):
    made, asked = engine
    before = len(asked)
    with running_on(made):
        run(
            "study", "run", "disentanglement", "--family", family, "--regime", "linearized", "--preset", "quick",
            "--out", tmp_path,
        )  # fmt: skip
    assert (tmp_path / "results.parquet").is_file() and set(asked[before:]) == {"tracing"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "rai"), "no engine 'rai'. Did you mean: ray"),
        (("--workers", 2), "--workers: of a Ray cluster only. Add --engine ray"),
        (("--num-gpus", 1, "--address", "auto"), "--address, --num-gpus: of a Ray cluster only"),
        (("--engine", "ray", "--device", "cuda"), "--device cuda is where this process computes"),
    ],
)
def test_what_does_not_go_together_is_refused(family, words, message):
    with pytest.raises(MergescopeError, match=message):
        run("evaluate", "--family", family, "--regime", "full", *words)


def test_commands_that_are_not_split_have_no_engine():
    result = CliRunner().invoke(app, ["curvature", "--engine", "ray"])
    assert result.exit_code == 2 and "No such option" in result.output
