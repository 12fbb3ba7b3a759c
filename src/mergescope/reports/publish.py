"""Results pages for documentation: a study's claims, figures and numbers as Markdown, and the index of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergescope.errors import StudyError, did_you_mean
from mergescope.plain import plain
from mergescope.reports.html import as_csv, clear_figures, has_claims, read_about
from mergescope.reports.style import render
from mergescope.reports.sweep_page import PAGES, Judged, headline, judged
from mergescope.reports.tables import Grid, significant
from mergescope.studies.papers.spec import paper_studies
from mergescope.studies.registry import find_study
from mergescope.weights.files import atomic_file

INDEX = "studies.md"
"""The table of all published studies."""


def publish(run_dir: Path, out: Path, name: str | None = None) -> Path:
    """Write the results page of a finished study, its figures, its claims as data, and the index of all.

    Args:
        run_dir: run directory of a study that ends in claims.
        out: directory of results pages.
        name: of the page; by default the study's.

    Returns:
        The page.

    Raises:
        StudyError: the directory holds no finished study of that kind.
    """
    about = read_about(run_dir)
    study = about["study"]
    if study not in PAGES and not has_claims(about):
        known = [*PAGES, *(paper.name for paper in paper_studies())]
        raise StudyError(
            f"{run_dir} holds a run of {study!r}, which has no claims to publish.{did_you_mean(str(study), known)} "
            f"Studies with claims: {', '.join(known)}."
        )
    found, name = judged(run_dir, about), name or study
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    for figure, drawing in found.page.drawings.items():
        files[f"{figure}.svg"] = render(drawing.figure, "svg")
        if drawing.table:
            files[f"{figure}.csv"] = as_csv(drawing.table).encode()
    for file, content in files.items():
        with atomic_file(folder / file) as temporary:
            temporary.write_bytes(content)
    page = out / f"{name}.md"
    with atomic_file(page) as temporary:
        temporary.write_text(_page(name, about, found), encoding="utf-8")
    with atomic_file(out / f"{name}.json") as temporary:
        said = json.dumps(plain(_data(name, about, found)), indent=1, allow_nan=False)
        temporary.write_text(said + "\n", encoding="utf-8")
    with atomic_file(out / INDEX) as temporary:
        temporary.write_text(_index(out), encoding="utf-8")
    clear_figures(folder, files)
    return page


def differences(run_dir: Path, out: Path, name: str | None = None) -> list[str]:
    """What a finished study says otherwise than its published page.

    Two values agree where their intervals overlap; a claim without an interval must have the value that was published.

    Args:
        run_dir: run directory of a study that ends in claims.
        out: directory of results pages.
        name: of the page; by default the study's.

    Returns:
        One line a claim that differs, is new or is gone; empty if all agree.

    Raises:
        StudyError: the study has no page there.
    """
    about = read_about(run_dir)
    path = out / f"{name or about['study']}.json"
    if not path.is_file():
        raise StudyError(f"There is no {path} to compare with. Publish the study first: leave --check out.")
    old = {
        (claim["of"], claim["says"]): _read(claim)
        for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]
    }
    new = {
        (group, claim.says): _read(plain(vars(claim)))
        for group, claims in judged(run_dir, about).claims.items()
        for claim in claims
    }
    lines = [f"gone: {says}" for of, says in old if (of, says) not in new]
    lines += [f"new: {says}" for of, says in new if (of, says) not in old]
    for key in new.keys() & old.keys():
        before, now = old[key], new[key]
        if before["value"] == now["value"] or (now["low"] <= before["high"] and before["low"] <= now["high"]):
            continue
        lines.append(f"{key[1]}: {_value(now)}, was {_value(before)}")
    return sorted(lines)


def _source(about: Mapping[str, Any]) -> str:
    # Where somebody keeps a data set is nobody's business.
    source = str(about["provenance"]["data"]["source"])
    return Path(source).name if Path(source).is_absolute() else source


def _about(about: Mapping[str, Any]) -> Mapping[str, Any]:
    # A study of a figure or table says in its run what it is.
    if "checks" in about["config"]:
        return dict(about["config"])
    study = find_study(about["study"])
    return {"source": study.source, "claims": study.claims, "differs": study.differs}


def _command(about: Mapping[str, Any]) -> str:
    if "checks" in about["config"]:
        provenance = about["provenance"]
        root = "" if provenance.get("root") is None else f" --data-root {provenance['root']}"
        own = "" if provenance.get("family") is None else f" --family {provenance['family']}"
        ours = about["study"] in [study.name for study in paper_studies()]
        named = about["study"] if ours else f"{about['study']}.yaml"
        return f"mergescope study run {named} --preset {about['preset']}{root}{own}"
    source = _source(about)
    data = "" if source == "embedded" else f" --data {source}"
    return f"mergescope study run {about['study']} --preset {about['preset']}{data}"


def _data(name: str, about: Mapping[str, Any], found: Judged) -> dict[str, Any]:
    return {
        "name": name, "study": about["study"], "preset": about["preset"], "source": _about(about)["source"],
        "title": found.page.title,
        "command": _command(about),
        "claims": [
            {
                "of": group, "says": claim.says, "verdict": claim.verdict, "value": claim.value, "low": claim.low,
                "high": claim.high, "n": claim.n, "source": claim.source, "reference": claim.reference,
                "here": claim.here,
            }
            for group, claims in found.claims.items()
            for claim in claims
        ],
        "cost": about["provenance"].get("cost", ""), "seconds": about["provenance"].get("seconds"),
        "versions": about["provenance"].get("versions"),
    }  # fmt: skip


def _page(name: str, about: Mapping[str, Any], found: Judged) -> str:
    study, page = _about(about), found.page
    lines = [
        f"# {page.title}", "", f"Source: {study['source']}. {study['claims']}", "",
        *([page.lead, ""] if page.lead != study["claims"] else []), "```bash",
        _command(about), "```", "", f"**{headline(found.verdicts)}** {page.rule}", "",
    ]  # fmt: skip
    for group, claims in found.claims.items():
        heading = f"## Claims: {group}" if group else "## Claims"
        columns = ["claim", "verdict", "what should be above 0", "here", "there", "source"]
        found_here = [
            (claim.says, claim.verdict, _value(vars(claim)), claim.here, claim.reference, claim.source)
            for claim in claims
        ]
        # Columns that are empty are left out, and a source that is the study's: it is named above.
        told = [{row[place] for row in found_here} - {""} for place in range(6)]
        shown = [
            place for place in range(6) if told[place] and (place < 5 or told[place] != {study["source"]})
        ]
        lines += [
            heading,
            "",
            f"| {' | '.join(columns[place] for place in shown)} |",
            f"|{'---|' * len(shown)}",
        ]
        lines += [f"| {' | '.join(_cell(row[place]) for place in shown)} |" for row in found_here]
        lines.append("")
    lines += ["## Figures", ""]
    for figure, drawing in page.drawings.items():
        table = f" [What is drawn, as a table]({name}/{figure}.csv)." if drawing.table else ""
        lines += [f"![{drawing.alt}]({name}/{figure}.svg)", "", f"*{drawing.caption}*{table}", ""]
    lines += ["## Numbers", ""] if page.grids else []
    for grid in page.grids:
        lines += [*_grid(grid), ""]
    facts = dict(page.facts) | {"Data": [_source(about)]}
    lines += ["## How it was made", "", *(f"- {term}: {'; '.join(texts)}" for term, texts in facts.items())]
    differs = study["differs"].get(about["preset"])
    if differs and "What differs" not in facts:
        lines.append(f"- What differs: {differs}")
    spent = about["provenance"].get("cost")
    if spent and "Cost" not in facts:
        lines.append(f"- Cost: {spent}")
    versions = about["provenance"].get("versions") or {}
    lines.append(f"- Versions: {', '.join(f'{package} {version}' for package, version in versions.items())}")
    lines.append(f"- Claims as data: [{name}.json]({name}.json)")
    return "\n".join(lines) + "\n"


def _grid(grid: Grid) -> list[str]:
    rows = [f"| {' | '.join(map(_cell, grid.columns))} |", f"|{'---|' * len(grid.columns)}"]
    for name, cells in grid.rows:
        shown = [f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in cells]
        rows.append(f"| {' | '.join(map(_cell, (name, *shown)))} |")
    return [f"**{grid.title}**", "", *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _index(out: Path) -> str:
    lines = [
        "# Studies: what the papers say, and what came out here", "",
        "Made by `mergescope study publish`. Every verdict follows from an interval: a claim *holds* if the whole of "
        "it is above 0, *does not hold* if it is below, and is *inconclusive* otherwise. Here stand each study's first "
        "claim, what the source found and what came out (in *A against B*, A is what should be larger, whichever the "
        "claim names first); how many claims there are in all; and the command.", "",
        "| study | source | first claim | there | here | verdict | hold | do not | inconclusive | command |",
        f"|{'---|' * 10}",
    ]  # fmt: skip
    for path in sorted(out.glob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or not {"claims", "study", "command"} <= said.keys():
            continue  # other results
        counts = _counts([claim["verdict"] for claim in said["claims"]])
        first = _read(said["claims"][0])
        cells = (
            f"[{said['name']}]({said['name']}.md): {_cell(said['title'])}", said["source"], _cell(first["says"]),
            _cell(first["reference"]), _cell(first.get("here") or _value(first)), first["verdict"],
            *map(str, counts), f"`{said['command']}`",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read(claim: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has neither NaN nor infinite numbers: an end that is missing is unbounded.
    missing = {"value": math.nan, "low": -math.inf, "high": math.inf}
    return {**claim, **{name: value for name, value in missing.items() if claim[name] is None}}


def _value(claim: Mapping[str, Any]) -> str:
    return f"{significant(claim['value'])} [{significant(claim['low'])}, {significant(claim['high'])}]"


def _counts(verdicts: Sequence[str]) -> list[int]:
    from mergescope.studies.claims import FAILS, HOLDS, OPEN

    return [verdicts.count(verdict) for verdict in (HOLDS, FAILS, OPEN)]
