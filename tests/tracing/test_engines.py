"""Passes in parts are passes in one piece, whatever the number of workers, the readings and the executor."""

import contextlib
import importlib
import inspect
import pkgutil
import sys

import numpy as np
import pytest
import torch
from engine_jobs import Here, Job, always_killed, failing, square
from support import family, make_net
from tiny_transformers import padded, texts, tiny
from traces_compared import BATCHES, assert_equal, found_by, points_of, readings_for

import mergescope as ms
import mergescope.readings
from mergescope.errors import DataError, MergescopeError
from mergescope.protocols.evaluation import evaluate
from mergescope.protocols.linear_model import linearized_in_place
from mergescope.protocols.resume import resumable
from mergescope.readings.logits import Logits
from mergescope.tracing import parts
from mergescope.tracing.engines import LocalEngine, chosen_engine, engine_or_processes, running_on
from mergescope.tracing.ray_engine import RayEngine
from mergescope.tracing.second_order import second_order
from mergescope.tracing.stitched import Mixture, stitch


def test_every_reading_is_tested_here():
    known = set()
    for module in pkgutil.iter_modules(mergescope.readings.__path__):
        named = importlib.import_module(f"mergescope.readings.{module.name}")
        known |= {kind for _, kind in inspect.getmembers(named, inspect.isclass) if hasattr(kind, "update")}
    tested = {type(reading) for reading in readings_for(points_of(make_net("mlp")))}
    assert {kind.__name__ for kind in known - tested} == {"Reading", "NextTokenLoss"}


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
@pytest.mark.parametrize("executor", ["resident", "batched", "streamed"])
def test_every_reading_is_the_same_in_parts(executor, workers):
    net, engine = make_net("vit"), Here(workers)
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net, readings=readings_for(points), executor=executor)
    split = ms.trace(points, BATCHES, net, readings=readings_for(points), executor=executor, engine=engine)
    assert_equal(whole, split)
    assert len(engine.items) == min(len(BATCHES), workers * (4 if executor == "resident" else 1))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_linearised_network_passes_checkpoints_in_parts(workers):
    net = make_net("mlp")
    points = points_of(net)
    with linearized_in_place(net, points[0]) as model:
        traces = [
            ms.trace(points, BATCHES, model, readings=readings_for(points), engine=engine)
            for engine in (None, Here(workers))
        ]
    assert traces[0].executor == "affine" and traces[0].forward_passes == 3 * len(BATCHES)
    assert_equal(*traces)


@pytest.mark.parametrize("executor", ["resident", "batched"])
def test_statistics_centre_and_local_features_are_those_of_all_data(executor):
    net = make_net("convnet")
    points = points_of(net)
    how = {"local": points[0], "centre": points[0], "calibration": BATCHES[:5], "executor": executor}
    traces = [ms.trace(points, BATCHES, net, engine=engine, **how) for engine in (None, Here(2))]
    assert traces[0].local_passes == 3 * len(BATCHES)
    assert_equal(*traces)
    plain = ms.trace(points, BATCHES, net, local=points[0], executor=executor)
    assert any(
        not np.allclose(one, two) for one, two in zip(found_by(plain), found_by(traces[1]), strict=True)
    )


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_tokens_keep_the_numbers_of_their_texts(executor):
    net = tiny("llama")
    some = texts((4, 3, 1, 5, 2, 3))
    batches = [
        batch | {"labels": batch["input_ids"]} for batch in map(padded, (some[:2], some[2:4], some[4:]))
    ]
    batches[0]["attention_mask"][1] = 0  # the last text of a part has no tokens at all
    points = points_of(net)
    traces = [
        ms.trace(points, batches, net, features="each", executor=executor, engine=engine)
        for engine in (None, Here(3))
    ]
    assert [type(reading) for reading in traces[0].readings] == [ms.InnerProducts, ms.NextTokenLoss]
    assert 1 not in traces[0].reading(ms.InnerProducts).units(traces[0].layers[0])
    assert_equal(*traces)


@pytest.mark.parametrize("features", ["all", "each"])
def test_second_derivatives_are_the_same_in_parts(features):
    net, batches = tiny("bert"), [padded(texts((4, 3), seed)) for seed in range(5)]
    base, a, b, c = family(net, scale=0.01)
    vectors = {"a": a - base, "b": b - base}
    one, other = (
        second_order(
            base, vectors, batches, net, points=[c], features=features, readings=readings, engine=engine
        )
        for engine, readings in ((None, [ms.InnerProducts()]), (Here(2), [ms.InnerProducts()]))
    )
    assert one.derivatives == other.derivatives == 3 * len(batches)
    assert_equal(one.trace, other.trace)


def test_stitching_is_the_same_in_parts():
    net = make_net("vit")
    base, a, b, _ = family(net)
    groups = [[Mixture.of([(a, 0.5), (b, 0.5)]), Mixture.of([(a, 2), (base, -1)])], [Mixture.of([(b, 1)])]]
    one, other = (
        stitch(base, groups, BATCHES, net, ms.Outputs(), engine=engine) for engine in (None, Here(2))
    )
    for name in ("layers", "points", "samples", "forward_passes", "rest_passes", "network"):
        assert getattr(one, name) == getattr(other, name)
    assert one.rest_passes == 6 * len(BATCHES)
    for mixture in groups[0]:
        for layer in one.layers:
            key = one.key(mixture, layer)
            np.testing.assert_array_equal(one.reading.losses(key), other.reading.losses(key))


def test_an_engine_that_is_chosen_runs_passes_that_know_nothing_of_it():
    net, engine = make_net("mlp"), Here(2)
    with running_on(engine):
        assert chosen_engine() is engine
        ms.trace(points_of(net), BATCHES, net)
        with engine_or_processes(1) as same:
            assert same is engine
    assert len(engine.items) == 8 and chosen_engine() is None
    with engine_or_processes(1) as own:
        assert isinstance(own, LocalEngine)


@pytest.mark.parametrize("first", [None, Here(2)])
def test_a_pass_that_is_stored_is_not_made_again_whatever_the_engine(first, tmp_path):
    class Named(list):
        fingerprint = "these"

    net, then = make_net("mlp"), Here(3)
    points, held = points_of(net), {"task": ms.HeldOut("task", Named(BATCHES), net)}

    def found(engine):
        with contextlib.ExitStack() as stack:
            if engine is not None:
                stack.enter_context(running_on(engine))
            return evaluate(points, held)["task"]

    class Killed(Exception):
        pass

    with pytest.raises(Killed), resumable(tmp_path / "passes"):  # else what is stored would go
        one, other = found(first), found(then)
        np.testing.assert_array_equal(list(one.losses.values()), list(other.losses.values()))
        raise Killed
    assert then.items == [] and (first is None or first.items)


def test_data_are_cut_between_batches_and_read_when_their_part_is_due():
    read = []

    class Data:
        def __iter__(self):
            for number in range(5):
                read.append(number)
                yield torch.ones(3, 2)

    pieces = parts.cut(Data(), [2, 2, 2])
    first = next(pieces)
    assert read == [0, 1] and str(first) == "batches 0 to 1 (6 samples from number 0 on)"
    assert [(part.first, part.start, part.samples) for part in pieces] == [(2, 6, 6), (4, 12, 3)]
    lengths = [len(part.batches) for part in parts.parts_for(Here(9), Data())]
    assert lengths == [4, 1]  # nobody knows how many there are


def test_the_network_is_left_as_it_was():
    net = make_net("convnet").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ms.trace(points_of(net), BATCHES, net, calibration=BATCHES, engine=Here(2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_a_reading_that_can_not_be_merged_is_refused():
    class Last:
        needs_features = False

        def start(self, points, layers):
            pass

        def update(self, batch):
            pass

    net = make_net("mlp")
    ms.trace(points_of(net), BATCHES, net, readings=[Last()])
    with pytest.raises(MergescopeError, match=r"Last has no merge\(\).*leave the engine out"):
        ms.trace(points_of(net), BATCHES, net, readings=[Last()], engine=Here(2))


@pytest.mark.parametrize("reading", [ms.Outputs, Logits])
def test_labels_in_some_parts_only_are_refused_as_in_one_piece(reading):
    net = make_net("mlp")
    data = [*BATCHES[:2], *(x for x, _ in BATCHES[2:4])]
    for engine in (None, Here(1)):
        with pytest.raises(DataError, match="Some batches have labels and some have none"):
            ms.trace(points_of(net), data, net, readings=[reading()], engine=engine)


def test_the_memory_of_kept_logits_is_limited_over_all_parts():
    net, points = make_net("mlp"), points_of(make_net("mlp"))
    one_part = 4 * len(points) * 8 * 3  # 8 samples, 3 classes
    for engine in (None, Here(1)):
        with pytest.raises(DataError, match="exceed"):
            ms.trace(points, BATCHES, net, readings=[Logits(memory=2 * one_part)], engine=engine)
    kept = ms.trace(points, BATCHES, net, readings=[Logits(memory=4 * one_part)], engine=Here(1))
    assert len(kept.reading(Logits).values(points[0])) == 26


def test_processes_of_this_machine_run_parts_too():
    net = make_net("mlp")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net)
    with LocalEngine(2) as engine:
        assert_equal(whole, ms.trace(points, BATCHES, net, engine=engine))
    # Workers that shared a network's memory would overwrite each other's weights.
    assert not any(entry.is_shared() for entry in (*net.parameters(), *(x for x, _ in BATCHES)))


def test_without_ray_its_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MergescopeError, match="pip install ray"):
        RayEngine()


def test_items_may_be_made_one_by_one(tmp_path):
    with LocalEngine(1) as engine:
        assert engine.map(square, (Job(number, tmp_path) for number in range(3)), "squares") == [0, 1, 4]
        assert engine.map(square, [], "nothing") == []
        with pytest.raises(DataError, match="no rows"):
            engine.map(failing, (Job(number, tmp_path) for number in range(3)), "squares")


def test_a_worker_that_is_killed_is_told_and_the_next_map_has_others(tmp_path):
    with LocalEngine(2) as engine:
        with pytest.raises(MergescopeError, match="A worker process of numbers was killed.*fewer workers"):
            engine.map(always_killed, [Job(number, tmp_path) for number in range(3)], "numbers")
        assert engine.map(square, [Job(number, tmp_path) for number in range(3)], "numbers") == [0, 1, 4]
