"""The digits study end to end on real digits, small."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.data import Task
from mergescope.errors import StudyError
from mergescope.protocols import barrier, ctl, line
from mergescope.readings import Outputs
from mergescope.studies import digits as study
from mergescope.studies.digits import DigitsConfig, run_digits, tasks_of
from mergescope.studies.family import Family, Settings, measure_family
from mergescope.studies.rundir import RESULTS, SAMPLES, RunDirectory, read_rows, read_table
from mergescope.training import Recipe

pytestmark = pytest.mark.demo

SMALL = DigitsConfig(
    networks=("mlp",),
    pretraining={"mlp": Recipe("sgd", lr=0.05, epochs=2)},
    regimes={"moderate": {"mlp": Recipe("sgd", lr=0.01, epochs=1)}},
    settings=Settings(alphas=(0.5,), line_alphas=(0.5,), grid=(0.0, 0.3, 1.0), test_limit=100),
)
COSTS = {"seconds": 0.0, "peak_bytes": 0}


def comparable(path):
    return [repr(dataclasses.replace(row, **COSTS)) for row in read_rows(path / RESULTS)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "run"
    run_digits(SMALL, path, "small", workers=1)
    return path


def test_every_kind_of_result_is_there_with_finite_values(finished):
    rows = read_rows(finished / RESULTS)
    kinds = {row.kind for row in rows}
    assert kinds == {
        "ctl", "eq1", "eq2", "eq3", "null-init", "null-random", "line", "barrier", "accuracy", "lambda-search",
    }  # fmt: skip
    assert len({row.points for row in rows if row.kind == "ctl"}) == 6
    undefined = {(row.kind, row.measure) for row in rows if not np.isfinite(row.mean)}
    assert not undefined
    assert {row.n for row in rows if row.kind == "ctl" and row.measure == "cos"} == {200}
    ctl_samples = [line for line in read_table(finished / SAMPLES) if line["measure"] == "cos"]
    assert len(ctl_samples) == 6 * 3 * 200


def test_a_stored_cosine_equals_one_computed_from_the_stored_checkpoints(finished):
    _, tasks = tasks_of("embedded", "rotations")
    folder = finished / "checkpoints"
    a, b, base = (
        ms.Checkpoint(
            next(p for p in folder.iterdir() if p.name.startswith(name) and "stranger" not in p.name)
        )
        for name in ("mlp-moderate-22.5", "mlp-moderate-90", "mlp-base")
    )
    test = ctl(a, b, 0.5, base)
    inputs = [task.test.inputs[:100] for task in (tasks[0], tasks[3])]
    result = ms.linearity(ms.trace(test.points, inputs, ms.load_model(base)), test)
    stored = [
        row.mean
        for row in read_rows(finished / RESULTS)
        if (row.kind, row.points, row.layer, row.measure) == ("ctl", "22.5° + 90°", "blocks.1", "cos")
    ]
    assert stored == [pytest.approx(result["blocks.1"].measures["cos"].mean, abs=1e-9)]


def test_barriers_resample_digits_whatever_their_rotation():
    net = make_net("mlp")
    base, left, right, stranger = family(net, ("base", "left", "right", "stranger"), scale=0.5)
    (data,) = labelled_batches(40, 40)
    split = ms.Split(*data, np.arange(40))
    tasks = [Task(model.name, split, split, split, (0, 1, 2)) for model in (left, right)]
    made = Family("mlp", "full", net, base, {"left": left, "right": right}, tasks, stranger)
    found = measure_family(made, Settings(alphas=(0.5,), line_alphas=(0.5,), grid=(0.0, 1.0)))
    (row,) = [row for row in found.rows if (row.kind, row.measure) == ("barrier", "loss")]
    points = line(left, right, (0.5,)).values()
    once = barrier(ms.trace(points, [data], net, readings=[Outputs()]), left, right, (0.5,))
    assert (row.low, row.high) == pytest.approx(once.loss_interval, abs=1e-5)
    assert row.n == 80


def test_a_second_run_trains_and_measures_nothing(finished, monkeypatch):
    def forbidden(job):
        raise AssertionError(f"{job} was run again")

    monkeypatch.setattr(study, "_train", forbidden)
    monkeypatch.setattr(study, "_measure", forbidden)
    before = comparable(finished)
    run_digits(SMALL, finished, "small", workers=1)
    assert comparable(finished) == before


def test_a_changed_setting_measures_again_but_keeps_the_checkpoints(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_train", lambda job: pytest.fail("trained again"))
    changed = SMALL.model_copy(update={"settings": dataclasses.replace(SMALL.settings, alphas=(0.25,))})
    run_digits(changed, finished, "small", workers=1)
    try:
        assert {row.parameter for row in read_rows(finished / RESULTS) if row.kind == "ctl"} == {0.25}
    finally:
        run_digits(SMALL, finished, "small", workers=1)


SCRIPT = """
import sys
from tests_small import SMALL
from mergescope.studies.digits import run_digits
if __name__ == "__main__":
    run_digits(SMALL, sys.argv[1], "small", workers=1)
"""


def test_a_run_killed_in_the_middle_goes_on_to_the_same_results(finished, tmp_path):
    (tmp_path / "tests_small.py").write_text(
        "from mergescope.studies.digits import DigitsConfig\n"
        f"SMALL = DigitsConfig.model_validate({SMALL.model_dump(mode='json')!r})\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    out = tmp_path / "run"
    command = [sys.executable, str(tmp_path / "script.py"), str(out)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 300
    while (
        len(list(out.glob("checkpoints/mlp*"))) < 3 and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("checkpoints/mlp*")}
    assert len(kept) >= 3 and not (out / "run.yaml").exists()
    for path in out.glob("checkpoints/mlp*"):
        ms.Checkpoint(path).require_finite()  # complete or absent
    run_digits(SMALL, out, "small", workers=1)
    assert {name: (out / "checkpoints" / name).stat().st_mtime_ns for name in kept} == kept
    assert comparable(out) == comparable(finished)
    assert not list(out.rglob(".*.tmp*"))


def test_class_pairs_pretrain_on_the_first_pair_and_fine_tune_on_the_others():
    first, others = tasks_of("embedded", "class-pairs")
    assert first.classes == (0, 1)
    assert [task.classes for task in others] == [(2, 3), (4, 5), (6, 7), (8, 9)]
    assert all(set(task.test.labels.tolist()) == set(task.classes) for task in others)


def test_the_results_of_another_study_are_not_replaced(tmp_path):
    RunDirectory(tmp_path / "run").write_run("measure", "", {}, {})
    with pytest.raises(StudyError, match="holds the results of the study 'measure'"):
        run_digits(SMALL, tmp_path / "run", "quick")
