import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import mergescope as ms
from mergescope.errors import CheckpointError
from mergescope.weights import TensorSpec

STATE = {
    "layer.weight": torch.arange(6.0).view(2, 3),
    "layer.bias": torch.tensor([0.5, -1.5]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    folder.mkdir()
    keys = list(STATE)
    parts = {"model-00001-of-00002.safetensors": keys[:2], "model-00002-of-00002.safetensors": keys[2:]}
    for name, held in parts.items():
        save_file({key: STATE[key] for key in held}, folder / name)
    weight_map = {key: name for name, held in parts.items() for key in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def single(tmp_path):
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(STATE, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "mine"}')
    return folder


def test_a_state_dict_is_copied(tmp_path):
    net = torch.nn.Linear(2, 2)
    theta = ms.Checkpoint(net.state_dict(), name="theta")
    before = theta.tensor("weight").clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(theta.tensor("weight"), before)


def test_files_shards_and_memory_hold_the_same_tensors(single, sharded):
    memory, one, many = ms.Checkpoint(STATE), ms.Checkpoint(single), ms.Checkpoint(sharded)
    file = ms.Checkpoint(single / "model.safetensors")
    for checkpoint in (memory, one, many, file):
        assert set(checkpoint.keys()) == set(STATE)
        for key, value in STATE.items():
            assert checkpoint.spec[key] == TensorSpec(tuple(value.shape), value.dtype)
            assert torch.equal(checkpoint.tensor(key), value)
            assert checkpoint.tensor(key).dtype == value.dtype
        assert checkpoint.digest == memory.digest
    assert set(one.state_dict()) == set(STATE)
    assert len({memory, one, many}) == 3 and one == file
    assert (many.files, memory.files) == (tuple(sorted(sharded.glob("*.safetensors"))), ())


def test_names_config_and_metadata(single, sharded):
    one = ms.Checkpoint(single)
    assert (one.name, one.config, dict(one.metadata)) == ("single", {"model_type": "mine"}, {"format": "pt"})
    assert ms.Checkpoint(single, name="mine").name == "mine"
    assert ms.Checkpoint(single / "model.safetensors").name == "single"
    assert ms.Checkpoint(sharded).config is None
    assert ms.Checkpoint(STATE).config is None and ms.Checkpoint(STATE).name == "state_dict"


def test_a_rewritten_file_is_another_checkpoint(single):
    before = ms.Checkpoint(single)
    save_file({**STATE, "half": STATE["half"] * 2, "more": torch.ones(1)}, single / "model.safetensors")
    assert ms.Checkpoint(single) != before


def test_a_digest_notices_bits_names_dtypes_and_shapes():
    changed = [
        {**STATE, "layer.bias": torch.tensor([0.5, -1.25])},
        {**STATE, "layer.weight": STATE["layer.weight"].view(3, 2)},
        {**STATE, "half": STATE["half"].half()},
        {"renamed" if key == "half" else key: value for key, value in STATE.items()},
    ]
    assert len({ms.Checkpoint(state).digest for state in [STATE, *changed]}) == 5


def test_dtype_casts_floating_tensors_only(single):
    cast = ms.Checkpoint(single, dtype="float64")
    assert cast.spec["half"].dtype == cast.tensor("half").dtype == torch.float64
    assert cast.spec["count"].dtype == cast.tensor("count").dtype == torch.int64
    assert cast != ms.Checkpoint(single)


@pytest.mark.parametrize("wrong", ["int32", "flaot32", torch.int8])
def test_a_dtype_that_is_not_floating_is_refused(wrong):
    with pytest.raises(CheckpointError, match=rf"dtype={wrong!r} is not a floating-point type.*float32"):
        ms.Checkpoint(STATE, dtype=wrong)


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_rows_are_slices_of_the_first_dimension(single, sharded, dtype):
    for source in (STATE, single, sharded):
        theta = ms.Checkpoint(source, dtype=dtype)
        for key, spec in theta.spec.items():
            whole = theta.tensor(key)
            whole = whole if whole.ndim else whole.reshape(1)
            for start in range(len(whole) + 1):
                for stop in range(start, len(whole) + 1):
                    rows = theta.rows(key, start, stop)
                    assert rows.dtype == spec.dtype and torch.equal(rows, whole[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 3), (2, 1)])
def test_rows_that_are_not_there_are_refused(single, start, stop):
    with pytest.raises(
        CheckpointError, match=rf"single.*'layer\.weight'.*2 row\(s\); rows {start} to {stop}"
    ):
        ms.Checkpoint(single).rows("layer.weight", start, stop)
    with pytest.raises(CheckpointError, match=r"no tensor 'layer\.wight'.*layer\.weight"):
        ms.Checkpoint(single).rows("layer.wight", 0, 1)


def test_an_unknown_key_suggests_the_near_one(single):
    with pytest.raises(CheckpointError, match=r"single has no tensor 'layer\.wight'.*layer\.weight"):
        ms.Checkpoint(single).tensor("layer.wight")


@pytest.mark.parametrize(
    ("state", "what"), [({}, "no tensors"), ({"w": 1, "v": torch.ones(1)}, "no tensors: w")]
)
def test_a_mapping_that_is_no_state_dict_is_refused(state, what):
    with pytest.raises(CheckpointError, match=f"'mine' has .*{what}.*model.state_dict"):
        ms.Checkpoint(state, name="mine")


def test_pickling_keeps_a_file_checkpoint(single):
    theta = ms.Checkpoint(single)
    theta.tensor("half")
    again = pickle.loads(pickle.dumps(theta))
    assert again == theta and again.spec == theta.spec
    assert torch.equal(again.tensor("layer.weight"), STATE["layer.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_with_key_model_and_count(value):
    bad = ms.Checkpoint(
        {"fine": torch.ones(2), "head.w": torch.tensor([1.0, value, value]), "v": torch.tensor([value])},
        name="org/bad",
    )
    with pytest.raises(
        CheckpointError, match=r"org/bad has NaN .*head\.w \(2 of 3\), v \(1 of 1\)"
    ) as caught:
        bad.require_finite()
    assert "fine" not in str(caught.value)
    ms.Checkpoint(STATE).require_finite()


def test_a_broken_config_is_named(single):
    (single / "config.json").write_text("{nope")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        _ = ms.Checkpoint(single).config


OLD = {
    "bert.LayerNorm.gamma": torch.arange(3.0), "bert.LayerNorm.beta": torch.ones(3), "ls1.gamma": torch.zeros(2),
    "taken.LayerNorm.gamma": torch.zeros(2), "taken.LayerNorm.weight": torch.ones(2),
}  # fmt: skip


@pytest.mark.parametrize("place", ["file", "shards", "pickle"])
def test_norms_of_old_berts_are_named_as_transformers_reads_them(tmp_path, place):
    name = {"file": "model.safetensors", "shards": "x.safetensors", "pickle": "pytorch_model.bin"}[place]
    write = torch.save if place == "pickle" else save_file
    write(OLD, tmp_path / name)
    if place == "shards":
        weight_map = json.dumps({"weight_map": dict.fromkeys(OLD, name)})
        (tmp_path / "model.safetensors.index.json").write_text(weight_map)
    theta = ms.Checkpoint(tmp_path)
    assert set(theta.keys()) == {"bert.LayerNorm.weight", "bert.LayerNorm.bias", *list(OLD)[2:]}
    assert torch.equal(theta.tensor("bert.LayerNorm.weight"), OLD["bert.LayerNorm.gamma"])
    assert torch.equal(theta.rows("bert.LayerNorm.weight", 1, 3), OLD["bert.LayerNorm.gamma"][1:])
    assert torch.equal(theta.tensor("taken.LayerNorm.weight"), OLD["taken.LayerNorm.weight"])
    again = pickle.loads(pickle.dumps(theta))
    assert torch.equal(again.tensor("bert.LayerNorm.bias"), OLD["bert.LayerNorm.beta"])
