"""Run directories: what is written is complete, what is read is checked."""

import math
from importlib.metadata import PackageNotFoundError

import pytest

from mergescope.errors import StudyError
from mergescope.studies import rundir
from mergescope.studies.rundir import (
    Row,
    RunDirectory,
    digest_of,
    read_rows,
    versions,
    write_rows,
    write_table,
)

ROW = Row("mlp", "high", "ctl", "a + b", "a ∪ b", "cos", 0.5, parameter=0.25, layer="blocks.0", n=7, dead=1)


def test_rows_survive_a_round_trip(tmp_path):
    write_rows(tmp_path / "results.parquet", [ROW, Row("vit", "", "barrier", "x", "y", "loss", -1.0)])
    first, second = read_rows(tmp_path / "results.parquet")
    assert (first.layer, first.parameter, first.n, first.dead, first.data) == (
        "blocks.0",
        0.25,
        7,
        1,
        "a ∪ b",
    )
    assert math.isnan(second.parameter) and second.mean == -1.0


def test_absent_damaged_and_foreign_results_are_refused_by_name(tmp_path):
    path = tmp_path / "results.parquet"
    with pytest.raises(StudyError, match=r"results\.parquet does not exist"):
        read_rows(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(StudyError, match="can't be read as parquet"):
        read_rows(path)
    write_table(path, {"cos": [1.0]})
    with pytest.raises(StudyError, match="lacks the columns"):
        read_rows(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.parquet"
    write_rows(path, [ROW])
    before = path.read_bytes()
    with pytest.raises(Exception, match="object"):
        write_table(path, {"bad": [object()]})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["results.parquet"]


def test_a_run_file_must_be_there_and_describe_a_study(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(StudyError, match=r"no run\.yaml"):
        run.read_run()
    (run.path / "run.yaml").write_text("[1, 2")
    with pytest.raises(StudyError, match="not valid YAML"):
        run.read_run()
    run.write_run("digits", "quick", {"seed": 0}, {"data": "x"})
    assert run.read_run()["config"] == {"seed": 0}
    assert "torch" in run.read_run()["provenance"]["versions"]


def test_versions_of_what_trains_and_reads_are_told_where_it_is_installed(monkeypatch):
    assert {"python", "transformers", "datasets", "accelerate"} <= versions().keys()

    def without(name):
        if name == "peft":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(rundir, "version", without)
    told = versions()
    assert "peft" not in told and told["transformers"] == "1.2"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StudyError, match="taken"):
        RunDirectory(tmp_path / "taken")


def test_two_runs_in_one_directory_exclude_each_other_and_leftovers_go(tmp_path):
    run = RunDirectory(tmp_path)
    with run.locked():  # and is killed
        (tmp_path / "checkpoints" / ".half.abcdefgh.tmp").mkdir(parents=True)
    with run.locked():
        assert not list((tmp_path / "checkpoints").iterdir())
        with pytest.raises(StudyError, match="Another process"), RunDirectory(tmp_path).locked():
            pass
    with run.locked():
        pass


def test_a_digest_depends_on_every_part_but_not_on_key_order():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert len({digest_of(1, 2), digest_of(2, 1), digest_of(1, 3), digest_of([1, 2])}) == 4


def test_only_leftovers_of_this_run_go(tmp_path):
    mine = tmp_path / "checkpoints" / ".a.k3_9xq0z.tmp"
    foreign = [tmp_path / ".notes.tmpl", tmp_path / "sub" / ".x.tmp.txt", tmp_path / ".first.abcdefgh.tmp"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with RunDirectory(tmp_path).locked():  # no run was here before
        assert all(path.exists() for path in foreign)
    foreign.pop()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    (other / ".b.abcdefgh.tmp").mkdir()
    mine.mkdir(parents=True)
    (tmp_path / ".results.abcdefgh.tmp.parquet").touch()
    with RunDirectory(tmp_path).locked():
        assert all(path.exists() for path in foreign) and (other / ".b.abcdefgh.tmp").is_dir()
        assert not mine.exists() and not (tmp_path / ".results.abcdefgh.tmp.parquet").exists()
        assert not (tmp_path / ".first.abcdefgh.tmp").exists()
