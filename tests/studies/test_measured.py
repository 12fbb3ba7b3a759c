"""Stored measurements: rows, ``run.yaml``, JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from given_models import labels, make, save, save_rows, texts
from given_runs import options
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import StudyError
from mergescope.protocols.measure import HeldOut, Settings, measure
from mergescope.reports import build_report
from mergescope.studies.given import prepare
from mergescope.studies.measured import STUDY, cost, rows, to_dict, write_measurement
from mergescope.studies.rundir import RESULTS, RunDirectory, open_run, read_rows

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def found():
    net = make_net("mlp")
    base, a, b, _ = family(net, scale=0.3)
    held = HeldOut("digits", labelled_batches(), net)
    return measure(base, {"a": a, "b": b}, [held], Settings((0.25, 0.5), **QUIET))


def test_rows_are_what_the_measurement_says(found):
    table = rows(found)
    kinds = {"ctl", "ctl-local", "pt-ft", "pt-ft-local", "agreement", "line", "barrier", "accuracy"}
    assert {row.kind for row in table} == kinds
    assert {(row.network, row.regime) for row in table} == {("MLP", "given")}
    seen = {(row.kind, row.points, row.parameter, row.layer, row.measure): row for row in table if row.layer}
    measures = ("cos", "coef", "gap", "gap_between", "baseline", "cos_rel", "coef_rel", "gap_rel")
    for pair in found.pairs:
        kind = "ctl" if pair.kind == "FT–FT" else "pt-ft"
        for suffix, results in (("", pair.propagated), ("-local", pair.local)):
            for alpha, result in results.items():
                layers = ["blocks.0", "blocks.1"] if suffix else ["blocks.0", "blocks.1", "output"]
                assert [entry.layer for entry in result.layers] == layers
                for entry in result.layers:
                    for measure_ in measures:
                        row = seen.pop((kind + suffix, pair.name, alpha, entry.layer, measure_))
                        summary = entry.measures[measure_]
                        values = (
                            summary.mean,
                            summary.std,
                            summary.low,
                            summary.high,
                            summary.n,
                            summary.dead,
                        )
                        told = (row.mean, row.std, row.low, row.high, row.n, row.dead)
                        assert np.array_equal(told, values, equal_nan=True)
                        assert (
                            row.trivial == entry.trivial
                            and row.data == "digits"
                            and row.forward_passes == 9 * 3
                        )
    assert not seen


def test_rows_of_verdicts_lines_and_losses(found):
    table = rows(found)
    pair = found.pairs[0]
    (verdict,) = [
        row.mean for row in table
        if (row.kind, row.points, row.measure, row.parameter) == ("ctl", "a + b", "CTL holds", 0.5)
    ]  # fmt: skip
    assert verdict == float(pair.word == "CTL holds")
    line = {
        row.parameter: row.mean
        for row in table
        if (row.kind, row.points, row.measure) == ("line", "a + b", "error")
    }
    assert line == dict(zip([0, 0.25, 0.5, 1], pair.barrier.error, strict=True))
    (top,) = [
        row.mean for row in table if (row.kind, row.points, row.measure) == ("barrier", "a + b", "loss")
    ]
    assert top == pair.barrier.loss_barrier
    accuracy = {row.points: row for row in table if (row.kind, row.measure) == ("accuracy", "accuracy")}
    assert set(accuracy) == {"base", "a", "b", "a + b, merged"}
    assert accuracy["a"].mean == found.losses["a", "digits"]["accuracy"].mean and accuracy["a"].n == 10
    agreement = {row.measure: row.mean for row in table if (row.kind, row.points) == ("agreement", "a + b")}
    assert agreement == {ends: summary.mean for ends, summary in pair.agreement.items()}


def test_json_has_no_nan(found):
    net = make_net("mlp")
    base = family(net)[0]
    same = ms.Checkpoint(base.state_dict(), name="same")  # nothing changed: many measures have no value
    nothing = measure(base, {"same": same}, [HeldOut("digits", labelled_batches(), net)], Settings(**QUIET))
    lost = nothing.pairs[0].barrier
    nothing.pairs[0] = replace(
        nothing.pairs[0], barrier=replace(lost, loss_barrier=math.nan, loss=lost.loss * math.inf)
    )
    for one in (found, nothing):
        text = json.dumps(to_dict(one), allow_nan=False)
        assert json.loads(text) == to_dict(one)
    plain = to_dict(nothing)
    assert plain["pairs"][0]["propagated"][0]["layers"][0]["cos_rel"]["mean"] is None
    assert plain["pairs"][0]["barrier"]["loss_barrier"] is None
    assert to_dict(found)["pairs"][0]["verdict"]["says"] == found.pairs[0].word
    assert [pair["kind"] for pair in to_dict(found)["pairs"]] == ["FT–FT", "PT–FT", "PT–FT"]


def test_costs_are_summed_over_data():
    net = make_net("mlp")
    base, a, b, _ = family(net)
    held = [HeldOut(name, labelled_batches(10, size), net) for name, size in (("x", 4), ("y", 5))]
    spent = cost(measure(base, {"a": a, "b": b}, held, Settings(**QUIET)))
    assert (spent["samples"], spent["points"]) == (20, 6)
    assert (spent["forward_passes"], spent["local_passes"]) == (6 * 5, 5 * 5)
    assert (spent["executor"], spent["dtype"], spent["features"]) == ("resident", "float32", "plain: all")


@pytest.fixture
def given(tmp_path):
    """A base that predicts words, two classifiers, and data of their tasks."""
    start = make("BertForMaskedLM")
    save(start, tmp_path / "base")
    data = []
    for seed, (name, classes) in enumerate((("a", 2), ("b", 3)), 1):
        save(make("BertForSequenceClassification", seed, start, num_labels=classes), tmp_path / name)
        data.append(f"{name}={save_rows(tmp_path / f'{name}.csv', texts(6), label=labels(6, classes))}")
    return prepare(options(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], data, rows={"limit": 5}))


def test_a_run_directory_says_what_was_measured_and_of_what(tmp_path, given):
    result = given.run()
    run = open_run(tmp_path / "run", STUDY)
    write_measurement(run, result, given.config(), given.provenance())
    again = read_rows(run.path / RESULTS)
    assert len(again) == len(rows(result))
    merged = {
        (r.data, r.measure): r.mean for r in again if (r.kind, r.points) == ("accuracy", "a + b, merged")
    }
    values = result.losses["a + b, merged", "b"]
    assert merged["b", "accuracy"] == values["accuracy"].mean and merged["b", "loss"] == values["loss"].mean
    about = run.read_run()
    assert about["study"] == STUDY
    assert about["config"]["models"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert about["config"]["data"]["limit"] == 5 and about["config"]["settings"]["alphas"] == [0.5]
    assert about["config"]["calibrate"] is False and about["config"]["dtype"] == "float32"
    told = about["provenance"]
    assert set(told["models"]) == {"base", "a", "b"}
    for name, model in told["models"].items():
        assert model["digest"] == ms.Checkpoint(tmp_path / name).digest
        assert model["from"] == str(tmp_path / name) and model["commit"] is None
    assert {name: data["samples"] for name, data in told["data"].items()} == {"a": 5, "b": 5}
    assert all(len(data["fingerprint"]) == 64 and data["labels"] for data in told["data"].values())
    assert [entry["pair"] for entry in told["verdicts"]] == ["a + b", "base + a", "base + b"]
    assert told["verdicts"][0]["reason"] == result.pairs[0].reason and told["notes"] == result.notes
    assert told["cost"]["forward_passes"] == cost(result)["forward_passes"] and "torch" in told["versions"]
    page = build_report(run.path).read_text()
    assert "a + b" in page and "base + b" in page


def test_calibration_is_recorded(given):
    given = replace(given, settings=replace(given.settings, calibration=[]))
    assert given.config()["calibrate"] is True
    assert yaml.safe_load(yaml.safe_dump(given.config())) == given.config()


def test_a_second_measurement_replaces_the_first(tmp_path, found):
    run = open_run(tmp_path, STUDY)
    write_measurement(run, found, {"first": True}, {})
    net = make_net("mlp")
    base, a, _, _ = family(net)
    other = measure(base, {"a": a}, [HeldOut("x", labelled_batches(), net)], Settings(**QUIET))
    write_measurement(open_run(tmp_path, STUDY), other, {"first": False}, {})
    assert {row.data for row in read_rows(tmp_path / RESULTS)} == {"x"}
    assert run.read_run()["config"] == {"first": False}
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULTS, "run.yaml"]


def test_a_write_that_fails_leaves_the_old_results(tmp_path, found, monkeypatch):
    write_measurement(open_run(tmp_path, STUDY), found, {}, {})
    before = (tmp_path / RESULTS).read_bytes()

    def broken(table, path, **how):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("pyarrow.parquet.write_table", broken)
    with pytest.raises(OSError, match="no space"):
        write_measurement(open_run(tmp_path, STUDY), found, {}, {})
    assert (tmp_path / RESULTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULTS, "run.yaml"]


def test_other_studies_and_files_are_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StudyError, match="file can't be used as a run directory"):
        open_run(tmp_path / "file", STUDY)
    RunDirectory(tmp_path / "digits").write_run("digits", "quick", {}, {})
    with pytest.raises(
        StudyError, match="results of the study 'digits', which would be lost. Choose another --out"
    ):
        open_run(tmp_path / "digits", STUDY)
    RunDirectory(tmp_path / "mine").write_run(STUDY, "", {}, {})
    assert open_run(tmp_path / "mine", STUDY).path == tmp_path / "mine"
