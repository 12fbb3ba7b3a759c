"""Checkpoints that torch.save wrote."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergescope as ms
from mergescope.errors import CheckpointError

STATE = {
    "layer.weight": torch.arange(6.0).view(2, 3),
    "layer.bias": torch.tensor([0.5, -1.5]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}
INDEX = "pytorch_model.bin.index.json"


def shards(folder, state=STATE, count=2):
    weight_map = {}
    for number in range(count):
        part = dict(list(state.items())[number::count])
        name = f"pytorch_model-{number + 1:05}-of-{count:05}.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["directory", "file", "lone", "shards", "nested", "model"])
def test_the_same_tensors_come_out_as_went_in(tmp_path, place, legacy):
    folder = tmp_path / "victor"
    folder.mkdir()
    path = folder / ("last.ckpt" if place == "lone" else "pytorch_model.bin")
    if place == "shards":
        shards(folder)
    else:
        wrapped = {"state_dict": STATE, "epoch": 3} if place == "nested" else STATE
        wrapped = {"model": STATE, "optimizer": {"lr": 0.1}} if place == "model" else wrapped
        torch.save(wrapped, path, _use_new_zipfile_serialization=not legacy)
    torch.save({"lr": 0.1}, folder / "training_args.bin")
    torch.save({"m": torch.ones(1)}, folder / "optimizer.pt")
    theta = ms.Checkpoint(path if place == "file" else folder)
    assert set(theta.keys()) == set(STATE) and theta.name == "victor"
    for key, value in STATE.items():
        assert theta.spec[key] == (tuple(value.shape), value.dtype)
        assert torch.equal(theta.tensor(key), value)
    assert theta.digest == ms.Checkpoint(STATE).digest
    assert torch.equal(theta.rows("layer.weight", 1, 2), STATE["layer.weight"][1:])
    assert theta.rows("count", 0, 1).tolist() == [7]
    again = pickle.loads(pickle.dumps(theta))
    assert again == theta and torch.equal(again.tensor("half"), STATE["half"])
    assert dict(theta.metadata) == {} and theta.directory == folder


def test_tied_and_transposed_tensors_are_given_under_each_name(tmp_path):
    shared = torch.randn(4, 3)
    state = {"embed": shared, "head": shared, "turned": shared.T, "rows": shared[1:3]}
    torch.save(
        {key: torch.nn.Parameter(value) for key, value in state.items()}, tmp_path / "pytorch_model.bin"
    )
    theta = ms.Checkpoint(tmp_path)
    assert all(torch.equal(theta.tensor(key), value) for key, value in state.items())
    assert not theta.tensor("embed").requires_grad
    assert torch.equal(theta.rows("turned", 1, 2), shared.T[1:2])
    assert theta.digest == ms.Checkpoint(state).digest
    assert (theta - theta).tensor("turned").abs().sum() == 0


def test_an_archive_is_mapped_and_never_written_to(tmp_path):
    torch.save({"w": torch.randn(1000)}, tmp_path / "pytorch_model.bin")
    theta = ms.Checkpoint(tmp_path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "pytorch_model.bin") in maps.read_text()
    theta.tensor("w").add_(1)  # what a careless user does must not reach the file
    assert torch.equal(ms.Checkpoint(tmp_path).tensor("w") + 1, theta.tensor("w"))


def test_a_compressed_archive_is_not_read_as_noise(tmp_path):
    torch.save(STATE, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as old, zipfile.ZipFile(tmp_path / "x.bin", "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item), compress_type=zipfile.ZIP_DEFLATED)
    assert ms.Checkpoint(tmp_path / "x.bin").digest == ms.Checkpoint(STATE).digest


def test_safetensors_win(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert ms.Checkpoint(tmp_path).tensor("w") == 0


def test_dtype_casts_and_a_rewritten_file_is_another_checkpoint(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    theta = ms.Checkpoint(tmp_path, dtype="float64")
    assert theta.rows("half", 0, 2).dtype == theta.spec["half"].dtype == torch.float64
    assert theta.tensor("count").dtype == torch.int64
    plain = ms.Checkpoint(tmp_path)
    torch.save({**STATE, "more": torch.ones(9)}, tmp_path / "pytorch_model.bin")
    assert plain not in {theta, ms.Checkpoint(tmp_path)}


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"w": torch.ones(1), "epoch": 3, "names": ["a"]}, r"'epoch' \(int\), 'names' \(list\)"),
        ({3: torch.ones(1)}, r"3 \(a key of type int\)"),
        (
            {"w": torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), check_invariants=True)},
            "layout torch.sparse_coo",
        ),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "dtype torch.complex64"),
        ({"w": torch.ones(1, device="meta")}, "on meta"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
    ],
)
def test_what_is_no_state_dict_of_plain_tensors_is_refused_by_name(tmp_path, payload, named):
    torch.save(payload, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=named) as caught:
        ms.Checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_whole_pickled_module_is_refused_with_what_it_asks_for(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*save_pretrained"):
        ms.Checkpoint(tmp_path)


def test_shards_and_index_must_agree(tmp_path):
    shards(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = "pytorch_model-00001-of-00002.bin"
    del index["weight_map"]["half"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"not in their shard: ghost\. In a shard but not listed: half"):
        ms.Checkpoint(tmp_path)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"names the shard 'pytorch_model-00002-of-00002\.bin'.*incomplete"
    ):
        ms.Checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_a_mix_of_checkpoints(tmp_path):
    for name in "ab":
        torch.save({"w": torch.ones(1), name: torch.ones(1)}, tmp_path / f"{name}.bin")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.bin", "a": "a.bin", "b": "b.bin"}}))
    with pytest.raises(CheckpointError, match=r"'w' is in both .*a\.bin and .*b\.bin"):
        ms.Checkpoint(tmp_path)


def test_several_pickles_without_an_index_are_ambiguous(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"it holds: a\.pt, b\.pt"):
        ms.Checkpoint(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.onnx is no checkpoint file: expected \.safetensors"):
        ms.Checkpoint(tmp_path / "model.onnx")
