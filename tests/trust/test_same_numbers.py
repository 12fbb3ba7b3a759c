"""The same seed gives the same bytes and numbers, at any number of threads and workers and on any engine."""

import dataclasses

import pytest
import torch
import yaml
from commands import Commands
from given_models import labels, make, save, save_rows, texts
from test_kills import numbers_of, tensors_of

from mergescope.studies.digits import DigitsConfig, run_digits
from mergescope.studies.family import Settings
from mergescope.studies.rundir import RESULTS, SAMPLES, read_rows, read_table
from mergescope.tracing.engines import running_on
from mergescope.training import Recipe
from mergescope.weights.chunks import torch_threads

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}  # enough for torch to split sums


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    start = make("BertForSequenceClassification", **WIDE)
    save(start, folder / "start")
    for seed, name in enumerate("abc", 1):
        save(make("BertForSequenceClassification", seed, start, **WIDE), folder / name)
    for split, count in (("train", 64), ("test", 32)):
        save_rows(folder / "task" / f"{split}.csv", texts(count, longest=30), label=labels(count, 2))
    for method, parameters in METHODS.items():
        weight = {} if method == "model_stock" else {"parameters": {"weight": 0.4}}
        models = [{"model": str(folder / name), **weight} for name in "abc"]
        recipe = {"merge_method": method, "base_model": str(folder / "start"), "models": models, "seed": 3}
        (folder / f"{method}.yml").write_text(yaml.safe_dump(recipe | {"parameters": parameters}))
    return folder


METHODS = {"dare_ties": {"density": 0.5}, "model_stock": {}, "tsv": {}}


@pytest.fixture(scope="module")
def processes(commands, tmp_path_factory):
    """The same commands where the environment says one thread, and two."""
    two = Commands(tmp_path_factory.mktemp("commands"), threads=2)
    yield [commands, two]
    two.close()


def both(processes, tmp_path, command):
    made = []
    for threads, process in enumerate(processes, 1):
        out = tmp_path / str(threads) / "out"
        ran = process.run(command(out, threads))
        assert not ran.code, ran.stderr
        made.append(out)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_is_the_same_bytes(inputs, processes, tmp_path, method):
    recipe = inputs / f"{method}.yml"
    one, two = both(
        processes, tmp_path, lambda out, threads: ["merge", recipe, out, "--threads", 3 * threads - 2]
    )
    assert len(tensors_of(one)) > 20
    assert tensors_of(one) == tensors_of(two)
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }


def test_a_fine_tune_is_the_same_bytes(inputs, processes, tmp_path):
    words = ["finetune", "--base", inputs / "start", "--data", f"t={inputs / 'task'}", "--regime", "full", "--epochs",
             3, "--batch", 32, "--lr", "1e-2", "--device", "cpu", "--out"]  # fmt: skip
    one, two = both(processes, tmp_path, lambda out, threads: [*words, out])
    assert len(tensors_of(one)) > 20
    assert tensors_of(one) == tensors_of(two)


def test_a_measurement_is_the_same_numbers(inputs, processes, tmp_path):
    words = ["measure", "--base", inputs / "start", "--models", inputs / "a", inputs / "b", "--data",
             f"t={inputs / 'task'}", "--batch-size", 32, "--out"]  # fmt: skip
    one, two = both(processes, tmp_path, lambda out, threads: [*words, out])
    assert len(numbers_of(one)) > 10
    assert numbers_of(one) == numbers_of(two)


STUDY = DigitsConfig(
    networks=("mlp",),
    pretraining={"mlp": Recipe("sgd", lr=0.05, epochs=1)},
    regimes={"moderate": {"mlp": Recipe("sgd", lr=0.01, epochs=1)}},
    settings=Settings(alphas=(0.5,), line_alphas=(0.5,), grid=(0.0, 1.0), test_limit=100),
)


def studied(path, workers=None):
    run_digits(STUDY, path, "small", workers=workers)
    rows = [repr(dataclasses.replace(row, seconds=0.0, peak_bytes=0)) for row in read_rows(path / RESULTS)]
    return rows, [repr(line) for line in read_table(path / SAMPLES)], tensors_of(path / "checkpoints")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return studied(tmp_path_factory.mktemp("study") / "run", 1)


@pytest.mark.demo
def test_a_study_is_the_same_numbers_with_two_threads_or_workers(expected, tmp_path):
    assert len(expected[0]) > 50
    for workers, threads in ((1, 2), (2, 1)):
        with torch_threads(threads):
            assert studied(tmp_path / f"{workers}-{threads}", workers) == expected
            assert torch.get_num_threads() == threads


@pytest.mark.demo
@pytest.mark.ray
def test_a_study_is_the_same_numbers_on_ray(expected, tmp_path):
    pytest.importorskip("ray")
    from mergescope.tracing.ray_engine import RayEngine

    with RayEngine(workers=2) as engine, running_on(engine):
        assert studied(tmp_path / "run") == expected
