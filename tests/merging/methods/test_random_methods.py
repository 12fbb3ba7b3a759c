"""Random methods: the share they drop, their expectation, and that the seed decides everything."""

import pytest
import torch
from merging_support import METHODS, family, run

from mergescope.merging import streams

RANDOM = sorted(name for name, method in METHODS.items() if method.random)
SIZE = (200, 100)


def kept(name, seed=0, **given):
    base = torch.zeros(SIZE)
    model = torch.rand(SIZE, generator=torch.Generator().manual_seed(5)) + 0.5
    merged = run(name, [model], base, seed=seed, weight=1.0, **{"rescale": False, **given})
    return merged != 0, merged, model


@pytest.mark.parametrize("density", [0.3, 0.8])
@pytest.mark.parametrize("name", RANDOM)
def test_the_share_kept_is_the_density(name, density):
    mask, merged, model = kept(name, density=density)
    assert abs(mask.float().mean() - density) < 5 * (density * (1 - density) / mask.numel()) ** 0.5
    assert torch.equal(merged[mask], model[mask])


@pytest.mark.parametrize("name", RANDOM)
def test_rescaling_restores_the_l1_norm(name):
    _, merged, model = kept(name, density=0.4, rescale=True)
    assert merged.sum() == pytest.approx(float(model.sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_expectation_of_dare_is_the_task_vector(name):
    base, models = family((4, 6), 2, scale=1.0)
    extra = {"epsilon": 0.0} if name == "della_linear" else {}
    runs = [
        run(name, models, base, seed=seed, density=0.5, rescale=False, weight=2.0, **extra) - base
        for seed in range(4000)
    ]
    mean, spread = torch.stack(runs).mean(0), torch.stack(runs).std(0)
    assert ((mean - (models[0] + models[1] - 2 * base)).abs() < 6 * spread / 4000**0.5).all()


@pytest.mark.parametrize("shape", [(3, 7), (7,), (2, 7, 1, 1)], ids=str)
def test_della_keeps_large_entries_more_often(shape):
    base = torch.zeros(shape)
    model = torch.arange(1.0, base.numel() + 1).reshape(shape)
    if len(shape) > 1:
        model = model.flip(1) ** 2
    draws = 3000
    share = sum((run("della_linear", [model], base, seed=s, density=0.5, epsilon=0.3, weight=1.0, rescale=False) != 0)
                .float() for s in range(draws)) / draws  # fmt: skip
    rising = torch.linspace(0.2, 0.8, 7)
    expected = rising.expand(3, 7).flip(1) if shape == (3, 7) else rising if shape == (7,) else None
    if expected is None:
        expected = rising.flip(0).expand(2, 7).reshape(shape)
    assert ((share - expected).abs() < 5 * (0.25 / draws) ** 0.5).all()


def test_della_keeps_an_entry_alone_in_its_row_with_the_density():
    model = torch.ones(4000, 1)
    merged = run("della_linear", [model], 0 * model, density=0.5, epsilon=0.3, weight=1.0, rescale=False)
    assert abs(float(merged.mean()) - 0.5) < 0.05


def test_a_long_vector_is_one_row_for_della_however_it_is_split(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 50)
    model = torch.arange(1.0, 1001)
    runs = [run("della_linear", [model], torch.zeros(1000), seed=s, density=0.5, epsilon=0.4, weight=1.0,
                rescale=False) != 0 for s in range(100)]  # fmt: skip
    share = torch.stack(runs).float().mean(0)
    assert share[:100].mean() < 0.2 and share[-100:].mean() > 0.8


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_decides(name):
    base, models = family(SIZE)
    one = run(name, models, base, seed=1, density=0.5)
    assert torch.equal(one, run(name, models, base, seed=1, density=0.5))
    assert not torch.equal(one, run(name, models, base, seed=2, density=0.5))
    torch.manual_seed(99)
    assert torch.equal(one, run(name, models, base, seed=1, density=0.5))


@pytest.mark.parametrize("name", RANDOM)
def test_models_tensors_and_chunks_draw_their_own_numbers(name, monkeypatch):
    one, _, _ = kept(name, density=0.5)
    base = torch.zeros(SIZE)
    model = torch.rand(SIZE, generator=torch.Generator().manual_seed(5)) + 0.5
    other = run(name, [model], base, tensor="v", density=0.5, rescale=False, weight=1.0) != 0
    both = run(name, [model, 10 * model], base, density=0.5, rescale=False, weight=1.0, normalize=False)
    second = (both / model > 5).squeeze()
    for mask in (other, second):
        assert abs((mask == one).float().mean() - 0.5) < 0.03
    monkeypatch.setattr(streams, "CHUNK", SIZE[0] * SIZE[1] // 2)
    halves = (run(name, [model], base, density=0.5, rescale=False, weight=1.0) != 0).chunk(2)
    assert abs((halves[0] == halves[1]).float().mean() - 0.5) < 0.03


@pytest.mark.parametrize("name", RANDOM)
def test_density_1_drops_nothing(name):
    mask, merged, model = kept(name, density=1.0, rescale=True)
    assert mask.all() and torch.equal(merged, model)
