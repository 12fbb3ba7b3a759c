import copy

import pytest
import torch
from support import family, labelled_batches, make_net
from torch import nn

import mergescope as ms
from mergescope.errors import DataError
from mergescope.models import has_running_statistics
from mergescope.models.batchnorm import hold_statistics


def direct_statistics(net, batches):
    """Mean over batches of each BatchNorm's input mean and unbiased variance, by hooks and loops."""
    net = copy.deepcopy(net).train()
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def look(module, args, name=name):
                rows = args[0].detach().double().movedim(1, 0).flatten(1)
                seen.setdefault(name, []).append((rows.mean(1), rows.var(1, unbiased=True)))

            module.register_forward_pre_hook(look)
    with torch.no_grad():
        for x, _ in batches:
            net(x)
    return {
        name: [torch.stack(part).mean(0) for part in zip(*parts, strict=True)] for name, parts in seen.items()
    }


def test_reestimated_statistics_are_the_means_over_batches():
    net, batches = make_net("convnet"), labelled_batches(10, 4)
    with torch.no_grad():
        net.train()(torch.randn(8, 1, 8, 8) + 5)  # statistics from before, which must not count
    net.eval()
    expected = direct_statistics(net, batches)
    got = ms.reestimate_batchnorm(net, batches)
    assert set(expected) == {"blocks.0.1", "blocks.1.1"}
    for name, (mean, var) in expected.items():
        torch.testing.assert_close(got[f"{name}.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[f"{name}.running_var"].double(), var, rtol=1e-5, atol=1e-6)
        assert got[f"{name}.num_batches_tracked"] == len(batches)
        assert torch.equal(net.state_dict()[f"{name}.running_mean"], got[f"{name}.running_mean"])


@pytest.mark.parametrize("training", [False, True])
def test_modes_momenta_and_weights_stay(training):
    net = make_net("convnet").train(training)
    net.blocks[0][1].momentum = 0.3
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ms.reestimate_batchnorm(net, labelled_batches())
    assert all(module.training is training for module in net.modules())
    assert (net.blocks[0][1].momentum, net.blocks[1][1].momentum) == (0.3, 0.1)
    for key, value in net.state_dict().items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(value, before[key])


def test_dropout_stays_off_while_statistics_are_estimated():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    x = torch.randn(16, 3)
    got = ms.reestimate_batchnorm(net, [x])
    torch.testing.assert_close(got["1.running_mean"], x.mean(0))


def test_no_calibration_data_is_an_error():
    with pytest.raises(DataError, match="calibration data hold no batches"):
        ms.reestimate_batchnorm(make_net("convnet"), [])


def test_a_batch_that_leaves_a_channel_one_value_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(DataError, match=r"on batch 2, of size 1: .* Choose another batch size"):
        ms.reestimate_batchnorm(net, labelled_batches(9, 4))
    with pytest.raises(ValueError, match="expected 4D input"):  # what else is wrong is left as it is
        ms.reestimate_batchnorm(nn.BatchNorm2d(2), [torch.ones(2, 2)])


def test_batches_follow_the_network_to_its_device():
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="meta"))
            self.norm = nn.BatchNorm1d(3, affine=False)

        def forward(self, x):
            devices.append(x.device.type)
            return self.norm(torch.randn(4, 3))

    devices = []
    ms.reestimate_batchnorm(Probe(), [torch.ones(2), {"x": torch.ones(2)}])
    assert devices == ["meta", "meta"]


def test_who_has_running_statistics():
    assert has_running_statistics(make_net("convnet"))
    assert not has_running_statistics(nn.BatchNorm2d(3, track_running_stats=False))
    assert not has_running_statistics(make_net("vit"))


def test_a_trace_combines_statistics_like_weights_unless_it_may_calibrate():
    net, batches = make_net("convnet"), labelled_batches()
    _, a, b = family(net, ("base", "a", "b"), scale=0.3)
    middle = ms.lerp(a, b, 0.5)
    plain = ms.trace([a, middle], batches, net)
    calibrated = ms.trace([a, middle], batches, net, calibration=batches)

    probe = copy.deepcopy(net)
    ms.load_weights(probe, middle)
    with torch.no_grad():
        for point, traced, change in (
            (middle, plain, None),
            (middle, calibrated, ms.reestimate_batchnorm),
            (ms.Point.of(a), calibrated, None),  # a checkpoint keeps its own statistics
        ):
            ms.load_weights(probe, point)
            if change:
                change(probe, batches)
            probe.eval()
            expected = torch.cat([
                nn.functional.cross_entropy(probe(x), y, reduction="none") for x, y in batches
            ])
            got = traced.reading(ms.Outputs).losses(point)
            torch.testing.assert_close(torch.from_numpy(got), expected.double(), rtol=1e-5, atol=1e-6)
    assert (
        abs(plain.reading(ms.Outputs).losses(middle) - calibrated.reading(ms.Outputs).losses(middle)).max()
        > 1e-3
    )
    assert plain.forward_passes == calibrated.forward_passes == 2 * len(batches)


def test_statistics_that_a_regime_holds_are_estimated_all_the_same():
    free, held, batches = make_net("convnet"), make_net("convnet"), labelled_batches(10, 4)
    expected = ms.reestimate_batchnorm(free, batches)
    for module in held.modules():
        if isinstance(module, nn.BatchNorm2d):
            hold_statistics(module, True)
    found = ms.reestimate_batchnorm(held, batches)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    with torch.no_grad():
        held.train()(batches[0][0])
    assert all(torch.equal(held.state_dict()[key], value) for key, value in expected.items())
