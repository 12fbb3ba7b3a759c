import pytest
import torch
from support import make_net

from mergescope.errors import DataError
from mergescope.models.calling import batch_size, call_model, dummy_inputs, split_batch, to_device

X, Y = torch.zeros(3, 2), torch.arange(3)


@pytest.mark.parametrize("batch", [X, (X,), [X], (X, Y), [X, Y]])
def test_tensors_and_pairs(batch):
    inputs, labels = split_batch(batch)
    assert inputs is X
    assert labels is (Y if len(batch) == 2 and batch[0] is X else None)


@pytest.mark.parametrize("name", ["labels", "label"])
def test_mappings_give_up_their_labels(name):
    inputs, labels = split_batch({"input_ids": X, name: Y})
    assert list(inputs) == ["input_ids"] and labels is Y
    assert batch_size(inputs) == 3


@pytest.mark.parametrize("batch", [3, "text", None, (), (1, 2), (X, Y, Y)])
def test_anything_else_is_refused_by_type(batch):
    with pytest.raises(DataError, match=f"got {type(batch).__name__}"):
        split_batch(batch)


def test_samples_are_counted_by_the_first_tensor_that_has_some():
    assert batch_size({"flag": True, "mask": None, "scale": torch.tensor(2.0), "x": X}) == 3
    with pytest.raises(DataError, match="A batch of flag, mask holds no tensor of samples"):
        batch_size({"flag": True, "mask": None})


def test_mappings_are_passed_as_keywords():
    assert call_model(lambda a, b: a - b, {"b": 1, "a": 3}) == 2
    assert call_model(len, X) == 3


def test_moving_keeps_the_structure():
    moved = to_device({"x": X, "y": None}, torch.device("meta"))
    assert moved["x"].device.type == "meta" and moved["y"] is None


@pytest.mark.parametrize(
    ("kind", "expected"), [("mlp", (1, 64)), ("vit", (1, 1, 8, 8)), ("packed vit", (1, 1, 8, 8))]
)
def test_a_sample_for_own_networks_runs(kind, expected):
    net = make_net(kind)
    inputs = dummy_inputs(net)
    assert inputs["x"].shape == expected
    assert call_model(net, inputs).shape == (1, 3)


def test_no_sample_is_made_up_of_what_is_neither_text_nor_image():
    with pytest.raises(DataError, match="Linear takes input, of which no sample"):
        dummy_inputs(torch.nn.Linear(1, 1))
