"""predict(): what merges would do, from the base and the task vectors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from mergescope.errors import MergescopeError, did_you_mean
from mergescope.protocols.disentanglement import task_pairs
from mergescope.protocols.equations import data_of
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.linearity import LinearityTest, addition, averaging, ctl, negation
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.prediction.agreement import agreement
from mergescope.protocols.prediction.expansion import Expansion, expand
from mergescope.protocols.prediction.gaps import (
    along,
    gap_errors,
    measured_linearity,
    predicted_linearity,
    remainders,
)
from mergescope.protocols.prediction.interactions import Interaction, interaction
from mergescope.protocols.prediction.result import PredictedTest, Prediction
from mergescope.protocols.prediction.surface import Outcome, outcomes
from mergescope.protocols.prediction.surfaces import BOX, SQUARE, Surface, pair_surface
from mergescope.protocols.search import GRID, addition_line
from mergescope.protocols.subset import subset
from mergescope.protocols.which_data import own_data
from mergescope.readings import Outputs
from mergescope.tracing.derivatives import METHODS
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class PredictionSettings:
    """What to predict.

    Attributes:
        alphas: interpolation weights of CTL, between 0 and 1.
        lams: scaling coefficients of Eq. 2 and Eq. 3.
        pairs: of fine-tunes; None for all.
        grid: coefficients of task addition at which accuracy is predicted.
        square: coefficients of either of two tasks, over which each pair's accuracy is predicted; none if empty.
        layers: as for [`trace`][mergescope.trace]; the output is added.
        features: what counts as a sample's feature.
        samples: of each data set. Means of gaps need few.
        measured: run the merged models too, and tell predicted against measured.
        checked: coefficients of the grid at which accuracy is measured then.
        probes: coefficients of single task vectors at which the remainder is measured then.
        method: ``jvp``, exact, or ``differences``, two to three times as fast
            (see [`Derivatives`][mergescope.tracing.derivatives.Derivatives]).
        linearized: False predicts models that were trained in the linearised regime as if they were ordinary ones;
            None refuses them: there is nothing to predict.
        seed: of the choice of samples and of intervals.
        progress: show bars on a terminal.
    """

    alphas: tuple[float, ...] = (0.5,)
    lams: tuple[float, ...] = (0.4,)
    pairs: tuple[tuple[str, str], ...] | None = None
    grid: tuple[float, ...] = GRID
    square: tuple[float, ...] = SQUARE
    layers: str | Sequence[str] = "blocks"
    features: str = "auto"
    samples: int = 256
    measured: bool = False
    checked: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    probes: tuple[float, ...] = (0.1, 0.2, 0.4)
    method: str = "jvp"
    linearized: bool | None = None
    seed: int = 0
    progress: bool = True


def predict(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: PredictionSettings | None = None,
) -> Prediction:
    """Predict how linear merges would be, how task vectors interact, and what merged models would score.

    Features and outputs are expanded to second order around the base (CTL, Theorem 5.1), by one pass of each data set.
    No merged model is run, unless it is to be compared. Pairs are judged on the data of both tasks (CTL 4.1), where
    data have owners.

    Args:
        base: the pretrained model.
        models: name to fine-tuned model; at least one.
        held: data name to data; those with an owner are its task's.
        settings: what to predict.

    Returns:
        Predicted linearity of all pairs (CTL, Eq. 2), of single models (Eq. 3) and of the average of all (Eq. 1),
        interactions, and accuracy over the grid.

    Raises:
        MergescopeError: there are no data for a pair, a setting makes no sense, the models were trained in the
            linearised regime, or the network can't be differentiated twice.
        PointError: a model is a combination.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> found = predict(base, models, {"noise": HeldOut("noise", [torch.randn(6, 4)], net)})
        >>> [(test.kind, test.name) for test in found.tests]
        [('ctl', 'a + b'), ('eq2', 'a + b'), ('eq3', 'a'), ('eq3', 'b')]
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, held, settings or PredictionSettings())
    return work.run()


def plan(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: PredictionSettings | None = None,
) -> dict[str, Any]:
    """What [`predict`][] will do.

    Args:
        base: as for [`predict`][].
        models: as for [`predict`][].
        held: as for [`predict`][].
        settings: as for [`predict`][].

    Returns:
        Pairs, second derivatives of a batch, and of each data set the models that are run.

    Raises:
        MergescopeError: as for [`predict`][].
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, held, settings or PredictionSettings())
    count = len(work.models)
    second = work.settings.method == "jvp"
    return {
        "pairs": [":".join(pair) for pair in work.pairs],
        "derivatives_a_batch": count * (count + 1) // 2 if second else 0,
        "points": {name: len(work.points(name)) for name in held},
        "passes_a_batch": {
            name: len(work.points(name)) + (1 if second else 1 + count + count**2) for name in held
        },
    }


@dataclass(frozen=True)
class _Test:
    kind: str
    name: str
    test: LinearityTest
    data: tuple[str, ...]


@dataclass(frozen=True)
class _Work:
    base: Point
    models: Mapping[str, Point]
    held: Mapping[str, HeldOut]
    settings: PredictionSettings
    pairs: tuple[tuple[str, str], ...]
    tests: tuple[_Test, ...]
    line: Mapping[float, Point]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, base: Model, models: Mapping[str, Model], held: Mapping[str, HeldOut], s: PredictionSettings
    ) -> _Work:
        start, points = Point.of(base), {name: Point.of(model) for name, model in models.items()}
        _require(s, points, held)
        linear, notes = in_linear_model(start, points, s.linearized)
        if linear:
            raise MergescopeError(
                "These models run in the network linearised around their base, where every second-order term is zero: "
                "CTL holds by construction, and there is nothing to predict. Evaluate merges (mergescope evaluate, "
                "search); or predict their weights in the ordinary network: --no-linearized."
            )
        pairs = () if len(points) < 2 and s.pairs is None else task_pairs(s.pairs, points)
        tests = []
        for one, other in pairs:
            data, a, b = data_of(held, one, other), points[one], points[other]
            both = f"{one} + {other}"
            tests += [_Test("ctl", both, ctl(a, b, alpha, reference=start), data) for alpha in s.alphas]
            tests += [_Test("eq2", both, addition(start, a, b, lam), data) for lam in s.lams]
        for name, model in points.items():
            data = data_of(held, name)
            tests += [_Test("eq3", name, negation(start, model, lam), data) for lam in s.lams]
        if len(points) > 2:
            tests.append(
                _Test("eq1", " + ".join(points), averaging(points.values(), reference=start), tuple(held))
            )
        line = addition_line(start, list(points.values()), s.checked) if s.measured else {}
        return cls(start, points, held, s, tuple(pairs), tuple(tests), line, tuple(notes))

    def points(self, data: str) -> list[Point]:
        """Models that are run: the fine-tune whose task it is, and those of all tests if they are compared.

        Args:
            data: name of the data set.

        Returns:
            Distinct points.
        """
        owner = self.held[data].owner
        found = (
            [self.models[owner]] if owner is not None and owner in self.models and self._scores(data) else []
        )
        if self.settings.measured:
            found += [point for it in self.tests if data in it.data for point in it.test.points]
            found += [
                along(self.base, self.models[name], lam)
                for name in self.models
                if data in data_of(self.held, name)
                for lam in self.settings.probes
            ]
            found += self.line.values() if self._scores(data) else []
        return list(dict.fromkeys(found))

    def run(self) -> Prediction:
        s = self.settings
        found: dict[str, Expansion] = {}
        for name, data in self.held.items():
            few = replace(data, batches=subset(data.batches, s.samples, s.seed))
            found[name] = expand(
                self.base, self.models, few, self.points(name), layers=s.layers, features=s.features,
                method=s.method, progress=s.progress,
            )  # fmt: skip
        tests = tuple(self._tested(it, [found[name] for name in it.data]) for it in self.tests)
        both = [it for it in tests if it.measured is not None]
        agreements = agreement(
            [it.predicted for it in both], [it.measured for it in both if it.measured is not None],
            [it.errors for it in both], {lam: self._remainders(found, lam) for lam in s.probes if s.measured},
        )  # fmt: skip
        passes = list(found.values())
        return Prediction(
            tests, self._interactions(found), self._outcomes(found), self._surfaces(found), agreements, s,
            passes[0].network,
            {name: it.samples for name, it in found.items()}, sum(it.forward_passes for it in passes),
            sum(it.derivatives for it in passes), sum(it.seconds for it in passes),
            max(it.peak_bytes for it in passes), found, self._notes(found),
        )  # fmt: skip

    def _tested(self, it: _Test, data: Sequence[Expansion]) -> PredictedTest:
        seed = self.settings.seed
        predicted = predicted_linearity(data, it.test, seed=seed)
        if not self.settings.measured:
            return PredictedTest(it.kind, it.name, it.data, predicted, None, ())
        measured, errors = measured_linearity(data, it.test, seed=seed), gap_errors(data, it.test, seed=seed)
        return PredictedTest(it.kind, it.name, it.data, predicted, measured, errors)

    def _remainders(self, found: Mapping[str, Expansion], lam: float) -> list[dict[str, np.ndarray]]:
        return [
            remainders(found[data], name, lam) for name in self.models for data in data_of(self.held, name)
        ]

    def _interactions(self, found: Mapping[str, Expansion]) -> tuple[Interaction, ...]:
        names = list(self.models)
        pairs = [*((name, name) for name in names), *combinations(names, 2)]
        return tuple(
            entry
            for one, other in pairs
            for entry in interaction(
                [found[name] for name in data_of(self.held, one, other)], one, other, seed=self.settings.seed
            )
        )

    def _outcomes(self, found: Mapping[str, Expansion]) -> tuple[Outcome, ...]:
        scored = self._tasks(found)
        if not scored:
            return ()
        grid = sorted({*self.settings.grid, *self.line})
        return outcomes(scored, grid, self.line, seed=self.settings.seed)

    def _surfaces(self, found: Mapping[str, Expansion]) -> tuple[Surface, ...]:
        scored = self._tasks(found)
        if not (scored and self.settings.square):
            return ()
        return tuple(
            pair_surface(scored, pair, self.settings.square, seed=self.settings.seed) for pair in self.pairs
        )

    def _tasks(self, found: Mapping[str, Expansion]) -> dict[str, Expansion]:
        own = {task: found[name] for task, name in own_data(self.held).items() if task in self.models}
        able = {
            task: data for task, data in own.items() if data.logits is not None and data.labels is not None
        }
        return able if len(able) == len(self.models) else {}

    def _scores(self, data: str) -> bool:
        return isinstance(self.held[data].reading(), Outputs)

    def _notes(self, found: Mapping[str, Expansion]) -> tuple[str, ...]:
        lacking = [] if self._tasks(found) else [
            "accuracy is not predicted: that takes labelled data of every fine-tune's task, and networks that predict "
            "classes"
        ]  # fmt: skip
        return (*self.notes, *lacking)


def _require(s: PredictionSettings, models: Mapping[str, Point], held: Mapping[str, HeldOut]) -> None:
    if not models:
        raise MergescopeError("There is nothing to predict: give fine-tuned models.")
    if not held:
        raise MergescopeError("There are no data to predict on: give held-out data.")
    wrong = [alpha for alpha in s.alphas if not 0 < alpha < 1]
    if wrong:
        raise MergescopeError(
            f"An interpolation weight is between 0 and 1, got {', '.join(f'{it:g}' for it in wrong)}: at the ends "
            "there is nothing to predict."
        )
    if s.square and not any(BOX[0] <= value <= BOX[1] for value in s.square):
        raise MergescopeError(
            f"No coefficient of the square is in the search box, {BOX[0]:g} to {BOX[1]:g}, where the best one is "
            "looked for. Give one, or none at all."
        )
    if any(not lam for lam in (*s.lams, *s.checked, *s.probes)):
        raise MergescopeError("A scaling coefficient of 0 is the base itself. Give others.")
    if s.method not in METHODS:
        raise MergescopeError(
            f"There is no way {s.method!r} to take derivatives.{did_you_mean(s.method, METHODS)} Choose one of "
            f"{', '.join(METHODS)}."
        )
