"""A pass that was killed goes on after the batches that it had kept, to the same readings and counts."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from support import make_net
from tiny_transformers import padded, texts, tiny
from traces_compared import BATCHES, assert_equal, points_of

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols.equations import check_equations
from mergescope.protocols.measure import HeldOut, Settings, measure
from mergescope.protocols.resume import resumable
from mergescope.readings.logits import Logits
from mergescope.tracing import kept


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
