import numpy as np
import pytest
import torch

from mergescope.data import Split, Task, batches, stratified_split
from mergescope.errors import DataError

LABELS = np.array([0] * 50 + [1] * 30 + [2] * 20)


def split_of(count, offset=0):
    x = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1) + offset
    return Split(x, torch.arange(count) % 2, np.arange(count))


def test_parts_are_disjoint_complete_and_stratified():
    parts = stratified_split(LABELS, (0.7, 0.1, 0.2), seed=0)
    assert sorted(np.concatenate(parts)) == list(range(100))
    for share, part in zip((0.7, 0.1, 0.2), parts, strict=True):
        assert list(np.bincount(LABELS[part])) == [round(share * n) for n in (50, 30, 20)]
        assert (np.diff(part) > 0).all()


def test_the_seed_decides_the_parts():
    one, again, other = (stratified_split(LABELS, (0.5, 0.5), seed=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert set(one) != set(other)


def test_bad_shares_and_tiny_classes_are_refused():
    with pytest.raises(DataError, match=r"sum to 1, got \[0\.5, 0\.4\]"):
        stratified_split(LABELS, (0.5, 0.4), seed=0)
    with pytest.raises(DataError, match=r"Class 7 has only 2 samples"):
        stratified_split(np.array([7, 7]), (0.9, 0.1), seed=0)


@pytest.mark.parametrize(("size", "sizes"), [(2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_batches_keep_order_and_lose_nothing(size, sizes):
    split = split_of(5)
    cut = batches(split, size)
    assert [len(y) for _, y in cut] == sizes
    assert torch.equal(torch.cat([x for x, _ in cut]), split.inputs)
    assert torch.equal(torch.cat([y for _, y in cut]), split.labels)


def test_an_empty_split_has_no_batches():
    with pytest.raises(DataError, match="split is empty"):
        batches(split_of(0))


@pytest.mark.parametrize("index", [np.array([3, 1]), torch.tensor([3, 1])])
def test_selecting_by_position_and_mask(index):
    chosen = split_of(5).select(index)
    assert chosen.inputs.flatten().tolist() == [3, 1] and list(chosen.units) == [3, 1]
    mask = np.array([False, True, False, True, False])
    assert split_of(5).select(mask).inputs.flatten().tolist() == [1, 3]


def test_fingerprints_notice_every_change():
    def task(**changed):
        parts = {
            "train": split_of(4),
            "validation": split_of(3),
            "test": split_of(2),
            "classes": (0, 1),
        } | changed
        return Task("t", **parts)

    relabelled = Split(split_of(4).inputs, 1 - split_of(4).labels, np.arange(4))
    reshaped = Split(
        split_of(4).inputs.view(4, 1, 1, 1).expand(4, 1, 1, 1).reshape(2, 2, 1, 1),
        split_of(4).labels,
        np.arange(4),
    )
    changes = [
        {},
        {"train": split_of(4, 1)},
        {"train": relabelled},
        {"train": reshaped},
        {"test": split_of(2, 1)},
        {"classes": (0,)},
    ]
    prints = [task(**change).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert task().fingerprint == prints[0]
