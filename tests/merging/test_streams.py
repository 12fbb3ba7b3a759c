"""Streams: chunks cover a tensor once, reductions and exact ranks don't depend on their size."""

import pytest
import torch

from mergescope.merging import streams
from mergescope.merging.streams import Stream


class Counting:
    """Rows in memory; counts how many elements were read."""

    def __init__(self, tensor):
        self.tensor, self.shape, self.read = tensor, tuple(tensor.shape), 0

    def rows(self, start, stop):
        rows = self.tensor.reshape(self.shape or (1,))[start:stop]
        self.read += rows.numel()
        return rows


def stream_of(*tensors, base=None, whole=False):
    return Stream(
        "w", [Counting(tensor) for tensor in tensors], None if base is None else Counting(base), whole
    )


def only(chunk):
    return chunk.models[0]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4), (0,), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("size", [1, 4, 1 << 19])
def test_chunks_cover_the_rows_once(shape, size, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", size)
    tensor = torch.randn(shape)
    stream = stream_of(tensor)
    assert torch.equal(torch.cat([only(chunk) for chunk in stream]).reshape(shape), tensor)
    assert all(chunk.models[0].numel() <= max(size, stream.columns) for chunk in stream)
    assert len(list(stream_of(tensor, whole=True))) == 1


def test_split_and_alone(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 10)
    stream = stream_of(torch.zeros(6, 5), torch.ones(6, 5), base=torch.zeros(6, 5), whole=True)
    assert len(list(stream)) == 1 and len(list(stream.alone(1))) == 3
    assert all((chunk.deltas[0] == 1).all() and len(chunk.models) == 1 for chunk in stream.alone(1))
    stream.split()
    assert len(list(stream)) == 3


def test_half_precision_is_read_as_float32_and_double_stays():
    for dtype, read in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64,) * 2,
    ):
        (chunk,) = stream_of(torch.ones(2, 2, dtype=dtype))
        assert only(chunk).dtype == read


def test_deltas_need_a_base():
    (chunk,) = stream_of(torch.ones(2, 2))
    with pytest.raises(ValueError, match="no base"):
        _ = chunk.deltas


def test_reductions_are_in_float64_and_independent_of_chunks(monkeypatch):
    tensors = [torch.randn(300, 7) for _ in range(3)]
    flat = torch.stack(tensors).double().reshape(3, -1)
    for size in (1, 50, 1 << 19):
        monkeypatch.setattr(streams, "CHUNK", size)
        gram = stream_of(*tensors).gram(lambda chunk: chunk.models)
        torch.testing.assert_close(gram, flat @ flat.T, rtol=1e-12, atol=1e-12)
        total = stream_of(torch.full((300, 7), 0.1)).reduce(lambda chunk: only(chunk).double().sum())
        assert total.dtype == torch.float64 and abs(float(total) - 2100 * float(torch.tensor(0.1))) < 1e-9


TENSORS = {
    "one": torch.tensor([3.0]),
    "scalar": torch.tensor(-2.0),
    "normal": torch.randn(61, 9, generator=torch.Generator().manual_seed(0)),
    "all equal": torch.full((40, 10), 0.25),
    "few values": torch.randint(3, (50, 8), generator=torch.Generator().manual_seed(1)).float(),
    "mostly zero": torch.randn(50, 8, generator=torch.Generator().manual_seed(2)).clamp(min=1) - 1,
    "rising": torch.arange(400.0).reshape(50, 8),
    "falling": -torch.arange(400.0).reshape(50, 8),
    "one outlying row": torch.cat([torch.zeros(49, 8), torch.rand(1, 8)]),
    "with infinity": torch.tensor([[1.0, float("inf"), 2.0, float("-inf"), 0.0]]),
}


@pytest.mark.parametrize("size,sample", [(1 << 19, 1 << 16), (16, 4), (16, 16), (3, 64)])
@pytest.mark.parametrize("kind", TENSORS)
def test_ranks_are_exact(kind, size, sample, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", size)
    monkeypatch.setattr(streams, "SAMPLE", sample)
    stream, tensor = stream_of(TENSORS[kind]), TENSORS[kind].reshape(-1)
    falling = tensor.sort(descending=True).values
    order = sorted(range(len(tensor)), key=lambda index: (-float(tensor[index]), index))
    for k in sorted(
        {1, 2, len(tensor) // 3, len(tensor) // 2, len(tensor) - 1, len(tensor)} & {*range(1, 401)}
    ):
        if k > len(tensor):
            continue
        value, missing = stream.kth_largest(only, k)
        assert value == falling[k - 1] and missing == k - int((tensor > value).sum())
        top = stream.top(only, k)
        mask = torch.cat([top.mask(chunk, only(chunk)) for chunk in stream]).reshape(-1)
        assert mask.nonzero().flatten().tolist() == sorted(order[:k])
    assert not any(stream.top(only, 0).mask(chunk, only(chunk)).any() for chunk in stream)


@pytest.mark.parametrize("sampled", [1.0, 0.0, 5.0, -5.0])
def test_ranks_are_exact_whatever_was_sampled(sampled, monkeypatch):
    monkeypatch.setattr(Stream, "_sample", lambda stream, of: torch.full((100,), sampled))
    tensor = torch.tensor([1.0] * 40 + [0.5] * 20 + [0.0] * 40)
    for k, value in ((1, 1.0), (40, 1.0), (41, 0.5), (50, 0.5), (60, 0.5), (61, 0.0), (100, 0.0)):
        assert stream_of(tensor).kth_largest(only, k)[0] == value


def test_small_parts_of_a_sum_are_not_lost(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 1)
    tensor = torch.tensor([2.0**24, *[1.0] * 7])
    assert stream_of(tensor).reduce(lambda chunk: only(chunk).sum()) == 2**24 + 7


def test_ranks_that_do_not_exist_are_refused():
    for k in (0, 6):
        with pytest.raises(ValueError, match="rank"):
            stream_of(torch.ones(5)).kth_largest(only, k)


@pytest.mark.parametrize("kind", ["normal", "half zero", "sorted", "bfloat16", "outlying end"])
def test_a_large_tensor_is_ranked_in_few_passes_and_little_memory(kind, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 1 << 16)
    monkeypatch.setattr(streams, "SAMPLE", 1 << 13)
    tensor = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(3)).abs()
    if kind == "half zero":
        tensor *= torch.rand(1000, 1000, generator=torch.Generator().manual_seed(4)) < 0.5
    elif kind == "sorted":
        tensor = tensor.flatten().sort().values.reshape(1000, 1000)
    elif kind == "bfloat16":
        tensor = tensor.bfloat16()
    elif kind == "outlying end":
        tensor[-5:] += 100
    largest, original = [0], streams._select

    def select(values, k):
        largest[0] = max(largest[0], len(values))
        return original(values, k)

    monkeypatch.setattr(streams, "_select", select)
    falling = tensor.flatten().float().sort(descending=True).values
    for k in (1, 10_000, 300_000, 500_000, 999_000, 1_000_000):
        stream = stream_of(tensor)
        assert stream.kth_largest(only, k)[0] == falling[k - 1]
        assert stream.models[0].read < 3.2 * tensor.numel()
    assert largest[0] < 0.2 * tensor.numel()


def test_nan_does_not_hang_a_rank(monkeypatch):
    monkeypatch.setattr(streams, "SAMPLE", 16)
    tensor = torch.randn(40, 10)
    tensor[3:9] = float("nan")
    for k in (1, 50, 100, 400):
        stream_of(tensor).kth_largest(only, k)
        stream_of(tensor).top(only, k)


def test_random_numbers_depend_on_seed_tensor_model_and_place_only():
    (chunk,) = stream_of(torch.zeros(4, 4))
    first = torch.rand(5, generator=chunk.generator(0, 0))
    assert torch.equal(first, torch.rand(5, generator=chunk.generator(0, 0)))
    moved = streams.Chunk(chunk.models, None, 1, "w")
    renamed = streams.Chunk(chunk.models, None, 0, "v")
    for other in (
        chunk.generator(1, 0),
        chunk.generator(0, 1),
        moved.generator(0, 0),
        renamed.generator(0, 0),
    ):
        assert not torch.equal(first, torch.rand(5, generator=other))
