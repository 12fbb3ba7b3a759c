"""The Ray engine on a real cluster of this machine: equal results, dead workers, failing items."""

import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_jobs import Job, KilledOnce, always_killed, failing, killed_once, process, slow, square, total
from safetensors.torch import save_file
from support import family, labelled_batches, make_net
from traces_compared import BATCHES, assert_equal, points_of, readings_for

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.tracing.engines import running_on
from mergescope.tracing.ray_cluster import require_ray
from mergescope.tracing.ray_engine import RayEngine
from mergescope.tracing.ray_worker import Worker
from mergescope.tracing.shipping import pack

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine with room for three workers, which all tests use."""
    require_ray()
    ray.init(
        "local", num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(cluster):
    """Two workers."""
    with RayEngine(workers=2) as made:
        yield made


def test_an_address_where_nothing_answers_is_refused_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, None):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            RayEngine(given) as engine,
            pytest.raises(MergescopeError, match=f"No Ray cluster answers at '{address}'"),
        ):
            engine.map(square, [1], "squares")


def jobs(folder, count=6):
    return [Job(number, folder) for number in range(count)]


def test_items_run_in_workers_and_results_keep_their_order(engine, tmp_path):
    assert engine.map(square, jobs(tmp_path, 9), "squares") == [number**2 for number in range(9)]
    assert all(job.runs == 1 for job in jobs(tmp_path, 9))
    found = engine.map(process, jobs(tmp_path), "processes")
    assert 1 <= len({pid for pid, _ in found}) <= 2 and os.getpid() not in {pid for pid, _ in found}
    assert {folder for _, folder in found} == {str(Path.cwd())}
    assert engine.map(square, (job for job in jobs(tmp_path, 1)), "squares") == [0]
    assert engine.map(square, [], "squares") == []


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_what_this_process_gives(cluster, workers):
    net = make_net("vit")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net, readings=readings_for(points))
    with RayEngine(workers=workers) as engine:
        split = ms.trace(points, BATCHES, net, readings=readings_for(points), engine=engine)
    assert_equal(whole, split)


@pytest.mark.parametrize("executor", ["resident", "batched", "streamed"])
def test_every_executor_gives_what_it_gives_in_this_process(engine, executor, tmp_path):
    net = make_net("vit")
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")}
    for point, path in zip(family(net), paths.values(), strict=False):
        save_file(point.state_dict(), path)
    base, a, b = (ms.Checkpoint(path) for path in paths.values())
    how = {"local": base, "centre": base, "executor": executor}
    points = ms.ctl(a, b, 0.3, reference=base).points
    whole = ms.trace(points, BATCHES, net, **how)
    with running_on(engine):
        split = ms.trace(points, BATCHES, net, **how)
    assert_equal(whole, split)
    assert split.points[0].checkpoints[0] in (base, a, b) and split.peak_bytes > 0


def test_calibrated_statistics_and_linearised_networks_travel(engine):
    net = make_net("convnet")
    points = points_of(net)
    assert_equal(*(ms.trace(points, BATCHES, net, calibration=BATCHES, engine=one) for one in (None, engine)))
    with linearized_in_place(net, points[0]) as model:
        assert_equal(*(ms.trace(points, BATCHES, model, engine=one) for one in (None, engine)))


def test_a_worker_that_is_killed_is_replaced_and_its_item_done_again(engine, tmp_path):
    assert engine.map(killed_once, jobs(tmp_path), "squares") == [0, 1, 4, 9, 16, 25]
    assert [job.runs for job in jobs(tmp_path)] == [1, 1, 2, 1, 1, 1]


def test_a_pass_survives_the_death_of_a_worker_in_the_middle(engine, tmp_path):
    net = make_net("vit")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net, readings=[*readings_for(points)])
    split = ms.trace(
        points, BATCHES, net, readings=[*readings_for(points), KilledOnce(tmp_path)], engine=engine
    )
    split.readings = split.readings[:-1]
    assert_equal(whole, split)
    (dead,) = tmp_path.iterdir()
    assert dead.name not in {str(pid) for pid, _ in engine.map(process, range(4), "processes")}


def test_an_item_that_kills_every_worker_is_given_up_and_the_others_finish(engine, tmp_path):
    with pytest.raises(
        MergescopeError, match=r"1 of 6 items failed while squares.*\n.*job 2: its worker died 3"
    ):
        engine.map(always_killed, jobs(tmp_path), "squares")
    assert [job.runs for job in jobs(tmp_path)] == [1, 1, 3, 1, 1, 1]


def test_failing_items_are_all_named_when_the_others_are_finished(engine, tmp_path):
    with pytest.raises(MergescopeError) as caught:
        engine.map(failing, jobs(tmp_path), "squares")
    assert str(caught.value).splitlines() == [
        "2 of 6 items failed while squares; the others are finished.",
        "  - job 1: There are no rows. Choose another split.",
        "  - job 3: ZeroDivisionError: on purpose",
    ]
    assert "engine_jobs.py" in str(caught.value.__cause__)
    assert [job.runs for job in jobs(tmp_path)] == [1, 0, 1, 0, 1, 1]
    assert engine.map(square, jobs(tmp_path, 2), "squares") == [0, 1]


def test_a_part_of_a_pass_that_fails_is_named(engine):
    net = make_net("mlp")
    with pytest.raises(MergescopeError, match=r"batches 9 to 10 \(4 samples from number 18 on\): Labels run"):
        data = [*labelled_batches(20, 2), *labelled_batches(2, 2, classes=10, seed=0)]
        ms.trace(points_of(net), data, net, engine=engine)


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_what_is_finished_and_the_rest_can_follow(engine, interruptible, tmp_path):
    def interrupt():
        while not any(job.runs for job in jobs(tmp_path, 40)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine.map(slow, jobs(tmp_path, 40), "squares")
    done = [job.number for job in jobs(tmp_path, 40) if job.runs]
    assert 0 < len(done) < 40
    rest = [job for job in jobs(tmp_path, 40) if not job.runs]
    assert engine.map(square, rest, "squares") == [job.number**2 for job in rest]


def test_finished_parts_of_a_pass_are_kept(engine, tmp_path):
    class Cut:
        """Batches of which the last can't be read, the first time."""

        def __init__(self, ends):
            self.ends = ends

        def __len__(self):
            return len(BATCHES)

        def __iter__(self):
            for number, batch in enumerate(BATCHES):
                if number == self.ends:
                    raise KeyboardInterrupt
                yield batch

    net = make_net("vit")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net)
    with pytest.raises(KeyboardInterrupt):
        ms.trace(points, Cut(len(BATCHES) - 1), net, engine=engine, keep=tmp_path)
    assert 0 < len(list(tmp_path.glob("*.npz"))) < len(BATCHES)
    asked = []

    def counted(function, items, label, done=None):
        asked.extend(items := list(items))
        return engine.map(function, items, label, done)

    other = SimpleNamespace(workers=engine.workers, device=engine.device, map=counted)
    assert_equal(whole, ms.trace(points, Cut(None), net, engine=other, keep=tmp_path))
    assert 0 < sum(len(part.batches) for part in asked) < len(BATCHES)


def test_checkpoints_stay_where_they_are_and_come_back_as_the_drivers_own(engine, tmp_path):
    save_file({"w": torch.full((1000,), 2.0)}, tmp_path / "a.safetensors")
    on_disk, in_memory = (
        ms.Checkpoint(tmp_path / "a.safetensors"),
        ms.Checkpoint({"w": torch.ones(1000)}, name="b"),
    )
    mixed = 0.5 * on_disk + 0.5 * in_memory
    for add in (0, 10):
        (value, back), *_ = engine.map(_total(mixed), [add], "sums")
        assert value == 1500 + add and back == mixed
        assert {id(source) for source in back.checkpoints} == {id(on_disk), id(in_memory)}
    assert len(pack(mixed).data) < 1000


def _total(point):
    return partial(total, point, "w")


def test_files_that_hold_something_else_where_a_worker_runs_are_refused(engine, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(4)}, path)
    point = ms.Point.of(ms.Checkpoint(path))
    assert point.digest
    save_file({"w": torch.ones(4)}, path)  # another time of change, and the same contents
    os.utime(path, ns=(0, 0))
    assert engine.map(_total(point), [0], "sums")[0][0] == 4
    save_file({"w": torch.zeros(4)}, path)
    os.utime(path, ns=(0, 1))  # clocks of file systems are coarse
    with pytest.raises(
        MergescopeError, match=r"a\.safetensors holds another checkpoint on .*than a is.*digests"
    ):
        engine.map(_total(point), [0], "sums")
    path.unlink()
    with pytest.raises(MergescopeError, match=r"can't open a: .*storage that all machines have"):
        engine.map(_total(point), [0], "sums")


def test_what_can_not_be_sent_is_refused(engine):
    with pytest.raises(MergescopeError, match=r"generator can't be sent.*Leave the engine out"):
        engine.map(square, [(number for number in range(2))], "squares")


def test_what_the_cluster_has_no_room_for_is_refused(cluster):
    with RayEngine() as engine:
        assert engine.workers == 3 and engine.device is None
    with RayEngine(num_cpus=2) as engine:
        assert engine.workers == 1
    with RayEngine(num_gpus=4) as engine:
        assert engine.device == "cuda"
        with pytest.raises(
            MergescopeError, match=r"No machine.*1 CPUs and 4 GPUs.*3 CPUs and 0 GPUs.*--num-gpus"
        ):
            engine.map(square, [1], "squares")


def test_workers_of_another_version_are_refused(cluster, monkeypatch):
    monkeypatch.setattr("mergescope.tracing.ray_pool.__version__", "9.9")
    with (
        RayEngine(workers=1) as engine,
        pytest.raises(
            MergescopeError, match=r"workers have mergescope \d.* and this is 9\.9\. Install one version"
        ),
    ):
        engine.map(square, [1], "squares")


def test_workers_that_never_start_are_told_with_the_reason(cluster, monkeypatch):
    class Broken(Worker):
        def __init__(self, *given):
            raise OSError("no such package")

    monkeypatch.setattr("mergescope.tracing.ray_pool.Worker", Broken)
    with (
        RayEngine(workers=1) as engine,
        pytest.raises(
            MergescopeError,
            match=r"Workers don't start: .*no such package.*Every machine .* needs mergescope",
        ),
    ):
        engine.map(square, [1], "squares")


def test_that_no_worker_starts_is_said_once(cluster, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("mergescope.tracing.ray_engine.SILENCE", 0.05)
    with RayEngine(workers=1) as engine:
        assert engine.map(square, jobs(tmp_path, 3), "squares") == [0, 1, 4]
        assert (
            capsys.readouterr().err.count("No worker has started for 0.05 s: the cluster has no free room")
            == 1
        )
        assert engine.map(slow, jobs(tmp_path, 3), "squares") == [0, 1, 4] and not capsys.readouterr().err


@pytest.mark.parametrize("how", [{"workers": 0}, {"num_cpus": 0}, {"num_gpus": -1}])
def test_too_little_is_refused(how):
    with pytest.raises(MergescopeError, match=r"The number of .* is .*Give [01] or more"):
        RayEngine(**how)
