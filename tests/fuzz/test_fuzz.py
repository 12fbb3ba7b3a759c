"""Broken files of every format: each is read, or refused with a MergescopeError.

Here some hundred of each, the same every time; ``python tests/fuzz/long.py --cases 100000`` for a long run.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import CORPUS, TARGETS, attack

SLOW = {"parquet": 25, "csv": 25}


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_file_these_are_made_from_is_taken(name):
    assert attack(name, TARGETS[name].valid)


@pytest.mark.parametrize("name", TARGETS)
def test_a_broken_file_is_read_or_refused(name):
    @settings(
        max_examples=SLOW.get(name, 200), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data):
        attack(name, data.draw(TARGETS[name].cases))

    run()


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_once_broke_a_reader_is_refused(path):
    assert not attack(path.parent.name, path.read_bytes())
