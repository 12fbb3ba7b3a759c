"""The cost model of large jobs: what the program does, and what workers that take items one by one need."""

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.tracing.parts import Parts

PATH = Path(__file__).parents[1] / "benchmarks" / "scale_model.py"
spec = importlib.util.spec_from_file_location("scale_model", PATH)
model = sys.modules["scale_model"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)

MACHINE = model.Machine("test", 1e12, 1e9, 1e9, 1e9, 10.0, 0.01, 1e9)
NETWORKS = [
    model.Network("resident", 1e8, 4e8, 50, 12, 768, 1024),
    model.Network("streamed", 1e9, 2e9, 64, 24, 2048, 512, 8, streamed=True),
]


def parts_of(network, workers, block, noise=0.0, seed=0, machine=MACHINE):
    """Seconds of the parts of a pass."""
    jitter = np.random.default_rng(seed).uniform(1 - noise, 1 + noise, 10_000)
    sizes = model.part_sizes(network.batches, workers, network.streamed)
    return [
        model.part_seconds(network, machine, block, size) * by
        for size, by in zip(sizes, jitter, strict=False)
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_formula_is_what_simulated_workers_need(network, workers):
    for models in (8, 30):
        (block,) = model.blocks(models, network, 1e12)
        machine = replace(MACHINE, memory=1e12)
        alone = machine.start + model.driver_seconds(models, network, machine, workers)
        told = model.cost(models, network, machine, workers).seconds - alone
        exact = model.simulated(parts_of(network, workers, block), workers)
        sizes = model.part_sizes(network.batches, workers, network.streamed)
        if len(set(sizes)) == 1:
            assert exact == pytest.approx(told)
        assert told * min(sizes) / max(sizes) * 0.999 <= exact <= told * 1.001
        noisy = [model.simulated(parts_of(network, workers, block, 0.1, seed), workers) for seed in range(20)]
        assert np.mean(noisy) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("workers", [1, 8, 64])
@pytest.mark.parametrize("network", model.NETWORKS, ids=lambda network: network.name)
def test_every_row_of_the_table_is_what_simulated_workers_need(network, workers):
    for models in model.COUNTS:
        alone = model.GPU.start + model.driver_seconds(models, network, model.GPU, workers)
        told = model.cost(models, network, model.GPU, workers).seconds - alone
        kinds = Counter(model.blocks(models, network, model.GPU.memory))
        exact = sum(
            times * model.simulated(parts_of(network, workers, block, machine=model.GPU), workers)
            for block, times in kinds.items()
        )
        sizes = model.part_sizes(network.batches, workers, network.streamed)
        assert told * min(sizes) / max(sizes) * 0.999 <= exact <= told * 1.001


def test_a_worker_that_dies_costs_one_part_and_a_start_at_most():
    durations = [2.0] * 24
    plain = model.simulated(durations, 4)
    assert plain == 12
    for moment in np.arange(0.1, plain, 0.7):
        later = model.simulated(durations, 4, [moment], start=3.0)
        assert plain <= later <= plain + 2 + 3
    assert model.simulated(durations, 4, [100.0], start=3.0) == plain
    # The replacement dies while it starts.
    assert model.simulated(durations, 1, [1.0, 1.5], start=3.0) == 48 + 1.5 + 3


@pytest.mark.parametrize("batches", [1, 5, 13, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_parts_are_those_that_the_engine_cuts(batches, workers):
    for streamed, count in ((True, workers), (False, 4 * workers)):
        cut = [len(part.batches) for part in Parts(labelled_batches(batches, 1), count)]
        assert model.part_sizes(batches, workers, streamed) == cut


def test_passes_and_products_are_those_of_a_trace():
    net, batches = make_net("mlp"), labelled_batches(12, 4)
    tuned = family(net, ("a", "b", "c", "d"))
    tests = [ms.ctl(a, b) for place, a in enumerate(tuned) for b in tuned[place + 1 :]]
    points = [point for test in tests for point in test.points]
    inner = ms.InnerProducts([test.points for test in tests])
    traced = ms.trace(points, [x for x, _ in batches], net, readings=[inner])
    network = model.Network("mlp", 1000, 4000, 1, len(traced.layers), 12, 12, 4)
    assert model.cost(4, network, MACHINE, 2).passes == traced.forward_passes == 30
    kept = sum(
        part.nbytes for held in (inner._parts, inner._squares) for some in held.values() for part in some
    )
    assert 0.5 < kept / model.result_bytes(4, network) < 1.5


@pytest.mark.parametrize("models", [2, 9, 100, 1000])
@pytest.mark.parametrize("memory", [1e8, 1e9, 1e13])
def test_blocks_hold_every_pair_once_and_fit(models, memory):
    network = NETWORKS[0]
    found = model.blocks(models, network, memory)
    assert sum(block.midpoints for block in found) == models * (models - 1) // 2
    assert all(model.feature_bytes(network, block.points) <= memory for block in found)
    assert (len(found) == 1) == (model.feature_bytes(network, model.points(models)) <= memory)


def test_the_table_has_a_row_for_every_size():
    lines = model.table(model.GPU).splitlines()
    assert len(lines) == 2 + len(model.NETWORKS) * len(model.COUNTS)
    assert len({line.count("|") for line in lines}) == 1
    hours = [[float(cell.replace(",", "")) for cell in line.split("|")[-4:-1]] for line in lines[2:]]
    large = hours[4::5]
    assert all(one > eight > many for one, eight, many in large)
