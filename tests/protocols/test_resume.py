"""A killed run does not make its finished passes again, and gives the same results."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from support import family, labelled_batches, make_net
from tiny_transformers import tiny

from mergescope.models import ViT, WithHead, linear_head
from mergescope.protocols.arithmetic import task_addition
from mergescope.protocols.coefficients import SearchSettings, search_coefficients
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import once, place_of, resumable
from mergescope.protocols.stitching import StitchingSettings, stitch_negation
from mergescope.protocols.subset import Subset
from mergescope.protocols.tuning import ArithmeticSettings
from mergescope.training.kernels import make_differentiable
from mergescope.training.linearized import linearize
from mergescope.weights import Point


class Named(list):
    """Batches that say what is in them."""

    def __init__(self, batches, fingerprint):
        super().__init__(batches)
        self.fingerprint = fingerprint


@pytest.fixture
def given():
    net = make_net("mlp")
    base, first, second = family(net, ("base", "a", "b"))
    models = {"a": first, "b": second}
    held = {
        kind: {
            task: HeldOut(
                task, Named(labelled_batches(samples=24, size=12, seed=seed), f"{kind} {task}"), net, task
            )
            for seed, task in enumerate(models, start)
        }
        for kind, start in (("validation", 1), ("test", 11))
    }
    return base, models, held


PROTOCOLS = {
    "addition": ("evaluation", "trace", lambda base, models, held: task_addition(
        base, models, held["validation"], held["test"], ArithmeticSettings((0.0, 0.5, 1.0), progress=False)).rows()),
    "coefficients": ("coefficients.values", "trace", lambda base, models, held: search_coefficients(
        base, models, held["validation"],
        settings=SearchSettings("loss", grid=(0.0, 0.5, 1.0), samples=6, progress=False)).rows()),
    "disentanglement": ("disentanglement", "trace", lambda base, models, held: [
        {**row, "seconds": 0, "peak_bytes": 0} for row in disentanglement(
            base, models, held["test"], DisentanglementSettings(3, 1.0, progress=False)).rows()]),
    "stitching": ("stitching", "stitch", lambda base, models, held: [
        {**row, "seconds": 0, "peak_bytes": 0} for row in stitch_negation(
            base, models, held["test"], StitchingSettings((0.0, 0.5), progress=False)).rows()]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_killed_run_goes_on(name, given, tmp_path, monkeypatch):
    place, passes, run = PROTOCOLS[name]
    module = import_module(f"mergescope.protocols.{place}")  # a function of its name is in its place
    real, made = getattr(module, passes), []

    def counted(*arguments, **options):
        if len(made) == killed_at:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(module, passes, counted)
    killed_at = None
    want = run(*given)
    total = len(made)
    assert total >= 2
    made.clear()
    killed_at = total - 1
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "passes"):
        run(*given)
    assert len(list((tmp_path / "passes").iterdir())) == total - 1
    made.clear()
    killed_at = None
    with resumable(tmp_path / "passes"):
        assert repr(run(*given)) == repr(want)
    assert len(made) == 1 and not (tmp_path / "passes").exists()


def test_what_was_finished_is_used_for_the_same_only(given, tmp_path):
    base, models, held = given
    data, calls = held["test"]["a"], []

    def make():
        calls.append(1)
        return {"found": np.array(len(calls))}

    usual = [Point.of(base), Point.of(models["a"])]

    def asked(what="try", held=data, points=usual, around=None, more=()):
        return int(once(what, held, points, around, list(more), make)["found"])

    with pytest.raises(KeyboardInterrupt), resumable(tmp_path):
        assert [asked(), asked()] == [1, 1]
        others = [
            asked(what="other"),
            asked(held=held["test"]["b"]),
            asked(points=usual[::-1]),
            asked(around=Point.of(base)),
            asked(more=["kl"]),
            asked(held=replace(data, classes=(0, 1))),
            asked(held=replace(data, batches=Subset(data.batches, 2))),
        ]
        assert others == [2, 3, 4, 5, 6, 7, 8]
        assert asked(held=replace(data, batches=Subset(data.batches, 2))) == 8
        # What says not what it is, is made.
        assert [asked(held=replace(data, batches=list(data.batches))) for _ in range(2)] == [9, 10]
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:20])  # damaged
        assert asked() == 11
        raise KeyboardInterrupt
    assert asked() == 12  # outside of a run


def test_other_batches_of_the_same_samples_are_another_pass(given, tmp_path):
    _, models, held = given
    first = held["test"]["a"]
    cut = HeldOut("a", Named(labelled_batches(samples=24, size=6, seed=11), "test a"), first.model, "a")
    made = []
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "passes"):
        for data in (first, cut, Subset(first.batches, 10), first):
            data = data if isinstance(data, HeldOut) else HeldOut("a", data, first.model, "a")
            once("x", data, [Point.of(models["a"])], None, [], lambda: made.append(1) or {"x": np.ones(1)})
        raise KeyboardInterrupt
    assert len(made) == 3


def key_of(model, tmp_path):
    with resumable(tmp_path / "passes"):
        return place_of("x", HeldOut("a", Named([], "same"), model), [], None, []).name


def test_a_corrected_configuration_is_another_pass(tmp_path):
    net, named = tiny("bert"), tiny("bert")
    key = key_of(net, tmp_path)
    named.config.update({"dtype": "float16", "_name_or_path": "elsewhere"})
    assert key_of(tiny("bert"), tmp_path) == key == key_of(named, tmp_path)
    net.config.layer_norm_eps = 1e-6
    assert key_of(net, tmp_path) != key


def test_settings_of_own_networks_that_no_weight_tells_count(tmp_path):
    sizes = {"image": 8, "patch": 4, "width": 16, "depth": 1}
    keys = [key_of(ViT(**sizes, heads=heads), tmp_path) for heads in (2, 2, 4)]
    assert keys[0] == keys[1] != keys[2]


def test_of_a_backbone_with_a_head_both_count(tmp_path):
    def key(eps=1e-12, normalise=False):
        net = tiny("bert")
        net.config.layer_norm_eps = eps
        head = replace(linear_head(16, ["cat", "dog"], seed=0), normalise=normalise)
        return key_of(WithHead(net, head), tmp_path)

    assert key() == key() and len({key(), key(eps=1e-6), key(normalise=True)}) == 3


def test_other_kernels_are_the_same_pass(tmp_path):
    net = tiny("llama")
    key = key_of(net, tmp_path)
    net.set_attn_implementation("flex_attention")
    assert key_of(net, tmp_path) == key
    make_differentiable(net)
    assert net.config._attn_implementation == "eager" and key_of(net, tmp_path) == key


def test_a_linearised_backbone_is_told_by_the_same_settings(tmp_path):
    model = WithHead(tiny("bert"), linear_head(16, ["cat", "dog"], seed=0)).eval()
    key = key_of(model, tmp_path)
    assert key_of(linearize(model), tmp_path) == key
