"""Run the notebooks of docs/notebooks and store them with their outputs, for readers on GitHub.

    python docs/notebooks.py                     all of them
    python docs/notebooks.py soup-of-one-task    some

Each is run from its first cell to its last, offline, as tests/test_notebooks.py runs it. What depends on the run and
not on the notebook (times, widgets, machine) is not stored, and pictures are stored with few colours.
"""

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parent / "notebooks"
LARGEST = 300_000
"""Bytes of a notebook."""

PLACES = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|Users|private|var|opt|mnt|usr)/|\b[A-Z]:\\|site-packages"
)
"""What a path on somebody's machine looks like."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(path: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook, in its own directory and a new kernel.

    A kernel that does not end within seconds is killed, and can't remove its temporary files: it has a place for
    them that is removed here.

    Args:
        path: the notebook; the file stays as it is.
        timeout: seconds a cell may take.

    Returns:
        The notebook with its outputs, cleaned.
    """
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary,
        mock.patch.dict(os.environ, {**OFFLINE, "TMPDIR": temporary}),  # a kernel inherits them
    ):
        # one output for one cell's printing: a slow kernel sends it in parts
        NotebookClient(
            book, timeout=timeout, kernel_name="python3", resources=where, coalesce_streams=True
        ).execute()
    return cleaned(book)


def cleaned(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without what depends on the run.

    Args:
        book: the notebook; it is changed.

    Returns:
        The same notebook.
    """
    book.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    for place, cell in enumerate(book.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{place}"
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
    return book


def smaller(picture: str, colours: int = 64) -> str:
    """A picture with few colours.

    Args:
        picture: a PNG as base64.
        colours: at most so many.

    Returns:
        The same, smaller; one that has few colours already stays as it is.
    """
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    written = io.BytesIO()
    image.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode() + "\n"


def problems(book: nbformat.NotebookNode) -> list[str]:
    """What must not be stored.

    Args:
        book: the notebook.

    Returns:
        Sentences, none if all is well.
    """
    said = []
    text = nbformat.writes(book)
    if len(text.encode()) > LARGEST:
        said.append(f"{len(text.encode()):,} bytes, more than {LARGEST:,}: show less, or smaller pictures")
    for place, cell in enumerate(book.cells):
        told = {
            key: value for output in cell.get("outputs", ()) for key, value in output.get("data", {}).items()
        }
        words = [cell.source, *(str(value) for key, value in told.items() if not key.startswith("image/"))]
        words += [output.text for output in cell.get("outputs", ()) if output.output_type == "stream"]
        found = sorted({match[0] for word in words for match in PLACES.finditer(word)})
        if found:
            said.append(f"cell {place} names a place on one machine: {', '.join(found)}")
        if any(output.get("name") == "stderr" for output in cell.get("outputs", ())):
            said.append(f"cell {place} writes to standard error: a warning that a reader should not see")
    return said


def main(names: list[str]) -> int:
    """Run and store notebooks.

    Args:
        names: without ``.ipynb``; none for all.

    Returns:
        Exit code: 1 if one has problems, and is not stored.
    """
    failed = 0
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.perf_counter()
        book = run(path)
        wrong = problems(book)
        if wrong:
            print("\n".join([f"{path.name} is not stored:", *(f"  - {line}" for line in wrong)]))
            failed = 1
            continue
        nbformat.write(book, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size:,} bytes")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
