"""Image data sets in memory: so many a class, parts of classes, replaced samples."""

import numpy as np
import pytest
import torch
from small_images import SIDE, write_pictures

from mergescope.data.image_tasks import consecutive_parts, image_task, replaced
from mergescope.errors import DataError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def test_so_many_of_every_class_in_random_order_and_none_in_two_splits(pictures):
    task = image_task(str(pictures), train=10, test=2)
    assert task.classes == (0, 1, 2, 3, 4, 5)
    assert torch.bincount(task.train.labels).tolist() == [10] * 6
    assert torch.bincount(task.validation.labels).max() <= 2
    assert torch.bincount(task.test.labels).tolist() == [2] * 6
    assert task.train.inputs.shape == (60, 3, SIDE, SIDE)
    assert 0.5 < task.train.inputs.max() <= 1
    assert task.train.labels[:10].unique().numel() > 1
    units = [set(part.units.tolist()) for part in (task.train, task.validation, task.test)]
    assert not units[0] & units[1] and not units[0] & units[2] and not units[1] & units[2]


def test_labels_belong_to_their_pictures(pictures):
    task = image_task(str(pictures))
    brightest = task.train.inputs.mean((1, 2)).argmax(1)
    assert torch.equal(brightest, task.train.labels)
    assert image_task(str(pictures)).fingerprint == task.fingerprint


def test_grey_pictures_have_one_channel(pictures):
    assert image_task(str(pictures), train=1, test=1, channels=1).test.inputs.shape == (6, 1, SIDE, SIDE)


def test_parts_are_of_consecutive_classes(pictures):
    parts = consecutive_parts(image_task(str(pictures), train=4, test=2), 2)
    assert [part.name for part in parts] == ["0-2", "3-5"]
    assert [part.classes for part in parts] == [(0, 1, 2), (3, 4, 5)]
    assert set(parts[1].test.labels.tolist()) == {3, 4, 5}
    with pytest.raises(DataError, match="6 classes: too few for 4 parts"):
        consecutive_parts(image_task(str(pictures), train=4, test=2), 4)


def test_a_larger_share_replaces_more_of_the_same(pictures):
    one, two = (part.train for part in consecutive_parts(image_task(str(pictures), train=8, test=2), 2))
    few, many, every = (replaced(one, two, share) for share in (0.25, 0.5, 1.0))
    own, others = set(one.units.tolist()), set(two.units.tolist())
    assert [len(split) for split in (few, many, every)] == [24, 24, 24]
    assert [np.isin(split.units, list(others)).sum() for split in (few, many, every)] == [6, 12, 24]
    assert set(few.units.tolist()) & others < set(many.units.tolist()) & others
    assert set(many.units.tolist()) & own < set(few.units.tolist()) & own
    brightest = many.inputs.mean((1, 2)).argmax(1)
    assert torch.equal(brightest, many.labels)


@pytest.mark.parametrize(("share", "says"), [(1.5, "between 0 and 1"), (-0.1, "between 0 and 1")])
def test_impossible_shares_are_refused(pictures, share, says):
    one, two = (part.train for part in consecutive_parts(image_task(str(pictures), train=4, test=2), 2))
    with pytest.raises(DataError, match=says):
        replaced(one, two, share)


def test_too_few_samples_to_come_are_refused(pictures):
    one, two = (part.train for part in consecutive_parts(image_task(str(pictures), train=4, test=2), 2))
    with pytest.raises(DataError, match="the other part has only 3"):
        replaced(one, two.select(np.arange(3)), 0.5)


def test_pictures_of_several_sizes_are_refused_by_name(tmp_path):
    folder = write_pictures(tmp_path / "uneven", sizes=(8, 12))
    with pytest.raises(DataError, match=r"uneven \(train\) have different sizes: 8x8, 8x12"):
        image_task(str(folder))
