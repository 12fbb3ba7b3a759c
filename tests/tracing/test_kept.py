"""A pass that was killed goes on after the batches that it had kept, to the same readings and counts."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_jobs import Here
from support import make_net
from tiny_transformers import padded, texts, tiny
from traces_compared import BATCHES, assert_equal, points_of

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols.equations import check_equations
from mergescope.protocols.measure import HeldOut, Settings, measure
from mergescope.protocols.resume import resumable
from mergescope.protocols.soups import soups, subsets
from mergescope.readings.logits import Logits
from mergescope.tracing import kept
from mergescope.tracing.engines import LocalEngine


@pytest.fixture(autouse=True)
def _after_every_batch(monkeypatch):
    monkeypatch.setattr(kept, "EVERY", 0.0)


class Killed(Exception):
    """As a kill would be, nothing catches it."""


class Data:
    """Batches that say what is in them; a pass is killed when it is to have seen so many."""

    def __init__(self, batches, ends=None):
        self.batches, self.ends, self.size = batches, ends, 2
        self.fingerprint = "these"

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.ends:
                raise Killed
            yield batch


class Others(Data):
    fingerprint = "others"

    def __init__(self, batches):
        self.batches, self.ends, self.size = batches, None, 2


class IterOnly:
    """Batches that do not say how many they are."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def readings(points):
    return [ms.InnerProducts([points[:2], points[1:]]), ms.Outputs(), ms.InnerProducts(local=True)]


@pytest.mark.parametrize("executor", ["resident", "batched"])
def test_a_killed_pass_goes_on_after_what_it_had_seen(tmp_path, executor):
    net = make_net("vit")
    points = points_of(net)
    how = {"local": points[0], "executor": executor}
    whole = ms.trace(points, BATCHES, net, readings=readings(points), **how)
    ran = 0

    def count(*_):
        nonlocal ran
        ran += 1

    for ends in (3, 3, 8):
        with pytest.raises(Killed):
            ms.trace(points, Data(BATCHES, ends), net, readings=readings(points), keep=tmp_path, **how)
        assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{n:08}.npz" for n in range(ends)]
    hook = net.register_forward_hook(count)
    again = ms.trace(points, Data(BATCHES), net, readings=readings(points), keep=tmp_path, **how)
    hook.remove()
    assert_equal(whole, again)
    assert (again.samples, again.forward_passes, again.local_passes) == (
        whole.samples, whole.forward_passes, whole.local_passes,
    )  # fmt: skip
    assert 0 < ran < whole.forward_passes
    finished = ms.trace(points, Data(BATCHES), net, readings=readings(points), keep=tmp_path, **how)
    assert_equal(whole, finished)


ENGINES = {
    "one worker": lambda: LocalEngine(1),
    "five workers": lambda: nullcontext(Here(5)),
    "here": lambda: nullcontext(None),
}


@pytest.mark.parametrize("then", ENGINES)
@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_parts_of_an_engine_are_kept_and_any_other_goes_on(tmp_path, executor, then):
    net = tiny("llama")
    points = [ms.Point.of(ms.Checkpoint(tiny("llama", seed).state_dict())) for seed in range(2)]
    data = [padded(texts((5, 2), seed)) for seed in range(9)]

    def run(ends, engine, **more):
        groups = [ms.InnerProducts(), ms.NextTokenLoss(), ms.InnerProducts(local=True)]
        return ms.trace(
            points, Data(data, ends), net, readings=groups, features="each", local=points[0], executor=executor,
            engine=engine, **more,
        )  # fmt: skip

    whole = run(None, None)
    for ends in (5, 8) if executor == "resident" else (None,):  # the streamed executor gets one part a worker
        with LocalEngine(1) as engine, pytest.raises(Killed) if ends else nullcontext():
            run(ends, engine, keep=tmp_path)
    firsts = (0, 2, 4) if executor == "resident" else (0,)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{first:08}.npz" for first in firsts]
    with ENGINES[then]() as engine:
        again = run(None, engine, keep=tmp_path)
    assert_equal(whole, again)
    assert (again.samples, again.local_passes) == (whole.samples, whole.local_passes)
    assert again.forward_passes == whole.forward_passes and again.executor == executor


@pytest.mark.parametrize("engine", [None, LocalEngine(1), Here(2), Here(7)])
def test_what_is_kept_may_lie_anywhere_in_the_data(tmp_path, engine):
    net = make_net("mlp")
    points = points_of(net)
    with LocalEngine(1) as first:
        whole = ms.trace(points, BATCHES, net, keep=tmp_path, engine=first)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 2
    for name in names[::2]:
        (tmp_path / name).unlink()
    assert_equal(whole, ms.trace(points, IterOnly(BATCHES), net, keep=tmp_path, engine=engine))
    assert {path.name for path in tmp_path.iterdir()} >= set(names)


def test_soups_go_on(tmp_path):
    net = make_net("vit")
    base, a, b, _ = points_of(net)

    def averaged(data, size=None):
        held = {"data": HeldOut("data", data, net)}
        if size:
            return subsets({"a": a, "b": b, "base": base}, held, size)
        return soups({"a": a, "b": b}, held, {"test": HeldOut("test", Others(BATCHES[:3]), net)})

    for size in (None, 2):
        expected = averaged(Data(BATCHES), size)
        folder = tmp_path / str(size)
        with pytest.raises(Killed), resumable(folder):
            averaged(Data(BATCHES, 5), size)
        assert len(list(folder.rglob("*.npz"))) == 5
        with resumable(folder):
            assert repr(replace(averaged(Data(BATCHES), size), seconds=0)) == repr(
                replace(expected, seconds=0)
            )
        assert not folder.exists()


def test_texts_are_kept_with_a_feature_for_each_token(tmp_path):
    net, points = (
        tiny("llama"),
        [ms.Point.of(ms.Checkpoint(tiny("llama", seed).state_dict())) for seed in range(2)],
    )
    data = [padded(texts((5, 2), seed)) for seed in range(4)]
    traces = []
    for keep, ends in ((None, None), (tmp_path, 2), (tmp_path, None)):
        groups = [ms.InnerProducts(), ms.NextTokenLoss()]
        with pytest.raises(Killed) if ends else nullcontext():
            found = ms.trace(points, Data(data, ends), net, readings=groups, features="each", keep=keep)
            traces.append(found)
    assert traces[0].readings[0].units(traces[0].layers[0]) is not None
    assert_equal(*traces)


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x93NUMPY", None])
def test_what_is_damaged_is_passed_again(tmp_path, damage):
    net = make_net("mlp")
    points = points_of(net)
    whole = ms.trace(points, BATCHES, net)
    with pytest.raises(Killed):
        ms.trace(points, Data(BATCHES, 3), net, keep=tmp_path)
    path = tmp_path / "00000001.npz"
    if damage is None:
        np.savez(
            path.open("wb"), said=np.array("[[7, 1, null]]"), counts=np.arange(4), shapes0=np.ones((1, 1))
        )
    else:
        path.write_bytes(damage)
    assert_equal(whole, ms.trace(points, Data(BATCHES), net, keep=tmp_path))


def test_a_reading_that_is_more_than_lists_is_refused(tmp_path):
    net = make_net("mlp")
    with pytest.raises(
        MergescopeError, match="Logits can't be kept, only InnerProducts, Outputs, NextTokenLoss"
    ):
        ms.trace(points_of(net), BATCHES, net, readings=[Logits()], keep=tmp_path)


def measured(net, points, data, **settings):
    base, a, b, _ = points
    held = [HeldOut("data", data, net)]
    return measure(base, {"a": a, "b": b}, held, Settings(**settings))


def of_equations(net, points, data):
    base, a, b, _ = points
    return check_equations(base, {"a": a, "b": b}, {"data": HeldOut("data", data, net)})


def numbers(found):
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "peak_bytes")}
        for row in found.rows()
    ]


@pytest.mark.parametrize("make", [measured, of_equations])
def test_measurements_and_equations_go_on(tmp_path, make):
    net = make_net("vit")
    points = points_of(net)
    expected = numbers(make(net, points, Data(BATCHES)))
    folder = tmp_path / "passes"
    with pytest.raises(Killed), resumable(folder):
        make(net, points, Data(BATCHES, 5))
    assert len(list(folder.rglob("*.npz"))) == 5
    with resumable(folder):
        assert repr(numbers(make(net, points, Data(BATCHES)))) == repr(expected)
    assert not folder.exists()


def test_what_changes_the_result_begins_anew(tmp_path):
    net = make_net("vit")
    points = points_of(net)
    folder = tmp_path / "passes"
    others = Data(BATCHES, 2)
    others.fingerprint = "others"
    larger = Data(BATCHES, 2)
    larger.size = 3
    ways = [
        (points, Data(BATCHES, 2), {}), (points, others, {}), (points, larger, {}),
        (points, Data(BATCHES, 2), {"alphas": (0.25,)}), (points, Data(BATCHES, 2), {"local": False}),
        (points, Data(BATCHES, 2), {"layers": "output"}),
        ([points[0], points[2], points[1], points[3]], Data(BATCHES, 2), {}),
    ]  # fmt: skip
    for number, (order, data, settings) in enumerate(ways, 1):
        with pytest.raises(Killed), resumable(folder):
            measured(net, order, data, **settings)
        assert len(list(folder.iterdir())) == number
    with torch.no_grad(), pytest.raises(Killed), resumable(folder):
        measured(net, points, Data(BATCHES, 2))
    assert len(list(folder.iterdir())) == len(ways)
