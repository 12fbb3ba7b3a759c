import pytest
import torch
from support import family, make_net

import mergescope as ms


def test_each_tensor_moves_as_far_as_the_model_it_imitates():
    base, a = family(make_net("mlp"), ("base", "a"))
    noise = ms.random_neighbour(base, a, seed=0)
    for key in base.spec:
        step, like = ((model.tensor(key) - base.tensor(key)).norm().item() for model in (noise, a))
        assert step == pytest.approx(like, rel=1e-5)


def test_seeds_choose_directions_and_the_global_state_does_not():
    base, a = family(make_net("mlp"), ("base", "a"))
    one = ms.random_neighbour(base, a, seed=0)
    torch.manual_seed(99)
    assert ms.random_neighbour(base, a, seed=0) == one
    assert ms.random_neighbour(base, a, seed=1) != one
    key = "blocks.0.0.weight"
    steps = [
        (m.tensor(key) - base.tensor(key)).flatten() for m in (one, ms.random_neighbour(base, a, seed=1), a)
    ]
    for i, j in ((0, 1), (0, 2)):
        assert abs(torch.cosine_similarity(steps[i], steps[j], dim=0)) < 0.2


def test_integer_entries_stay():
    base, a = family(make_net("convnet"), ("base", "a"))
    key = "blocks.0.1.num_batches_tracked"
    assert ms.random_neighbour(base, a, seed=0).tensor(key) == base.tensor(key)
