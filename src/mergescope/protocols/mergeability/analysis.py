"""What the cases say: correlations of every predictor, rules validated on left-out tasks and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergescope.display import as_html, as_pandas, as_pretty, as_text
from mergescope.errors import StudyError
from mergescope.protocols.mergeability.case import OUTCOMES, Case
from mergescope.protocols.mergeability.predictors import KNOWN, PREDICTORS, candidates
from mergescope.protocols.mergeability.rules import (
    Rule,
    Table,
    best_of,
    chosen_held_out,
    fitted,
    held_out,
)
from mergescope.protocols.mergeability.scores import (
    Number,
    Score,
    correlation,
    less_error,
    score,
    within_units,
)
from mergescope.protocols.mergeability.told import analysis_rows, analysis_view


@dataclass(frozen=True)
class Related:
    """How one predictor goes with one outcome, and what a rule of it alone would be worth.

    Attributes:
        predictor: its name.
        outcome: its name.
        spearman: over all cases.
        pearson: over all cases, on the predictor's scale.
        pairs: Spearman over pairs of models only, where the number of models says nothing.
        within: mean of Spearman within families and regimes, pairs only.
        left_tasks: held-out score, leaving out one task at a time.
        left_networks: the same, one network at a time; None with one network only.
    """

    predictor: str
    outcome: str
    spearman: Number
    pearson: Number
    pairs: Number
    within: Number
    left_tasks: Score
    left_networks: Score | None


@dataclass(frozen=True)
class Verdict:
    """The best rule at one level of what is known.

    Attributes:
        level: one of [`KNOWN`][mergescope.protocols.mergeability.predictors.KNOWN].
        outcome: what it tells.
        rule: of the best predictor, fitted on all cases.
        fallback: of the number of models alone.
        left_tasks: held-out score with the choice of the predictor made anew for every task left out.
        left_networks: the same, leaving out networks; None with fewer than three.
        models_on_networks: the score of the number of models alone there.
        chosen: task left out to the predictor that was chosen without it; None for the number of models alone.
        gained: control to how much smaller the mean error is than the control's, on left-out tasks.
        controls: control to its held-out score on left-out tasks.
        predicted: ``(n,)``, held-out predictions, one a case of the table.
    """

    level: str
    outcome: str
    rule: Rule
    fallback: Rule
    left_tasks: Score
    left_networks: Score | None
    models_on_networks: Score | None
    chosen: Mapping[str, str | None]
    gained: Mapping[str, Number]
    controls: Mapping[str, Score]
    predicted: np.ndarray = field(repr=False)

    @property
    def helps(self) -> bool:
        """Whether the figure tells more than the number of models does, and that than a constant, beyond chance."""
        gained = (self.gained["constant"], self.gained["models"])
        return self.rule.predictor is not None and all(number.low > 0 for number in gained)

    @property
    def beats(self) -> bool:
        """Whether it is better than every control by more than chance: the whole interval is above 0."""
        return self.rule.predictor is not None and all(number.low > 0 for number in self.gained.values())

    @property
    def best_control(self) -> str:
        """The control with the smallest error."""
        return min(self.controls, key=lambda name: self.controls[name].mae.value)


@dataclass(frozen=True)
class BaseRule:
    """The control that takes labels: the base's own normalised accuracy, which needs no merge.

    Attributes:
        rule: fitted on all cases.
        left_tasks: held-out score, leaving out one task at a time.
        left_networks: the same, one network at a time; None with fewer than three.
        gained: how much smaller the mean error is than that of the number of models alone, on left-out tasks.
    """

    rule: Rule
    left_tasks: Score
    left_networks: Score | None
    gained: Number

    @property
    def helps(self) -> bool:
        """Whether it tells more than the number of models does, beyond chance."""
        return self.gained.low > 0


@dataclass(frozen=True)
class Analysis:
    """Everything of one collection.

    Attributes:
        tables: outcome to the cases that it was judged on.
        bases: outcome to the rule of the base's own accuracy, where that is known.
        related: one a predictor and outcome.
        verdicts: one a level and outcome.
        notes: what a reader should know.
    """

    tables: Mapping[str, Table]
    bases: Mapping[str, BaseRule]
    related: tuple[Related, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    rows, _view = analysis_rows, analysis_view
    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty

    def of(self, outcome: str) -> list[Related]:
        """Predictors of one outcome, the best first.

        Args:
            outcome: its name.

        Returns:
            In the order of their error on left-out tasks.
        """
        found = [it for it in self.related if it.outcome == outcome]
        return sorted(found, key=lambda it: it.left_tasks.mae.value)

    def verdict(self, level: str, outcome: str = "average") -> Verdict:
        """The best rule of a level.

        Args:
            level: what is known.
            outcome: what is to be told.

        Returns:
            The rule with its scores.

        Raises:
            StudyError: no predictor of that level was collected.
        """
        for it in self.verdicts:
            if (it.level, it.outcome) == (level, outcome):
                return it
        raise StudyError(
            f"There is no rule of {outcome} from {level}: the cases have no such predictor. Collect them again with "
            "derivatives, or with more families."
        )


def analyse(cases: Sequence[Case], *, seed: int = 0) -> Analysis:
    """Judge every predictor.

    Args:
        cases: collected.
        seed: of the bootstraps.

    Returns:
        Correlations and rules.

    Raises:
        StudyError: there are too few cases or tasks.
    """  # noqa: DOC502 (raised by what this calls)
    tables: dict[str, Table] = {}
    related: list[Related] = []
    verdicts: list[Verdict] = []
    for outcome in OUTCOMES:
        try:
            table = Table.of(cases, outcome)
        except StudyError:
            if outcome == "average":
                raise
            continue
        tables[outcome] = table
        related += _related(table, outcome, seed)
        for level, of in KNOWN.items():
            names = [name for name in candidates(level) if name in table.names]
            if any(PREDICTORS[name].level == of[-1] for name in names):
                it = _verdict(table, level, outcome, names, seed)
                verdicts += [it] if it.left_tasks.cases else []
    bases = {outcome: _base(table, seed) for outcome, table in tables.items() if "base" in table.names}
    return Analysis(tables, bases, tuple(related), tuple(verdicts), tuple(_notes(cases, tables, verdicts)))


def _related(table: Table, outcome: str, seed: int) -> list[Related]:
    pairs = np.array([len(case.models) == 2 for case in table.cases])
    by_task = held_out(table, table.names)
    networks = len(table.left_out("network")) > 1
    by_network = held_out(table, table.names, "network") if networks else None
    found = []
    for place, name in enumerate(table.names):
        x = table.x[:, place]
        found.append(Related(
            name, outcome, correlation(x, table.y, table.units, seed=seed),
            correlation(x, table.y, table.units, ranks=False, seed=seed),
            correlation(x[pairs], table.y[pairs], table.units[pairs], seed=seed),
            within_units(x[pairs], table.y[pairs], table.units[pairs], seed),
            score(table, by_task[:, place], seed=seed),
            None if by_network is None else score(table, by_network[:, place], seed=seed),
        ))  # fmt: skip
    return found


def _verdict(table: Table, level: str, outcome: str, known: Sequence[str], seed: int) -> Verdict:
    names = [None, *known]  # nothing but the number of models is the simplest
    predicted, chosen = chosen_held_out(table, names)
    against = {"constant": held_out(table, [None], sized=False), "models": held_out(table, [None])}
    against |= {"base": held_out(table, ["base"])} if "base" in table.names else {}
    # With two networks, one is left to choose and to fit by: that is no test of a choice among networks.
    networks = len(table.left_out("network")) > 2
    other = chosen_held_out(table, names, "network")[0] if networks else None
    plain = held_out(table, [None], "network")[:, 0] if networks else None
    return Verdict(
        level, outcome, fitted(table, best_of(table, names)), fitted(table, None), score(table, predicted, seed=seed),
        None if other is None else score(table, other, seed=seed),
        None if plain is None else score(table, plain, seed=seed), chosen,
        {name: less_error(table, predicted, control[:, 0], seed=seed) for name, control in against.items()},
        {name: score(table, control[:, 0], seed=seed) for name, control in against.items()}, predicted,
    )  # fmt: skip


def _base(table: Table, seed: int) -> BaseRule:
    by_task = held_out(table, [None, "base"])
    networks = len(table.left_out("network")) > 2
    other = held_out(table, ["base"], "network")[:, 0] if networks else None
    return BaseRule(
        fitted(table, "base"), score(table, by_task[:, 1], seed=seed),
        None if other is None else score(table, other, seed=seed),
        less_error(table, by_task[:, 1], by_task[:, 0], seed=seed),
    )  # fmt: skip


def _notes(cases: Sequence[Case], tables: Mapping[str, Table], verdicts: Sequence[Verdict]) -> list[str]:
    linear = sum(case.linearized for case in cases)
    left = len(cases) - linear - len(tables["average"].cases)
    notes = []
    if linear:
        notes.append(
            f"{linear} cases are of linearised networks, where gaps are zero by construction: they take no part in "
            "rules"
        )
    if left:
        notes.append(f"{left} cases lack a predictor that most have, and take no part in rules")
    if not verdicts:
        notes.append(
            "there are too few tasks to choose a figure without one of them and judge it by that: no rules; give more "
            "families, regimes or tasks"
        )
    if len(tables["average"].left_out("network")) < 3:
        notes.append("there are fewer than three networks: nothing is known of others")
    return notes
