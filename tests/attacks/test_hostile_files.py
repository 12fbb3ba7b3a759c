"""Files that are damaged, lie about themselves, or try to reach elsewhere."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save, save_file

import mergescope as ms
from mergescope.errors import CheckpointError

GOOD = save({"w": torch.arange(64.0), "v": torch.ones(4)})
INDEX = "model.safetensors.index.json"


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


def header(entries, body=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ATTACKS = {
    "zero bytes": b"",
    "seven bytes": b"1234567",
    "truncated header": GOOD[:20],
    "truncated data": GOOD[:-5],
    "trailing data": GOOD + b"evil",
    "header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header above the format's limit": struct.pack("<Q", 200_000_000) + b" " * 64,
    "header not JSON": struct.pack("<Q", 8) + b"notjson!",
    "header not UTF-8": struct.pack("<Q", 8) + b'{"\xff":1}',
    "overlapping tensors": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "hole between tensors": header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "offsets past the end": header({"a": entry([4], 0, 16)}, b"\0" * 8),
    "shape larger than the data": header({"a": entry([1 << 40], 0, 8)}, b"\0" * 8),
    "shape that overflows": header({"a": entry([1 << 40, 1 << 40], 0, 8)}, b"\0" * 8),
    "negative size": header({"a": entry([-2], 0, 8)}, b"\0" * 8),
    "unknown dtype": header({"a": entry([2], 0, 8, "F99")}, b"\0" * 8),
    "pickle renamed": pickle.dumps({"w": Bomb()}),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["file", "directory", "shard"])
def test_a_damaged_file_is_refused_by_name_and_nothing_is_executed(tmp_path, attack, place):
    folder = tmp_path / "victim"
    folder.mkdir()
    path = folder / ("model-00001-of-00001.safetensors" if place == "shard" else "model.safetensors")
    path.write_bytes(ATTACKS[attack])
    if place == "shard":
        (folder / INDEX).write_text(json.dumps({"weight_map": {"w": path.name, "v": path.name}}))
    with pytest.raises(CheckpointError) as caught:
        ms.Checkpoint(path if place == "file" else folder)
    assert str(path) in str(caught.value) and "victim" in str(caught.value)


def test_the_good_file_these_are_made_from_is_accepted(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    assert torch.equal(ms.Checkpoint(tmp_path).tensor("w"), torch.arange(64.0))


def test_a_dtype_without_a_torch_counterpart_here_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header({"a": entry([1], 0, 8, "C64")}, b"\0" * 8))
    with pytest.raises(CheckpointError, match=r"'a' has the dtype C64.*Supported: F64"):
        ms.Checkpoint(tmp_path)


def test_an_index_without_tensors_is_no_checkpoint(tmp_path):
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}.*holds no tensors"):
        ms.Checkpoint(tmp_path)


def test_a_file_without_tensors_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header({"__metadata__": {"format": "pt"}}))
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}.*holds no tensors"):
        ms.Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/in.safetensors", "..", "x.bin", ""]
)
def test_an_index_can_not_reach_outside_its_directory_or_name_a_pickle(tmp_path, shard):
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file({"w": torch.ones(1)}, folder / "sub" / "in.safetensors")
    (folder / "x.bin").write_bytes(pickle.dumps({"w": Bomb()}))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="must be .safetensors files beside the index") as caught:
        ms.Checkpoint(folder)
    assert repr(shard) in str(caught.value) and INDEX in str(caught.value)


def test_an_index_that_names_an_absent_shard_is_an_incomplete_download(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names the shard 'b\.safetensors'.*incomplete"):
        ms.Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "listed", "unlisted"),
    [
        ({"w": "a.safetensors", "gone": "a.safetensors", "v": "b.safetensors"}, "gone", "none"),
        ({"w": "a.safetensors", "x": "b.safetensors"}, "x", "v"),
        ({"w": "b.safetensors", "v": "a.safetensors"}, "v, w", "none"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_names_the_keys(tmp_path, weight_map, listed, unlisted):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"v": torch.ones(1)}, tmp_path / "b.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        CheckpointError, match=f"not in their shard: {listed}. In a shard but not listed: {unlisted}"
    ):
        ms.Checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_a_mix_of_checkpoints(tmp_path):
    for name in "ab":
        save_file({"w": torch.ones(1), name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    weight_map = {"w": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"'w' is in both .*a\.safetensors and .*b\.safetensors"):
        ms.Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "\\xff"])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / INDEX).write_bytes(b"\xff" if text == "\\xff" else text.encode())
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors\.index\.json is not a valid safetensors index"
    ):
        ms.Checkpoint(tmp_path)


class Touch:
    """A pickle that makes a file, if anyone runs it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
@pytest.mark.parametrize("how", ["archive", "legacy", "pickle", "protocol 2", "nested"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, name, how):
    path, mark = tmp_path / name, tmp_path / "was run"
    state = {"w": torch.ones(2), "evil": Touch(f"'{mark}'")}
    if how == "nested":
        torch.save({"state_dict": {"w": torch.ones(2)}, "hyper": state["evil"]}, path)
    elif how in {"archive", "legacy"}:
        torch.save(state, path, _use_new_zipfile_serialization=how == "archive")
    else:
        path.write_bytes(pickle.dumps(state["evil"], protocol=4 if how == "pickle" else 2))
    for source in (tmp_path, path):
        with pytest.raises(CheckpointError, match=f"{name} of model .* contains code, which was not run"):
            ms.Checkpoint(source)
    assert not mark.exists()
    pickle.loads(pickle.dumps(state["evil"]))
    assert mark.exists()  # the attack works, where it is let


def test_a_torchscript_archive_is_refused_as_code(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="TorchScript archive: it contains code, which was not run"):
        ms.Checkpoint(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.bin", "/etc/passwd", "sub/in.bin", "..", "x.safetensors", ""])
def test_an_index_of_pickles_can_not_reach_outside_its_directory(tmp_path, shard):
    torch.save({"w": torch.ones(1)}, tmp_path / "outside.bin")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    torch.save({"w": torch.ones(1)}, folder / "sub" / "in.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="must be .bin files beside the index") as caught:
        ms.Checkpoint(folder)
    assert repr(shard) in str(caught.value) and index.name in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0, 7, 0.3, 0.6, 0.95, -1])
def test_a_truncated_pickle_is_named_with_its_size(tmp_path, legacy, keep):
    path = tmp_path / "pytorch_model.bin"
    state = {f"layer.{i}.weight": torch.randn(16, 16) for i in range(4)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError) as caught:
        ms.Checkpoint(tmp_path)
    assert str(path) in str(caught.value) and tmp_path.name in str(caught.value)
    assert "truncated or damaged" in str(caught.value) or "not run" in str(caught.value)


def test_an_empty_directory_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name} holds no model\.safetensors .*nothing"):
        ms.Checkpoint(tmp_path)


def test_a_name_with_a_path_in_it_stays_a_tensor_name(tmp_path):
    evil = ms.Checkpoint({"../../evil": torch.ones(1), "/abs": torch.zeros(1)}, name="../up")
    out = ms.save(evil, tmp_path / "a" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "model.safetensors", "out"]
    assert set(ms.Checkpoint(out).keys()) == {"../../evil", "/abs"}
