"""Measuring somebody's models: how linear the features are between every two of them, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from mergescope.data.heads import CLASSES, TOKENS, head_of
from mergescope.display import as_html, as_pandas, as_pretty, as_text
from mergescope.errors import MergescopeError
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, layer_choice
from mergescope.protocols.barrier import Barrier, barrier
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place, require_executor
from mergescope.protocols.linearity import Linearity, LinearityTest, ctl, linearity, repeated_samples
from mergescope.protocols.measured_view import (
    measurement_rows,
    measurement_says,
    measurement_view,
    pair_rows,
    pair_view,
)
from mergescope.protocols.reasons import reason
from mergescope.protocols.resume import kept_in
from mergescope.readings import InnerProducts, NextTokenLoss, Outputs, Reading, Summary, bootstrap
from mergescope.tracing import Trace, trace
from mergescope.weights import Point


@dataclass(frozen=True)
class HeldOut:
    """Data to measure on, and the network that it is run through.

    Attributes:
        name: for tables.
        batches: of held-out data, as for [`trace`][mergescope.trace].
        model: the network.
        owner: the fine-tune whose task it is; pairs without it are not measured on it. None: all are.
        fixed: the network's own head, where models share their bodies only.
        logits: whether the network's output is logits of classes or next tokens; found out by its
            class if None.
        classes: the task's classes; other logits are masked (one head that several tasks share).
    """

    name: str
    batches: Iterable[Any]
    model: nn.Module
    owner: str | None = None
    fixed: frozenset[str] = frozenset()
    logits: bool | None = None
    classes: tuple[int, ...] | None = None

    @property
    def predicts(self) -> bool:
        """Whether the largest output means something: not for embeddings, scores or masked tokens."""
        return self.reading() is not None

    def reading(self) -> Outputs | NextTokenLoss | None:
        """What reads the network's predictions.

        Returns:
            A new reading, or None if it predicts nothing.
        """
        kind, name = Features.of(self.model).kind, type(self.model).__name__
        if self.logits is False:
            return None
        if kind == "plain":
            return Outputs(self.classes)
        config: Any = self.model.config
        target = head_of({**config.to_dict(), "architectures": [name]}, kind).target
        generates = name.endswith("ForConditionalGeneration")  # an encoder-decoder's first token
        if target == TOKENS or (generates and kind == "decoder"):
            return NextTokenLoss()
        return Outputs(self.classes) if self.logits or generates or target == CLASSES else None


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        alphas: interpolation weights in [0, 1]; the verdict is read off the one nearest to 0.5. The ends
            are the models themselves: they are in every pass, and no test.
        layers: as for [`trace`][mergescope.trace].
        features: what counts as a sample's feature.
        local: feed every layer the base's input as well, to see which one breaks linearity.
        centred: subtract the base's mean feature.
        executor: of the trace.
        device: of the streamed executor.
        calibration: batches on which BatchNorm statistics of combined models are re-estimated.
        output: measure the network's output too.
        linearized: measure in the network linearised around the base, where CTL holds by construction and
            accuracy is what is to be seen: True for any fine-tunes ("post-hoc"), None if all were trained
            in the linearised regime around this base.
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
    linearized: bool | None = None
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
        linearized: whether that is of the linearised network.
    """

    kind: str
    a: str
    b: str
    data: tuple[str, ...]
    propagated: Mapping[float, Linearity]
    local: Mapping[float, Linearity]
    barrier: Barrier | None
    agreement: Mapping[str, Summary]
    linearized: bool = False

    @property
    def name(self) -> str:
        """``"a + b"``."""
        return f"{self.a} + {self.b}"

    @property
    def alpha(self) -> float:
        """The interpolation weight that the verdict is read off."""
        return _nearest_to_half(self.propagated)

    @property
    def middle(self) -> Linearity:
        """Linearity at [`Pair.alpha`][]."""
        return self.propagated[self.alpha]

    @property
    def word(self) -> str:
        """``"CTL holds"``, ``"LLFC only"`` (cosines near 1, lengths not), ``"not linear"`` or ``"no verdict"``."""
        verdict = self.middle.verdict
        if not self.middle.evidence:
            return "no verdict"
        return "CTL holds" if verdict.ctl else "LLFC only" if verdict.llfc else "not linear"

    @property
    def reason(self) -> str:
        """Why, in a sentence or two, with the layer that decides."""
        found = reason(self.middle, self.local.get(self.alpha), self.barrier)
        if not self.linearized:
            return found
        return f"By construction: features of a linearised network are affine in its weights. {found}"

    rows, _view = pair_rows, pair_view
    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty


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
        linearized: whether all figures are of the network linearised around the base.
    """

    base: str | None
    models: tuple[str, ...]
    pairs: list[Pair]
    traces: dict[str, Trace]
    losses: dict[tuple[str, str], dict[str, Summary]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    linearized: bool = False

    says = property(measurement_says)
    rows, _view = measurement_rows, measurement_view
    __str__, to_pandas, _repr_html_, _repr_pretty_ = as_text, as_pandas, as_html, as_pretty


@dataclass(frozen=True)
class _Wanted:
    """A pair that is to be measured: its tests by alpha, and the data to measure it on."""

    kind: str
    a: str
    b: str
    left: Point
    right: Point
    tests: Mapping[float, LinearityTest]
    data: tuple[HeldOut, ...]


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
        MismatchError: a fine-tune is to be linearised around another base than it was trained around.
        MergescopeError: fewer than two models, equal names, a pair without data, no alpha between 0 and 1,
            no base to centre at or to linearise around, or an executor that can't do that.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> found = measure(base, models, [HeldOut("noise", [torch.randn(5, 4)], net)])
        >>> [(pair.name, pair.kind) for pair in found.pairs]
        [('a + b', 'FT–FT'), ('base + a', 'PT–FT'), ('base + b', 'PT–FT')]
    """  # noqa: DOC502 (raised by what this calls)
    settings, notes = decided(base, models, settings)
    ends, start = _ends(base, models)
    if settings.centred and start is None:
        raise MergescopeError(
            "Features are centred at the base's mean feature: give a base, or leave centred out."
        )
    wanted = _wanted(ends, start, data, settings)
    traces = {
        held.name: _trace(held, points, [pair for pair in wanted if held in pair.data], start, settings)
        for held, points in zip(data, _passes(ends, wanted, data), strict=True)
    }
    label = None if start is None else next(iter(ends))
    result = Measurement(label, tuple(models), [], traces, notes=notes, linearized=bool(settings.linearized))
    for pair in wanted:
        result.pairs.append(_measured(pair, [traces[held.name] for held in pair.data], start, settings))
    for held in data:
        _add_losses(result, held, traces[held.name], ends, settings)
    if layer_choice(data[0].model, settings.layers).guessed:
        result.notes.append(
            f"the layers of {type(data[0].model).__name__} are a guess by structure; see mergescope layers, and choose "
            "them with --layers"
        )
    return result


def passes(
    base: Any, models: Mapping[str, Any], data: Sequence[HeldOut], settings: Settings | None = None
) -> dict[str, tuple[Point, ...]]:
    """The points that [`measure`][] passes each data set through, for plans.

    Args:
        base: as for [`measure`][].
        models: as for [`measure`][].
        data: as for [`measure`][].
        settings: as for [`measure`][].

    Returns:
        Data name to distinct points: models, then what lies between them.

    Raises:
        MergescopeError: as for [`measure`][].

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = ms.random_neighbour(base, base * 1.1, seed=0)
        >>> passes(base, {"near": near}, [HeldOut("noise", [torch.randn(5, 4)], net)])["noise"][-1].is_checkpoint
        False
    """  # noqa: DOC502 (raised by what this calls)
    ends, start = _ends(base, models)
    wanted = _wanted(ends, start, data, settings or Settings())
    return {held.name: points for held, points in zip(data, _passes(ends, wanted, data), strict=True)}


def decided(
    base: Any, models: Mapping[str, Any], settings: Settings | None = None
) -> tuple[Settings, list[str]]:
    """Decide whether to measure in the linearised model, for what leaves that open.

    Args:
        base: as for [`measure`][].
        models: as for [`measure`][].
        settings: as for [`measure`][].

    Returns:
        Settings with ``linearized`` True or False, without local linearity in the first case (every layer
        is affine in its weights, whatever it is fed), and what the user should know.

    Raises:
        MismatchError: as for [`measure`][].
        MergescopeError: as for [`measure`][].
    """  # noqa: DOC502 (raised by what this calls)
    settings = settings or Settings()
    start = None if base is None else Point.of(base)
    points = {name: Point.of(model) for name, model in models.items()}
    linear, notes = in_linear_model(start, points, settings.linearized)
    if not linear:
        return replace(settings, linearized=False), notes
    require_executor(settings.executor)
    note = (
        f"all figures are of the network linearised around {start}: CTL holds there by construction, and gaps are "
        "rounding; look at loss and accuracy"
    )
    return replace(settings, linearized=True, local=False), [note, *notes]


def _ends(base: Any, models: Mapping[str, Any]) -> tuple[dict[str, Point], Point | None]:
    points = {name: Point.of(model) for name, model in models.items()}
    if len(points) + (base is not None) < 2:
        raise MergescopeError(
            "Measuring linearity takes two models: a base and a fine-tune, or two fine-tunes."
        )
    if base is None:
        return points, None
    label = getattr(base, "name", None) or str(base)
    if label in points:
        raise MergescopeError(
            f"The base and a fine-tune are both called {label!r}. Name the base otherwise: Checkpoint(..., name=...)."
        )
    start = Point.of(base)
    return {label: start, **points}, start


def _wanted(
    ends: Mapping[str, Point], start: Point | None, data: Sequence[HeldOut], s: Settings
) -> list[_Wanted]:
    outside = [alpha for alpha in s.alphas if not 0 <= alpha <= 1]
    between = [float(alpha) for alpha in s.alphas if 0 < alpha < 1]
    if outside or not between:
        raise MergescopeError(
            f"The interpolation weights (alphas) are {', '.join(f'{alpha:g}' for alpha in s.alphas) or 'none'}. Give "
            "numbers from 0 to 1, at least one of them strictly between: 0 and 1 are the models themselves."
        )
    twice = sorted({held.name for held in data if [other.name for other in data].count(held.name) > 1})
    if twice:
        raise MergescopeError(
            f"Several data sets are called {', '.join(twice)}. Give each a name of its own."
        )
    names = list(ends)
    tuned = names if start is None else names[1:]
    pairs = [("FT–FT", a, b) for a, b in combinations(tuned, 2)]
    if start is not None:
        pairs += [("PT–FT", names[0], name) for name in tuned]
    wanted = []
    for kind, a, b in pairs:
        chosen = tuple(held for held in data if held.owner is None or held.owner in (a, b))
        if not chosen:
            raise MergescopeError(
                f"There are no data for {a} + {b}. Give data that belong to one of them, or to no model."
            )
        tests = {alpha: ctl(ends[a], ends[b], alpha, start) for alpha in between}
        wanted.append(_Wanted(kind, a, b, ends[a], ends[b], tests, chosen))
    return wanted


def _passes(
    ends: Mapping[str, Point], wanted: Sequence[_Wanted], data: Sequence[HeldOut]
) -> list[tuple[Point, ...]]:
    out = []
    for held in data:
        tests = [test for pair in wanted if held in pair.data for test in pair.tests.values()]
        used = dict.fromkeys(point for test in tests for point in test.points)
        # Of a task's own data: its own model, the base, and the models that it is paired with.
        models = [point for point in ends.values() if held.owner is None or point in used]
        out.append(tuple(dict.fromkeys([*models, *used])))
    return out


def _trace(
    held: HeldOut, points: Sequence[Point], pairs: Sequence[_Wanted], base: Point | None, s: Settings
) -> Trace:
    layers = list(layer_choice(held.model, s.layers).names)
    if not s.output:
        layers = [layer for layer in layers if layer != OUTPUT]
    groups = [test.points for pair in pairs for test in pair.tests.values()]
    readings: list[Reading] = [InnerProducts(groups)]
    predictions = held.reading()
    if predictions is not None:
        readings.append(predictions)
    local = base if s.local and layers != [OUTPUT] else None
    if local is not None:
        readings.append(InnerProducts(groups, local=True))
    network: AbstractContextManager[nn.Module] = nullcontext(held.model)
    if s.linearized and base is not None:
        network = linearized_in_place(held.model, base, held.fixed)
    how = [
        layers, s.features, s.executor, local is not None, s.centred, bool(s.linearized),
        [[points.index(point) for point in group] for group in groups],
        getattr(s.calibration, "fingerprint", s.calibration),
    ]  # fmt: skip
    with network as model:
        return trace(
            points, held.batches, model, layers=layers, readings=readings, features=s.features, local=local,
            centre=base if s.centred else None, executor=s.executor, device=s.device, fixed=held.fixed,
            calibration=s.calibration, progress=s.progress, keep=kept_in("measure", held, points, base, how),
        )  # fmt: skip


def _measured(pair: _Wanted, parts: Sequence[Trace], base: Point | None, s: Settings) -> Pair:
    local = base is not None and s.local and parts[0].layers != (OUTPUT,)
    units = repeated_samples([held.batches for held in pair.data], parts)
    return Pair(
        pair.kind, pair.a, pair.b, tuple(held.name for held in pair.data),
        {alpha: linearity(parts, test, units=units, seed=s.seed) for alpha, test in pair.tests.items()},
        {alpha: linearity(parts, test, units=units, local=True, seed=s.seed) for alpha, test in pair.tests.items()}
        if local else {},
        barrier(parts, pair.left, pair.right, list(pair.tests), units=units, seed=s.seed)
        if all(map(_has_losses, parts)) else None,
        _agreement(parts, pair, units, s), bool(s.linearized),
    )  # fmt: skip


def _nearest_to_half(alphas: Iterable[float]) -> float:
    return min(alphas, key=lambda alpha: abs(alpha - 0.5))


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


def _agreement(
    parts: Sequence[Trace], pair: _Wanted, units: np.ndarray | None, s: Settings
) -> dict[str, Summary]:
    readings = [reading for part in parts if (reading := said(part)) is not None]
    if len(readings) < len(parts):
        return {}
    middle = pair.tests[_nearest_to_half(pair.tests)].left
    between = {
        "a, b": (pair.left, pair.right),
        "a, middle": (pair.left, middle),
        "b, middle": (pair.right, middle),
    }
    values = np.stack(
        [np.concatenate([reading.agreement(*ends) for reading in readings]) for ends in between.values()],
        axis=1,
    )
    return dict(zip(between, bootstrap(values, units, seed=s.seed), strict=True))


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
        found = bootstrap(np.stack([reading.losses(point), reading.correct(point)], axis=1), seed=s.seed)
        result.losses[name, held.name] = dict(zip(("loss", "accuracy"), found, strict=True))
