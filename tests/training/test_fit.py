import math

import numpy as np
import pytest
import torch
from support import ConvNet, make_net
from torch import nn
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import DataError, LayerError, MergescopeError


def toy(samples=60, classes=3):
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ms.Split(x, (x.sum((1, 2, 3)) > 0).long() * (classes - 1), np.arange(samples))


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in one)


RECIPES = [
    ms.Recipe(lr=0.05, epochs=2, batch=16),
    ms.Recipe("adamw", lr=1e-3, epochs=2, batch=16, weight_decay=0.1),
]


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(F.dropout(x.flatten(1), 0.5, self.training))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", [lambda: make_net("mlp"), lambda: make_net("convnet"), Drops])
def test_the_seed_decides_everything(make, recipe):
    results = []
    start = state(make())
    for seed, globally in ((0, 1), (0, 2), (1, 1)):
        net = make()
        net.load_state_dict(start)
        torch.manual_seed(globally)
        losses = ms.fit(net, toy(), recipe, seed=seed)
        results.append((state(net), losses))
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert not same(results[0][0], results[2][0])


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ms.fit(make_net("mlp", seed=5), toy(), RECIPES[0], seed=0)
    torch.manual_seed(5)
    net = make_net("mlp")
    torch.manual_seed(5)
    ms.fit(net, toy(), RECIPES[0], seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_sgd_is_the_textbook_loop():
    net, split = make_net("mlp"), toy(20)
    mine = [p.detach().clone().requires_grad_() for p in net.parameters()]
    velocity = [torch.zeros_like(p) for p in mine]
    names = [name for name, _ in net.named_parameters()]
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(2):
        total = 0.0
        for places in torch.randperm(20, generator=generator).split(8):
            logits = torch.func.functional_call(
                net, dict(zip(names, mine, strict=True)), split.inputs[places]
            )
            loss = -logits.log_softmax(-1)[torch.arange(len(places)), split.labels[places]].mean()
            grads = torch.autograd.grad(loss, mine)
            total += loss.item() * len(places)
            with torch.no_grad():
                for p, v, g in zip(mine, velocity, grads, strict=True):
                    v.mul_(0.8).add_(g)
                    p.sub_(0.05 * v)
        losses.append(total / 20)
    got = ms.fit(net, split, ms.Recipe(lr=0.05, epochs=2, batch=8), seed=3)
    assert got == pytest.approx(losses, rel=1e-5)
    for p, q in zip(net.parameters(), mine, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_training_learns_and_ends_in_eval_mode():
    net = make_net("mlp")
    losses = ms.fit(net, toy(), ms.Recipe(lr=0.05, epochs=20, batch=16), seed=0)
    assert len(losses) == 20 and losses[-1] < 0.3 * losses[0]
    assert not any(module.training for module in net.modules())


def test_masked_classes_get_no_gradient():
    net, split = make_net("mlp"), toy()  # labels 0 and 2
    before = state(net)
    ms.fit(net, split, RECIPES[0], seed=0, classes=[0, 2])
    assert torch.equal(net.head.weight[1], before["head.weight"][1])
    assert torch.equal(net.head.bias[1], before["head.bias"][1])
    assert not torch.equal(net.head.weight[0], before["head.weight"][0])
    unmasked = make_net("mlp")
    ms.fit(unmasked, split, RECIPES[0], seed=0)
    assert not torch.equal(unmasked.head.weight[1], before["head.weight"][1])


def test_the_masked_loss_is_over_the_tasks_classes_only():
    net, split = make_net("mlp"), toy()
    with torch.no_grad():
        expected = F.cross_entropy(net(split.inputs)[:, [0, 2]], split.labels // 2).item()
    assert ms.fit(net, split, ms.Recipe(lr=0.0, epochs=1), seed=0, classes=[2, 0]) == [
        pytest.approx(expected, rel=1e-5)
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_modules_do_not_change_and_flags_are_restored(recipe):
    net = make_net("mlp")
    net.blocks[0][0].bias.requires_grad_(False)
    before, flags = state(net), [p.requires_grad for p in net.parameters()]
    ms.fit(net, toy(), recipe, seed=0, trainable=ms.full(net, frozen=["head", "blocks.1"]))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(("head", "blocks.1")), key
    assert [p.requires_grad for p in net.parameters()] == flags


def test_a_frozen_batchnorm_keeps_its_statistics_and_a_free_one_does_not():
    net = ConvNet()
    before = state(net)
    ms.fit(net, toy(), RECIPES[0], seed=0, trainable=ms.full(net, frozen=["blocks.0"]))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("blocks.0"), key


def test_divergence_names_epoch_and_rate_and_restores_the_flags():
    net = make_net("mlp")
    net.head.requires_grad_(False)
    with pytest.raises(
        MergescopeError, match=r"diverged in epoch \d+, step \d+: the loss is (nan|inf).*now 1e\+12"
    ):
        ms.fit(
            net, toy(), ms.Recipe(lr=1e12, epochs=5, batch=8), seed=0, trainable=ms.full(net, frozen=["head"])
        )
    assert [p.requires_grad for p in net.head.parameters()] == [False, False]
    assert net.blocks[0][0].weight.requires_grad
    assert not net.training


def test_labels_that_do_not_fit_are_refused_not_learned():
    with pytest.raises(DataError, match=r"Labels \[4\] can't be learned: the network has 3 outputs"):
        ms.fit(make_net("mlp"), toy(classes=5), RECIPES[0], seed=0)
    with pytest.raises(DataError, match=r"Labels \[2\] can't be learned.*classes are \[0, 1\]"):
        ms.fit(make_net("mlp"), toy(), RECIPES[0], seed=0, classes=[0, 1])
    with pytest.raises(DataError, match="split is empty"):
        ms.fit(make_net("mlp"), toy(0), RECIPES[0], seed=0)


def test_a_module_to_freeze_that_is_not_there_suggests_one():
    with pytest.raises(LayerError, match="MLP has no module 'haed' to freeze.*Did you mean: head"):
        ms.full(make_net("mlp"), frozen=["haed"])


def test_losses_are_means_over_samples_not_batches():
    net, split = make_net("mlp"), toy(10)
    with torch.no_grad():
        expected = F.cross_entropy(net(split.inputs), split.labels).item()
    (loss,) = ms.fit(net, split, ms.Recipe(lr=0.0, epochs=1, batch=4), seed=0)
    assert loss == pytest.approx(expected, rel=1e-5) and math.isfinite(loss)
