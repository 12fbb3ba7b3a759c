"""What the documentation names exists, and what it shows runs."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_blocks import PINNED, ROOT, blocks_of, commands_of, parse, run_page
from doc_inputs import INPUTS

from mergescope import errors

DOCS = ROOT / "docs"
PAGES = sorted([*(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "SECURITY")), *DOCS.rglob("*.md")])
ERRORS = sorted((DOCS / "errors").glob("*.md"))
SHOWN = [page for page in PAGES if blocks_of(page)]
# The README runs in test_readme.py; pages of results were written by studies, whose commands take minutes each.
RUN = [page for page in SHOWN if page.name != "README.md" and "results" not in page.parts]
FIELD = "\0"


def named(page):
    return str(page.relative_to(ROOT))


def slug(heading):
    """The anchor of a heading."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())


def anchors(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_links_to_check():
    assert len(PAGES) > 25


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_exists(page):
    import mergescope.cli

    known = {command.name for command in mergescope.cli.app.registered_commands} | {"study"}
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`mergescope ([a-z]+)", text)
    assert [name for name in inline if name not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_a_block_is_one_that_the_command_line_understands(page):
    for block in blocks_of(page):
        if block.language in ("", "bash") and block.code_of_exit == 0:
            for command in commands_of(block.code) if "mergescope " in block.code else ():
                if command[0] == "mergescope" and not command[1].startswith("--"):
                    parse(command)


def test_the_commands_of_cluster_scripts_are_understood():
    slurm, kubernetes = (
        block.code
        for block in blocks_of(DOCS / "scale.md")
        if block.note.startswith("not run: it needs a cluster")
    )
    scripts = [commands_of(slurm)[-1], shlex.split(yaml.safe_load(kubernetes)["spec"]["entrypoint"])]
    for words, name in zip(scripts, ("finetune", "evaluate"), strict=True):
        command = words[words.index("mergescope") :]
        assert command[1] == name and "--num-gpus" in command
        parse(command)


def test_a_command_with_an_unknown_option_is_not_understood():
    parse(["mergescope", "study", "show", "ctl-fig7"])
    with pytest.raises(Exception, match="No such option.*--modles"):
        parse(["mergescope", "measure", "--modles", "a", "b"])


@pytest.mark.parametrize("page", RUN, ids=named)
def test_every_block_of_a_page_runs_and_says_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
    INPUTS.get(page.stem, lambda folder: None)(tmp_path)
    run_page(page, tmp_path)


def test_every_block_is_one_that_runs_or_says_why_not():
    blocks = [block for page in [*RUN, ROOT / "README.md"] for block in blocks_of(page)]
    assert len(blocks) > 60
    for block in blocks:
        assert re.fullmatch(r"not run: \w.{5,}|exits: \d+|", block.note), block
        if block.runs:
            titled = block.language == "yaml" and block.title
            assert titled or block.language in ("bash", "python", "text"), block


@pytest.mark.skipif(not PINNED, reason="outputs are those of the pinned torch")
def test_a_shown_line_that_no_command_says_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nmergescope study list\n```\n\n```text\nno command says this\n```\n")
    with pytest.raises(AssertionError, match="shows what no command says"):
        run_page(page, tmp_path)


def test_every_error_has_a_page():
    index = (DOCS / "errors" / "index.md").read_text(encoding="utf-8")
    kinds = [kind for kind in families(Exception) if kind.__module__ == errors.__name__]
    assert len(kinds) > 5
    for name in (kind.__name__ for kind in kinds):
        stem = name.removesuffix("Error").lower()
        assert f"`{name}`" in index
        assert name == "MergescopeError" or f"({stem}.md)" in index


def families(kind):
    return [found for child in kind.__subclasses__() for found in (child, *families(child))]


@pytest.mark.parametrize("page", ERRORS, ids=named)
def test_every_message_of_an_error_page_is_one_that_is_raised(page):
    name = "MergescopeError" if page.stem == "index" else f"{page.stem.capitalize()}Error"
    raised = messages()[name]
    shown = [
        row[1] for row in re.finditer(r"^\| `([^`]+)`.*\|$", page.read_text(encoding="utf-8"), re.M)
        if not row[1].endswith("Error")
    ]  # fmt: skip
    assert shown
    for text in shown:
        pattern = ".*".join(map(re.escape, text.split("...")))
        assert any(re.match(pattern, message, re.S) for message in raised), text


def messages():
    """Class of error to its messages in the source, with a mark in place of what is filled in."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                found.setdefault(node.func.id, []).extend(filled(node.args[0]))
    return found


def filled(node):
    """What a text can be."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(filled(part)[0] for part in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [filled(left)[0] + filled(right)[0]]
        case ast.IfExp(body=body, orelse=orelse):
            return [*filled(body), *filled(orelse)]
    return [FIELD]


def test_the_site_lists_every_page():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page for page in DOCS.rglob("*.md") if "results" not in page.parts]
    assert [named(page) for page in pages if str(Path(page).relative_to(DOCS)) not in listed] == []


@pytest.mark.docs
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    loaded = {
        address
        for page in pages
        for address in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
    }
    assert len(pages) > 30 and loaded == set()
