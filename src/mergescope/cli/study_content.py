"""What ``mergescope study list`` and ``show`` print with ``--json``."""

from __future__ import annotations

from typing import Any

from mergescope.cli.study_lines import SWEEPS, terms
from mergescope.studies import STUDIES, Study, find_study
from mergescope.studies.papers.spec import PaperStudy, named_studies, paper_studies

ONCE = ("claims", "setting", "run")
"""Terms that a study has one text for; of others there may be several."""


def listed_content() -> dict[str, Any]:
    """All studies.

    Returns:
        Under ``studies``, each by name, title, source and kind.

    Example:
        >>> found = {study["name"]: study for study in listed_content()["studies"]}
        >>> found["ctl-fig7"]["kind"], found["digits"]["kind"], found["addition"]["kind"]
        ('figure', 'demo', 'family')
    """
    return {"studies": [*map(_described, paper_studies()), *map(_described, STUDIES)]}


def shown_content(name: str) -> dict[str, Any]:
    """What a study is about.

    Args:
        name: as listed.

    Returns:
        Values that JSON can hold.

    Raises:
        StudyError: there is no such study.

    Example:
        >>> shown_content("digits")["source"]
        'CTL 4.1 to 4.3, Figs 2 and 3 (Rotated MNIST); MC-SGD'
    """  # noqa: DOC502 (raised by what this calls)
    lines = terms(name)
    papers = named_studies(name)
    known = _described(papers[name] if name in papers else find_study(name))
    texts: dict[str, list[str]] = {}
    for term, text in lines:
        if term not in (*known, "study", "models"):
            texts.setdefault(term, []).append(text)
    return {**known, **{term: said[0] if term in ONCE else said for term, said in texts.items()}}


def _described(study: Study | PaperStudy) -> dict[str, Any]:
    known = {"name": study.name, "title": study.title, "source": study.source}
    if isinstance(study, PaperStudy):
        return {**known, "kind": "figure", "aliases": [], "presets": study.family}
    kind = "figure" if study.name in SWEEPS else "family" if study.command else "demo"
    return {**known, "kind": kind, "aliases": list(study.aliases), "presets": study.presets}
