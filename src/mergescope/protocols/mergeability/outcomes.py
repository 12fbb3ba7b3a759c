"""What merges of groups gave: the average, task arithmetic and TIES, each as its users would use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mergescope.merging.in_memory import merge_in_memory
from mergescope.protocols.evaluation import Evaluation, evaluate
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.search import choose, normalised_accuracy
from mergescope.weights import Point, exact, mean

Group = tuple[str, ...]
Line = Callable[[float], Point]

LEAST = 0.05
"""What fine-tuning gains must be this much of the models' own accuracy for a share of it to be told."""


@dataclass(frozen=True)
class Family:
    """Models of one regime with their data.

    Attributes:
        base: th_0.
        models: task to fine-tune.
        validation: task to the data that coefficients are chosen on.
        test: task to the data that outcomes are of.
        around: what the network is linearised around, or None.
        progress: show bars on a terminal.
    """

    base: Point
    models: Mapping[str, Point]
    validation: Mapping[str, HeldOut]
    test: Mapping[str, HeldOut]
    around: Point | None = None
    progress: bool = True

    def run(self, points: Mapping[str, Sequence[Point]], held: Mapping[str, HeldOut]) -> Evaluation:
        """Evaluate models.

        Args:
            points: task to models.
            held: task to data.

        Returns:
            The evaluation.
        """
        return evaluate(points, held, around=self.around, progress=self.progress)


@dataclass(frozen=True)
class Outcome:
    """What came of merging one group.

    Attributes:
        figures: outcome to figure, on test data.
        chosen: method to the scale that was chosen on validation data.
        base: the base's normalised accuracy on validation data.
    """

    figures: Mapping[str, float]
    chosen: Mapping[str, float]
    base: float


def outcomes(
    family: Family, groups: Sequence[Group], scales: Sequence[float], density: float
) -> dict[Group, Outcome]:
    """Merge every group by three methods, and evaluate each on the tasks of the group.

    Averages and task arithmetic are combinations of the models: all of them take one pass of each task's validation
    data, and one of its test data. TIES makes new weights, one group's at a time.

    Args:
        family: models and data.
        groups: names of models to merge.
        scales: of the merged task vector, among which one is chosen on validation data: 1 is the average, or TIES as
            its paper has it.
        density: of TIES.

    Returns:
        Group to what came of it. Groups with a fine-tune that is never right on its own task are left out: there is
        nothing to divide by.
    """
    lines = {group: _average_line(family, group) for group in groups}
    known = {
        task: [family.base, family.models[task], *(line(scale) for group, line in lines.items() if task in group
                                                   for scale in (1.0, *scales))]
        for task in family.models
    }  # fmt: skip
    validated = family.run(known, family.validation)
    lines = {group: line for group, line in lines.items() if _learnt(validated, family, group)}
    best = {group: _best(validated, family, group, line, scales) for group, line in lines.items()}
    tested = family.run(
        {
            task: [family.base, family.models[task], *(line(scale) for group, line in lines.items() if task in group
                                                       for scale in (1.0, best[group]))]
            for task in family.models
        },
        family.test,
    )  # fmt: skip
    found = {}
    for group, line in lines.items():
        if not _learnt(tested, family, group):
            continue
        average = _normalised(tested, family, group, line(1.0))
        ties, at = _ties(family, group, scales, density, validated, tested)
        figures = {
            "average": average, "task_arithmetic": _normalised(tested, family, group, line(best[group])), "ties": ties,
            "recovered": _recovered(average, _normalised(tested, family, group, family.base)),
        }  # fmt: skip
        chosen = {"task_arithmetic": best[group], "ties": at}
        found[group] = Outcome(figures, chosen, _normalised(validated, family, group, family.base))
    return found


def _ties(
    family: Family,
    group: Group,
    scales: Sequence[float],
    density: float,
    validated: Evaluation,
    tested: Evaluation,
) -> tuple[float, float]:
    models = [family.models[name] for name in group]
    merged = Point.of(merge_in_memory("ties", models, family.base, {"density": density}))

    def line(scale: float) -> Point:
        return family.base + exact(scale) * (merged - family.base)

    every = [line(scale) for scale in scales]
    found = family.run(dict.fromkeys(group, every), {task: family.validation[task] for task in group})
    at = choose({
        scale: _against(found, validated, family, group, point)
        for scale, point in zip(scales, every, strict=True)
    }).lam
    said = family.run(dict.fromkeys(group, [line(at)]), {task: family.test[task] for task in group})
    return _against(said, tested, family, group, line(at)), at


def _average_line(family: Family, group: Group) -> Line:
    average = mean([family.models[name] for name in group])

    def at(scale: float) -> Point:
        # The average itself, not the base plus its task vector: a combination of fewer checkpoints.
        return average if scale == 1 else family.base + exact(scale) * (average - family.base)

    return at


def _learnt(found: Evaluation, family: Family, group: Group) -> bool:
    return all(found[task].accuracy(family.models[task]) for task in group)


def _best(found: Evaluation, family: Family, group: Group, line: Line, scales: Sequence[float]) -> float:
    return choose({scale: _normalised(found, family, group, line(scale)) for scale in scales}).lam


def _normalised(found: Evaluation, family: Family, group: Group, point: Point) -> float:
    return _against(found, found, family, group, point)


def _against(found: Evaluation, own: Evaluation, family: Family, group: Group, point: Point) -> float:
    single = {task: own[task].accuracy(family.models[task]) for task in group}
    return normalised_accuracy({task: found[task].accuracy(point) for task in group}, single)


def _recovered(average: float, base: float) -> float:
    return (average - base) / (1 - base) if base <= 1 - LEAST else float("nan")
