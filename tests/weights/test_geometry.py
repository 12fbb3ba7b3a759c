"""Task-vector geometry against full tensors in float64."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import mergescope as ms
from mergescope.errors import CheckpointError, MismatchError, PointError
from mergescope.weights.geometry import geometry, measure
from mergescope.weights.kinds import kind_of, layer_of
from mergescope.weights.relation import relation

SHAPES = {
    "embed_tokens.weight": (37, 12), "layers.0.self_attn.q_proj.weight": (12, 12),
    "layers.0.mlp.up_proj.weight": (20, 12),
    "layers.1.self_attn.q_proj.weight": (12, 12), "layers.1.input_layernorm.weight": (12,), "norm.weight": (12,),
    "logit_scale": (), "empty": (0, 3), "lm_head.weight": (37, 12),
}  # fmt: skip


def states(count=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    out = [base]
    for _ in range(count - 1):
        mask = {key: torch.rand(shape, generator=generator) < 0.6 for key, shape in SHAPES.items()}
        out.append({
            key: value + 0.1 * torch.randn(value.shape, generator=generator) * mask[key]
            for key, value in base.items()
        })
    return [{key: value.to(dtype) for key, value in state.items()} for state in out]


def checkpoints(found, names="0abcdef"):
    return [ms.Checkpoint(state, name=name) for state, name in zip(found, names, strict=False)]


def naive(found, keys):
    """Everything from whole tensors in float64, by the definitions."""
    flat = [torch.cat([state[key].double().reshape(-1) for key in keys]) for state in found]
    base, *models = flat
    tau = [model - base for model in models]
    out = {"base_norm": base.norm().item(), "norm": [t.norm().item() for t in tau]}
    out["distance"] = [n / out["base_norm"] for n in out["norm"]]
    out["unchanged"] = [(t == 0).double().mean().item() for t in tau]
    for i, a in enumerate(tau):
        for j, b in enumerate(tau):
            both = (a != 0) & (b != 0)
            opposed = (a.sign() != b.sign()) & both
            out["cos", i, j] = (a @ b / (a.norm() * b.norm())).item()
            out["conflict", i, j] = (opposed.sum().double() / both.sum()).item()
    return out


def agrees(sums, wanted):
    assert sums.base_norm == pytest.approx(wanted["base_norm"], rel=1e-6)
    assert sums.norms == pytest.approx(wanted["norm"], rel=1e-5)
    assert sums.distances == pytest.approx(wanted["distance"], rel=1e-5)
    assert sums.unchanged == pytest.approx(wanted["unchanged"], abs=1e-12)
    count = len(wanted["norm"])
    for i in range(count):
        for j in range(count):
            assert float(sums.cosines[i, j]) == pytest.approx(wanted["cos", i, j], abs=1e-6)
            assert float(sums.conflicts[i, j]) == pytest.approx(wanted["conflict", i, j], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scope", ["model", "layer", "kind", "tensor"])
def test_every_measure_agrees_with_whole_tensors_in_float64(dtype, scope):
    found = states(dtype=dtype)
    result = geometry(*[(c := checkpoints(found))[0], c[1:]], chunk=50)
    groups = {}
    for key in SHAPES:
        name = {"model": "", "layer": layer_of(key), "kind": kind_of(key), "tensor": key}[scope]
        groups.setdefault(name, []).append(key)
    groups = {name: keys for name, keys in groups.items() if keys != ["empty"]}
    assert set(result.groups(scope)) == set(groups)
    for name, keys in groups.items():
        sums = result.groups(scope)[name]
        assert sums.entries == sum(found[0][key].numel() for key in keys)
        if name != "logit_scale":  # one entry: nothing that both changed, perhaps
            wanted = naive(found, keys)
            agrees(sums, {k: 0.0 if isinstance(v, float) and math.isnan(v) else v for k, v in wanted.items()})


def test_chunks_and_threads_change_nothing():
    base, *models = checkpoints(states())
    whole = geometry(base, models, threads=1, chunk=1 << 20)
    for chunk in (1, 7, 100, 1 << 20):
        one, three = (geometry(base, models, threads=threads, chunk=chunk) for threads in (1, 3))
        for a, b in zip(one.rows(), three.rows(), strict=True):
            assert a == b  # to the last bit
        for a, b in zip(one.rows(), whole.rows(), strict=True):
            assert (a.scope, a.name, a.measure, a.model, a.other) == (
                b.scope,
                b.name,
                b.measure,
                b.model,
                b.other,
            )
            assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-12)


def test_one_long_row_is_cut_so_that_float32_counts_stay_exact():
    base, model = torch.zeros(1, 5000), torch.ones(1, 5000)
    found = geometry(ms.Checkpoint({"w": base}, name="0"), [ms.Checkpoint({"w": model}, name="a")], chunk=64)
    assert found.total.changed.tolist() == [[5000]]


def test_zero_task_vectors_and_zero_bases_give_no_nan():
    zero = {"w": torch.zeros(4, 4), "v": torch.ones(3)}
    moved = {"w": torch.zeros(4, 4), "v": torch.tensor([1.0, 2.0, 1.0])}
    found = geometry(*[(c := checkpoints([zero, zero, moved]))[0], c[1:]])
    rows = found.rows()
    assert not any(math.isnan(row.value) for row in rows)
    total = found.total
    assert total.norms == [0.0, 1.0] and total.unchanged == [1.0, 1 - 1 / 19]
    assert total.cosines.tolist() == [[0.0, 0.0], [0.0, 1.0]] and not total.conflicts.any()
    grown = geometry(*[(c := checkpoints([{"w": torch.zeros(2)}, {"w": torch.ones(2)}]))[0], c[1:]])
    assert grown.total.distances == [math.inf]


def test_weights_cosines_and_distances_between_models_follow_without_another_pass():
    found = states(3)
    total = geometry(*[(c := checkpoints(found))[0], c[1:]], chunk=64).total
    flat = [torch.cat([value.double().reshape(-1) for value in state.values()]) for state in found]
    for i in range(3):
        for j in range(3):
            cosine = flat[i] @ flat[j] / (flat[i].norm() * flat[j].norm())
            assert float(total.model_cosines[i, j]) == pytest.approx(float(cosine), abs=1e-6)
            scale = ((flat[i] @ flat[i] + flat[j] @ flat[j]) / 2).sqrt()
            assert total.model_distance(i, j) == pytest.approx(
                float((flat[i] - flat[j]).norm() / scale), rel=1e-5
            )


def test_equal_models_are_told_from_nearly_equal_ones():
    base, a, b = states(3)
    b = {key: value.clone() for key, value in a.items()}
    same = geometry(*[(c := checkpoints([base, a, b]))[0], c[1:]], chunk=30).total
    assert same.same(1, 2) and same.model_distance(1, 2) == 0.0 and not same.same(0, 1)
    b["norm.weight"][3] = torch.nextafter(b["norm.weight"][3], torch.tensor(9.0))
    assert not geometry(*[(c := checkpoints([base, a, b]))[0], c[1:]], chunk=30).total.same(1, 2)


def test_statistics_integers_and_derived_buffers_are_no_weights():
    state = {
        "conv.weight": torch.ones(2, 2), "bn.running_mean": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3),
        "embeddings.position_ids": torch.arange(4), "h.0.attn.bias": torch.ones(1, 1, 4, 4),
    }  # fmt: skip
    other = {
        key: value + 1 for key, value in state.items() if key != "embeddings.position_ids"
    }  # newer versions don't store it
    found = geometry(*[(c := checkpoints([state, other]))[0], c[1:]])
    assert list(found.tensors) == ["conv.weight"] and len(found.left_out) == 4


def test_sharded_files_give_what_state_dicts_give(tmp_path):
    found = states(3)
    base, *models = checkpoints(found)
    for name, state in zip("0ab", found, strict=True):
        (tmp_path / name).mkdir()
        where = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(state)}
        for shard in set(where.values()):
            save_file({key: state[key] for key in state if where[key] == shard}, tmp_path / name / shard)
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    stored = [ms.Checkpoint(tmp_path / name) for name in "0ab"]
    assert len(stored[0].files) > 1
    read = {(row.scope, row.name, row.measure, row.model, row.other): row.value for row in
            geometry(stored[0], stored[1:], threads=3).rows(("layer", "tensor"))}  # fmt: skip
    for row in geometry(base, models).rows(("layer", "tensor")):
        value = read[row.scope, row.name, row.measure, row.model, row.other]
        assert value == pytest.approx(row.value, rel=1e-12, abs=1e-12)


def test_what_can_not_be_measured_is_named_in_full():
    base, a = states(2)
    a["layers.0.mlp.up_proj.weight"] = torch.ones(3)
    del a["norm.weight"]
    a["extra.weight"] = torch.ones(1)
    with pytest.raises(MismatchError) as caught:
        geometry(*[(c := checkpoints([base, a]))[0], c[1:]])
    assert len(caught.value.problems) == 3 and "missing in a" in str(caught.value)
    base, a = states(2)
    a["norm.weight"][2], base["lm_head.weight"][0, 0] = torch.nan, torch.inf
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight of 0 \(1 of 444 entries\), .*|norm.weight of a"
    ):
        geometry(*[(c := checkpoints([base, a]))[0], c[1:]])
    with pytest.raises(PointError, match="different names"):
        geometry(ms.Checkpoint(base, name="x"), [ms.Checkpoint(a, name="x")])
    with pytest.raises(PointError):
        geometry(ms.Checkpoint(base, name="x"), [])


def test_nan_in_one_model_spoils_no_other():
    base, a, b = states(3)
    a["norm.weight"][2] = torch.nan
    models = checkpoints([base, a, b])
    found, clean = measure(models[0], models[1:]), measure(models[0], models[2:])
    assert found.total.bad.tolist() == [0, 1, 0]
    assert found.total.norms[1] == pytest.approx(clean.total.norms[0]) and math.isnan(found.total.norms[0])
    assert relation(found, 0, 1).word == "unknown" and relation(found, 0, 2).word == "descends"


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("vit.encoder.layer.2.attention.attention.query.weight", "attention q", "vit.encoder.layer.2"),
        ("vit.encoder.layer.2.attention.output.dense.weight", "attention o", "vit.encoder.layer.2"),
        ("vit.encoder.layer.2.output.dense.weight", "mlp", "vit.encoder.layer.2"),
        ("vit.encoder.layer.2.layernorm_before.bias", "norm", "vit.encoder.layer.2"),
        ("vit.embeddings.patch_embeddings.projection.weight", "embedding", "embedding"),
        ("vision_model.pre_layrnorm.weight", "norm", "norm"),
        ("visual_projection.weight", "head", "head"),
        (
            "text_model.encoder.layers.0.self_attn.out_proj.weight",
            "attention o",
            "text_model.encoder.layers.0",
        ),
        ("transformer.h.11.attn.c_proj.weight", "attention o", "transformer.h.11"),
        ("transformer.h.11.mlp.c_proj.weight", "mlp", "transformer.h.11"),
        ("transformer.h.11.ln_1.weight", "norm", "transformer.h.11"),
        ("transformer.ln_f.weight", "norm", "norm"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", "attention o", "encoder.block.0"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "mlp", "encoder.block.0"),
        ("model.layers.3.self_attn.q_norm.weight", "norm", "model.layers.3"),
        ("model.layers.3.mlp.experts.7.down_proj.weight", "mlp", "model.layers.3"),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", "mlp", "model.layers.3"),
        ("model.layers.3.self_attn.k_proj.bias", "attention k", "model.layers.3"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", "attention qkv", "gpt_neox.layers.0"),
        ("gpt_neox.layers.0.attention.dense.weight", "attention o", "gpt_neox.layers.0"),
        ("embed_out.weight", "head", "head"),
        (
            "distilbert.transformer.layer.0.attention.v_lin.weight",
            "attention v",
            "distilbert.transformer.layer.0",
        ),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", "mlp", "distilbert.transformer.layer.0"),
        ("blocks.0.attn.qkv.weight", "attention qkv", "blocks.0"),
        ("blocks.0.attn.proj.weight", "attention o", "blocks.0"),
        (
            "visual.transformer.resblocks.0.attn.in_proj_weight",
            "attention qkv",
            "visual.transformer.resblocks.0",
        ),
        ("cls_token", "embedding", "embedding"),
        ("classifier.weight", "head", "head"),
        ("conv1.weight", "other", "other"),
    ],
)
def test_kinds_and_layers_of_the_families(name, kind, layer):
    assert (kind_of(name), layer_of(name)) == (kind, layer)
