"""Averaging models: uniform and greedy soups, and every k-subset against its logits ensemble (CTL Fig. 4, Eq. 1)."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from torch import nn

from mergescope.errors import DataError, MergescopeError
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place, require_executor
from mergescope.protocols.linearity import LinearityTest, averaging, linearity
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import kept_in
from mergescope.protocols.scores import over_tasks
from mergescope.protocols.soup_results import LAYER_MEASURES, Ingredient, Soup, Soups, Subsets, SubsetScores
from mergescope.protocols.which_data import alike, fingerprint_of, require_unseen
from mergescope.readings import InnerProducts, NextTokenLoss, Outputs, Reading, Summary, bootstrap
from mergescope.readings.correlation import correlations
from mergescope.tracing import Trace, trace
from mergescope.weights import Point, mean
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class SoupSettings:
    """How models are averaged and measured.

    Attributes:
        layers: whose features are measured by Eq. 1, as for [`trace`][mergescope.trace]; ``"output"`` alone costs
            nothing beside the forward passes.
        features: what counts as a sample's feature.
        limit: how many subsets at most; more are drawn by chance. None for all.
        linearized: as for [`Settings`][mergescope.protocols.measure.Settings]; takes a base.
        executor: of the passes.
        device: of the streamed executor.
        seed: of the draw of subsets and of intervals.
        progress: show bars on a terminal.
    """

    layers: str | Sequence[str] = "blocks"
    features: str = "auto"
    limit: int | None = 200
    linearized: bool | None = None
    executor: str = "auto"
    device: str = "cpu"
    seed: int = 0
    progress: bool = True


def soups(
    models: Mapping[str, Model],
    validation: Mapping[str, HeldOut],
    test: Mapping[str, HeldOut] | None = None,
    *,
    base: Model | None = None,
    settings: SoupSettings | None = None,
) -> Soups:
    """Uniform and greedy soups (Wortsman et al. 2022), next to the best model and the logits ensemble.

    The greedy soup starts with the model that is best on validation data, and takes each further one, in the order
    of their accuracy, if the average with it is at least as good. That costs up to two passes a model.
    Accuracy is the mean over data sets; of texts, losses are compared in its place.

    Args:
        models: name to model; of one task, or of several with one label space.
        validation: name to data that the soup is chosen by.
        test: name to data that are passed afterwards, through what was chosen.
        base: the pretrained model, for networks that are linearised around it.
        settings: how to measure.

    Returns:
        What each is made of, and its accuracy.

    Raises:
        MergescopeError: fewer than two models, no data, test data that choose, or a network that predicts nothing.
        DataError: the data have no labels.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> start = ms.Checkpoint(net.state_dict(), name="start")
        >>> models = {name: ms.random_neighbour(start, start * 1.1, seed=i) for i, name in enumerate("abc")}
        >>> data = {"noise": HeldOut("noise", [(torch.randn(6, 4), torch.zeros(6).long())], net)}
        >>> found = soups(models, data, settings=SoupSettings(progress=False))
        >>> found["uniform"].members
        ('a', 'b', 'c')
    """  # noqa: DOC502 (raised by what this calls)
    started, s = time.perf_counter(), settings or SoupSettings()
    points, around, notes = _checked(models, validation, base, s)
    require_unseen(validation, test, "the soup")
    whole = mean(points.values())
    texts = any(isinstance(held.reading(), NextTokenLoss) for held in validation.values())
    ensembles = {} if texts else {"ensemble": list(points.values())}
    first = _Passes.of([*points.values(), whole], validation, around, s, ensembles)
    scores = {name: first.score(point) for name, point in points.items()}
    ordered = sorted(points, key=lambda name: -scores[name])
    members, greedy, found, passes = [ordered[0]], points[ordered[0]], first, first.forward_passes
    steps = [Ingredient(ordered[0], scores[ordered[0]] * first.sign, True)]
    for name in ordered[1:]:
        candidate = mean([*(points[member] for member in members), points[name]])
        tried = first
        if candidate != whole:
            tried = _Passes.of([candidate], validation, around, s)
            passes += tried.forward_passes
        better = tried.score(candidate) >= found.score(greedy)
        steps.append(Ingredient(name, tried.score(candidate) * first.sign, better))
        if better:
            members, greedy, found = [*members, name], candidate, tried
    made = {
        "best": ([ordered[0]], points[ordered[0]], first),
        "uniform": (list(points), whole, first),
        "greedy": (members, greedy, found),
    }
    later = (
        None if test is None else _Passes.of([*points.values(), whole, greedy], test, around, s, ensembles)
    )
    lines = [
        Soup(name, tuple(names), point, on.summary(point), None if later is None else later.summary(point))
        for name, (names, point, on) in made.items()
    ]
    lines += [
        Soup(name, tuple(points), None, first.summary(name), None if later is None else later.summary(name))
        for name in ensembles
    ]
    return Soups(
        tuple(lines), tuple(steps), first.measure, passes, tuple(validation), notes, first.traces[0].network,
        around is not None, time.perf_counter() - started,
    )  # fmt: skip


def subsets(
    models: Mapping[str, Model],
    data: Mapping[str, HeldOut],
    size: int = 3,
    *,
    base: Model | None = None,
    settings: SoupSettings | None = None,
) -> Subsets:
    """All k-subsets: accuracy of the averaged weights against that of the averaged logits (CTL 4.2, Fig. 4).

    ``acc(f(1/k sum th_i))`` against ``acc(1/k sum f(th_i))``, their correlation over subsets, and at every layer the
    measures of Eq. 1. One pass a data set serves all subsets: K models and as many averages.

    Args:
        models: name to model; of one task, or of several with one label space.
        data: name to held-out data; nothing is chosen by them.
        size: k.
        base: the pretrained model, for measures relative to its features and for linearised networks.
        settings: how to measure.

    Returns:
        Every subset, correlations, and layers. Subsets share models, so they are not independent, and intervals over
        them are too narrow, if anything.

    Raises:
        MergescopeError: there are too few models for a subset, no data, or a network that gives no logits.
        DataError: the data have no labels.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> start = ms.Checkpoint(net.state_dict(), name="start")
        >>> models = {name: ms.random_neighbour(start, start * 1.1, seed=i) for i, name in enumerate("abcd")}
        >>> data = {"noise": HeldOut("noise", [(torch.randn(6, 4), torch.zeros(6).long())], net)}
        >>> found = subsets(models, data, size=2, settings=SoupSettings(progress=False))
        >>> len(found.subsets), found.forward_passes, list(found.layers)
        (6, 10, ['blocks.0', 'output'])
    """  # noqa: DOC502 (raised by what this calls)
    started, s = time.perf_counter(), settings or SoupSettings()
    points, around, notes = _checked(models, data, base, s)
    chosen = _chosen(list(points), size, s)
    tests = {names: averaging([points[name] for name in names], base) for names in chosen}
    ensembles = {names: [points[name] for name in names] for names in chosen}
    found = _Passes.of(list(points.values()), data, around, s, ensembles, list(tests.values()))
    if found.texts:
        raise MergescopeError(
            "Ensembles of logits can't be formed for next tokens, whose logits are not kept. Give models that "
            "classify, or make soups alone."
        )
    singles = {name: found.score(point) for name, point in points.items()}
    lines, by_layer = [], []
    for names, test in tests.items():
        of_layers = linearity(found.traces, test, seed=s.seed)
        by_layer.append([
            [entry.measures[kind].mean for kind in LAYER_MEASURES] for entry in of_layers.layers
        ])
        lines.append(
            SubsetScores(
                names, test.left, found.summary(test.left), found.summary(names),
                float(np.mean([singles[name] for name in names])),
            )
        )  # fmt: skip
    soup, ensemble = (np.array([getattr(line, kind).mean for line in lines]) for kind in ("soup", "ensemble"))
    gaps = [
        np.mean([hits.correct(test.left) - hits.correct(names) for names, test in tests.items()], axis=0)
        for hits in found.outputs
    ]
    trivial = frozenset().union(*(traced.trivial for traced in found.traces))
    layers = {
        layer: dict(zip(LAYER_MEASURES, bootstrap(values, seed=s.seed), strict=True))
        for layer, values in zip(found.traces[0].layers, np.array(by_layer).transpose(1, 0, 2), strict=True)
    }
    return Subsets(
        size, tuple(lines), comb(len(points), size), singles, correlations(soup, ensemble, seed=s.seed),
        over_tasks(gaps, alike=found.alike, seed=s.seed), layers, trivial, tuple(data), found.forward_passes,
        notes, found.traces[0].network, around is not None, time.perf_counter() - started,
    )  # fmt: skip


def _checked(
    models: Mapping[str, Model], data: Mapping[str, HeldOut], base: Model | None, s: SoupSettings
) -> tuple[dict[str, Point], Point | None, tuple[str, ...]]:
    points = {name: Point.of(model) for name, model in models.items()}
    if len(points) < 2:
        raise MergescopeError(f"Averaging takes at least two models, got {', '.join(points) or 'none'}.")
    if not data:
        raise MergescopeError("There are no data to average models on. Give held-out data.")
    start = None if base is None else Point.of(base)
    linear, notes = in_linear_model(start, points, s.linearized)
    if linear:
        require_executor(s.executor)
    return points, start if linear else None, tuple(notes)


def _chosen(names: list[str], size: int, s: SoupSettings) -> list[tuple[str, ...]]:
    if not 2 <= size <= len(names):
        raise MergescopeError(
            f"{len(names)} models have no subsets of {size}. Choose a size from 2 to {len(names)}."
        )
    total = comb(len(names), size)
    if s.limit is None or total <= s.limit:
        return list(combinations(names, size))
    rng = np.random.default_rng(s.seed)
    drawn: dict[tuple[int, ...], None] = {}  # there may be too many to list
    while len(drawn) < s.limit:
        drawn[tuple(sorted(rng.choice(len(names), size, replace=False).tolist()))] = None
    return [tuple(names[place] for place in places) for places in sorted(drawn)]


@dataclass(frozen=True)
class _Passes:
    """What points and ensembles said of some data sets."""

    traces: list[Trace]
    outputs: list[Outputs | NextTokenLoss]
    alike: list[int]  # of each data set, the number of the first one with the same samples
    seed: int

    @classmethod
    def of(
        cls,
        points: Collection[Point],
        data: Mapping[str, HeldOut],
        around: Point | None,
        s: SoupSettings,
        ensembles: Mapping[Any, list[Point]] | None = None,
        tests: Sequence[LinearityTest] = (),
    ) -> _Passes:
        distinct = list(dict.fromkeys([*points, *(point for test in tests for point in test.points)]))
        averaged = [test.points for test in tests]
        groups = [
            [distinct.index(point) for point in group] for group in [*(ensembles or {}).values(), *averaged]
        ]
        how = [s.layers if tests else "output", s.features, s.executor, len(tests), groups]
        traces, outputs = [], []
        for name, held in data.items():
            said = held.reading()
            if said is None:
                raise MergescopeError(
                    f"{name}: {type(held.model).__name__} predicts no classes and no next tokens, so averages can't be "
                    "compared by accuracy. Give models with a head, or measure features instead."
                )
            if isinstance(said, Outputs):
                said = Outputs(held.classes, dict(ensembles or {}))
            readings: list[Reading] = [said]
            if tests:
                readings.append(InnerProducts(averaged))
            network: AbstractContextManager[nn.Module] = nullcontext(held.model)
            if around is not None:
                network = linearized_in_place(held.model, around, held.fixed)
            with network as model:
                traces.append(
                    trace(
                        distinct, held.batches, model, layers=s.layers if tests else "output", readings=readings,
                        features=s.features, executor=s.executor, device=s.device, fixed=held.fixed,
                        progress=s.progress, keep=kept_in("soup", held, distinct, around, how),
                    )
                )  # fmt: skip
            if isinstance(said, Outputs) and not said.labelled:
                raise DataError(
                    f"{name}: the data have no labels, so there is no accuracy. Yield (inputs, labels)."
                )
            outputs.append(said)
        return cls(traces, outputs, alike(fingerprint_of(held.batches) for held in data.values()), s.seed)

    @property
    def texts(self) -> bool:
        return any(isinstance(said, NextTokenLoss) for said in self.outputs)

    @property
    def measure(self) -> str:
        return "loss" if self.texts else "accuracy"

    @property
    def sign(self) -> int:
        return -1 if self.texts else 1

    @property
    def forward_passes(self) -> int:
        return sum(traced.forward_passes for traced in self.traces)

    def _values(self, key: Any) -> list[np.ndarray]:
        return [said.losses(key) if self.texts else said.correct(key) for said in self.outputs]

    def score(self, point: Point) -> float:
        return self.sign * float(np.mean([np.nanmean(values) for values in self._values(point)]))

    def summary(self, key: Any) -> Summary:
        return over_tasks(self._values(key), alike=self.alike, seed=self.seed)
