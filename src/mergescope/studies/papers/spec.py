"""What a study of a figure or table is: one YAML file, read strictly."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from mergescope.documents import DocumentError, read_yaml
from mergescope.errors import StudyError, did_you_mean, near_paths
from mergescope.studies.papers.figures import DRAWN_FROM, PaperFigure

_STRICT = ConfigDict(extra="forbid", frozen=True)

SUFFIXES = (".yaml", ".yml")
"""Ends of names of files that hold a study of somebody's own."""

COMMANDS = ("equations", "measure", "search", "soup", "stitch", "disentangle", "evaluate", "geometry")
"""Commands that steps run; each writes a run directory."""


class Step(BaseModel):
    """One command on a family.

    Attributes:
        command: of [`COMMANDS`][].
        options: what follows it, besides family, regime and limit.
        regimes: one run each.
        seeds: one run for every repetition of the family, rather than for the first only.
        more: preset to further options.
        limits: preset to samples of a data set; 0 for all.
    """

    model_config = _STRICT

    command: Literal[
        "equations", "measure", "search", "soup", "stitch", "disentangle", "evaluate", "geometry"
    ]
    options: tuple[str, ...] = ()
    regimes: tuple[str, ...] = ("full",)
    seeds: bool = False
    more: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    limits: dict[str, int] = Field(default_factory=lambda: {"quick": 16, "cpu": 128, "paper": 0})


class Check(BaseModel):
    """Something that should be above 0, and how it is computed from rows.

    Attributes:
        says: the claim, in words.
        kind: ``every``: in every row of ``rows``, less ``than`` in the row of the same layer, points and parameter
            (or less the number ``least``), the worst one decides; ``mean``: the mean over rows less the other, case by
            case if both have the same places; for several repetitions, both give one value each.
        rows: fields that rows must have, ``*`` for anything; ``step`` is the step's number, ``regime`` the regime's
            label.
        than: fields that the other rows must have, in place of those of ``rows``.
        times: the other rows count so many times.
        least: a number to be above.
        most: a number to be below.
        own: only rows of a model (or of a task vector that is subtracted) on its own task's data; if False, only those
            on other data. It does not touch rows whose points are asked to be ``base``.
        fine_tuned: only rows of points that rows of the kind ``ctl`` are about too: of fine-tuned models, not of the
            base and one of them.
        members: compare with the mean of the single models that the points' name joins by " + ", on the same data.
        reference: what the source found.
    """

    model_config = _STRICT

    says: str
    kind: Literal["every", "mean"]
    rows: dict[str, Any]
    than: dict[str, Any] | None = None
    times: float = 1.0
    least: float | None = None
    most: float | None = None
    own: bool | None = None
    fine_tuned: bool = False
    members: bool = False
    reference: str = ""


class PaperStudy(BaseModel):
    """A figure or table of a paper.

    Attributes:
        name: what the user types.
        title: a question.
        source: paper, section, figures.
        claims: what the source says.
        setting: of the source.
        family: preset to the name of its models: one of [`FAMILIES`][mergescope.studies.papers.families.FAMILIES],
            which are trained here, or what ``--family`` takes.
        steps: what is run.
        checks: what should come out.
        figures: what is drawn of all steps together.
        reference: the source's own numbers, line by line.
        differs: preset to what differs from the source, and why.
    """

    model_config = _STRICT

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")
    title: str
    source: str
    claims: str
    setting: str
    family: dict[str, str]
    steps: tuple[Step, ...] = Field(min_length=1)
    checks: tuple[Check, ...] = Field(min_length=1)
    figures: tuple[PaperFigure, ...] = ()
    reference: tuple[str, ...] = ()
    differs: dict[str, str] = Field(default_factory=dict)

    @field_validator("figures")
    @classmethod
    def _about_steps(cls, figures: tuple[PaperFigure, ...], found: ValidationInfo) -> tuple[PaperFigure, ...]:
        names = [figure.file for figure in figures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several are called {', '.join(twice)}: give each a name of its own")
        commands = [step.command for step in found.data.get("steps", ())]
        for figure in figures if commands else ():
            steps = figure.steps(commands)
            if len(steps) != figure.takes:
                fit = " or ".join(DRAWN_FROM[figure.draw])
                raise ValueError(
                    f"{figure.file} is drawn from {figure.takes} of the steps of {fit}, and steps "
                    f"{', '.join(map(str, steps)) or 'of no number'} (from 0) are meant. Say which: step"
                )
        return figures


@lru_cache(maxsize=1)
def paper_studies() -> tuple[PaperStudy, ...]:
    """All studies of figures and tables, in the order of their files.

    Returns:
        The studies.

    Raises:
        StudyError: a file is not as it should be.

    Example:
        >>> "ctl-fig7" in [study.name for study in paper_studies()]
        True
    """  # noqa: DOC502 (raised by what this calls)
    found = []
    folder = files("mergescope.studies.papers") / "specs"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            found += [read_study(said, file.name) for said in yaml.safe_load_all(file.read_text("utf-8"))]
    return tuple(found)


def named_studies(name: str) -> dict[str, PaperStudy]:
    """The studies that a name may mean: those of the package, and that of a file of somebody's own.

    Args:
        name: what the user typed: a study's name, or a YAML file's.

    Returns:
        What may be typed, to its study.

    Raises:
        StudyError: the file is not there or not as it should be, or its study is called like one of the package.
    """  # noqa: DOC502 (raised by what this calls)
    known = {study.name: study for study in paper_studies()}
    if not name.endswith(SUFFIXES):
        return known
    path = Path(name)
    if not path.is_file():
        raise StudyError(
            f"There is no file {name}.{near_paths(path)} Name a study of this package, or a YAML file."
        )
    try:
        own = read_study(read_yaml(path), path.name)
    except DocumentError as error:
        raise StudyError(f"{path} is no study: {error}.") from error
    from mergescope.studies.registry import STUDIES

    if own.name in (*known, *COMMANDS, *(study.name for study in STUDIES)):
        raise StudyError(f"{path.name}: there is a study {own.name!r} already. Give yours a name of its own.")
    return {**known, name: own}


def read_study(said: Any, where: str) -> PaperStudy:
    """Read one study.

    Args:
        said: content of its document.
        where: name of the file, for errors.

    Returns:
        The study.

    Raises:
        StudyError: it is not as it should be; all problems are listed.

    Example:
        >>> read_study({"name": "a-study"}, "mine.yaml")
        Traceback (most recent call last):
        ...
        mergescope.errors.StudyError: mine.yaml, study a-study:
          - title: Field required
        ...
    """
    try:
        return PaperStudy.model_validate(said)
    except ValidationError as error:
        name = said.get("name", "without a name") if isinstance(said, dict) else "without a name"
        problems = "\n".join(
            f"  - {'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}{_hint(dict(problem))}"
            for problem in error.errors()
        )
        raise StudyError(f"{where}, study {name}:\n{problems}") from error


def _hint(problem: dict[str, Any]) -> str:
    if problem["type"] != "extra_forbidden":
        return ""
    *path, key = map(str, problem["loc"])
    kinds: dict[str, type[BaseModel]] = {"steps": Step, "checks": Check}
    near = did_you_mean(key, kinds.get(path[0] if path else "", PaperStudy).model_fields)
    return f".{near}" if near else ""
