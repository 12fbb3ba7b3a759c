"""The notebooks run from their first cell to their last, and are stored as docs/notebooks.py stores them."""

import base64
import copy
import importlib.util
import io
import re
from pathlib import Path

import pytest
from doc_blocks import run_page

pytest.importorskip("nbclient", reason="needs nbclient and ipykernel of the dev extra")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel of the dev extra")
nbformat = pytest.importorskip("nbformat", reason="comes with nbclient")

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
STEPS = ("Check", "Measure", "Predict", "Merge", "[Ee]valuate")
MODELS_OF_DIGITS = ("soup-of-one-task",)


def tool():
    """docs/notebooks.py, which is a script."""
    spec = importlib.util.spec_from_file_location("notebooks_tool", DOCS / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()


def stem(path):
    return path.stem


def stored(path):
    return nbformat.read(path, as_version=4)


def kinds(book):
    """What each code cell gives: texts, tables, pictures."""
    return [
        [
            (output.output_type, output.get("name", ""), sorted(output.get("data", ())))
            for output in cell.outputs
        ]
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def slow(path):
    marks = [pytest.mark.notebooks, *([pytest.mark.demo] if path.stem in MODELS_OF_DIGITS else [])]
    return pytest.param(path, marks=marks, id=path.stem)


def test_there_is_one_for_each_case_of_the_guide():
    guide = (DOCS / "guide.md").read_text(encoding="utf-8")
    titles = [re.sub(r"[^a-z]+", "-", title.lower()) for title in re.findall(r"^## (.+)$", guide, re.M)]
    assert len(NOTEBOOKS) == 3
    assert [path.stem for path in NOTEBOOKS if not any(title.endswith(path.stem) for title in titles)] == []


@pytest.mark.parametrize("path", [slow(path) for path in NOTEBOOKS])
def test_it_runs_and_gives_what_is_stored(path):
    book = TOOL.run(path)  # raises at the first cell that does
    assert kinds(book) == kinds(stored(path)) and TOOL.problems(book) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_it_is_stored_with_outputs_and_nothing_of_a_machine(path):
    book = stored(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert TOOL.problems(book) == [] and path.stat().st_size < TOOL.LARGEST
    assert TOOL.cleaned(copy.deepcopy(book)) == book  # stored by the command, and not by another program
    given = [name for cell in kinds(book) for _, _, data in cell for name in data]
    assert "image/png" in given and "text/html" in given


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_it_takes_all_steps_and_is_linked(path):
    said = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "markdown")
    headings = " ".join(re.findall(r"^## (.+)$", said, re.M))
    assert [step for step in STEPS if not re.search(step, headings)] == []
    assert f"({path.name})" in (DOCS / "notebooks" / "index.md").read_text(encoding="utf-8")
    assert "notebooks/index.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_its_links_lead_somewhere(path):
    said = "\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "markdown")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", said)]
    assert links and [link for link in links if not (path.parent / link).exists()] == []


def test_the_python_of_their_page_runs(tmp_path, capsys):
    run_page(DOCS / "notebooks" / "index.md", tmp_path)
    assert "coefficient" in capsys.readouterr().out


# -- the command -------------------------------------------------------------------------------------


def written(tmp_path, *sources):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.metadata["author"] = "somebody"
    path = tmp_path / "book.ipynb"
    nbformat.write(book, path)
    return path


@pytest.mark.notebooks
def test_a_cell_that_raises_is_an_error_that_names_it(tmp_path):
    path = written(tmp_path, "1 + 1", "raise ValueError('no such thing')")
    with pytest.raises(Exception, match="no such thing"):
        TOOL.run(path)


@pytest.mark.notebooks
def test_what_a_cell_prints_in_parts_is_one_output(tmp_path):
    slowly = "import time\nfor line in 'ab':\n    print(line, flush=True)\n    time.sleep(0.5)"
    outputs = TOOL.run(written(tmp_path, slowly)).cells[0].outputs
    assert [output.text for output in outputs] == ["a\nb\n"]


@pytest.mark.notebooks
def test_a_notebook_that_names_a_place_or_warns_is_not_stored(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, "print('/home/somebody/model')", "import sys; print('careful', file=sys.stderr)")
    before = path.read_bytes()
    monkeypatch.setattr(TOOL, "NOTEBOOKS", tmp_path)
    assert TOOL.main([]) == 1 and path.read_bytes() == before
    said = capsys.readouterr().out
    assert "cell 0 names a place on one machine: /home/" in said and "cell 1 writes to standard error" in said


@pytest.mark.notebooks
def test_what_is_stored_has_no_trace_of_the_run(tmp_path, monkeypatch):
    path = written(tmp_path, "1 + 1")
    monkeypatch.setattr(TOOL, "NOTEBOOKS", tmp_path)
    assert TOOL.main(["book"]) == 0
    book = stored(path)
    assert book.cells[0].outputs[0].data["text/plain"] == "2"
    assert book.cells[0].metadata == {} and set(book.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("place", ["/home/a/b", "/tmp/x", "at C:\\models", "lib/site-packages/torch"])
def test_places_are_recognised(place):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"open({place!r})")])
    assert [line for line in TOOL.problems(book) if "a place on one machine" in line]


def test_relative_paths_and_addresses_are_no_places():
    told = "docs/home/a data/tmp/b https://example.org/home/c"
    assert TOOL.problems(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(told)])) == []


def test_pictures_get_few_colours_once():
    from PIL import Image

    picture = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(picture, "PNG")
    small = TOOL.smaller(base64.b64encode(picture.getvalue()).decode())
    image = Image.open(io.BytesIO(base64.b64decode(small)))
    assert image.mode == "P" and len(image.getcolors()) <= 64 and image.size == (256, 256)
    assert TOOL.smaller(small) == small
