"""The Ray engine on a cluster of several machines, each with an object store of its own; here they are processes."""

import pytest
from engine_jobs import Job, slow
from support import make_net
from traces_compared import BATCHES, assert_equal, points_of, readings_for

import mergescope as ms
from mergescope.tracing.ray_cluster import require_ray
from mergescope.tracing.ray_engine import RayEngine

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
    yield cluster
    cluster.shutdown()


def where(job):
    """Take a moment; the machine that it ran on."""
    slow(job)
    return ray.get_runtime_context().get_node_id()


def test_a_pass_over_two_machines_gives_what_this_process_gives(machines):
    net = make_net("vit")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net, readings=readings_for(points))
    with RayEngine(machines.address) as engine:
        assert engine.workers == 4
        split = ms.trace(points, BATCHES, net, readings=readings_for(points), engine=engine)
    assert_equal(whole, split)


def test_a_lost_machine_costs_what_it_was_doing_and_one_that_joins_is_used(machines, tmp_path):
    items, found, lost = [Job(number, tmp_path) for number in range(12)], {}, []

    def lose_one(job, machine):
        found[job] = machine
        if len(set(found.values())) == 2 and not lost:
            lost.append(machine)  # three workers, which start anew there until it is missed
            machines.remove_node(machines.large, allow_graceful=False)

    with RayEngine(machines.address, workers=4) as engine:
        machines_of = engine.map(where, items, "items", done=lose_one)
        assert machines_of == [found[job] for job in items] and len(set(machines_of)) == 2 and lost
        assert len(items) <= sum(job.runs for job in items) <= len(items) + 3
        machines.add(1)
        again = engine.map(where, items, "items")
        assert len(set(again)) == 2 and set(again) - set(machines_of)
