"""Models whose tensors come from different points."""

import pickle

import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import MismatchError, PointError
from mergescope.protocols.coefficients.space import CoefficientSpace, layer_groups
from mergescope.weights.layered import Layered


def two():
    base, a, *_ = family(make_net("mlp"))
    keys = list(base.spec)
    return base, a, keys[:2], keys[2:]


def test_every_tensor_is_that_of_its_part():
    base, a, first, rest = two()
    point = ms.Point.of(Layered([(a, first), ((a + base) / 2, rest)], "mixed"))
    for key in base.spec:
        wanted = a.tensor(key) if key in first else ((a + base) / 2).tensor(key)
        assert torch.equal(point.tensor(key), wanted)


def test_equal_views_are_equal_points_and_others_are_not():
    base, a, first, rest = two()
    one, same = (ms.Point.of(Layered([(a, first), (base, rest)], name)) for name in "xy")
    other = ms.Point.of(Layered([(base, first), (a, rest)], "x"))
    assert one == same and one != other and one.digest == same.digest != other.digest


def test_they_travel_to_other_processes_and_count_like_points():
    base, a, first, rest = two()
    view = Layered([(a, first), (base, rest)], "mixed")
    point = ms.Point.of(view)
    assert pickle.loads(pickle.dumps(point)) == point
    assert (2 * view - base) / 2 == point - 0.5 * base


def test_they_are_saved_like_any_model(tmp_path):
    base, a, first, rest = two()
    view = Layered([(a, first), (base, rest)], "mixed")
    ms.save(ms.Point.of(view), tmp_path / "out")
    saved = ms.Checkpoint(tmp_path / "out")
    assert all(torch.equal(saved.tensor(key), view.tensor(key)) for key in base.spec)


def test_parts_must_be_disjoint_and_whole():
    base, a, first, rest = two()
    for parts in (
        [(a, first)],
        [(a, first), (base, [*rest, "more"])],
        [(a, [*first, rest[0]]), (base, rest)],
    ):
        with pytest.raises(PointError, match="disjoint and cover"):
            Layered(parts, "wrong")
    with pytest.raises(PointError, match="at least one"):
        Layered([], "empty")
    with pytest.raises(MismatchError):
        Layered([(a, first), (ms.Checkpoint({"w": torch.zeros(1)}, name="other"), rest)], "wrong")


def test_coefficients_of_groups_are_partial_task_vectors():
    net = make_net("vit")
    base, a, b, _ = family(net)
    space = CoefficientSpace(ms.Point.of(base), {"a": ms.Point.of(a), "b": ms.Point.of(b)}, groups=2)
    state = space.point([0.1, 0.2, 0.3, 0.4]).state_dict()
    early = set(space.keys["1/2"])
    assert any(key.startswith("blocks.0") for key in early) and not any(
        key.startswith("blocks.1") for key in early
    )
    for key, value in state.items():
        one, other = (0.1, 0.3) if key in early else (0.2, 0.4)
        start = base.tensor(key)
        wanted = start + one * (a.tensor(key) - start) + other * (b.tensor(key) - start)
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-5)
    traced = ms.trace(
        [space.point([0.1, 0.2, 0.3, 0.4])], labelled_batches(), net, layers="output", progress=False
    )
    assert traced.samples == 10


def test_groups_are_of_equal_depth_and_hold_everything_once():
    names = ["embeddings.w", *(f"h.{n}.w" for n in range(5)), *(f"decoder.{n}.w" for n in range(2)), "head.w"]
    found = layer_groups(names, 2)
    assert found["1/2"] == ("embeddings.w", "h.0.w", "h.1.w", "h.2.w", "decoder.0.w")
    assert found["2/2"] == ("h.3.w", "h.4.w", "decoder.1.w", "head.w")


def test_statistics_of_batchnorm_are_reestimated_for_them_too():
    net = make_net("convnet")
    base, a, *_ = family(net)
    keys = list(base.spec)
    point = ms.Point.of(Layered([(a, keys[:3]), (base, keys[3:])], "mixed"))
    batches = labelled_batches(12, 4, seed=3)
    found = [
        ms.trace([point, base], batches, net, calibration=data).reading(ms.Outputs)
        for data in (None, batches)
    ]
    losses = [[reading.losses(it) for it in (point, ms.Point.of(base))] for reading in found]
    assert not torch.equal(*(torch.tensor(each[0]) for each in losses))
    assert torch.equal(*(torch.tensor(each[1]) for each in losses))
