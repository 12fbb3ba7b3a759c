"""CTL and Eq. 1 to 3 of a family: is each layer's feature of a merged model the mix of features (CTL 4.1 to 4.3)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import nn

from mergescope.display import NONE, Cell, Table, View, as_html, as_pandas, as_pretty, figure
from mergescope.errors import MergescopeError, did_you_mean
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place, require_executor
from mergescope.protocols.linearity import (
    Linearity,
    LinearityTest,
    addition,
    averaging,
    ctl,
    linearity,
    negation,
    repeated_samples,
)
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import kept_in
from mergescope.readings import EDGES, Histogram, InnerProducts
from mergescope.tracing import Trace, trace
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource

KINDS = {
    "ctl": "CTL, pairs",
    "eq1": "Eq. 1, averages",
    "eq2": "Eq. 2, addition",
    "eq3": "Eq. 3, negation",
}
"""Tests, and what they are of."""


@dataclass(frozen=True)
class EquationSettings:
    """What is tested, and how.

    Attributes:
        kinds: of [`KINDS`][].
        alphas: interpolation weights of CTL.
        lam: coefficient of Eq. 2 and 3; CTL uses 0.4.
        size: models of an average (Eq. 1): all subsets of so many; None for all models at once.
        layers: as for [`trace`][mergescope.trace].
        features: what counts as a sample's feature.
        linearized: as for [`Settings`][mergescope.protocols.measure.Settings].
        executor: of the passes.
        device: of the streamed executor.
        seed: of intervals.
        progress: show bars on a terminal.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    alphas: tuple[float, ...] = (0.5,)
    lam: float = 0.4
    size: int | None = None
    layers: str | Sequence[str] = "blocks"
    features: str = "auto"
    linearized: bool | None = None
    executor: str = "auto"
    device: str = "cpu"
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Planned:
    """One test, before it is measured.

    Attributes:
        kind: of [`KINDS`][].
        name: of the models.
        data: names of the data it is measured on.
        test: points and coefficients.
    """

    kind: str
    name: str
    data: tuple[str, ...]
    test: LinearityTest


@dataclass(frozen=True)
class Tested:
    """One test, measured.

    Attributes:
        kind: of [`KINDS`][].
        name: of the models.
        data: names of the data it was measured on.
        found: every layer.
    """

    kind: str
    name: str
    data: tuple[str, ...]
    found: Linearity

    @property
    def parameter(self) -> float:
        """Alpha or lambda; NaN for Eq. 1."""
        said = self.found.test.parameter
        return float("nan") if said is None else said

    def rows(self) -> list[dict[str, Any]]:
        """The measures as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {"kind": self.kind, "points": self.name, "data": " ∪ ".join(self.data)}
        return [{**row, **common} for row in self.found.rows()]

    def distributions(self) -> list[dict[str, Any]]:
        """How coef and cos are distributed over samples, as lines of a table (CTL Figs 3, 6).

        Returns:
            One line a bin that is not empty: which test, layer and measure; ``low``, ``high`` and ``count``
            ([`Histogram`][mergescope.readings.Histogram]).
        """
        common = {"kind": self.kind, "points": self.name, "parameter": self.parameter}
        return [
            {
                **common,
                "layer": entry.layer,
                "trivial": entry.trivial,
                "measure": measure,
                "low": low,
                "high": high,
                "count": count,
            }
            for entry in self.found.layers
            for measure in EDGES
            for low, high, count in Histogram.of(measure, entry.values[measure]).filled()
        ]


@dataclass(frozen=True)
class Equations:
    """The result of [`check_equations`][]; prints as a table.

    Attributes:
        tests: every test.
        passes: data name to its pass.
        linearized: whether that is of the linearised network.
        notes: what the user should know.
    """

    tests: tuple[Tested, ...]
    passes: Mapping[str, Trace]
    linearized: bool
    notes: tuple[str, ...] = ()

    def of(self, kind: str) -> list[Tested]:
        """The tests of a kind.

        Args:
            kind: of [`KINDS`][].

        Returns:
            The tests, in order.
        """
        return [test for test in self.tests if test.kind == kind]

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        found = []
        for test in self.tests:
            passes = [self.passes[name] for name in test.data]
            cost = {
                "seconds": round(sum(part.seconds for part in passes), 3),
                "forward_passes": sum(part.forward_passes for part in passes),
                "peak_bytes": max(part.peak_bytes for part in passes),
            }
            found += [{**row, **cost} for row in test.rows()]
        return found

    def distributions(self) -> list[dict[str, Any]]:
        """How coef and cos of every test are distributed over samples.

        Returns:
            As of [`Tested`][].
        """
        return [line for test in self.tests for line in test.distributions()]

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        lines = []
        for test in self.tests:
            evidence = test.found.evidence
            if not evidence:
                lines.append((
                    f"{KINDS[test.kind]}: {self._named(test)}",
                    "no layer is evidence",
                    *[Cell(NONE)] * 4,
                    "–",
                ))
                continue
            cos = min(evidence, key=lambda entry: entry.measures["cos"].mean)
            coef = max(evidence, key=lambda entry: abs(entry.measures["coef"].mean - 1))
            low, off = cos.measures["cos"], coef.measures["coef"]
            lines.append((
                f"{KINDS[test.kind]}: {self._named(test)}", "holds" if test.found.verdict.ctl else "no",
                figure(low.mean, low.low, low.high), figure(cos.measures["baseline"].mean),
                figure(off.mean, off.low, off.high), Cell(cos.layer), coef.layer,
            ))  # fmt: skip
        holding = sum(test.found.verdict.ctl for test in self.tests)
        heads = ("test", "CTL", "lowest cos", "baseline", "coef off most", "cos at", "coef at")
        said = f"CTL holds in {holding} of {len(self.tests)} tests"
        return View(said, (Table("The layers that decide", heads, tuple(lines)),), self.notes)

    def _named(self, test: Tested) -> str:
        several = len({other.parameter for other in self.tests if other.kind == test.kind}) > 1
        return f"{test.name} at {test.parameter:g}" if several and test.kind != "eq1" else test.name

    def __str__(self) -> str:
        width = min(max(6, *(len(self._named(test)) for test in self.tests)), 48)
        lines = [
            f"{'test':<17}{'models':<{width}}  {'lowest cos at':<24}{'cos':>8}{'baseline':>10}  "
            f"{'coef off most at':<24}{'coef':>8}  CTL"
        ]
        for test in self.tests:
            name = self._named(test)
            name = name if len(name) <= width else f"{name[: width - 3]}..."
            head, evidence = f"{KINDS[test.kind]:<17}{name:<{width}}", test.found.evidence
            if not evidence:
                lines.append(f"{head}  no layer with live, non-trivial features")
                continue
            cos = min(evidence, key=lambda entry: entry.measures["cos"].mean)
            coef = max(evidence, key=lambda entry: abs(entry.measures["coef"].mean - 1))
            lines.append(
                f"{head}  {cos.layer:<24}{cos.measures['cos'].mean:>8.4f}{cos.measures['baseline'].mean:>10.4f}  "
                f"{coef.layer:<24}{coef.measures['coef'].mean:>8.4f}  "
                f"{'holds' if test.found.verdict.ctl else 'no'}"
            )
        return "\n".join(lines)


def check_equations(
    base: Model | None,
    models: Mapping[str, Model],
    data: Mapping[str, HeldOut],
    settings: EquationSettings | None = None,
) -> Equations:
    """Measure CTL of all pairs, Eq. 1 of averages, Eq. 2 of all pairs, Eq. 3 of every model (CTL 4.1 to 4.3).

    ``f(left) ~ sum_k a_k f(p_k)`` at every layer (CTL, Eq. 1 to 3): cos, coef and gap, with the baseline that the
    right-hand models give by themselves. Each data set is passed once through all points. What concerns one model or
    pair is measured on the data of their own tasks, where data have owners.

    Args:
        base: the pretrained model; Eq. 2 and 3 need it.
        models: name to fine-tuned model.
        data: name to held-out data.
        settings: what to test.

    Returns:
        Every test.

    Raises:
        MergescopeError: there is no such test, nothing to test, no data for it, or no base.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> found = check_equations(base, models, {"noise": HeldOut("noise", [torch.randn(5, 4)], net)})
        >>> [(test.kind, test.name) for test in found.tests]
        [('ctl', 'a + b'), ('eq1', 'a + b'), ('eq2', 'a + b'), ('eq3', '− a'), ('eq3', '− b')]
    """  # noqa: DOC502 (raised by what this calls)
    s = settings or EquationSettings()
    start, planned, linear, notes = _planned(base, models, data, s)
    passes = {}
    for name, held in data.items():
        tests = [it.test for it in planned if name in it.data]
        if not tests:
            continue
        network: AbstractContextManager[nn.Module] = nullcontext(held.model)
        if linear and start is not None:
            network = linearized_in_place(held.model, start, held.fixed)
        points = list(dict.fromkeys(point for test in tests for point in test.points))
        groups = [[points.index(point) for point in test.points] for test in tests]
        how = [s.layers, s.features, s.executor, groups]
        with network as model:
            passes[name] = trace(
                points, held.batches, model, layers=s.layers,
                readings=[InnerProducts([test.points for test in tests])], features=s.features, executor=s.executor,
                device=s.device, fixed=held.fixed, progress=s.progress,
                keep=kept_in("equations", held, points, start if linear else None, how),
            )  # fmt: skip
    tested = []
    for it in planned:
        traces = [passes[name] for name in it.data]
        units = repeated_samples([data[name].batches for name in it.data], traces)
        tested.append(Tested(it.kind, it.name, it.data, linearity(traces, it.test, units=units, seed=s.seed)))
    return Equations(tuple(tested), passes, linear, notes)


def points_of(
    base: Model | None,
    models: Mapping[str, Model],
    data: Mapping[str, HeldOut],
    settings: EquationSettings | None = None,
) -> dict[str, int]:
    """How many points each data set is passed through, for plans.

    Args:
        base: as for [`check_equations`][].
        models: as for [`check_equations`][].
        data: as for [`check_equations`][].
        settings: as for [`check_equations`][].

    Returns:
        Data name to the number of distinct points.

    Raises:
        MergescopeError: as for [`check_equations`][].
    """  # noqa: DOC502 (raised by what this calls)
    _, planned, _, _ = _planned(base, models, data, settings or EquationSettings())
    return {
        name: len({point for it in planned if name in it.data for point in it.test.points}) for name in data
    }


def _planned(
    base: Model | None, models: Mapping[str, Model], data: Mapping[str, HeldOut], s: EquationSettings
) -> tuple[Point | None, list[Planned], bool, tuple[str, ...]]:
    points = {name: Point.of(model) for name, model in models.items()}
    start = None if base is None else Point.of(base)
    _require(s, start, points, data)
    linear, notes = in_linear_model(start, points, s.linearized)
    if linear:
        require_executor(s.executor)
    pairs, found = list(combinations(points, 2)), []
    for kind in dict.fromkeys(s.kinds):
        if kind == "ctl":
            found += [
                Planned(kind, f"{a} + {b}", data_of(data, a, b), ctl(points[a], points[b], alpha, start))
                for a, b in pairs
                for alpha in s.alphas
            ]
        elif kind == "eq1":
            subsets = [tuple(points)] if s.size is None else list(combinations(points, s.size))
            found += [
                Planned(kind, " + ".join(names), data_of(data, *names), averaging([points[n] for n in names], start))
                for names in subsets
            ]  # fmt: skip
        elif start is not None and kind == "eq2":
            found += [
                Planned(kind, f"{a} + {b}", data_of(data, a, b), addition(start, points[a], points[b], s.lam))
                for a, b in pairs
            ]
        elif start is not None:
            found += [
                Planned(kind, f"− {name}", data_of(data, name), negation(start, point, s.lam))
                for name, point in points.items()
            ]
    return start, found, linear, tuple(notes)


def data_of(data: Mapping[str, HeldOut], *models: str) -> tuple[str, ...]:
    """The data that some models are judged on: those of their tasks, and those that belong to nobody.

    Args:
        data: name to data.
        *models: names.

    Returns:
        Names of data.

    Raises:
        MergescopeError: there are none.
    """
    found = tuple(name for name, held in data.items() if held.owner is None or held.owner in models)
    if not found:
        raise MergescopeError(
            f"There are no data to judge {' + '.join(models)} on: give one of them data of its task, or data that "
            "belong to nobody."
        )
    return found


def _require(
    s: EquationSettings, base: Point | None, models: Mapping[str, Point], data: Mapping[str, HeldOut]
) -> None:
    unknown = [kind for kind in s.kinds if kind not in KINDS]
    if unknown or not s.kinds:
        hint = did_you_mean(unknown[0], KINDS) if unknown else ""
        raise MergescopeError(
            f"There is no test {', '.join(unknown) or 'chosen'}.{hint} Tests: {', '.join(KINDS)}."
        )
    need = [kind for kind in s.kinds if kind in ("eq2", "eq3")]
    if base is None and need:
        raise MergescopeError(
            f"{', '.join(need)} are about task vectors, which need a base. Give one: --base."
        )
    if len(models) < 2 and set(s.kinds) - {"eq3"}:
        raise MergescopeError(
            f"CTL and Eq. 1 and 2 take two models or more, got {', '.join(models) or 'none'}. Give more, or choose eq3."
        )
    if s.size is not None and not 2 <= s.size <= len(models):
        raise MergescopeError(
            f"{len(models)} models have no averages of {s.size}. Choose a size from 2 to {len(models)}."
        )
    if not s.lam and need:
        raise MergescopeError("A scaling coefficient of 0 is the base itself. Choose another.")
    outside = [alpha for alpha in s.alphas if not 0 < alpha < 1]
    if "ctl" in s.kinds and (outside or not s.alphas):
        said = ", ".join(f"{alpha:g}" for alpha in outside) or "none"
        raise MergescopeError(f"An interpolation weight is strictly between 0 and 1, got {said}.")
    if not data:
        raise MergescopeError("There are no data to measure on. Give held-out data.")
