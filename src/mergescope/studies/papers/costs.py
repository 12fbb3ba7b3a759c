"""What a study of a figure or table costs: models to train, and forward passes of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import takewhile
from math import comb
from typing import Any

import yaml

from mergescope.studies.papers.families import FAMILIES
from mergescope.studies.papers.runner import Where, family_of, jobs
from mergescope.studies.papers.spec import PaperStudy, Step

TASKS: Mapping[str, int] = {
    "rotated-digits": 4, "split-images": 4, "one-task": 6, "images": 8, "efficientnet": 4, "texts": 4,
    "language-models": 3, "clip8": 8, "clip8:large-patch14": 8, "t5-six": 6, "llama2-13b": 3,
}  # fmt: skip
"""Tasks of a family."""

SMALLEST: Mapping[str, int] = {"images": 2, "efficientnet": 2, "texts": 2, "language-models": 2}
"""Tasks of a family in the preset ``quick``, where they are fewer."""

MEASURED = "measured_costs.yaml"
"""What runs took, by study and preset (benchmarks/study_costs.py)."""

GRID, LINEAR = 21, 3
"""Coefficients of a search; what a pass of a linearised network costs, in passes of the network."""


@dataclass(frozen=True)
class Cost:
    """What a run of a study takes.

    Attributes:
        models: to train, all repetitions and regimes; 0 if they are published.
        commands: to run.
        passes: of one sample through the network, forwards; None if all samples are taken, so that it depends on them.
    """

    models: int
    commands: int
    passes: int | None

    def __str__(self) -> str:
        trained = "published models" if not self.models else f"{self.models} models to fine-tune"
        passes = (
            "passes over all samples"
            if self.passes is None
            else f"{self.passes:,} forward passes of a sample"
        )
        return f"{trained}; {self.commands} command{'s' if self.commands > 1 else ''}, {passes}"


def cost_of(study: PaperStudy, preset: str, where: Where) -> Cost:
    """Count what a run takes.

    Args:
        study: the study.
        preset: of [`PRESETS`][mergescope.studies.papers.runner.PRESETS].
        where: directories and data; somebody's own family is taken to have as many tasks as the preset's.

    Returns:
        The counts.

    Raises:
        StudyError: as for [`jobs`][mergescope.studies.papers.runner.jobs].

    Example:
        >>> from mergescope.studies.papers.runner import Where, find_paper_study
        >>> from pathlib import Path
        >>> where = Where(Path("out"), Path("work"), command=print)
        >>> print(cost_of(find_paper_study("ctl-fig8"), "cpu", where))
        24 models to fine-tune; 3 commands, 9,216 forward passes of a sample
    """  # noqa: DOC502 (raised by what this calls)
    todo = jobs(study, preset, where)
    family = family_of(study, preset) or ""
    tasks = SMALLEST.get(family, TASKS.get(family, 8)) if preset == "quick" else TASKS.get(family, 8)
    counts = [
        samples_passed(job.step, tasks, job.limit, LINEAR if job.regime == "linearized" else 1)
        for job in todo
    ]
    own = where.family is not None or family not in FAMILIES
    models = 0 if own else tasks * len({(job.regime, job.seed) for job in todo})
    known = [count for count in counts if count is not None]
    return Cost(models, len(todo), sum(known) if len(known) == len(counts) else None)


@lru_cache(maxsize=1)
def measured_costs() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """What published runs took.

    Returns:
        Study and preset to seconds of ``passes`` and of ``training``, on one core each, and the version of torch.

    Example:
        >>> all({"passes", "training"} <= set(cost) for runs in measured_costs().values() for cost in runs.values())
        True
    """
    return yaml.safe_load((files("mergescope.studies.papers") / MEASURED).read_text("utf-8"))


def samples_passed(step: Step, tasks: int, limit: int, slower: int = 1) -> int | None:
    """Forward passes of one sample that a command takes: distinct points of a data set times its samples.

    Args:
        step: the command.
        tasks: of the family.
        limit: samples of a data set; 0 for all.
        slower: what a pass costs in passes of the network.

    Returns:
        The number; None if all samples are taken.

    Example:
        >>> samples_passed(Step(command="equations", options=("--tests", "eq3")), tasks=8, limit=100)
        2400
    """
    if step.command == "geometry":
        return 0
    if not limit:
        return None
    words = step.options
    if step.command == "disentangle":
        usual = {"tangent": 20, "attn": 15}[words[words.index("--preset") + 1]]
        side = int(words[words.index("--points") + 1]) if "--points" in words else usual
        pairs = comb(tasks, 2) * 2 * limit  # both tasks' data
        return pairs * (3 * LINEAR if slower > 1 else side * side + side)
    return round(tasks * limit * slower * _points(step, tasks))


def _points(step: Step, tasks: int) -> float:
    # Distinct points that a task's data pass through.
    words, partners = step.options, tasks - 1
    if step.command == "equations":
        tests = [word for word in words if word in ("ctl", "eq1", "eq2", "eq3")]
        each = {"ctl": tasks + partners, "eq2": tasks + partners, "eq3": 3, "eq1": tasks + comb(tasks, 3)}
        return sum(each[test] for test in tests)
    if step.command == "stitch":
        after = words[words.index("--lambdas") + 1 :]
        coefficients = len(list(takewhile(lambda word: not word.startswith("--"), after)))
        mixed = tasks + partners if "--negate" not in words else 2 * tasks
        return coefficients * mixed * 3  # after each of about six blocks, half the network on average
    return {
        "search": GRID * (tasks if "--negate" in words else 1) + tasks + 3, "soup": tasks + 2 * comb(tasks, 3),
        "measure": tasks + 1 + 10 * partners, "evaluate": tasks + 2,
    }[step.command]  # fmt: skip
