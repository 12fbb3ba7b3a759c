import math
import re

import numpy as np
import pytest
import slow_reference
import torch

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.readings import Batch


def feed(reading, logits, labels, size=3, points=("p", "q")):
    reading.start(list(points), [])
    for x, y in zip(logits.split(size, dim=1), labels.split(size), strict=True):
        reading.update(Batch({}, list(x), y))
    return reading


@pytest.fixture
def sample():
    return torch.randn(2, 8, 4) * 3, torch.arange(8) % 4


def test_losses_and_hits_are_their_definitions(sample):
    logits, labels = sample
    reading = feed(ms.Outputs(), logits, labels)
    for p, point in enumerate("pq"):
        for n in range(8):
            loss, hit = slow_reference.loss_and_hit(logits[p, n].double().numpy(), int(labels[n]))
            assert reading.losses(point)[n] == pytest.approx(loss, rel=1e-5)
            assert reading.correct(point)[n] == hit
    assert 0 < reading.correct("p").mean() < 1
    np.testing.assert_array_equal(reading.predictions("q"), logits[1].argmax(-1).numpy())
    expected = (logits[0].argmax(-1) == logits[1].argmax(-1)).double().numpy()
    np.testing.assert_array_equal(reading.agreement("p", "q"), expected)


def test_an_ensemble_averages_logits_not_predictions(sample):
    logits, labels = sample
    reading = feed(ms.Outputs(ensembles={"both": ["p", "q"], "twice p": ["p", "p", "q"]}), logits, labels)
    for name, mixed in (
        ("both", logits.double().mean(0)),
        ("twice p", (2 * logits[0] + logits[1]).double() / 3),
    ):
        for n in range(8):
            loss, hit = slow_reference.loss_and_hit(mixed[n].numpy(), int(labels[n]))
            assert reading.losses(name)[n] == pytest.approx(loss, rel=1e-5)
            assert reading.correct(name)[n] == hit


def test_masked_classes_can_not_win_and_take_no_probability():
    logits = torch.tensor([[[9.0, 1.0, 2.0]], [[0.0, 3.0, 9.0]]])
    reading = feed(ms.Outputs(classes=[1, 2]), logits, torch.tensor([2]))
    assert list(reading.predictions("p")) == [2]
    assert reading.losses("p")[0] == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    with pytest.raises(DataError, match=r"Labels \[0\] are not among the task's classes \[1, 2\]"):
        feed(ms.Outputs(classes=[2, 1]), logits, torch.tensor([0]))


@pytest.mark.parametrize(("label", "ends"), [(4, "from 0 to 4"), (-100, "from -100 to 0")])
def test_labels_out_of_range_are_named(label, ends):
    with pytest.raises(DataError, match=rf"{ends}, but the model has 4 classes \(0 to 3\)"):
        feed(ms.Outputs(), torch.zeros(2, 2, 4), torch.tensor([0, label]))


def test_what_is_no_classifier_is_refused_by_shape():
    with pytest.raises(DataError, match=r"need logits \(batch, classes\); this model gives \[3, 5, 7\]"):
        feed(ms.Outputs(), torch.zeros(2, 3, 5, 7), torch.zeros(3).long())


def test_an_ensemble_of_unknown_points_is_refused():
    with pytest.raises(MergescopeError, match=r"members of ensembles are not points of this trace: \['z'\]"):
        ms.Outputs(ensembles={"e": ["p", "z"]}).start(["p"], [])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_and_merged_halves_are_one_pass(sample, size):
    logits, labels = sample
    whole = feed(ms.Outputs(ensembles={"e": ["p", "q"]}), logits, labels, 8)
    parts = feed(ms.Outputs(ensembles={"e": ["p", "q"]}), logits[:, :5], labels[:5], size)
    parts.merge(feed(ms.Outputs(ensembles={"e": ["p", "q"]}), logits[:, 5:], labels[5:], size))
    for point in ("p", "q", "e"):
        np.testing.assert_allclose(parts.losses(point), whole.losses(point), rtol=1e-5)
        np.testing.assert_array_equal(parts.correct(point), whole.correct(point))
    with pytest.raises(MergescopeError, match="same kind"):
        whole.merge(feed(ms.Outputs(), logits, labels, points=("p", "z")))


def test_classes_and_ensembles_must_agree_to_merge(sample):
    whole = feed(ms.Outputs(), *sample)
    for other in (ms.Outputs(classes=range(4)), ms.Outputs(ensembles={"e": ["p"]})):
        with pytest.raises(MergescopeError, match="same classes and ensembles"):
            whole.merge(feed(other, *sample))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("classes", [None, [0, 1, 2, 3]])
def test_labels_of_any_integers_are_classes(sample, dtype, classes):
    logits, labels = sample
    found, expected = (feed(ms.Outputs(classes), logits, it) for it in (labels.to(dtype), labels))
    np.testing.assert_array_equal(found.losses("p"), expected.losses("p"))
    np.testing.assert_array_equal(found.correct("p"), expected.correct("p"))


NO_CLASSES = {
    "bool [3]": torch.tensor([True, False, True]), "float32 [3]": torch.ones(3),
    "int64 [3, 1]": torch.ones(3, 1).long(), "int64 [3, 4]": torch.ones(3, 4).long(),
}  # fmt: skip


@pytest.mark.parametrize("said", NO_CLASSES)
def test_labels_that_are_no_classes_are_refused_with_dtype_and_shape(said):
    with pytest.raises(DataError, match=rf"integers of shape \[3\], got labels {re.escape(said)}\."):
        feed(ms.Outputs(), torch.zeros(2, 3, 4), NO_CLASSES[said])


def test_a_point_that_was_not_traced_is_named_with_near_ones(sample):
    reading = feed(ms.Outputs(ensembles={"mean": ["base", "tuned"]}), *sample, points=("base", "tuned"))
    for asked in (reading.losses, reading.predictions, reading.correct):
        for wrong, near in (("tune", "tuned"), ("means", "mean")):
            with pytest.raises(PointError, match=rf"^{wrong} was not traced\. Did you mean: {near}\?"):
                asked(wrong)
    with pytest.raises(PointError, match="nothing was not traced"):
        reading.agreement("base", "nothing")
