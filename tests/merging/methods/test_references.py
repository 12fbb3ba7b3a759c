"""Every deterministic method equals a slow merge of whole tensors in float64."""

import pytest
import torch
import whole_tensor
from merging_support import METHODS, SHAPES, count_of, family, run, stream_of, values_for

from mergescope.merging import streams

CASES = {
    "linear": [{}, {"weight": [0.5, -0.2, 0.4], "normalize": False}, {"weight": [0.5, -0.2, 0.4]}],
    "task_arithmetic": [{"lambda": 0.7}, {"weight": [1.0, -0.5, 0.2], "normalize": True}],
    "passthrough": [{}, {"scale": -0.5}],
    "ties": [
        {}, {"density": 0.5}, {"density": [0.2, 0.9, 0.01], "weight": [1.0, 0.5, 0.7], "rescale": True, "lambda": 1.3},
        {"density": 0.5, "normalize": False}, {"density": 0.7, "weight": [1.0, -0.5, 0.7]},
    ],
    "breadcrumbs": [
        {}, {"density": 0.6, "gamma": 0.2}, {"density": 0.9, "gamma": 0.3, "rescale": True, "normalize": True},
    ],
    "breadcrumbs_ties": [
        {"density": 0.6, "gamma": [0.0, 0.2, 0.01], "lambda": 0.5}, {"density": 0.5, "normalize": True},
    ],
    "model_stock": [{}, {"filter_wise": True}],
    "sce": [{}, {"select_topk": 0.4}],
    "ram": [{}, {"epsilon": 0.1}],
    "ramplus_tl": [{"epsilon": 0.1}, {"epsilon": 0.1, "r": 0.5, "alpha": 3.0}],
    "slerp": [{"t": 0.0}, {"t": 0.3}, {"t": 1.0}],
    "nuslerp": [
        {}, {"weight": [0.2, 0.6], "nuslerp_row_wise": True},
        {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "multislerp": [{}, {"weight": [0.5, 0.2, 0.4]}, {"weight": [0.5, 0.2, 0.4], "normalize_weights": False}],
    "karcher": [{}, {"max_iter": 1}, {"max_iter": 50, "tol": 1e-7}],
    "nearswap": [{"t": 0.0}, {"t": 0.05}, {"t": 9.0}],
    "arcee_fusion": [{}],
    "tsv": [{}, {"weight": [1.0, 0.5, 2.0], "lambda": 0.8}],
    "iso_c": [{}, {"weight": 1.0, "lambda": 1.2}],
}  # fmt: skip
"""Settings of each deterministic method."""


def test_every_deterministic_method_has_a_reference():
    deterministic = {name for name, method in METHODS.items() if not method.random}
    missing = {name for name in deterministic if not hasattr(whole_tensor, name) or name not in CASES}
    assert not missing


@pytest.mark.parametrize("chunk", [4, 1 << 19])
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, shape, scale, chunk, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    count = count_of(name)
    base, models = family(shape, count, scale=scale)
    for given in CASES[name]:
        for with_base in (
            (True, False) if METHODS[name].base == "optional" else (METHODS[name].base == "required",)
        ):
            origin = base if with_base else None
            values = values_for(name, count, **given)
            expected = getattr(whole_tensor, name)(models, origin, values)
            merged = run(name, models, origin, **given)
            assert merged.dtype == torch.float32 and merged.shape == base.shape
            torch.testing.assert_close(
                merged.double(), expected, rtol=2e-5, atol=2e-5 * max(1.0, scale),
                msg=lambda text, given=given, origin=origin: f"{given}, base {origin is not None}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_float64_stays_float64(name):
    count = count_of(name)
    base, models = family((6, 5), count, dtype=torch.float64)
    origin = base if METHODS[name].base == "required" else None
    merged = run(name, models, origin, **CASES[name][-1])
    assert merged.dtype == torch.float64
    expected = getattr(whole_tensor, name)(models, origin, values_for(name, count, **CASES[name][-1]))
    torch.testing.assert_close(merged, expected, rtol=1e-7, atol=1e-7)


def test_ties_keeps_the_first_of_equal_entries_and_exactly_k():
    base = torch.zeros(4, 4)
    model = torch.ones(4, 4)
    model[3, 3] = 2
    merged = run("ties", [model], base, density=0.5)
    assert merged.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 15]


def test_breadcrumbs_drops_the_first_of_equal_outliers():
    merged = run("breadcrumbs", [torch.ones(2, 4)], torch.zeros(2, 4), density=0.5, gamma=0.25)
    assert merged.flatten().tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_sce_counts_only_entries_that_vary():
    base, models = family((6, 5))
    for model in models:
        model[:3] = base[:3]
    merged = run("sce", models, base, select_topk=0.5)
    assert (merged != base).sum() == 7
    expected = whole_tensor.sce(models, base, values_for("sce", 3, select_topk=0.5))
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_vector_with_large_entries_in_a_later_chunk_has_a_divergence(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 4)
    base, (model,) = family((12,), 1)
    base[9] += 1000
    model[9] += 1000
    expected = whole_tensor.arcee_fusion([model], base, None)
    torch.testing.assert_close(run("arcee_fusion", [model], base).double(), expected)


@pytest.mark.parametrize("name", ["tsv", "iso_c"])
def test_spectral_methods_write_in_chunks(name, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 10)
    base, models = family((6, 5))
    for tensor in ("w", "embed"):
        stream = stream_of(models, base, METHODS[name].whole, tensor)
        METHODS[name].build(stream, values_for(name, 3))
        assert len(list(stream)) == 3


def test_spectral_methods_average_embeddings_and_vectors_and_flatten_kernels():
    base, models = family((6, 2, 3, 1))
    for name in ("tsv", "iso_c"):
        mean = sum(models) / 3
        matrix = [tensor.reshape(6, 6) for tensor in models]
        as_table = run(name, matrix, base.reshape(6, 6), tensor="model.embed_tokens.weight", weight=1.0)
        torch.testing.assert_close(as_table, mean.reshape(6, 6))
        kernel = run(name, models, base, tensor="patch_embed.proj.weight", weight=1.0)
        assert torch.equal(kernel.reshape(6, 6), run(name, matrix, base.reshape(6, 6), weight=1.0))
        assert not torch.allclose(kernel, mean, atol=1e-3)
