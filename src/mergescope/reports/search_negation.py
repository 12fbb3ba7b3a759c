"""The page of task negation: each task forgotten, the others kept up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergescope.protocols.search import ConstrainedChoice, choose_negation
from mergescope.reports.panels import legend, mark
from mergescope.reports.protocol_figures import REFERENCE, Line, ranking, task_panels
from mergescope.reports.protocol_view import Drawing, Shown, Stored
from mergescope.reports.protocol_words import cell, listed, told
from mergescope.reports.style import STRONG, look, settle, shorten, styled
from mergescope.reports.tables import Cell, Grid, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mergescope.studies.rundir import Row

KIND = "negation-search"

BINDS = {
    "control rule": "control rule binds",
    "grid's end": "grid’s end binds",
    "grid's end and control rule": "end and rule bind",
    "no feasible coefficient": "none feasible",
    "no gain": "no gain",
    "neither": "nothing binds",
}
"""What keeps a choice from forgetting more, for titles."""


@dataclass(frozen=True)
class Forgetting:
    """The search for one task's coefficient.

    Attributes:
        targets: coefficient to validation accuracy on the task.
        controls: coefficient to validation accuracy on control data.
        choice: what follows by the control rule.
    """

    targets: Mapping[float, float]
    controls: Mapping[float, float]
    choice: ConstrainedChoice


def negation_page(stored: Stored) -> Shown:
    """What the page of negation shows.

    Args:
        stored: the run.

    Returns:
        Words, figures and tables.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    share = float(stored.setting("control_share"))
    found = searched(stored, share)
    drawings = {
        "lambda": Drawing(
            forgetting_curves(found),
            "target and control accuracy against the coefficient, a panel a task",
            f"On validation data. A coefficient is allowed while control accuracy stays above the dotted line, "
            f"{100 * share:g} % of the base’s; chosen is the allowed one with the lowest target accuracy. λ = 0 is the "
            "base. Beside the task’s name: the choice, and what keeps it from forgetting more.",
        )
    }
    grids, points = [_search_grid(found)], ["base", "lambda = 1", "tuned"]
    if stored.tested:
        test = {
            (measure, name, task): stored.one(
                kind="negation", points=name, data=task, measure=f"{measure} accuracy"
            )
            for measure in ("target", "control")
            for name in points
            for task in found
        }
        for measure in ("target", "control"):
            for name in points:
                row = stored.one(kind="negation", points=name, measure=f"mean {measure} accuracy")
                test[measure, name, ""] = row
            drawings[measure] = Drawing(
                ranking(
                    [
                        Line(task or "mean over tasks", [test[measure, name, task] for name in points])
                        for task in (*found, "")
                    ],
                    ["base", "λ = 1", "chosen λ"],
                    f"{measure} accuracy, test",
                ),
                f"{measure} accuracy on test data of base, coefficient 1 and the choice",
                "On test data: the task itself, left is better."
                if measure == "target"
                else "On test data: what should stay where the base is. λ = 1 obeys no control rule.",
            )
        grids.insert(0, _test_grid(found, test, points))
        headline, sentences = _headline(test), _kept(found, test, share)
    else:
        headline, sentences = _chosen(found), ["There are no test figures."]
    return Shown(
        "Can each task be forgotten?",
        "Each task’s vector is subtracted from the base, as far as accuracy on control data allows.",
        headline,
        [*sentences, *_binding(found)],
        drawings,
        grids,
        ["task vector", "target, control", "control rule", "the grid’s end", "validation, test"],
        caveat=any(each.choice.at_end or not each.choice.feasible for each in found.values()),
    )


def searched(stored: Stored, share: float) -> dict[str, Forgetting]:
    """The searches by validation rows.

    Args:
        stored: the run.
        share: of the base's control accuracy that must be kept.

    Returns:
        Task to search.

    Raises:
        StudyError: something is missing.
    """  # noqa: DOC502 (raised by what this calls)
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for row in stored.of(kind=KIND):
        if row.measure.startswith("validation "):
            curves.setdefault(row.data, {}).setdefault(row.measure.split()[1], {})[row.parameter] = row.mean
    found = {}
    for task, both in curves.items():
        target, control = both.get("target", {}), both.get("control", {})
        for name, values, other in (("target", target, control), ("control", control, target)):
            lacking = [lam for lam in (0.0, *other) if lam not in values]
            if lacking:
                raise stored.lacks(f"validation {name} accuracy of {task!r} at lambda {lacking[0]:g}")
        found[task] = Forgetting(target, control, choose_negation(target, control, share * control[0.0]))
    if not found:
        raise stored.lacks(f"kind {KIND!r}, measure 'validation target accuracy'")
    return found


def forgetting_curves(found: Mapping[str, Forgetting]) -> Figure:
    """Draw target and control accuracy against the coefficient.

    Args:
        found: task to its search.

    Returns:
        A panel a task, with what control accuracy must reach, and the choice.
    """
    with styled():
        figure, panels = task_panels(len(found))
        target, control = look(0), look(1)
        for axes, (task, each) in zip(panels, found.items(), strict=True):
            lams = sorted(each.targets)
            axes.plot(lams, [each.targets[lam] for lam in lams], color=target.colour, lw=2)
            axes.plot(
                lams, [each.controls[lam] for lam in lams], color=control.colour, ls=control.line, lw=1.6
            )
            axes.axhline(each.choice.floor, zorder=1, **REFERENCE)
            axes.axvline(each.choice.lam, color=STRONG, lw=1.2, zorder=1)
            axes.plot([each.choice.lam], [each.choice.target], zorder=5, ls="none",
                      **mark(look(0)) | {"color": STRONG, "marker": "D"})  # fmt: skip
            axes.set_title(
                f"{shorten(task, 24)}\nλ = {each.choice.lam:g}, {BINDS[each.choice.binds]}",
                fontweight="normal",
            )
            axes.margins(x=0.04)
        for axes in panels[-4:]:
            axes.set_xlabel("λ")
        top = max(
            value
            for each in found.values()
            for values in (each.targets, each.controls)
            for value in values.values()
        )
        panels[0].set_ylim(-0.03 * top, 1.05 * top)  # all panels share it
        panels[0].set_ylabel("accuracy, validation")
        legend(
            figure,
            [
                ("target: the task itself", {"color": target.colour, "ls": "-", "lw": 2}),
                ("control", {"color": control.colour, "ls": control.line, "lw": 1.6}),
                ("least control accuracy", REFERENCE),
                ("chosen", {"color": STRONG, "marker": "D", "ls": "-", "lw": 1.2}),
            ],
        )
        return settle(figure)


def _headline(test: Mapping[tuple[str, str, str], Row]) -> str:
    target, control = ((test[name, "base", ""], test[name, "tuned", ""]) for name in ("target", "control"))
    return (
        f"On test data, accuracy on the task to forget goes from {number(target[0].mean)} to {told(target[1])}, "
        f"control accuracy from {number(control[0].mean)} to {told(control[1])}."
    )


def _chosen(found: Mapping[str, Forgetting]) -> str:
    lams = "; ".join(f"{task}: λ = {each.choice.lam:g}" for task, each in found.items())
    return f"Chosen on validation data: {lams}."


def _kept(
    found: Mapping[str, Forgetting], test: Mapping[tuple[str, str, str], Row], share: float
) -> list[str]:
    one = test["target", "lambda = 1", ""], test["control", "lambda = 1", ""]
    said = [f"Without a control rule, λ = 1: target {told(one[0])}, control {told(one[1])}."]
    lost = [
        task
        for task in found
        if test["control", "tuned", task].mean < share * test["control", "base", task].mean - 1e-9
    ]
    if lost:
        said.append(
            f"The control rule was obeyed on validation data, but on test data {listed(lost)} "
            f"{'falls' if len(lost) == 1 else 'fall'} below {100 * share:g} % of the base’s control accuracy."
        )
    return said


def _binding(found: Mapping[str, Forgetting]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for task, each in found.items():
        groups.setdefault(each.choice.binds, []).append(task)
    words = {
        "control rule": "The control rule binds for {}: more could be forgotten at its cost.",
        "grid's end": "The grid’s end binds for {}: larger coefficients may forget more (--up-to).",
        "grid's end and control rule": "The grid’s end and the control rule bind for {}.",
        "no feasible coefficient": "For {}, every coefficient above 0 costs too much control accuracy: the base is "
        "kept. Try a finer grid near 0 (--grid).",
        "no gain": "For {}, no allowed coefficient lowers the target accuracy: the base is kept.",
        "neither": "Neither the grid’s end nor the control rule binds for {}.",
    }
    return [words[name].format(listed(tasks)) for name, tasks in groups.items()]


def _search_grid(found: Mapping[str, Forgetting]) -> Grid:
    body = tuple(
        (
            task,
            (
                Cell(f"{each.choice.lam:g}"),
                Cell(number(each.choice.target)),
                Cell(number(each.choice.control)),
                Cell(number(each.choice.floor)),
                Cell(f"{len(each.targets)}, up to {max(each.targets):g}"),
                Cell(each.choice.binds),
            ),
        )
        for task, each in found.items()
    )
    columns = ("task", "λ", "target", "control", "least control", "coefficients tried", "binds")
    return Grid("Choices on validation data", columns, body)


def _test_grid(
    found: Mapping[str, Forgetting], test: Mapping[tuple[str, str, str], Row], points: list[str]
) -> Grid:
    names = {"base": "base", "lambda = 1": "λ = 1", "tuned": "chosen λ"}
    columns = [(measure, name) for measure in ("target", "control") for name in points]
    body = tuple(
        (task or "mean over tasks", tuple(cell(test[measure, name, task]) for measure, name in columns))
        for task in (*found, "")
    )
    heads = [f"{measure}: {names[name]}" for measure, name in columns]
    return Grid("Accuracy on test data", ("task", *heads), body)
