"""Laws of all merge methods, generated from METHODS, so that a new method is covered when it is registered."""

import threading

import pytest
import torch
from merging_support import METHODS, SHAPES, count_of, family, has, run, sparse, stream_of, values_for

from mergescope.errors import MergescopeError
from mergescope.merging import streams

ALL = sorted(METHODS)
RANDOM = [name for name in ALL if METHODS[name].random]

NOT_THE_ONE_MODEL = {
    "slerp": "goes t of the way from the base",
    "nearswap": "moves entries by t at most",
    "arcee_fusion": "takes the important entries only",
    "iso_c": "levels the singular values",
}
"""Methods that don't give a single model of weight 1 back, and why."""

NOT_THE_EQUAL_MODELS = {
    **NOT_THE_ONE_MODEL,
    "tsv": "gives each of K models a K-th of the rank",
}
"""Methods that don't give K equal models back, and why."""

REFUSE_NAN = dict.fromkeys(("iso_c", "tsv"), torch.linalg.LinAlgError)
"""Methods that fail on NaN, and with what: a factorisation has no answer. Merging then says whose NaN it is."""

ORDERED = {"slerp", "nuslerp", "nearswap", "arcee_fusion", "passthrough"}
"""Methods in which the models play different parts, or there is one."""


def full(name):
    return {"weight": 1.0} if has(name, "weight") else {}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "name", [name for name in ALL if METHODS[name].least == 1 and name not in NOT_THE_ONE_MODEL]
)
def test_one_model_of_weight_1_gives_that_model(name, shape):
    base, (model,) = family(shape, 1)
    torch.testing.assert_close(run(name, [model], base, **full(name)), model, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NOT_THE_ONE_MODEL)
def test_the_exceptions_are_exceptions(name):
    base, (model,) = family((6, 5), 1)
    assert not torch.allclose(run(name, [model], base, **full(name)), model, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if name not in NOT_THE_EQUAL_MODELS])
def test_equal_models_give_the_model(name, shape):
    base, (model,) = family(shape, 1)
    given = {"weight": 1 / count_of(name)} if has(name, "weight") else {}
    merged = run(name, [model] * count_of(name), base, **given)
    torch.testing.assert_close(merged, model, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_models_equal_to_the_base_give_the_base(name, shape):
    base = torch.randn(shape)
    for given in ({}, sparse(name)):
        merged = run(name, [base] * count_of(name), base, **given)
        assert merged.shape == base.shape
        torch.testing.assert_close(merged, base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_zero_task_vectors_and_zero_tensors_give_no_nan(name, shape):
    base, models = family(shape, count_of(name))
    zero = torch.zeros(shape)
    for given in ({}, sparse(name)):
        assert run(name, [base, *models[1:]], base, **given).isfinite().all()
        assert run(name, [*models[:-1], zero], base, **given).isfinite().all()
        assert run(name, models, zero, **given).isfinite().all()
        assert torch.equal(run(name, [zero] * len(models), zero, **given), zero)


@pytest.mark.parametrize("name", ALL)
def test_a_nan_never_vanishes(name):
    """In whichever input it is: it stays where it was, or the method refuses it as [`REFUSE_NAN`][] says."""
    count = count_of(name)
    for place in range(count + (METHODS[name].base != "none")):
        base, models = family((6, 5), count)
        (*models, base)[place][0, 0] = float("nan")
        for given in ({}, sparse(name)):
            if name in REFUSE_NAN:
                with pytest.raises(REFUSE_NAN[name], match="eigh"):
                    run(name, models, base, **given)
            else:
                assert run(name, models, base, **given)[0, 0].isnan()


@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 4, 2, 2)], ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if name not in ORDERED and not METHODS[name].random])
def test_the_order_of_models_changes_nothing(name, shape):
    base, models = family(shape, 3)
    weights = {"weight": [0.5, 0.3, 0.4]} if has(name, "weight") else {}
    turned = {"weight": [0.4, 0.5, 0.3]} if has(name, "weight") else {}
    one = run(name, models, base, **sparse(name), **weights)
    two = run(name, [models[2], models[0], models[1]], base, **sparse(name), **turned)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (50,), (17, 5), (6, 4, 2, 2)], ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if not METHODS[name].random])
def test_the_chunk_size_changes_nothing(name, shape, monkeypatch):
    base, models = family(shape, count_of(name))
    whole = run(name, models, base, **sparse(name))
    for size in (1, 3, 8, 1000):
        monkeypatch.setattr(streams, "CHUNK", size)
        torch.testing.assert_close(run(name, models, base, **sparse(name)), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_order_and_threads_of_chunks_change_no_bit(name, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 64)
    base, models = family((40, 8), count_of(name))
    expected = run(name, models, base, **sparse(name))
    assert torch.equal(run(name, models, base, reverse=True, **sparse(name)), expected)
    results = [None] * 4

    def work(number):
        results[number] = run(name, models, base, **sparse(name))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("name", ALL)
def test_inputs_stay_as_they_were(name):
    base, models = family((6, 5), count_of(name))
    before = [tensor.clone() for tensor in (base, *models)]
    run(name, models, base, **sparse(name))
    assert all(torch.equal(old, new) for old, new in zip(before, (base, *models), strict=True))


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (3, 4, 2, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if sparse(name)])
def test_density_0_keeps_nothing_of_a_model(name, shape):
    base, models = family(shape)
    weights = [0.5, 0.3, 0.4]
    for rescale in (False, True):
        given = {"normalize": False, "rescale": rescale}
        assert torch.equal(run(name, models, base, density=0, weight=weights, **given), base)
        without = run(name, models[1:], base, weight=weights[1:], **given)
        merged = run(name, models, base, density=[0, 1, 1], weight=weights, **given)
        torch.testing.assert_close(merged, without, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name,flag",
    [(name, flag) for name in ALL for flag in ("normalize", "normalize_weights") if has(name, flag)],
)
def test_weights_that_sum_to_zero_are_refused_where_they_are_divided_by(name, flag):
    base, models = family((6, 5), 2)
    with pytest.raises(MergescopeError, match=r"\[1\.0, -1\.0\] sum to zero"):
        run(name, models, base, weight=[1.0, -1.0], **{flag: True})
    assert run(name, models, base, weight=[1.0, -1.0], **{flag: False}).isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name in ALL if has(name, "weight") and METHODS[name].base == "required"]
)
def test_weights_that_are_all_zero_leave_the_base(name):
    base, models = family((6, 5), 2)
    for flag in (False, True):
        given = {"normalize": flag} if has(name, "normalize") else {}
        assert torch.equal(run(name, models, base, weight=[0.0, 0.0], **given, **sparse(name)), base)


def test_other_parameters_without_meaning_are_refused():
    base, models = family((6, 5))
    with pytest.raises(MergescopeError, match=r"\[1\.0, -1\.0\] sum to zero"):
        run("nuslerp", models[:2], base, weight=[1.0, -1.0])
    for density, epsilon in ((0.9, 0.1), (0.1, 0.2), (0.15, 0.15)):
        with pytest.raises(MergescopeError, match="density - epsilon"):
            run("della", models, base, density=density, epsilon=epsilon)


def test_sce_merges_nothing_at_select_topk_0():
    base, models = family((6, 5))
    assert torch.equal(run("sce", models, base, select_topk=0), base)


def test_directions_that_cancel_have_no_mean():
    base = torch.zeros(2, 2)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(MergescopeError, match="cancel"):
        run("multislerp", [x, x, -x, -x], base, weight=0.25)
    assert torch.equal(run("multislerp", [x, -3 * x], base, weight=0.5), -x)  # two are averaged
    assert torch.equal(run("model_stock", [x, -2 * x], base), base)


@pytest.mark.parametrize("seed", range(5))
def test_means_of_opposite_directions_stay_put(seed):
    _, (x, noise) = family((5, 3), 2, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(run("karcher", [x, -x]), x)
    torch.testing.assert_close(run("karcher", [x, -2 * x]), 1.5 * x)
    nearly = run("nuslerp", [x, -x + 1e-8 * noise], weight=0.5)
    assert nearly.norm() < 1e-6  # straight through the middle, not around the sphere


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("ties") or name in ("della", "sce")])
def test_a_drawn_election_is_positive(name):
    base = torch.zeros(3, 3)
    merged = run(
        name, [torch.ones(3, 3), -torch.ones(3, 3)], base, **({"weight": 1.0} if name != "sce" else {})
    )
    assert torch.equal(merged, torch.ones(3, 3))


@pytest.mark.parametrize("name", ALL)
def test_what_is_declared_is_usable(name):
    method = METHODS[name]
    assert method.source and method.summary.endswith(".") and method.base in ("required", "optional", "none")
    for parameter in method.parameters:
        assert parameter.meaning
        if parameter.default is not None and parameter.kind != "flag":
            assert parameter.low <= parameter.default <= parameter.high
    values_for(name, count_of(name))
    assert stream_of([torch.zeros(2, 2)]).numel == 4
