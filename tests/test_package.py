"""What the package says of itself agrees, wherever it is said."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mergescope import __version__

ROOT = Path(__file__).parent.parent


def test_the_release_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.findall(r'^fallback-version = "(.*)"$', project, re.M) == [__version__]
    assert citation["version"] == __version__


def test_the_release_has_no_part_that_changes_with_commits():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_a_tagged_commit_is_of_that_release():
    told = subprocess.run(
        ["git", "tag", "--points-at", "HEAD", "v*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if told.returncode or not told.stdout.strip():
        pytest.skip("this is no tagged commit")
    assert f"v{__version__}" in told.stdout.split()


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all({"type", "title", "authors"} <= work.keys() for work in citation["references"])


def test_every_page_of_the_sdist_is_there():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"targets\.sdist\]\ninclude = \[(.*?)\]", project, re.S)
    named = re.findall(r'"/([^"*]*)"', listed)
    assert len(named) > 5 and [name for name in named if not (ROOT / name).exists()] == []


def test_files_that_docstrings_name_are_there_or_written_by_the_program():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    named = {
        name for text in sources for name in re.findall(r"``([\w.]+\.(?:yaml|yml|json|css|html))``", text)
    }
    shipped = {path.name for path in (ROOT / "src").rglob("*.*")}
    whole = "\n".join(sources)
    assert len(named) > 10
    assert [
        name for name in sorted(named - shipped) if not re.search(rf"[\"/]{re.escape(name)}\"", whole)
    ] == []


def test_modules_of_tests_and_benchmarks_have_names_of_their_own():
    """Tests import helpers and benchmarks by the file's name alone: of two with one name they get the first."""
    files = [path for place in ("tests", "benchmarks") for path in (ROOT / place).rglob("*.py")]
    named = Counter(path.name for path in files if path.name != "conftest.py")
    assert len(named) > 100 and [name for name, files in named.items() if files > 1] == []


@pytest.mark.package
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path):
    pytest.importorskip("build.env", reason="needs the package extra")
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }

    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    try:
        run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)  # the wheel out of the sdist
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        own = tmp_path / "own" / "bin"
        run(sys.executable, "-m", "venv", own.parent)
        run(
            own / "pip", "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", wheel
        )
        assert wheel.name.startswith("mergescope-0.")
        assert run(own / "mergescope", "--version").split() == wheel.name.split("-")[:2]
        assert "ctl-fig2-mlp" in run(own / "mergescope", "study", "list")
        run(own / "python", ROOT / "docs" / "examples" / "tiny_models.py", "tiny")
        assert "model.layers.1" in run(own / "mergescope", "layers", "tiny/llm/base")
    finally:
        shutil.rmtree(tmp_path)  # a gigabyte
