import pickle

import pytest
import torch
from safetensors.torch import save_file

import mergescope as ms
from mergescope.errors import CheckpointError
from mergescope.weights.selection import Selection

NAMES = {"w": "bert.w", "b": "bert.b"}


def tuned(name="tuned", value=1.0):
    state = {"bert.w": torch.full((2, 3), value), "bert.b": torch.arange(3.0), "head.w": torch.ones(4)}
    return ms.Checkpoint(state, name=name)


def test_a_view_has_the_chosen_tensors_under_their_new_names():
    view = Selection(tuned(), NAMES)
    assert view.name == "tuned" and Selection(tuned(), NAMES, "body").name == "body"
    assert {key: spec.shape for key, spec in view.spec.items()} == {"w": (2, 3), "b": (3,)}
    assert torch.equal(view.tensor("b"), torch.arange(3.0))
    assert repr(view) == "Selection('tuned', 2 tensors)"
    with pytest.raises(TypeError):
        view.spec["w"] = None


def test_equal_views_are_one_point_and_others_are_not():
    source = tuned()
    view = Selection(source, NAMES)
    same = Selection(source, dict(reversed(NAMES.items())))
    assert ms.Point.of(view) == ms.Point.of(same) and hash(ms.Point.of(view)) == hash(ms.Point.of(same))
    others = [Selection(source, {"w": "bert.w"}), Selection(source, {"w": "bert.b", "b": "bert.w"}),
              Selection(tuned(value=2.0), NAMES)]  # fmt: skip
    assert all(ms.Point.of(view) != ms.Point.of(other) for other in others)
    assert ms.Point.of(view) != ms.Point.of(source)


def test_views_combine_like_checkpoints():
    one, two = (Selection(tuned(name, value), NAMES) for name, value in (("a", 1.0), ("b", 3.0)))
    point = one + 0.25 * (two - one)
    assert point.tensor("w").eq(1.5).all() and torch.equal(point.tensor("b"), torch.arange(3.0))
    assert ms.lerp(one, two, 0.25) == point and list(point.keys()) == ["w", "b"]


def test_the_digest_is_that_of_the_chosen_tensors_only():
    view = Selection(tuned(), NAMES)
    other = ms.Checkpoint(tuned().state_dict() | {"head.w": torch.zeros(9)})
    assert view.digest == Selection(other, NAMES).digest
    assert view.digest == ms.Checkpoint({"w": torch.ones(2, 3), "b": torch.arange(3.0)}).digest
    assert (
        view.digest != Selection(tuned(value=2.0), NAMES).digest != Selection(other, {"w": "bert.w"}).digest
    )


def test_points_of_views_survive_pickling(tmp_path):
    save_file(tuned().state_dict(), tmp_path / "model.safetensors")
    point = ms.lerp(
        Selection(ms.Checkpoint(tmp_path), NAMES), Selection(tuned(value=3.0), NAMES, "other"), 0.5
    )
    again = pickle.loads(pickle.dumps(point))
    assert again == point and str(again) == str(point) and again.tensor("w").eq(2).all()


def test_nan_weights_of_the_source_are_refused():
    bad = ms.Checkpoint({"bert.w": torch.tensor([torch.nan])}, name="bad")
    with pytest.raises(CheckpointError, match="bad has NaN"):
        Selection(bad, {"w": "bert.w"}).require_finite()


def test_a_tensor_that_the_source_lacks_is_refused_with_a_near_match():
    with pytest.raises(CheckpointError, match=r"tuned has no tensor 'bert.ww'. Did you mean: bert.w"):
        Selection(tuned(), {"w": "bert.ww"})
