"""What the documentation names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_there_are_links_to_check():
    assert len(PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists(page):
    import mergescope.cli

    known = {command.name for command in mergescope.cli.app.registered_commands} | {"study"}
    named = re.findall(r"^mergescope ([a-z]+)", page.read_text(encoding="utf-8"), re.M)
    named += re.findall(r"`mergescope ([a-z]+)", page.read_text(encoding="utf-8"))
    assert [name for name in named if name not in known] == []
