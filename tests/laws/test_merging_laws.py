"""What is written is the point, and one model merged alone is that model."""

import pytest
import torch
from support import NETS, family, make_net

import mergescope as ms


def assert_equal(out, model):
    back = ms.Checkpoint(out)
    assert set(back.keys()) == set(model.keys())
    for key in model.spec:
        assert torch.equal(back.tensor(key), model.tensor(key)) and back.spec[key] == model.spec[key]


@pytest.mark.parametrize("kind", NETS)
def test_merging_one_model_gives_it_back_bit_for_bit(tmp_path, kind):
    base, a, b, _ = family(make_net(kind))
    for number, point in enumerate([ms.mean([a]), ms.lerp(b, a, 1), base + 1.0 * (a - base), ms.Point.of(a)]):
        assert_equal(ms.save(point, tmp_path / str(number)), a)


@pytest.mark.parametrize("kind", NETS)
def test_alpha_0_and_1_are_written_as_the_end_points(tmp_path, kind):
    _, a, b, _ = family(make_net(kind))
    assert_equal(ms.save(ms.lerp(a, b, 0), tmp_path / "0"), a)
    assert_equal(ms.save(ms.lerp(a, b, 1), tmp_path / "1"), b)


@pytest.mark.parametrize("kind", NETS)
def test_the_order_of_models_changes_no_bit_of_the_file(tmp_path, kind):
    _, a, b, c = family(make_net(kind))
    files = [ms.save(ms.mean(order), tmp_path / str(i)) for i, order in enumerate([(a, b, c), (c, a, b)])]
    one, two = ((folder / "model.safetensors").read_bytes() for folder in files)
    assert one == two


def test_saving_in_two_steps_is_saving_in_one_up_to_rounding(tmp_path):
    base, a, b, _ = family(make_net("mlp"))
    first = ms.Checkpoint(ms.save(base + 0.3 * (a - base), tmp_path / "first"))
    second = ms.Checkpoint(ms.save(first + 0.3 * (b - base), tmp_path / "second"))
    once = base + 0.3 * ((a - base) + (b - base))
    for key in once.spec:
        torch.testing.assert_close(second.tensor(key), once.tensor(key), rtol=1e-6, atol=1e-6)
