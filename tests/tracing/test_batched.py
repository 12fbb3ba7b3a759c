"""All points at once give what one after another gives."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import MAKERS, batches_for, tiny
from torch import nn

import mergescope as ms
from mergescope.errors import CheckpointError, MergescopeError
from mergescope.tracing import batched


def data_of(kind):
    return (make_net(kind), labelled_batches()) if kind in NETS else (tiny(kind), batches_for(kind))


def both(net, batches, points, **options):
    return [ms.trace(points, batches, net, executor=name, **options) for name in ("resident", "batched")]


def assert_close(one, two):
    assert [type(reading) for reading in one.readings] == [type(reading) for reading in two.readings]
    for mine, other in zip(one.readings, two.readings, strict=True):
        if isinstance(mine, ms.InnerProducts):
            for layer in one.layers[: -1 if mine.local else None]:
                expected = mine.gram(layer, one.points)
                np.testing.assert_allclose(
                    other.gram(layer, two.points), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
                )
                np.testing.assert_array_equal(mine.units(layer), other.units(layer))
        else:
            for point in one.points:
                np.testing.assert_allclose(other.losses(point), mine.losses(point), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*NETS, *MAKERS])
def test_results_are_those_of_the_resident_executor(kind):
    net, batches = data_of(kind)
    base, a, b = family(net, ("base", "a", "b"), scale=0.05)
    one, two = both(net, batches, ms.ctl(a, b, 0.3, reference=base).points, local=a)
    assert (one.executor, two.executor) == ("resident", "batched") and one.samples == two.samples
    assert one.local_passes == two.local_passes
    assert_close(one, two)


@pytest.mark.parametrize("choice", ["all", "mean", "last", "cls", "each"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_choice_of_features_can_be_mapped(kind, choice):
    net, batches = data_of(kind)
    base, a = family(net, ("base", "a"), scale=0.05)
    assert_close(*both(net, batches, [base, a], features=choice))


def test_statistics_of_each_point_are_used():
    net, batches = make_net("convnet"), labelled_batches()
    _, a, b, _ = family(net, scale=0.3)
    points = [a, b, ms.lerp(a, b, 0.5)]
    one, two = both(net, batches, points, calibration=batches)
    assert_close(one, two)
    plain = ms.trace(points, batches, net)
    combined = [t.reading(ms.InnerProducts).gram("blocks.1", points)[:, 2, 2] for t in (two, plain)]
    assert np.abs(combined[0] / combined[1] - 1).min() > 0.01


def test_features_are_what_the_layer_returned_even_if_a_later_one_works_in_place():
    net, batches = make_net("convnet"), labelled_batches()
    assert_close(*both(net, batches, family(net, ("base", "a")), layers=["blocks.0.1", "blocks.0"]))


def test_entries_that_all_points_share_are_not_stacked(monkeypatch, tmp_path):
    net, (batch, *_) = make_net("mlp"), labelled_batches()
    run, sizes = batched._map, []

    def spy(network, count, stacked, shared, arguments):
        sizes.append([sum(value.numel() for value in part.values()) for part in (stacked, shared)])
        return run(network, count, stacked, shared, arguments)

    monkeypatch.setattr(batched, "_map", spy)
    base, a, b, _ = family(net)
    frozen = {key: base.tensor(key) for key in net.state_dict() if key.startswith("head")}
    a, b = (ms.Checkpoint(point.state_dict() | frozen, name=point.name) for point in (a, b))
    assert_close(*both(net, [batch], [base, a, b]))
    head, every = (sum(entry.numel() for entry in part.parameters()) for part in (net.head, net))
    assert sizes == [[3 * (every - head), head]]
    for name in ("one", "two"):  # a model that was saved twice shares everything
        save_file(base.state_dict(), tmp_path / f"{name}.safetensors")
    saved = [ms.Checkpoint(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    one, two = both(net, [batch], saved)
    assert len(two.points) == 2
    assert_close(one, two)
    assert sizes[1] == [0, every]


@pytest.mark.parametrize("kind", ["convnet", "tied llama", "t5"])
def test_the_network_is_left_as_it_was(kind):
    net, batches = data_of(kind)
    base, a = family(net, ("base", "a"))
    net.train()
    before = {key: (value.clone(), value.data_ptr()) for key, value in net.state_dict().items()}
    ms.trace([a, ms.lerp(base, a, 0.5)], batches, net, executor="batched")
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key][0]) and value.data_ptr() == before[key][1]
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Twice(nn.Module):
    """One module under two names, as T5 and BART of transformers 4 have their embedding."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 8)])
        self.again = self.blocks[1]
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.again.weight

    def forward(self, x):
        return self.tied(self.again(self.blocks[0](x.flatten(1))))


def test_modules_and_weights_under_several_names_are_one():
    net = Twice()
    points, batches = family(net, ("base", "a", "b")), [x for x, _ in labelled_batches()]
    before = {key: (value.clone(), value.data_ptr()) for key, value in net.state_dict().items()}
    assert_close(*both(net, batches, points, layers=["blocks.0", "tied", "output"]))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key][0]) and value.data_ptr() == before[key][1]
    assert net.again is net.blocks[1] and net.tied.weight is net.again.weight


class Branching(nn.Module):
    """What it computes depends on what it computed."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 8)])

    def forward(self, x):
        x = self.blocks[0](x.flatten(1))
        return self.blocks[1](x) if x.sum() > 0 else self.blocks[1](-x)


def test_a_network_that_can_not_be_mapped_is_refused_and_the_resident_executor_named():
    net = Branching()
    points = family(net, ("base", "a"))
    batches = [x for x, _ in labelled_batches()]
    with pytest.raises(
        MergescopeError, match=r"Branching can't run at all points at once.*resident"
    ) as caught:
        ms.trace(points, batches, net, executor="batched")
    assert "data-dependent control flow" in str(caught.value)
    assert ms.trace(points, batches, net).executor == "resident"


def test_weights_that_would_fill_the_memory_are_refused(monkeypatch):
    net, batches = make_net("mlp"), labelled_batches()
    base, a, b, _ = family(net)
    size = 3 * sum(entry.nbytes for entry in net.state_dict().values())
    monkeypatch.setattr(batched, "free_memory", lambda device: int(size / batched.MEMORY_SHARE) - 2)
    with pytest.raises(
        MergescopeError, match=r"weights of 3 points take .* GB at once, more than 50%.*resident"
    ):
        ms.trace([base, a, b], batches, net, executor="batched")
    ms.trace([base, a], batches, net, executor="batched")
    monkeypatch.setattr(batched, "free_memory", lambda device: None)
    ms.trace([base, a, b], batches, net, executor="batched")


def test_tied_weights_are_stacked_once(monkeypatch):
    net = tiny("tied llama")
    base, a = family(net, ("base", "a"))
    size = 2 * sum(entry.nbytes for entry in net.parameters())
    monkeypatch.setattr(batched, "free_memory", lambda device: int(size / batched.MEMORY_SHARE) + 2)
    assert ms.trace([base, a], batches_for("llama"), net, executor="batched").executor == "batched"


def test_free_memory_is_known_or_not(monkeypatch, tmp_path):
    free = batched.free_memory(torch.device("cpu"))
    assert free is None or free > 1 << 20
    file = tmp_path / "meminfo"
    monkeypatch.setattr(batched, "Path", lambda name: file)
    assert batched.free_memory(torch.device("cpu")) is None
    file.write_text("MemTotal:  9 kB\nMemAvailable:    5 kB\n")
    assert batched.free_memory(torch.device("cpu")) == 5 * 1024


def test_auto_is_resident_on_a_cpu():
    net = make_net("mlp")
    assert ms.trace(family(net), labelled_batches(), net).executor == "resident"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let the choice believe that networks are on a GPU; they compute where they are."""
    monkeypatch.setattr(batched, "free_memory", lambda device: 1 << 40)
    monkeypatch.setattr(batched, "LAUNCH_BOUND", ("cpu",))


def test_auto_is_batched_on_a_gpu_for_small_networks_that_can_be_mapped(on_a_gpu, monkeypatch):
    net, batches = make_net("mlp"), labelled_batches()
    points = family(net)
    traced = ms.trace(points, batches, net)
    assert traced.executor == "batched" and traced.samples == 10
    assert traced.forward_passes == len(points) * len(batches)
    assert_close(ms.trace(points, batches, net, executor="resident"), traced)
    assert ms.trace(points[:1], batches, net).executor == "resident"
    branching = Branching()
    assert ms.trace(family(branching), [x for x, _ in batches], branching).executor == "resident"
    monkeypatch.setattr(batched, "SMALL", 10)
    assert ms.trace(points, batches, net).executor == "resident"


def test_trying_a_batch_leaves_nothing_in_what_is_kept(on_a_gpu, tmp_path):
    net, batches = make_net("mlp"), labelled_batches()
    points = family(net)
    traced = ms.trace(points, batches, net, keep=tmp_path)
    assert (
        traced.executor == "batched"
        and len(traced.reading(ms.Outputs).correct(points[0])) == traced.samples == 10
    )
    assert_close(ms.trace(points, batches, net, executor="resident"), traced)


def test_an_unknown_executor_is_refused_with_a_near_match():
    net = make_net("mlp")
    with pytest.raises(MergescopeError, match="no executor 'batch'. Did you mean: batched.*auto, resident"):
        ms.trace(family(net), labelled_batches(), net, executor="batch")


def test_outputs_that_are_not_finite_name_their_point():
    net = make_net("mlp")
    base, a = family(net, ("base", "a"))
    huge = ms.Checkpoint({key: value * 1e20 for key, value in a.state_dict().items()}, name="huge")
    with pytest.raises(CheckpointError, match="NaN or infinite outputs at Point.huge"):
        ms.trace([base, huge], labelled_batches(), net, executor="batched")
