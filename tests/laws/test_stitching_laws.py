"""What must hold of every stitched network."""

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from support import NETS, family, labelled_batches, make_net

import mergescope as ms
from mergescope.models.calling import split_batch
from mergescope.models.features import Features
from mergescope.models.layers import feature_of
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.stitching import StitchingSettings, stitch_addition, stitch_negation
from mergescope.tracing.rest import Rest, blocks_of
from mergescope.tracing.stitched import Mixture, stitch
from mergescope.weights import Point

KINDS = [*NETS, *(f"tiny {kind}" for kind in tiny.MAKERS)]


class Outputs:
    """A reading that keeps the outputs of all batches, as floats."""

    needs_features = False

    def start(self, points, layers):
        self.kept = {point: [] for point in points}

    def update(self, batch):
        for point, value in zip(self.kept, batch.outputs, strict=True):
            # Texts are padded to different lengths.
            self.kept[point].append((value.losses if hasattr(value, "losses") else value).double().flatten())

    def __getitem__(self, point):
        return torch.cat(self.kept[point])


def given(kind, scale=0.3):
    tiny_one = kind.startswith("tiny ")
    net = tiny.tiny(kind[5:]) if tiny_one else make_net(kind)
    data = tiny.batches_for(kind[5:]) if tiny_one else labelled_batches()
    return net, family(net, scale=scale), data


def stitched(kind, *mixtures):
    net, models, data = given(kind)
    found = stitch(models[0], [[make(*models) for make in mixtures]], data, net, Outputs(), progress=False)
    return found, [make(*models) for make in mixtures], models


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_a_model_on_its_own_features_is_the_model(kind):
    net, models, data = given(kind)
    for model in models[:2]:
        ms.load_weights(net, model)
        features, (inputs, _) = Features.of(net), split_batch(data[0])
        with torch.no_grad():
            rest = Rest(net, blocks_of(net), features, inputs)
            whole = feature_of(features.call(net, inputs), "output")
            for layer, state in rest.states.items():
                # Exactly: the same operations on the same numbers.
                assert torch.equal(feature_of(rest.after(layer, state.clone()), "output"), whole)
                moved = feature_of(rest.after(layer, state + torch.randn_like(state)), "output")
                assert not torch.allclose(moved, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_stitched_with_itself_is_the_model(kind):
    def twins(base, a, b, c):
        return Mixture.of([(base, 0.5), (ms.Checkpoint(base.state_dict(), name="twin"), 0.5)])

    def near(base, a, b, c):  # as near as can be without being known to be the same
        state = base.state_dict()
        first = next(key for key, value in state.items() if value.is_floating_point() and value.ndim > 1)
        moved = torch.nextafter(state[first], torch.full_like(state[first], torch.inf))
        return Mixture.of([(ms.Checkpoint(state | {first: moved}, name="near"), 0.5), (base, 0.5)])

    found, (same, other), models = stitched(kind, twins, near)
    whole = found.reading[Point.of(models[0])]
    assert found.rest_passes == len(found.layers) * found.forward_passes // 2
    for layer in found.layers:
        assert torch.equal(found.reading[found.key(same, layer)], whole)
        torch.testing.assert_close(found.reading[found.key(other, layer)], whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["mlp", "vit", "packed vit"])
def test_after_the_last_block_the_head_of_the_mixed_features_is_the_mixture_of_its_outputs(kind):
    found, (mixed, one, other), models = stitched(
        kind,
        lambda base, a, b, c: Mixture.of([(a, 0.3), (b, 0.7)]),
        lambda base, a, b, c: Mixture.of([(a, 1)]),
        lambda base, a, b, c: Mixture.of([(b, 1)]),
    )
    net, _, data = given(kind)
    last = found.layers[-1]
    states = []
    for model in models[1:3]:
        ms.load_weights(net, model)
        kept = []
        handle = net.get_submodule(last).register_forward_hook(
            lambda module, args, output, kept=kept: kept.append(output.clone())
        )
        with torch.no_grad():
            for x, _ in data:
                net(x)
        handle.remove()
        states.append(torch.cat(kept))
    ms.load_weights(net, models[0])
    with torch.no_grad():
        features = 0.3 * states[0] + 0.7 * states[1]
        expected = net.head(features) if kind == "mlp" else net.head(net.norm(features[:, 0]))
    torch.testing.assert_close(
        found.reading[found.key(mixed, last)].float(), expected.flatten(), rtol=1e-4, atol=1e-5
    )
    if kind == "mlp":  # what follows is linear: mixing features is mixing outputs
        outputs = 0.3 * found.reading[found.key(one, last)] + 0.7 * found.reading[found.key(other, last)]
        torch.testing.assert_close(found.reading[found.key(mixed, last)], outputs, rtol=1e-4, atol=1e-5)


def of_family(kind="vit"):
    net = make_net(kind)
    base, a, b, c = family(net, scale=0.5)
    test = {n: HeldOut(n, labelled_batches(12, 5, seed=i), net, n) for i, n in enumerate("abc")}
    return base, {"a": a, "b": b, "c": c}, test


@pytest.mark.parametrize("protocol", [stitch_addition, stitch_negation])
@pytest.mark.parametrize("kind", NETS)
def test_a_coefficient_of_zero_gives_the_base_everywhere(protocol, kind):
    found = protocol(*of_family(kind), StitchingSettings(lams=(0.0,), progress=False))
    assert found.rest_passes == 0 and found.forward_passes == 3 * 3
    for score in found.scores:
        own = found.base[score.data]
        assert (score.accuracy, score.loss) == (own.accuracy, own.loss)


@pytest.mark.parametrize("protocol", [stitch_addition, stitch_negation])
def test_task_vectors_of_zero_change_nothing(protocol):
    base, models, test = of_family()
    still = {name: ms.Checkpoint(base.state_dict(), name=name) for name in models}
    found = protocol(base, still, test, StitchingSettings(lams=(0.5, 1.0), progress=False))
    assert {score.loss for score in found.scores if score.data == "a"} == {found.base["a"].loss}
    moved = protocol(base, models, test, StitchingSettings(lams=(0.5, 1.0), progress=False))
    assert len({score.loss for score in moved.scores if score.data == "a"}) > 5


def test_the_single_model_stitched_after_no_changed_block_is_whole():
    # Only the first block was fine-tuned: the base's rest is the model's own.
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.5)
    state = base.state_dict() | {k: v for k, v in a.state_dict().items() if k.startswith("blocks.0.")}
    models = {"a": ms.Checkpoint(state, name="first"), "b": b}
    test = {n: HeldOut(n, labelled_batches(12, 5, seed=i), net, n) for i, n in enumerate("ab")}
    found = stitch_addition(base, models, test, StitchingSettings(lams=(0.5,), progress=False))
    for data in "ab":
        (whole,) = found.select(kind="whole", points="a", data=data)
        for layer in found.layers[data]:
            (single,) = found.select(kind="single", points="a", data=data, layer=layer)
            assert single.loss.mean == pytest.approx(whole.loss.mean, rel=1e-5)
        (other,) = found.select(kind="single", points="b", data=data, layer="blocks.0")
        assert other.loss.mean != pytest.approx(
            found.select(kind="whole", points="b", data=data)[0].loss.mean
        )


def test_batch_sizes_and_the_order_of_the_pair_change_nothing():
    base, models, test = of_family()
    s = StitchingSettings(lams=(0.4,), pairs=(("a", "b"),), progress=False)
    turned = StitchingSettings(lams=(0.4,), pairs=(("b", "a"),), progress=False)
    bigger = {
        n: HeldOut(n, labelled_batches(12, 12, seed=i), held.model, n)
        for i, (n, held) in enumerate(test.items())
    }
    found = stitch_addition(base, models, test, s).select(kind="mixed", points="a + b")
    again = stitch_addition(base, models, bigger, s).select(kind="mixed", points="a + b")
    other = stitch_addition(base, models, test, turned).select(kind="mixed", points="b + a")
    values = [
        {(x.data, x.layer): x.loss.mean for x in scores} for scores in (found, again, other)
    ]  # fmt: skip
    assert len(values[0]) == 4
    for key, value in values[0].items():
        np.testing.assert_allclose([one[key] for one in values], value, rtol=1e-5)
