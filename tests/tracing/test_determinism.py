import pytest
import torch
from support import family, labelled_batches, make_net, scalars
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import mergescope as ms
from mergescope.data import Split
from mergescope.errors import CheckpointError, DataError, PointError
from mergescope.tracing.determinism import few_samples

X, Y = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
SET = TensorDataset(X, Y)


class Augmented(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + torch.randn(1), Y[i]


class Exhausted:
    """Looks repeatable, but every pass goes on where the last one stopped."""

    def __init__(self, count):
        self.batches = iter([(X, Y)] * count)

    def __iter__(self):
        return self.batches


BAD = {
    "shuffling loader": (lambda: DataLoader(SET, batch_size=4, shuffle=True), "RandomSampler.*shuffle=False"),
    "random subset": (
        lambda: DataLoader(SET, batch_size=4, sampler=SubsetRandomSampler(range(12))),
        "differ in batch 0",
    ),
    "random augmentation": (lambda: DataLoader(Augmented(), batch_size=4), "differ in batch 0.*augmented"),
    "generator": (lambda: (batch for batch in [(X, Y)]), "one-shot iterator .generator.*list of batches"),
    "empty list": (list, "data set is empty"),
    "empty loader": (lambda: DataLoader(TensorDataset(X[:0], Y[:0])), "data set is empty"),
    "exhausted after two": (lambda: Exhausted(2), "Exhausted.*does not start anew"),
    "exhausted after three": (lambda: Exhausted(3), "Exhausted.*does not start anew"),
    "no iterable": (lambda: Split(X, Y, Y.numpy()), "a Split, which gives no batches.*batches.split."),
    "strings": (lambda: ["batch one", "batch two"], "A batch must be .* got str"),
    "labels beyond": (
        lambda: [(X, Y + 1)],
        r"Labels run from 1 to 3, but the model has 3 classes \(0 to 2\)",
    ),
    "labels below": (lambda: [(X, Y - 1)], r"Labels run from -1 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_with_their_cause(case):
    make, message = BAD[case]
    net = make_net("mlp")
    with pytest.raises(DataError, match=message):
        ms.trace(family(net), make(), net)


def test_a_loader_that_does_not_shuffle_is_accepted():
    net = make_net("mlp")
    traced = ms.trace(family(net), DataLoader(SET, batch_size=5), net)
    assert traced.samples == 12


def test_a_generator_is_refused_even_unchecked_and_as_calibration():
    net = make_net("convnet")
    with pytest.raises(DataError, match="The data are a one-shot"):
        ms.trace(family(net), iter([(X, Y)]), net, check=False)
    with pytest.raises(DataError, match="The calibration data are a one-shot"):
        ms.trace(family(net), [(X, Y)], net, calibration=iter([(X, Y)]))


def test_dropout_in_forward_is_refused_and_says_so():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(64, 3)])

        def forward(self, x):
            return nn.functional.dropout(self.blocks[0](x.flatten(1)), 0.5)  # training=True by default

    net = Drops()
    with pytest.raises(DataError, match="Drops gives different outputs.*dropout"):
        ms.trace(family(net), [X], net)


def test_a_dropout_module_is_off():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    assert ms.trace(family(net), [X], net, layers="output").samples == 12


def test_nan_weights_are_refused_by_model_and_key():
    net = make_net("mlp")
    base, a = family(net, ("base", "a"))
    state = a.state_dict() | {"head.bias": torch.tensor([0.0, float("nan"), 0.0])}
    with pytest.raises(CheckpointError, match=r"broken has NaN .*head\.bias \(1 of 3\)"):
        ms.trace([base, ms.Checkpoint(state, name="broken")], [X], net)


def test_weights_that_overflow_in_forward_are_refused_by_point():
    net = make_net("mlp")
    base, a = family(net, ("base", "a"))
    state = {key: value * 1e20 for key, value in a.state_dict().items()}
    with pytest.raises(CheckpointError, match="NaN or infinite outputs at Point.huge"):
        ms.trace([base, ms.Checkpoint(state, name="huge")], [X], net)


def test_a_point_that_is_no_model_is_refused_with_its_sum():
    net = make_net("mlp")
    base, a = family(net, ("base", "a"))
    with pytest.raises(PointError, match=r"Point\(a - base\) is no model: its coefficients sum to 0, not 1"):
        ms.trace([base, a - base], [X], net)
    with pytest.raises(PointError, match="no points"):
        ms.trace([], [X], net)
    with pytest.raises(PointError, match="got str"):
        ms.trace(["base"], [X], net)


def test_points_of_another_architecture_are_refused_with_all_keys():
    net = make_net("mlp")
    with pytest.raises(ms.MergescopeError, match="does not fit MLP") as caught:
        ms.trace(scalars(w=1), [X], net)
    assert len(caught.value.problems) == 7


def test_a_network_is_tried_on_a_few_samples_where_these_can_be_told():
    seen = []
    net = make_net("mlp")
    net.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out)), with_kwargs=True)
    ms.trace(family(net, ("a",)), [X, X], net)
    assert seen == [8, 8, 8, 12, 12]
    seen.clear()
    ms.trace(family(net, ("a",)), [{"x": X}], net)
    assert seen == [8, 8, 8, 12]
    assert few_samples({"x": X, "table": torch.zeros(3, 2)})["x"] is X
    assert few_samples({"x": X, "scale": 2.0})["x"] is X


def test_a_batch_that_is_malformed_later_is_refused_too():
    net = make_net("mlp")
    batches = [*labelled_batches(), *labelled_batches(), (X, Y, Y)]
    with pytest.raises(DataError, match="got tuple"):
        ms.trace(family(net), batches, net)
