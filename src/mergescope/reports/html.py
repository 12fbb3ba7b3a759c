"""The report of a run directory: one HTML file that needs no network, and its figures."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergescope.errors import StudyError, did_you_mean, near_paths
from mergescope.reports.style import SCHEMED, render
from mergescope.studies.rundir import RunDirectory
from mergescope.weights.files import atomic_file

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

REPORT = "report.html"

SUFFIXES = (".svg", ".png", ".csv")
"""Of the files in ``figures/``."""

_LEFT_OUT: ContextVar[bool] = ContextVar("whether reports are left out", default=False)


@contextmanager
def without_reports() -> Iterator[None]:
    """Leave reports out: of commands that are steps of a study, which has a report of its own.

    Yields:
        Nothing.
    """
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def reports_left_out() -> bool:
    """Whether [`without_reports`][] holds.

    Returns:
        True or False.
    """
    return _LEFT_OUT.get()


@dataclass(frozen=True)
class Parts:
    """What a report is made of.

    Attributes:
        template: name of its page.
        figures: file name without suffix to figure.
        content: what the page shows besides figures.
        tables: figure to the tidy lines that it was drawn from, for those that have some.
    """

    template: str
    figures: Mapping[str, Figure]
    content: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def _study(path: Path, about: Mapping[str, Any]) -> Parts:
    from mergescope.reports.study_page import study_parts

    return study_parts(path, about)


def _measurement(path: Path, about: Mapping[str, Any]) -> Parts:
    from mergescope.reports.measured_page import measured_page

    return measured_page(path, about)


def _protocol(path: Path, about: Mapping[str, Any]) -> Parts:
    from mergescope.reports.protocol_page import protocol_page

    return protocol_page(path, about)


def _sweep(path: Path, about: Mapping[str, Any]) -> Parts:
    from mergescope.reports.sweep_page import sweep_page

    return sweep_page(path, about)


def _mergeability(path: Path, about: Mapping[str, Any]) -> Parts:
    from mergescope.reports.mergeability_page import mergeability_page

    return mergeability_page(path, about)


MAKERS: dict[str, Callable[[Path, Mapping[str, Any]], Parts]] = {
    "digits": _study,
    "measure": _measurement,
    "mergeability": _mergeability,
    **dict.fromkeys(("root-causes", "theorem-5.1"), _sweep),
    **dict.fromkeys(("predict", "curvature", "theorems"), _protocol),
    **dict.fromkeys(("evaluate", "search", "soup", "disentangle", "stitch", "equations"), _protocol),
}
"""What ``run.yaml`` calls the study, to what makes its report."""


def build_report(run_dir: str | Path) -> Path:
    """Write ``figures/*.svg``, ``figures/*.png``, ``figures/*.csv`` and ``report.html`` of a finished run.

    Figures that an earlier report left there and this one doesn't have are removed.

    Args:
        run_dir: run directory of a study or a measurement.

    Returns:
        Path of the report, which is not made in [`without_reports`][].

    Raises:
        StudyError: the directory, a file or a part of the results is missing or damaged; then
            nothing is written.
    """  # noqa: DOC502 (raised by what this calls)
    path = Path(run_dir)
    if reports_left_out():
        return path / REPORT
    about = read_about(path)
    parts = parts_of(path)
    vectors = {name: render(figure, "svg") for name, figure in parts.figures.items()}
    page = _page(
        parts, about, {name: inline_svg(content.decode(), name) for name, content in vectors.items()}
    )
    files: dict[str, bytes] = {}
    for name, figure in parts.figures.items():
        files |= {f"{name}.svg": vectors[name], f"{name}.png": render(figure, "png")}
    files |= {f"{name}.csv": as_csv(lines).encode() for name, lines in parts.tables.items()}
    for file, content in files.items():
        with atomic_file(path / "figures" / file) as temporary:
            temporary.write_bytes(content)
    report = path / REPORT
    with atomic_file(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    clear_figures(path / "figures", files)
    return report


def clear_figures(folder: Path, made: Collection[str]) -> None:
    """Remove the figures that an earlier report left and this one doesn't have.

    Args:
        folder: of figures; there may be none.
        made: names of this report's files. What else lies there and no report writes stays, as do the figures of
            ``mergescope geometry``, which may have been told the same directory.
    """
    from mergescope.reports.geometry_figures import NAMES

    for file in sorted(folder.glob("[!.]*")):  # hidden ones are being written
        if file.suffix in SUFFIXES and file.name not in made and file.stem not in NAMES:
            file.unlink(missing_ok=True)


def parts_of(path: Path) -> Parts:
    """What the report of a run directory is made of.

    Args:
        path: the directory.

    Returns:
        Page, figures and content.

    Raises:
        StudyError: something is missing or damaged, or there is no report of such a run.
    """
    from mergescope.studies.papers.spec import paper_studies

    about = read_about(path)
    study = str(about["study"])
    if study not in MAKERS and not has_claims(about):
        papers = [paper.name for paper in paper_studies()]
        raise StudyError(
            f"{path / 'run.yaml'} is of a study {study!r}, of which there is no report."
            f"{did_you_mean(study, [*MAKERS, *papers])} There are reports of: {', '.join([*MAKERS, *papers])}."
        )
    return MAKERS.get(study, _sweep)(path, about)


def has_claims(about: Mapping[str, Any]) -> bool:
    """Whether a run is of a study that a document declares, with steps and checks: of a figure or somebody's own.

    Args:
        about: content of ``run.yaml``.

    Returns:
        True if it is.
    """
    config = about["config"]
    return isinstance(config, dict) and {"steps", "checks"} <= config.keys()


def read_about(path: Path) -> dict[str, Any]:
    """Read ``run.yaml`` of a run directory.

    Args:
        path: the directory.

    Returns:
        Its content, with ``study``, ``config`` and ``provenance``.

    Raises:
        StudyError: something is missing or damaged.
    """
    if not path.is_dir():
        raise StudyError(
            f"There is no run directory {path}.{near_paths(path)} Make one with 'mergescope demo --out {path}', or "
            "with the --out of 'mergescope measure'."
        )
    about = RunDirectory(path).read_run()
    for key in ("config", "provenance"):
        if not isinstance(about.get(key), dict):
            raise StudyError(
                f"{path / 'run.yaml'} lacks {key!r}. Run the study again; it goes on where it was."
            )
    return about


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines of a table as comma-separated values.

    Args:
        lines: column to value; all have the same columns.

    Returns:
        The file's content; numbers have six digits, what is unknown is empty.

    Example:
        >>> as_csv([{"layer": "0", "cos": 0.12345678, "paper": None}]).splitlines()
        ['layer,cos,paper', '0,0.123457,']
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def inline_svg(svg: str, name: str) -> str:
    """An SVG file as an element of a page: own ids, no prolog, no fixed size, and the page's colours.

    Ink, grounds and lines get the names that they have in ``page.css``, where they are others on a dark page.

    Args:
        svg: content of the file.
        name: prefix of its ids, so that figures on one page don't share any.

    Returns:
        The ``<svg>`` element.

    Example:
        >>> inline_svg('<svg width="9pt" viewBox="0 0 9 9"><g id="a" style="fill: #222222"/></svg>', "f")
        '<svg viewBox="0 0 9 9" style="--own: 9pt"><g id="f-a" style="fill: var(--ink)"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    own = re.search(r'\swidth="([^"]*)"', head)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    svg = f'{head} style="--own: {own[1] if own else "0"}">{rest}'
    # Matplotlib names images after what they show: equal ones would share an id, and nothing refers to it.
    svg = re.sub(r'(<image [^>]*?)\sid="[^"]*"', r"\1", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r": (#[0-9a-f]{6})\b", lambda found: f": {_schemed(found[1])}", svg)
    return re.sub(r"\n\s*", "\n", svg)


def _schemed(colour: str) -> str:
    return f"var(--{SCHEMED[colour]})" if colour in SCHEMED else colour


def _labelled(svg: str, label: str) -> Markup:
    from markupsafe import Markup

    return Markup('<svg role="img" aria-label="{}"{}').format(label, Markup(svg.removeprefix("<svg")))


def _page(parts: Parts, about: Mapping[str, Any], vectors: Mapping[str, str]) -> str:
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mergescope.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    common = {
        "study": about["study"],
        "preset": about.get("preset", ""),
        "config": about["config"],
        "yaml": yaml.safe_dump(
            about["config"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
        ),
        "versions": about["provenance"].get("versions") or {},
        "figure": vectors,
    }
    environment.filters["labelled"] = _labelled
    return environment.get_template(parts.template).render({**common, **parts.content})
