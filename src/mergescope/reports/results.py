"""Questions that figures, tables and sentences ask of a run's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mergescope.errors import StudyError
from mergescope.studies.rundir import Row

ALL_TASKS = "all tasks"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Spread:
    """A measure at one layer over several rows (pairs of models, or tasks).

    Attributes:
        mean: mean of the rows' means; NaN if there is none.
        low: smallest of them.
        high: largest of them.
        n: how many rows have a value.
    """

    mean: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Mean and range of the values that are numbers.

    Args:
        values: NaN and infinite ones are left out.

    Returns:
        The spread.

    Example:
        >>> spread([1.0, float("nan"), 3.0])
        Spread(mean=2.0, low=1.0, high=3.0, n=2)
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Spread(math.nan, math.nan, math.nan, 0)
    return Spread(math.fsum(finite) / len(finite), min(finite), max(finite), len(finite))


class Results:
    """The rows of ``results.parquet``, indexed.

    Args:
        rows: the results of a run.

    Attributes:
        rows: the same.
        families: ``(network, regime)``, in the rows' order.
        networks: in the rows' order.
        regimes: of all networks.
        tasks: fine-tuning tasks.
        pairs: labels of the pairs of tasks that CTL was measured on.
        alphas: interpolation weights of CTL.
        alpha: the one nearest to 0.5, where the verdict is read off.

    Raises:
        StudyError: there are no CTL rows.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self._index: dict[tuple[str, str, str, str], list[Row]] = {}
        for row in self.rows:
            self._index.setdefault((row.network, row.regime, row.kind, row.measure), []).append(row)
        tests = [row for row in self.rows if row.kind == "ctl" and row.measure == "cos"]
        if not tests:
            raise StudyError(
                "The results have no Cross-Task Linearity rows (kind 'ctl', measure 'cos'): nothing to show."
            )
        self.families = list(dict.fromkeys((row.network, row.regime) for row in self.rows))
        self.networks = list(dict.fromkeys(network for network, _ in self.families))
        self.regimes = list(dict.fromkeys(regime for _, regime in self.families))
        self.pairs = list(dict.fromkeys(row.points for row in tests))
        self.alphas = sorted({row.parameter for row in tests})
        self.alpha = min(self.alphas, key=lambda alpha: abs(alpha - 0.5))
        evaluated = [row.data for row in self.rows if row.kind == "accuracy" and row.data != ALL_TASKS]
        halves = [half for row in tests for half in row.data.split(" ∪ ")]
        self.tasks = list(dict.fromkeys(evaluated or halves))
        self._ends = {f"{a} + {b}": (a, b) for a, b in combinations(self.tasks, 2)}

    def layers(self, network: str) -> list[str]:
        """Layers of a network, in its order.

        Args:
            network: its name.

        Returns:
            Names.
        """
        return list(
            dict.fromkeys(
                row.layer
                for row in self.rows
                if row.network == network and row.kind == "ctl" and row.measure == "cos"
            )
        )

    def trivial(self, network: str) -> set[str]:
        """Layers that are linear in the weights by construction, so no evidence.

        Args:
            network: its name.

        Returns:
            Names.
        """
        return {row.layer for row in self.rows if row.network == network and row.trivial}

    def evidence(self, network: str) -> list[str]:
        """Layers that are not trivial.

        Args:
            network: its name.

        Returns:
            Names.
        """
        trivial = self.trivial(network)
        return [layer for layer in self.layers(network) if layer not in trivial]

    def ends(self, pair: str) -> tuple[str, str]:
        """The two tasks of a pair.

        Args:
            pair: its label.

        Returns:
            First and second task; the whole label and nothing if it is no known pair.
        """
        return self._ends.get(pair, (pair, ""))

    def select(
        self, family: tuple[str, str], kind: str, measure: str, *, at: float | None = None, **fields: str
    ) -> list[Row]:
        """Rows of one kind and measure.

        Args:
            family: network and regime.
            kind: for example ``"ctl"``.
            measure: for example ``"cos"``.
            at: only rows with this alpha or lambda.
            **fields: only rows with these values, for example ``layer="output"``.

        Returns:
            The rows, in order.
        """
        found = self._index.get((*family, kind, measure), [])
        return [
            row
            for row in found
            if (at is None or row.parameter == at)
            and all(getattr(row, name) == value for name, value in fields.items())
        ]

    def spread(
        self, family: tuple[str, str], kind: str, measure: str, *, at: float | None = None, **fields: str
    ) -> Spread:
        """Mean and range over the rows that [`Results.select`][] finds.

        Args:
            family: network and regime.
            kind: for example ``"ctl"``.
            measure: for example ``"cos"``.
            at: only rows with this alpha or lambda.
            **fields: only rows with these values.

        Returns:
            The spread.
        """
        return spread(row.mean for row in self.select(family, kind, measure, at=at, **fields))

    def value(self, family: tuple[str, str], kind: str, measure: str, **fields: str) -> float:
        """One number.

        Args:
            family: network and regime.
            kind: for example ``"accuracy"``.
            measure: for example ``"normalised accuracy"``.
            **fields: only rows with these values.

        Returns:
            The first row's mean; NaN if there is none.
        """
        return next((row.mean for row in self.select(family, kind, measure, at=None, **fields)), math.nan)

    def at(self, kind: str) -> float | None:
        """The alpha at which a kind of test is compared.

        Args:
            kind: for example ``"ctl"``.

        Returns:
            The run's alpha for CTL, None (any) for the others, which have one parameter only.
        """
        return self.alpha if kind == "ctl" else None

    def models(self, family: tuple[str, str]) -> list[str]:
        """Labels of the evaluated models: single ones first, then merged ones, ensembles last.

        Args:
            family: network and regime.

        Returns:
            Labels.
        """
        labels = dict.fromkeys(row.points for row in self.select(family, "accuracy", "accuracy"))
        return sorted(labels, key=model_rank)

    def model(self, family: tuple[str, str], start: str) -> str | None:
        """The evaluated model whose label begins in some way.

        Args:
            family: network and regime.
            start: for example ``"task arithmetic"``, whose label goes on with its coefficient.

        Returns:
            The label, or None.
        """
        return next((label for label in self.models(family) if label.startswith(start)), None)


def model_rank(label: str) -> int:
    """Where a model stands in an accuracy table.

    Args:
        label: as in the results.

    Returns:
        0 pretrained, 1 fine-tuned, 2 merged in weight space, 3 ensemble.

    Example:
        >>> [model_rank(label) for label in ("pretrained", "fine-tuned on 45°", "average", "ensemble of logits")]
        [0, 1, 2, 3]
    """
    if label == "pretrained":
        return 0
    if label.startswith("fine-tuned on "):
        return 1
    return 3 if label.startswith(ENSEMBLE) else 2
