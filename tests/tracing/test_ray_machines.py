"""The Ray engine on a cluster of several machines, each with an object store of its own; here they are processes."""

import os
import threading
import time
from functools import partial

import pytest
from engine_jobs import Job, square
from support import make_net
from traces_compared import BATCHES, assert_equal, points_of, readings_for

import mergescope as ms
from mergescope.tracing.ray_cluster import require_ray
from mergescope.tracing.ray_engine import RayEngine
from mergescope.tracing.ray_worker import Worker

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")

SOON = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}  # a lost machine is missed


@pytest.fixture(scope="module")
def machines():
    """A head without room for workers, where this process is, and machines with room for one and for three."""
    require_ray()
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SOON, **store},
    )
    cluster.add = lambda room: cluster.add_node(num_cpus=room, **store)
    cluster.add(1)
    cluster.large = cluster.add(3)
    cluster.lose = lambda machine: cluster.remove_node(machine, allow_graceful=False)
    yield cluster
    cluster.shutdown()


def wait_for(happened):
    """Return when it has."""
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.05)
    raise TimeoutError("It has not happened in five minutes.")


def met(doomed, job):
    """The machine that this ran on, when two have items at work; ``doomed`` never gets further than that."""
    square(job)
    here = ray.get_runtime_context().get_node_id()
    (job.folder / f"at {here}").touch()
    wait_for(lambda: here != doomed and len(list(job.folder.glob("at *"))) == 2)
    return here


def after(path, number):
    """The number, a second after there is a file."""
    wait_for(path.exists)
    time.sleep(1)
    return number


def test_a_pass_over_two_machines_gives_what_this_process_gives(machines):
    net = make_net("vit")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net, readings=readings_for(points))
    with RayEngine(machines.address) as engine:
        assert engine.workers == 4
        split = ms.trace(points, BATCHES, net, readings=readings_for(points), engine=engine)
    assert_equal(whole, split)


def test_a_lost_machine_costs_what_it_was_doing_and_one_that_joins_is_used(machines, tmp_path):
    first, second = ([Job(number, tmp_path / name) for number in range(12)] for name in ("first", "second"))
    for job in (first[0], second[0]):
        job.folder.mkdir()
    lost = []

    def lose_one(job, machine):
        if not lost:
            lost.append(machines.large.node_id)  # three workers
            machines.lose(machines.large)

    with RayEngine(machines.address, workers=4) as engine:
        kept = engine.map(partial(met, machines.large.node_id), first, "items", done=lose_one)
        assert len(set(kept)) == 1 and lost and lost[0] not in kept
        assert len(first) < sum(job.runs for job in first) <= len(first) + 3
        joined = machines.add(1)
        assert set(engine.map(partial(met, None), second, "items")) == {kept[0], joined.node_id}


def test_workers_that_start_on_a_machine_as_it_is_lost_are_not_taken_for_such_that_never_start(
    machines, tmp_path, monkeypatch
):
    large = machines.add(3)
    doomed, starting, lost = large.node_id, tmp_path / "starting", tmp_path / "lost"
    starting.mkdir()

    class Starting(Worker):
        def __init__(self, *given):
            if ray.get_runtime_context().get_node_id() == doomed:
                (starting / str(os.getpid())).touch()
                time.sleep(300)
            super().__init__(*given)

    def lose():
        wait_for(lambda: len(list(starting.iterdir())) == 3)
        machines.lose(large)
        lost.touch()

    monkeypatch.setattr("mergescope.tracing.ray_pool.Worker", Starting)
    threading.Thread(target=lose, daemon=True).start()
    with RayEngine(machines.address) as engine:
        assert engine.map(partial(after, lost), range(12), "items") == list(range(12))
