"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.demo
def test_the_python_example_runs_and_says_what_it_promises(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "CTL holds" in printed and "blocks.1" in printed
    assert float(printed.rsplit(":", 1)[1]) > 0.5


def test_every_picture_and_local_file_it_names_exists():
    text = README.read_text()
    named = re.findall(r"!\[.*?\]\((.*?)\)", text) + re.findall(
        r"\b(CONTRIBUTING\.md|tests/\S+?\.py)\b", text
    )
    assert named and [name for name in named if not (README.parent / name).exists()] == []
