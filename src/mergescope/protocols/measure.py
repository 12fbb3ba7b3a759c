"""Measuring somebody's models: how linear the features are between every two of them, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from mergescope.errors import MergescopeError
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, find_layers
from mergescope.protocols.barrier import Barrier, barrier
from mergescope.protocols.linearity import COS_HOLDS, LayerLinearity, Linearity, LinearityTest, ctl, linearity
from mergescope.readings import InnerProducts, NextTokenLoss, Outputs, Reading, Summary, bootstrap
from mergescope.tracing import Trace, trace
from mergescope.weights import Point, lerp

HEADS = ("For", "LMHead", "Classifier")
"""In the names of classes whose output is logits. Others give embeddings, which predict nothing."""


@dataclass(frozen=True)
class HeldOut:
    """Data to measure on, and the network that it is run through.

    Attributes:
        name: for tables.
        batches: of held-out data, as for [`trace`][mergescope.trace].
        model: the network.
        owner: the fine-tune whose task it is; pairs without it are not measured on it. None: all are.
        fixed: the network's own head, where models share their bodies only.
        logits: whether the network's output is logits; found out by its class if None.
    """

    name: str
    batches: Iterable[Any]
    model: nn.Module
    owner: str | None = None
    fixed: frozenset[str] = frozenset()
    logits: bool | None = None

    @property
    def predicts(self) -> bool:
        """Whether the largest output means something."""
        if self.logits is not None:
            return self.logits
        features = Features.of(self.model)
        return features.kind == "plain" or any(part in type(self.model).__name__ for part in HEADS)


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        alphas: interpolation weights; the verdict is read off the one nearest to 0.5.
        layers: as for [`trace`][mergescope.trace].
        features: what counts as a sample's feature.
        local: feed every layer the base's input as well, to see which one breaks linearity.
        centred: subtract the base's mean feature.
        executor: of the trace.
        device: of the streamed executor.
        calibration: batches on which BatchNorm statistics of combined models are re-estimated.
        output: measure the network's output too.
        seed: of the bootstrap.
        progress: show bars on a terminal.
    """

    alphas: tuple[float, ...] = (0.5,)
    layers: str | Sequence[str] = "blocks"
    features: str = "auto"
    local: bool = True
    centred: bool = False
    executor: str = "auto"
    device: str = "cpu"
    calibration: Iterable[Any] | None = None
    output: bool = True
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Pair:
    """Two models and everything measured between them.

    Attributes:
        kind: ``"FT–FT"``, or ``"PT–FT"`` if the first is the base.
        a: the model at alpha = 1.
        b: the model at alpha = 0.
        data: names of the data it was measured on.
        propagated: alpha to the linearity of every layer.
        local: the same with the base's input to every layer; empty if that was not asked for.
        barrier: loss along the line, where there are labels or next tokens.
        agreement: share of equal predictions between ``"a"``, ``"b"`` and the ``"middle"``.
    """

    kind: str
    a: str
    b: str
    data: tuple[str, ...]
    propagated: Mapping[float, Linearity]
    local: Mapping[float, Linearity]
    barrier: Barrier | None
    agreement: Mapping[str, Summary]

    @property
    def name(self) -> str:
        """``"a + b"``."""
        return f"{self.a} + {self.b}"

    @property
    def alpha(self) -> float:
        """The interpolation weight that the verdict is read off."""
        return min(self.propagated, key=lambda alpha: abs(alpha - 0.5))

    @property
    def middle(self) -> Linearity:
        """Linearity at [`Pair.alpha`][]."""
        return self.propagated[self.alpha]

    @property
    def word(self) -> str:
        """``"CTL holds"``, ``"LLFC only"`` (cosines near 1, lengths not) or ``"not linear"``."""
        verdict = self.middle.verdict
        return "CTL holds" if verdict.ctl else "LLFC only" if verdict.llfc else "not linear"

    @property
    def reason(self) -> str:
        """Why, in a sentence or two, with the layer that decides."""
        return _reason(self.middle, self.local.get(self.alpha), self.barrier)


@dataclass
class Measurement:
    """The result of [`measure`][].

    Attributes:
        base: the base's name, or None.
        models: the fine-tunes' names.
        pairs: every pair, those of fine-tunes first.
        traces: data name to trace.
        losses: model name and data name to loss and accuracy, where there are labels or next tokens.
        notes: what the user should know.
    """

    base: str | None
    models: tuple[str, ...]
    pairs: list[Pair]
    traces: dict[str, Trace]
    losses: dict[tuple[str, str], dict[str, Summary]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(
    base: Any,
    models: Mapping[str, Any],
    data: Sequence[HeldOut],
    settings: Settings | None = None,
) -> Measurement:
    """Measure every pair of fine-tunes, and every fine-tune against the base.

    Each data set is passed once through base, fine-tunes and all points between them (CTL 4.1:
    pairs with tasks of their own are measured on the union of both tasks' data).

    Args:
        base: the pretrained checkpoint, or None if there is none.
        models: name to fine-tuned checkpoint.
        data: what to measure on.
        settings: what to measure.

    Returns:
        Everything measured.

    Raises:
        MergescopeError: fewer than two models, or a pair without data.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> found = measure(base, models, [HeldOut("noise", [torch.randn(5, 4)], net)])
        >>> [(pair.name, pair.kind) for pair in found.pairs]
        [('a + b', 'FT–FT'), ('base + a', 'PT–FT'), ('base + b', 'PT–FT')]
    """
    settings = settings or Settings()
    points = {name: Point.of(model) for name, model in models.items()}
    start = None if base is None else Point.of(base)
    label = None if base is None else _label(base)
    if len(points) + (start is not None) < 2:
        raise MergescopeError(
            "Measuring linearity takes two models: a base and a fine-tune, or two fine-tunes."
        )
    wanted = [("FT–FT", a, b, points[a], points[b]) for a, b in combinations(points, 2)]
    if start is not None and label is not None:
        wanted += [("PT–FT", label, name, start, point) for name, point in points.items()]
    plans = []
    for kind, a, b, left, right in wanted:
        tests = {float(alpha): ctl(left, right, alpha, start) for alpha in settings.alphas}
        chosen = [held for held in data if held.owner is None or held.owner in (a, b)]
        if not chosen:
            raise MergescopeError(
                f"There are no data for {a} + {b}. Give --data for one of them, or for all models."
            )
        plans.append((kind, a, b, left, right, tests, chosen))
    traces = {}
    for held in data:
        mine = [plan for plan in plans if held in plan[-1]]
        traces[held.name] = _trace(held, [start, *points.values()], mine, start, settings)
    result = Measurement(label, tuple(points), [], traces)
    for kind, a, b, left, right, tests, chosen in plans:
        parts = [traces[held.name] for held in chosen]
        result.pairs.append(
            Pair(
                kind, a, b, tuple(held.name for held in chosen),
                {alpha: linearity(parts, test, seed=settings.seed) for alpha, test in tests.items()},
                {alpha: linearity(parts, test, local=True, seed=settings.seed) for alpha, test in tests.items()}
                if start is not None and settings.local else {},
                barrier(parts, left, right, settings.alphas) if all(map(_has_losses, parts)) else None,
                _agreement(parts, left, right, settings),
            )
        )  # fmt: skip
    ends = {**({} if start is None or label is None else {label: start}), **points}
    for held in data:
        _add_losses(result, held, traces[held.name], ends, settings)
    return result


def _label(model: Any) -> str:
    return getattr(model, "name", None) or str(model)


def _trace(
    held: HeldOut, ends: Sequence[Point | None], plans: Sequence[Any], base: Point | None, s: Settings
) -> Trace:
    tests: list[LinearityTest] = [test for plan in plans for test in plan[-2].values()]
    points = [point for point in ends if point is not None]
    if held.owner is not None:  # a task's own model, the base, and the models that it is paired with
        used = {point for test in tests for point in test.points}
        points = [point for point in points if point in used]
    points += [point for test in tests for point in test.points]
    groups = [test.points for test in tests]
    features = Features.of(held.model, s.features)
    readings: list[Reading] = [InnerProducts(groups)]
    if held.predicts:
        readings.append(NextTokenLoss() if features.kind == "decoder" else Outputs())
    local = base if s.local else None
    if local is not None:
        readings.append(InnerProducts(groups, local=True))
    layers = find_layers(held.model, s.layers)
    if not s.output:
        layers = [layer for layer in layers if layer != OUTPUT]
    return trace(
        points, held.batches, held.model, layers=layers, readings=readings, features=s.features, local=local,
        centre=base if s.centred else None, executor=s.executor, device=s.device, fixed=held.fixed,
        calibration=s.calibration, progress=s.progress,
    )  # fmt: skip


def said(traced: Trace) -> Outputs | NextTokenLoss | None:
    """What a trace knows of predictions.

    Args:
        traced: a trace.

    Returns:
        Its reading of outputs, or None.
    """
    return next((r for r in traced.readings if isinstance(r, (Outputs, NextTokenLoss))), None)


def _has_losses(traced: Trace) -> bool:
    reading = said(traced)
    return isinstance(reading, NextTokenLoss) or (isinstance(reading, Outputs) and reading.labelled)


def _agreement(parts: Sequence[Trace], left: Point, right: Point, s: Settings) -> dict[str, Summary]:
    readings = [reading for part in parts if (reading := said(part)) is not None]
    if len(readings) < len(parts):
        return {}
    middle = lerp(right, left, min(s.alphas, key=lambda alpha: abs(alpha - 0.5)))
    between = {"a, b": (left, right), "a, middle": (left, middle), "b, middle": (right, middle)}
    values = np.stack(
        [np.concatenate([reading.agreement(*ends) for reading in readings]) for ends in between.values()],
        axis=1,
    )
    return dict(zip(between, bootstrap(values, seed=s.seed), strict=True))


def _add_losses(
    result: Measurement, held: HeldOut, traced: Trace, ends: Mapping[str, Point], s: Settings
) -> None:
    reading = said(traced)
    if reading is None or not _has_losses(traced):
        return
    shown = {name: point for name, point in ends.items() if point in traced.points}
    for pair in result.pairs:
        if pair.kind == "FT–FT" and held.name in pair.data:
            shown[f"{pair.name}, merged"] = pair.middle.test.left
    for name, point in shown.items():
        values = np.stack([reading.losses(point), reading.correct(point)], axis=1)
        result.losses[name, held.name] = dict(
            zip(("loss", "accuracy"), bootstrap(values, seed=s.seed), strict=True)
        )


def _reason(found: Linearity, local: Linearity | None, along: Barrier | None) -> str:
    verdict = found.verdict
    evidence = [entry for entry in found.layers if not entry.trivial and entry.measures["cos"].n]
    if not evidence:
        return f"There is {verdict.reason}."
    sentences = [f"{verdict.reason[0].upper()}{verdict.reason[1:]}."]
    broken = next((entry for entry in evidence if entry.measures["cos"].mean < COS_HOLDS), None)
    if broken is not None and local is not None:
        sentences.append(_blame(broken, local))
    if not verdict.beats_baseline:
        sentences.append(
            "At some layer the interpolated features are no nearer to the model between than the two models' "
            "features are to each other."
        )
    if along is not None:
        sentences.append(
            f"Largest excess of the loss over the line between both ends (barrier) is {along.loss_barrier:+.3f}."
        )
    return " ".join(sentences)


def _blame(broken: LayerLinearity, local: Linearity) -> str:
    own = {entry.layer: entry.measures["cos"].mean for entry in local.layers}
    if broken.layer not in own:  # the output is no layer that could be fed
        return f"The first to fall below {COS_HOLDS:g} is {broken.layer}."
    alone = own[broken.layer]
    if alone < COS_HOLDS:
        return (
            f"The first to fall below {COS_HOLDS:g} is {broken.layer}, and it breaks by itself: fed the base's input, "
            f"its cos is {alone:.3f}."
        )
    worst = min(own, key=lambda layer: own[layer])
    return (
        f"The first to fall below {COS_HOLDS:g} is {broken.layer}, which is linear by itself (fed the base's input, "
        f"its cos is {alone:.3f}): deviations of the layers before it add up. By itself the least linear layer is "
        f"{worst} ({own[worst]:.3f})."
    )
