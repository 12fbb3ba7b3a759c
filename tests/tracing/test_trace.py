import pytest
import torch
from support import NETS, family, labelled_batches, make_net
from tiny_transformers import padded, texts, tiny, transformers

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.readings import Batch


class Recorder:
    """A reading that remembers what it was given."""

    needs_features = True

    def __init__(self):
        self.batches = []

    def start(self, points, layers):
        self.points, self.layers = points, layers

    def update(self, batch):
        self.batches.append(batch)


def test_equal_points_run_once():
    net, batches = make_net("mlp"), labelled_batches(10, 4)
    base, a, b, _ = family(net)
    calls = []
    net.register_forward_hook(lambda *args: calls.append(1))
    points = [
        base,
        a,
        base + (a - base),
        ms.lerp(a, b, 0.5),
        ms.mean([b, a]),
        ms.Checkpoint(a.state_dict(), name="again"),
    ]
    traced = ms.trace(points, batches, net, check=False)
    assert traced.points == (ms.Point.of(base), ms.Point.of(a), ms.mean([a, b]))
    assert traced.forward_passes == 3 * len(batches)
    assert len(calls) == 3 * len(batches) + 1  # and one that finds trivial layers
    assert traced.samples == 10


def test_a_checked_trace_costs_two_more_forward_passes_in_all():
    net, batches = make_net("mlp"), labelled_batches(10, 2)
    calls = []
    net.register_forward_hook(lambda *args: calls.append(1))
    ms.trace(family(net), batches, net)
    assert len(calls) == 4 * len(batches) + 3


@pytest.mark.parametrize("kind", NETS)
def test_features_and_outputs_are_those_of_each_points_own_weights(kind):
    net, batches = make_net(kind), labelled_batches(10, 4)
    _, a, b, _ = family(net)
    points = [ms.Point.of(a), ms.lerp(a, b, 0.3)]
    seen = Recorder()
    ms.trace(points, batches, net, readings=[seen])
    assert seen.layers == ["blocks.0", "blocks.1", "output"] and list(seen.points) == points
    for (x, y), batch in zip(batches, seen.batches, strict=True):
        assert isinstance(batch, Batch) and torch.equal(batch.labels, y)
        for i, point in enumerate(points):
            fresh = NETS[kind]().eval()
            fresh.load_state_dict(point.state_dict())
            with torch.no_grad():
                assert torch.equal(batch.outputs[i], fresh(x))
            assert torch.equal(batch.features["output"][i], batch.outputs[i])
            assert all(feature[i].shape[0] == len(x) for feature in batch.features.values())


def snapshot(net):
    return (
        {key: (value.clone(), value.data_ptr()) for key, value in net.state_dict().items()},
        {name: module.training for name, module in net.named_modules()},
        {name: p.requires_grad for name, p in net.named_parameters()},
    )


def assert_same(net, before):
    weights, modes, grads = before
    for key, value in net.state_dict().items():
        assert torch.equal(value, weights[key][0]) and value.data_ptr() == weights[key][1]
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: p.requires_grad for name, p in net.named_parameters()} == grads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("kind", NETS)
def test_the_network_is_left_exactly_as_it_was(kind):
    net = make_net(kind).train()
    net.head.eval()
    net.head.weight.requires_grad_(False)
    _, a, b, _ = family(net)
    before = snapshot(net)
    batches = labelled_batches()
    ms.trace([a, ms.lerp(a, b, 0.5)], batches, net, calibration=batches)
    assert_same(net, before)


@pytest.mark.parametrize("when", ["start", "update", "second update", "calibration"])
def test_the_network_is_left_as_it_was_after_an_error_in_the_middle(when):
    class Failing(Recorder):
        def start(self, points, layers):
            super().start(points, layers)
            if when == "start":
                raise RuntimeError("on purpose")

        def update(self, batch):
            self.batches.append(batch)
            if len(self.batches) == {"update": 1, "second update": 2}.get(when):
                raise RuntimeError("on purpose")

    net = make_net("convnet").train()
    net.head.eval()
    _, a, b, _ = family(net)
    before = snapshot(net)
    calibration = ["no batch"] if when == "calibration" else None
    with pytest.raises((RuntimeError, MergescopeError)):
        ms.trace([a, ms.mean([a, b])], labelled_batches(), net, readings=[Failing()], calibration=calibration)
    assert_same(net, before)


def test_data_without_a_length_are_traced():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.ones(5, 64))

    net = make_net("mlp")
    assert ms.trace(family(net), torch.utils.data.DataLoader(Stream(), batch_size=2), net).samples == 5


def test_readings_are_chosen_by_labels():
    net = make_net("mlp")
    with_labels = ms.trace(family(net), labelled_batches(), net)
    without = ms.trace(family(net), [x for x, _ in labelled_batches()], net)
    assert [type(r) for r in with_labels.readings] == [ms.InnerProducts, ms.Outputs]
    assert [type(r) for r in without.readings] == [ms.InnerProducts]
    with pytest.raises(
        MergescopeError, match=r"no Outputs \(it has: InnerProducts\).*readings=\[Outputs\(\)\]"
    ):
        without.reading(ms.Outputs)
    unlabelled = ms.trace(family(net), [x for x, _ in labelled_batches()], net, readings=[ms.Outputs()])
    found, wanted = (traced.reading(ms.Outputs) for traced in (unlabelled, with_labels))
    assert not found.labelled and wanted.labelled
    for point in with_labels.points:
        assert (found.predictions(point) == wanted.predictions(point)).all()
    with pytest.raises(MergescopeError, match="need labels"):
        found.losses(with_labels.points[0])


def test_features_are_not_captured_if_no_reading_needs_them():
    seen = Recorder()
    seen.needs_features = False
    net = make_net("mlp")
    ms.trace(family(net), labelled_batches(), net, readings=[seen])
    assert all(not part for part in seen.batches[0].features.values())


def test_a_reading_serves_one_trace():
    net = make_net("mlp")
    for reading in (ms.InnerProducts(), ms.Outputs()):
        ms.trace(family(net), labelled_batches(), net, readings=[reading])
        with pytest.raises(MergescopeError, match=f"make a new {type(reading).__name__}"):
            ms.trace(family(net), labelled_batches(), net, readings=[reading])


def test_cost_is_reported():
    net = make_net("mlp")
    traced = ms.trace(family(net), labelled_batches(), net)
    assert traced.seconds > 0 and traced.peak_bytes > 1 << 20
    assert traced.trivial == frozenset()
    assert ms.trace(family(net), labelled_batches(), net, layers="blocks.*.0").trivial == {"blocks.0.0"}


def test_a_decoder_that_classifies_gets_outputs_and_one_that_predicts_tokens_their_losses():
    config = tiny("llama").config
    config.num_labels = 3
    torch.manual_seed(0)
    net, batch = transformers.LlamaForSequenceClassification(config).eval(), padded(texts((4, 2)))
    traced = ms.trace(family(net), [batch | {"labels": torch.tensor([0, 2])}], net)
    assert [type(r) for r in traced.readings] == [ms.InnerProducts, ms.Outputs]
    net = tiny("llama")
    traced = ms.trace(family(net), [batch | {"labels": batch["input_ids"]}], net)
    assert [type(r) for r in traced.readings] == [ms.InnerProducts, ms.NextTokenLoss]
