import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergescope as ms
from mergescope.errors import CheckpointError
from mergescope.weights.files import atomic_directory, atomic_file, locate


def test_a_local_directory_wins_over_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    save_file({"w": torch.tensor([3.0])}, tmp_path / "org" / "model" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mergescope.weights.files._download", lambda *args: pytest.fail("asked the hub"))
    theta = ms.Checkpoint("org/model")
    assert theta.tensor("w") == 3.0
    assert theta.commit is None


@pytest.mark.parametrize(
    ("text", "repo", "revision"), [("org/x", "org/x", None), ("org/x@v1", "org/x", "v1")]
)
def test_a_hub_id_is_fetched_with_its_revision_and_commit(tmp_path, monkeypatch, text, repo, revision):
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, snapshot / "model.safetensors")
    asked = []
    monkeypatch.setattr("mergescope.weights.files._download", lambda *args: asked.append(args) or snapshot)
    found = locate(text)
    assert asked == [(repo, revision)]
    assert (found.name, found.commit, found.directory) == (repo, "0123abc", snapshot)


def test_an_adapter_on_the_hub_is_told_with_its_base(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr("mergescope.weights.files._download", lambda *args: snapshot)
    for base, written in (("org/base", "org/base"), ("gpt2", "ORG/NAME"), (None, "BASE")):
        (snapshot / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(CheckpointError, match=rf"write {written}\+org/lora@v1 where") as caught:
            ms.Checkpoint("org/lora@v1")
        stated = f"({snapshot / 'adapter_config.json'} names {base!r})"
        assert (stated in str(caught.value)) is (base is not None)


def test_a_hub_id_that_is_not_cached_gives_a_clear_error_offline():
    with pytest.raises(CheckpointError, match=r"'org/absent' is neither a local path.*'v2'.*HF_HUB_OFFLINE"):
        ms.Checkpoint("org/absent@v2")


@pytest.mark.parametrize(
    "text", ["./nothing", "/no/such/dir", "a/b/c", "plain", "org/x.safetensors", "~/nothing-here"]
)
def test_a_path_that_is_not_there_is_named_without_asking_the_hub(text, monkeypatch):
    monkeypatch.setattr("mergescope.weights.files._download", lambda *args: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=f"no file or directory '{text}'"):
        locate(text)


def test_a_lone_safetensors_file_of_any_name_is_found_in_a_directory(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    assert locate(tmp_path).shards == (tmp_path / "weights.safetensors",)
    save_file({"w": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(
        CheckpointError, match=r"several safetensors files and no model\.safetensors\.index\.json"
    ):
        locate(tmp_path)


def test_an_atomic_file_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "sub" / "out.txt"
    with atomic_file(target) as path:
        path.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    with pytest.raises(RuntimeError), atomic_file(target) as path:
        path.write_text("second")
        raise RuntimeError
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_an_atomic_directory_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "f").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_directory(target) as folder:
        (folder / "f").write_text("1")
        assert not target.exists()
    with pytest.raises(FileExistsError), atomic_directory(target):
        pass
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True) as folder:
        raise RuntimeError
    assert (target / "f").read_text() == "1"
    with atomic_directory(target, overwrite=True) as folder:
        (folder / "g").write_text("2")
    assert list(target.iterdir()) == [target / "g"] and list(tmp_path.iterdir()) == [target]


def test_an_index_beside_a_whole_model_is_a_leftover(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ms.Checkpoint(tmp_path).tensor("w") == 0
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert ms.Checkpoint(tmp_path).tensor("w") == 1  # which transformers loads too


def test_what_a_hub_is_asked_for(tmp_path, monkeypatch):
    asked = []

    def snapshot(repo, revision, allow_patterns):
        asked.append(allow_patterns)
        save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert ms.Checkpoint("org/model").tensor("w") == 1
    (patterns,) = asked
    needed = ("README.md", "config.json", "source.spm", "spm.model", "qwen.tiktoken", "merges.txt", "modeling_x.py",
              "bpe.codes", "chat_template.jinja", "1_Pooling/config.json", "2_Dense/pytorch_model.bin")  # fmt: skip
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in needed)
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in patterns)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_rename_that_fails_leaves_the_old_directory_under_its_name(tmp_path, monkeypatch, exchange):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    if not exchange:
        monkeypatch.setattr("mergescope.weights.files._exchange", lambda one, other: False)
    real = Path.rename

    def rename(self, other):
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return real(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    if exchange:
        with atomic_directory(target, overwrite=True) as folder:
            (folder / "new").write_text("2")
    else:
        with pytest.raises(OSError, match="Input/output"), atomic_directory(target, overwrite=True) as folder:
            (folder / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new" if exchange else "old"]
    assert list(tmp_path.iterdir()) == [target]
