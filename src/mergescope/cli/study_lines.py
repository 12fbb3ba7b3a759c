"""What ``mergescope study list`` and ``show`` print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergescope.studies import STUDIES, Study, find_study
from mergescope.studies.papers.spec import PaperStudy, named_studies, paper_studies

SWEEPS = ("root-causes", "theorem-5.1")
"""Studies of figures that train networks of their own."""


def listed() -> str:
    """One line for each study, in groups.

    Returns:
        The lines.
    """
    sweeps = [study for study in STUDIES if study.name in SWEEPS]
    figures = [(study.name, study.source, study.title) for study in paper_studies()]
    figures += [(study.name, _also(study), study.title) for study in sweeps]
    others = [(study.name, study.source, study.title) for study in STUDIES if study not in sweeps]
    families = [line for line in others if find_study(line[0]).command]
    demos = [line for line in others if not find_study(line[0]).command]
    return "\n\n".join(
        f"{heading}\n{_table(lines)}"
        for heading, lines in (
            ("Figures and tables of the papers", sorted(figures, key=lambda line: _order(line[1]))),
            ("The main job on embedded data", demos),
            ("Protocols on a family of yours (--family DIR)", families),
        )
    )


def _order(source: str) -> tuple[str, str, int]:
    # By paper, then tables before figures, then their numbers.
    paper, _, rest = source.partition(" ")
    kind = next((kind for kind in ("Table", "Fig") if rest.startswith(kind)), "other")
    digits = "".join(char if char.isdigit() else " " for char in rest).split()
    return paper.rstrip(","), {"Table": "2", "Fig": "1"}.get(kind, "3"), int(digits[0]) if digits else 0


def _also(study: Study) -> str:
    return f"{study.source}; also {', '.join(study.aliases)}" if study.aliases else study.source


def _table(lines: Iterable[tuple[str, str, str]]) -> str:
    return "\n".join(f"  {name:<25}{title}  [{source}]" for name, source, title in lines)


def shown(name: str) -> str:
    """What a study is about.

    Args:
        name: as listed.

    Returns:
        Lines of a term and a text.

    Raises:
        StudyError: there is no such study.
    """  # noqa: DOC502 (raised by what this calls)
    return "\n".join(f"{term:<10}{text}" for term, text in terms(name))


def terms(name: str) -> list[tuple[str, str]]:
    """The same, not yet put together.

    Args:
        name: as listed.

    Returns:
        Terms with their texts.

    Raises:
        StudyError: there is no such study.
    """  # noqa: DOC502 (raised by what this calls)
    papers = named_studies(name)
    return _paper(papers[name], name) if name in papers else _study(find_study(name))


def _study(study: Study) -> list[tuple[str, str]]:
    family = " --family DIR" if study.command else ""
    default = next(name for name in ("default", "cpu", *study.presets) if name in study.presets)
    return [
        ("study", f"{study.name}: {study.title}"),
        ("claims", study.claims),
        ("setting", study.setting),
        ("source", study.source),
        ("presets", "; ".join(f"{preset} ({cost})" for preset, cost in study.presets.items())),
        *(("there", line) for line in study.reference),
        *(("differs", f"{preset}: {text}") for preset, text in study.differs.items()),
        ("run", f"mergescope study run {study.name}{family} --preset {default}"),
    ]


def _paper(study: PaperStudy, name: str) -> list[tuple[str, str]]:
    from mergescope.studies.papers.costs import cost_of, measured_costs
    from mergescope.studies.papers.runner import PRESETS, Where, family_of

    where = Where(Path("out"), Path("work"), command=lambda words: None)
    costs = [
        (preset, cost_of(study, preset, where)) for preset in PRESETS if family_of(study, preset) is not None
    ]
    models = f"--preset {next(iter(study.family))} [--data-root DIR]" if study.family else "--family DIR"
    shared = [other.name for other in paper_studies() if other != study and other.family == study.family]
    checks = [
        check.says + (f" (there: {check.reference})" if check.reference else "") for check in study.checks
    ]
    return [
        ("study", f"{study.name}: {study.title}"),
        ("claims", study.claims),
        ("setting", study.setting),
        ("source", study.source),
        ("models", "; ".join(f"{preset}: {family}" for preset, family in study.family.items())),
        *(("cost", f"{preset}: {cost}") for preset, cost in costs),
        *(
            ("took", f"{preset}: {_took(cost)}")
            for preset, cost in measured_costs().get(study.name, {}).items()
        ),
        *([("shared", f"models with {', '.join(shared)}")] if shared else []),
        *(("checks", text) for text in checks),
        *(("there", line) for line in study.reference),
        *(("differs", f"{preset}: {text}") for preset, text in study.differs.items()),
        ("run", f"mergescope study run {name} {models}"),
    ]


def _took(cost: Mapping[str, Any]) -> str:
    shares = [f"{_minutes(cost[kind])} of {kind}" for kind in ("training", "passes") if cost[kind]]
    return f"{' and '.join(shares)} on one core (torch {cost['torch']}); more cores share it"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:,.0f} s"
