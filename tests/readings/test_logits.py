"""Logits that are kept."""

import pytest
import torch
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.readings import Batch
from mergescope.readings.logits import Logits


def test_they_are_the_networks_own_sample_by_sample():
    net = make_net("mlp")
    base, a, *_ = family(net)
    reading = Logits()
    batches = labelled_batches(10, 4)
    ms.trace([base, a], batches, net, layers="output", readings=[reading], progress=False)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        assert torch.allclose(reading.values(ms.Point.of(base)), net(inputs), atol=1e-6)
        net.load_state_dict(a.state_dict())
        assert torch.allclose(reading.values(ms.Point.of(a)), net(inputs), atol=1e-6)
    assert torch.equal(reading.labels, labels)


def updated(labels, classes=None, memory=10**6, samples=2):
    reading = Logits(classes, memory)
    reading.start(["a"], [])
    reading.update(Batch({}, [torch.arange(4.0 * samples).view(samples, 4)], labels))
    return reading


def test_labels_are_counted_among_the_kept_classes():
    reading = updated(torch.tensor([3, 1]), classes=(3, 1))
    assert reading.values("a").tolist() == [[1.0, 3.0], [5.0, 7.0]] and reading.labels.tolist() == [1, 0]
    assert updated(None).labels is None
    with pytest.raises(DataError, match=r"Labels \[2\] are not among the classes, \[1, 3\]"):
        updated(torch.tensor([3, 2]), classes=(3, 1))
    with pytest.raises(DataError, match=r"Labels \[-1, 4\] .* 0 to 3"):
        updated(torch.tensor([4, -1]))


def test_what_does_not_fit_is_refused():
    assert updated(None, memory=32).values("a").nbytes == 32
    with pytest.raises(DataError, match="2 samples at 1 points, 4 classes"):
        updated(None, memory=31)
    reading = updated(torch.tensor([0, 1]))
    with pytest.raises(DataError, match="to all or to none"):
        reading.update(Batch({}, [torch.zeros(1, 4)], None))
    with pytest.raises(DataError, match=r"\(batch, classes\)"):
        reading.update(Batch({}, [torch.zeros(1, 4, 2)], torch.tensor([0])))
    with pytest.raises(MergescopeError, match="a new Logits"):
        reading.start(["a"], [])
    with pytest.raises(MergescopeError, match="same classes"):
        reading.merge(updated(torch.tensor([1, 1]), classes=(0, 1)))


def test_parts_of_a_pass_are_one_pass():
    first = updated(torch.tensor([3, 1]))
    first.merge(updated(torch.tensor([0, 2]), samples=2))
    assert first.values("a").shape == (4, 4) and first.labels.tolist() == [3, 1, 0, 2]


def test_labels_of_any_integers_are_kept_and_others_refused():
    for dtype in (torch.uint8, torch.int32):
        assert updated(torch.tensor([3, 1], dtype=dtype), classes=(1, 3)).labels.tolist() == [1, 0]
    for wrong, said in ((torch.ones(2), r"float32 \[2\]"), (torch.ones(2, 1).long(), r"int64 \[2, 1\]")):
        with pytest.raises(DataError, match=f"got labels {said}"):
            updated(wrong)


def test_a_point_that_was_not_traced_is_refused():
    with pytest.raises(PointError, match="other was not traced"):
        updated(None).values("other")
