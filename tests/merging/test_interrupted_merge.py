"""Merges that are killed, interrupted or run out of disk: nothing half-made appears, and they can go on."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from small_disks import small_disk
from written_models import mean_of, tensors, write_model

import mergescope as ms
from mergescope.errors import CheckpointError, DiskError, MergescopeError
from mergescope.merging import execute
from mergescope.merging import merge as merging
from mergescope.merging.merge import merge

ZYGOTE = """
import json, os, sys
import torch; torch.set_num_threads(1)
import mergescope.merging.methods, xxhash, yaml
from mergescope.merging.merge import merge
for line in sys.stdin:
    recipe, out, settings = json.loads(line)
    child = os.fork()
    if not child:
        merge(recipe, out, threads=2, digests=False, **settings)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Merger:
    """Merges in children of one process that has imported everything already."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, recipe, out, kill_at=None, **settings):
        """Merge; kill when the journal has so many lines."""
        self.process.stdin.write(json.dumps([recipe, str(out), settings]) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        journal = out.parent / f".{out.name}.merging" / "merge.journal"
        with contextlib.suppress(ProcessLookupError):
            while kill_at is not None:
                os.kill(child, 0)
                with contextlib.suppress(FileNotFoundError):
                    if journal.read_text().count("\n") > kill_at:
                        os.kill(child, signal.SIGKILL)
                        break
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def merger():
    made = Merger()
    yield made
    made.process.stdin.close()
    made.process.wait()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in "ab":
        write_model(folder / name, {f"h.{n}.w": torch.randn(1000, 1000) for n in range(30)})  # 120 MB
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory, merger):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert merger.run(mean_of(*models), out) == 0
    return out


def test_a_killed_merge_leaves_the_old_model_or_nothing_and_goes_on(tmp_path, models, whole, merger):
    old = write_model(tmp_path / "old", {"w": torch.ones(2)})
    rng, killed = random.Random(0), 0
    for turn in range(8):
        out = tmp_path / f"out{turn}"
        if turn % 2:
            shutil.copytree(old, out)
        settings = {"overwrite": bool(turn % 2)}
        for _ in range(3):
            code = merger.run(mean_of(*models), out, kill_at=rng.randrange(1, 25), resume=True, **settings)
            killed += code == -signal.SIGKILL
            if code == 0:
                break
            if turn % 2:
                state = ms.Checkpoint(out).state_dict()
                assert set(state) == {"w"} or len(state) == 30  # the kill may come after the exchange
            else:
                assert not out.exists() or len(ms.Checkpoint(out).spec) == 30
        if turn % 2 or not out.exists():
            assert merger.run(mean_of(*models), out, resume=True, **settings) == 0
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert not list(tmp_path.glob(f".{out.name}.*"))
        shutil.rmtree(out)
    assert killed >= 4


def small(folder, count=8):
    for name in "ab":
        write_model(folder / name, {f"w{n}": torch.randn(50, 40) for n in range(count)})
    return folder / "a", folder / "b"


class Stop(Exception):
    """Stands for a crash."""


@pytest.fixture
def merged(monkeypatch):
    """Names of the tensors merged; set ``after`` to crash when so many have been."""
    names, real = [], execute._merge_one

    def one(plan, job, shards, stop):
        if one.after is not None and len(names) >= one.after:
            raise Stop
        names.append(job.name)
        return real(plan, job, shards, stop)

    one.names, one.after = names, None
    monkeypatch.setattr(execute, "_merge_one", one)
    return one


def crash(merged, recipe, out, after=5, **settings):
    merged.names.clear()
    merged.after = after
    with pytest.raises(Stop):
        merge(recipe, out, threads=1, **settings)
    assert not out.exists()
    merged.names.clear()
    merged.after = None
    return out.parent / f".{out.name}.merging"


def test_resume_merges_only_what_is_missing(tmp_path, merged):
    a, b = small(tmp_path)
    expected = tensors(merge(mean_of(a, b), tmp_path / "expected"))
    folder = crash(merged, mean_of(a, b), tmp_path / "out")
    assert folder.is_dir()
    made = tensors(merge(mean_of(a, b), tmp_path / "out", resume=True))
    assert len(merged.names) == 3
    assert all(torch.equal(made[key], expected[key]) for key in expected)
    assert not folder.exists()


def test_without_resume_or_with_another_recipe_input_seed_or_shard_size_it_starts_afresh(tmp_path, merged):
    a, b = small(tmp_path)
    recipe = mean_of(a, b)
    sizes = {"max_shard_size": 20_000}
    for change, settings in (
        ({}, {"resume": False}),
        ({"parameters": {"normalize": False}}, {"resume": True}),
        ({}, {"resume": True, "seed": 5}),
        ({}, {"resume": True, **sizes}),
    ):
        crash(merged, recipe, tmp_path / "out")
        merge({**recipe, **change}, tmp_path / "out", **settings)
        assert len(merged.names) == 8
        shutil.rmtree(tmp_path / "out")
    crash(merged, recipe, tmp_path / "out")
    write_model(b, {key: value + 1 for key, value in tensors(b).items()})
    made = tensors(merge(recipe, tmp_path / "out", resume=True))
    assert len(merged.names) == 8
    torch.testing.assert_close(made["w0"], (tensors(a)["w0"] + tensors(b)["w0"]) / 2)


@pytest.mark.parametrize(
    "damage", ["torn", "torn later", "unrecorded", "missing", "short", "changed", "garbage"]
)
def test_the_journal_is_not_trusted_blindly(tmp_path, merged, damage):
    a, b = small(tmp_path)
    expected = tensors(merge(mean_of(a, b), tmp_path / "expected"))
    folder = crash(merged, mean_of(a, b), tmp_path / "out")
    journal, shard = folder / "merge.journal", folder / "model.safetensors"
    text = journal.read_text()
    again = 3
    if damage == "torn":
        journal.write_text(text[:-9])
        again = 4
    elif damage == "torn later":  # and the resumed merge crashes as well
        journal.write_text(text[:-9])
        crash(merged, mean_of(a, b), tmp_path / "out", after=2, resume=True)
        again = 2
    elif damage == "unrecorded":  # between a tensor's write and its line
        journal.write_text("\n".join(text.split("\n")[:-2]) + "\n")
        again = 4
    elif damage == "missing":
        shard.unlink()
        again = 8
    elif damage == "short":
        os.truncate(shard, shard.stat().st_size // 4)
        again = 7
    elif damage == "changed":
        with shard.open("r+b") as stream:
            stream.seek(-8000 * 8 + 60, os.SEEK_END)
            stream.write(b"xxxx")
        again = 4
    else:
        journal.write_bytes(b"\xff\x00" * 50)
        again = 8
    made = tensors(merge(mean_of(a, b), tmp_path / "out", resume=True))
    assert all(torch.equal(made[key], expected[key]) for key in expected)
    assert len(merged.names) == again


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), None])
def test_what_is_done_is_kept_if_reading_fails_but_may_work_the_next_time(
    tmp_path, merged, monkeypatch, error
):
    a, b = small(tmp_path)
    expected = tensors(merge(mean_of(a, b), tmp_path / "expected"))
    real, folder = ms.Checkpoint.rows, tmp_path / ".out.merging"

    def rows(self, key, *arguments):
        if len(merged.names) > 5:
            raise CheckpointError("Reading failed.") from error
        return real(self, key, *arguments)

    merged.names.clear()
    monkeypatch.setattr(ms.Checkpoint, "rows", rows)
    with pytest.raises(MergescopeError, match=r"--resume" if error else r"Reading failed\.$"):
        merge(mean_of(a, b), tmp_path / "out", threads=1)
    assert folder.exists() is (error is not None)
    monkeypatch.setattr(ms.Checkpoint, "rows", real)
    merged.names.clear()
    made = tensors(merge(mean_of(a, b), tmp_path / "out", resume=True))
    assert all(torch.equal(made[key], expected[key]) for key in expected)
    assert len(merged.names) == (3 if error else 8)


def test_a_resumed_merge_that_fails_before_it_begins_keeps_what_was_done(tmp_path, merged, monkeypatch):
    a, b = small(tmp_path)
    folder = crash(merged, mean_of(a, b), tmp_path / "out")

    def fail(*arguments):
        raise CheckpointError("no tokenizer")

    monkeypatch.setattr(merging, "write_side_files", fail)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        merge(mean_of(a, b), tmp_path / "out", resume=True)
    assert (folder / "merge.journal").is_file()


def test_a_stopped_tensor_is_not_recorded_as_finished(tmp_path, monkeypatch):
    a, b = small(tmp_path)
    expected = tensors(merge(mean_of(a, b), tmp_path / "expected"))
    monkeypatch.setattr("mergescope.merging.streams.CHUNK", 40)  # 50 chunks a tensor
    real, calls = execute._require_finite, []

    def check(*arguments):
        calls.append(1)
        if len(calls) == 120:
            raise KeyboardInterrupt
        time.sleep(0.0005)
        real(*arguments)

    monkeypatch.setattr(execute, "_require_finite", check)
    with pytest.raises(KeyboardInterrupt):
        merge(mean_of(a, b), tmp_path / "out", threads=4)
    monkeypatch.undo()
    made = tensors(merge(mean_of(a, b), tmp_path / "out", resume=True))
    assert all(torch.equal(made[key], expected[key]) for key in expected)


def test_two_merges_into_one_directory_do_not_mix(tmp_path, monkeypatch):
    a, b = small(tmp_path)
    real = execute._merge_one
    seen = []

    def one(*arguments):
        if not seen:
            seen.append(1)
            with pytest.raises(CheckpointError, match="Another process"):
                merge(mean_of(a, b), tmp_path / "out")
        return real(*arguments)

    monkeypatch.setattr(execute, "_merge_one", one)
    merge(mean_of(a, b), tmp_path / "out", threads=1)
    assert seen and len(tensors(tmp_path / "out")) == 8


def test_a_crash_between_two_renames_is_put_right(tmp_path, monkeypatch):
    a, b = small(tmp_path)
    merge(mean_of(a, b), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    monkeypatch.setattr("mergescope.weights.files._exchange", lambda one, other: False)
    with pytest.raises(CheckpointError, match="exists"):
        merge(mean_of(a, b), tmp_path / "out")
    assert len(tensors(tmp_path / "out")) == 8
    merge(mean_of(a, b), tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "out"}


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk(tmp_path, monkeypatch, merged, foreseen):
    for name in "ab":
        write_model(tmp_path / name, {f"w{n}": torch.randn(500, 200) for n in range(8)})  # 3.2 MB
    recipe = mean_of(tmp_path / "a", tmp_path / "b")
    expected = tensors(merge(recipe, tmp_path / "expected"))
    merged.names.clear()
    with small_disk(tmp_path / "disk", 2048) as make_room:
        out = tmp_path / "disk" / "out"
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if make_room is None:  # the next best: files may not grow beyond 2 MB
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        elif not foreseen:
            monkeypatch.setattr(merging, "_require_room", lambda plan, partial: None)
        try:
            with pytest.raises(DiskError) as caught:
                merge(recipe, out, threads=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "ake room" in str(caught.value) and not out.exists()
        journal = tmp_path / "disk" / ".out.merging" / "merge.journal"
        done = journal.read_text().count("\n") - 1 if journal.is_file() else 0
        if make_room is not None:
            assert done == 0 if foreseen else done > 2
            make_room()
        merged.names.clear()
        made = tensors(merge(recipe, out, resume=True))
        assert len(merged.names) == 8 - done
        assert all(torch.equal(made[key], expected[key]) for key in expected)
        del made


LIMITED = """
import resource, sys
from mergescope.cli import main
from mergescope.merging.shards import Shards
after, size = int(sys.argv.pop(1)), int(sys.argv.pop(1))
real, calls = Shards.write, []
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def write(self, name, at, values):
    calls.append(name)
    if len(calls) == after:
        limit()
    real(self, name, at, values)
Shards.write = write
if not after:
    limit()
main()
"""


@pytest.mark.parametrize(("after", "shards"), [(0, "5GB"), (3, "5GB"), (3, "1MB")])
def test_a_limit_on_file_sizes_from_some_write_on_stops_a_merge_that_can_go_on(tmp_path, after, shards):
    for name in "ab":
        write_model(tmp_path / name, {f"w{n}": torch.randn(500, 200) for n in range(8)}, {"model_type": "x"})
    (tmp_path / "r.yml").write_text(yaml.safe_dump(mean_of(tmp_path / "a", tmp_path / "b")))
    out, rest = tmp_path / "out", ["--max-shard-size", shards, "--threads", "1"]
    merge(tmp_path / "r.yml", tmp_path / "expected", threads=1, max_shard_size=shards)

    def run(after, size, *more):
        command = [sys.executable, "-c", LIMITED, str(after), str(size), "merge", tmp_path / "r.yml", out]
        return subprocess.run([*command, *rest, *more], capture_output=True, text=True, check=False)

    failed = run(after, 600_000)
    assert failed.returncode == 2 and "File too large" in failed.stderr, failed.stderr
    assert "--resume" in failed.stderr and "Traceback" not in failed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {".out.merging", "a", "b", "expected", "r.yml"}
    left = tmp_path / ".out.merging"
    assert not (left / "config.json").exists() and not (left / "README.md").exists()
    done = (left / "merge.journal").read_text().count("w") if after else 0
    assert done < 8 and (done or not after)
    went_on = run(99, 0, "--resume")
    assert went_on.returncode == 0, went_on.stderr
    for path in (tmp_path / "expected").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert not left.exists() and len(list(out.iterdir())) == len(list((tmp_path / "expected").iterdir()))


def test_a_tokenizer_that_cannot_be_written_is_found_before_anything_is_merged(tmp_path, monkeypatch, merged):
    a, b = small(tmp_path)

    def refuse(*arguments, **settings):
        raise CheckpointError("can't be extended")

    monkeypatch.setattr("mergescope.merging.tokenizers.write_tokenizer", refuse)
    with pytest.raises(CheckpointError, match="can't be extended"):
        merge(mean_of(a, b, chat_template="chatml"), tmp_path / "out")
    assert not merged.names and {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_an_unwritable_place_is_told_without_a_traceback(tmp_path):
    a, b = small(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="Writing .* failed"):
        merge(mean_of(a, b), tmp_path / "file" / "out")
