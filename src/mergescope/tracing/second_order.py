"""second_order(): one pass of data that gives f, J tau_k and f''[tau_k, tau_l] at every layer."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from torch import nn

from mergescope.errors import CheckpointError, DataError, MergescopeError, PointError
from mergescope.models.calling import split_batch, to_device
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, find_layers
from mergescope.models.loading import key_maps, load_weights
from mergescope.readings import InnerProducts, Reading
from mergescope.tracing.affine import affine_part
from mergescope.tracing.capture import trivially_linear
from mergescope.tracing.derivative_check import require_right
from mergescope.tracing.derivatives import Derivatives, Rows, recorded
from mergescope.tracing.determinism import (
    few_samples,
    require_deterministic_data,
    require_deterministic_model,
    require_repeatable,
)
from mergescope.tracing.engines import Engine, chosen_engine
from mergescope.tracing.parts import peak_memory, run_in_parts
from mergescope.tracing.passes import Pass
from mergescope.tracing.trace import Trace
from mergescope.training.kernels import differentiable_kernels, make_differentiable
from mergescope.weights import Checkpoint, Point
from mergescope.weights.point import TensorSource
from mergescope.weights.selection import Selection

Term = tuple[str, ...]
"""``()`` is f_0, ``(k,)`` is ``J tau_k``, ``(k, l)`` is ``f''[tau_k, tau_l]``."""

ORIGIN = "origin"
"""What readings are given first: features of zero, since small terms must not be differences of large ones."""


def terms_of(names: Sequence[str]) -> list[Term]:
    """All terms of second order.

    Args:
        names: of the task vectors.

    Returns:
        ``1 + K + K (K + 1) / 2`` terms.

    Example:
        >>> terms_of(["a", "b"])
        [(), ('a',), ('b',), ('a', 'a'), ('a', 'b'), ('b', 'b')]
    """
    return [(), *((name,) for name in names), *combinations_with_replacement(names, 2)]


def taylor_weights(terms: Sequence[Term], coefficients: Mapping[str, float]) -> np.ndarray:
    """``f(th_0 + sum c_k tau_k) ~ f_0 + sum c_k J tau_k + 1/2 sum c_k c_l f''[tau_k, tau_l]`` as weights of terms.

    Args:
        terms: as of [`terms_of`][].
        coefficients: name to ``c_k``; a name that is absent has 0.

    Returns:
        ``(terms,)``, float64.

    Raises:
        PointError: there is a coefficient for no task vector.

    Example:
        >>> taylor_weights(terms_of(["a", "b"]), {"a": 2.0, "b": 3.0})
        array([1. , 2. , 3. , 2. , 6. , 4.5])
    """
    known = {name for term in terms for name in term}
    unknown = [name for name, value in coefficients.items() if value and name not in known]
    if unknown:
        raise PointError(
            f"There are no derivatives along {', '.join(unknown)}, only along {', '.join(sorted(known))}. Expand along "
            "all task vectors that points are made of."
        )
    return np.array([_weight(term, coefficients) for term in terms], dtype=float)


def _weight(term: Term, coefficients: Mapping[str, float]) -> float:
    weight = 1.0
    for name in term:
        weight *= coefficients.get(name, 0.0)
    return weight / 2 if len(term) == 2 and term[0] == term[1] else weight


@dataclass(frozen=True)
class SecondOrder:
    """What a pass left behind.

    Attributes:
        names: of the task vectors.
        terms: what the readings were given, after [`ORIGIN`][] and before the points.
        trace: readings, layers and cost; its points are the origin, the terms, then the points.
        derivatives: how many second derivatives of a batch were taken by ``jvp``.
        method: how derivatives were taken.
        notes: what was replaced in the network so that it can be differentiated, and why.
    """

    names: tuple[str, ...]
    terms: tuple[Term, ...]
    trace: Trace
    derivatives: int
    method: str
    notes: tuple[str, ...] = ()


def second_order(
    base: Point | TensorSource,
    vectors: Mapping[str, Point],
    data: Iterable[Any],
    model: nn.Module,
    *,
    points: Iterable[Point | TensorSource] = (),
    layers: str | Sequence[str] = "blocks",
    readings: Sequence[Reading] | None = None,
    features: str = "auto",
    fixed: Collection[str] = (),
    method: str = "jvp",
    step: float = 0.25,
    check: bool = True,
    progress: bool = True,
    engine: Engine | None = None,
) -> SecondOrder:
    """Pass a data set through a base, and take its features' derivatives along task vectors.

    At every layer and the output, for every batch: ``f_0``, ``J tau_k``, and ``f''(th_0)[tau_k, tau_l]`` for all
    ``k <= l`` (CTL, Theorem 5.1). The readings are given these as if each was what a point computes. Features and
    layers are those of [`trace`][mergescope.trace]; nothing larger than one batch's is kept. BatchNorm's running
    statistics move along task vectors like weights, as they do in merged models.

    Args:
        base: the pretrained model ``th_0``.
        vectors: name to task vector: a direction.
        data: batches, as for [`trace`][mergescope.trace].
        model: the architecture, in memory. Its weights and modes are put back at the end; kernels without a
            forward-mode derivative stay replaced.
        points: models that are run as well, in the same pass, to be compared. Readings are given their features less
            f_0, since what is compared is small, and their outputs as they are.
        layers: as for [`trace`][mergescope.trace].
        readings: what to compute; by default [`InnerProducts`][mergescope.InnerProducts] of everything.
        features: what counts as a sample's feature.
        fixed: state-dict entries that no point fills: a task's own head.
        method: ``"jvp"``, exact, or ``"differences"``, through networks near the base
            (see [`Derivatives`][mergescope.tracing.derivatives.Derivatives]).
        step: of the differences, in task vectors.
        check: refuse data, networks and derivatives that can't be relied on.
        progress: show a bar on a terminal.
        engine: runs the pass in parts, as for [`trace`][mergescope.trace].

    Returns:
        The filled readings.

    Raises:
        PointError: there are no task vectors, one is no direction, or a point is no model.
        MergescopeError: the network is linearised or has no memory, or can't be differentiated twice.
        LayerError: a layer pattern matches nothing.
        DataError: the data are empty, shuffled or malformed.
        MismatchError: the points don't fit the network.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> tau = ms.random_neighbour(base, base * 1.1, seed=0) - base
        >>> found = second_order(base, {"a": tau}, [torch.ones(3, 4)], net)
        >>> found.trace.reading(InnerProducts).gram("output", [("a", "a")]).shape, found.derivatives
        ((3, 1, 1), 1)
    """  # noqa: DOC502 (raised by what this calls)
    started = time.perf_counter()
    start, further = Point.of(base), list(dict.fromkeys(Point.of(point) for point in points))
    _require(start, vectors, further, model)
    chosen, convention = find_layers(model, layers), Features.of(model, features)
    place = next((entry.device for entry in model.parameters()), torch.device("cpu"))
    require_repeatable(data, "data")
    if check:
        require_deterministic_data(data)
        for source in {it.identity: it for it in _sources(start, vectors, further)}.values():
            if isinstance(source, Checkpoint | Selection):
                source.require_finite()
    first = next(iter(data), None)
    if first is None:
        raise DataError(
            "The data set is empty: there is not one batch to trace. Check the split and any filter."
        )
    terms = terms_of(list(vectors))
    known: list[Any] = [ORIGIN, *terms, *further]
    readings = [InnerProducts()] if readings is None else list(readings)
    mappings = key_maps(model, (start, *further), fixed)
    _require_same_tables(start, vectors, mappings[0])
    own = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        notes = make_differentiable(model)
        load_weights(model, start, mappings[0])
        few = to_device(few_samples(split_batch(first)[0]), place)
        trivial = trivially_linear(model, few, chosen, convention.call)
        if check:
            require_deterministic_model(model, first, place, convention)
        captured = [name for name in chosen if name != OUTPUT]
        made = Derivatives(model, mappings[0], captured, convention, vectors, method=method, step=step)
        if check and method == "jvp":
            require_right(made, few)
        for reading in readings:
            reading.start(known, chosen)
        job = Pass(
            known, data, model, chosen, readings, convention, mappings[1:], [{} for _ in further], progress=progress
        )  # fmt: skip
        engine = engine or chosen_engine()
        if engine is None:
            counts = [_run(job, made)]
        else:
            derive = partial(_derive, start, mappings[0], dict(vectors), captured, method, step)
            counts = run_in_parts(job, derive, engine)
    finally:
        model.load_state_dict(own)
        for module, mode in modes.items():
            module.training = mode
    traced = Trace(
        tuple(known), tuple(chosen), frozenset(trivial), tuple(readings), job.samples,
        sum(passes for passes, _ in counts) + job.forward_passes, features=convention, executor="resident",
        dtype=next((entry.dtype for entry in model.parameters()), torch.float32), network=type(model).__name__,
        seconds=time.perf_counter() - started, peak_bytes=job.peak_bytes or peak_memory(),
    )  # fmt: skip
    derivatives = sum(number for _, number in counts)
    return SecondOrder(tuple(vectors), tuple(terms), traced, derivatives, method, tuple(notes))


def _derive(
    start: Point, mapping: Mapping[str, str], vectors: Mapping[str, Point], layers: Sequence[str], method: str,
    step: float, job: Pass,
) -> tuple[int, int]:  # fmt: skip
    load_weights(job.model, start, mapping)
    made = Derivatives(job.model, mapping, layers, job.features, vectors, method=method, step=step)
    return _run(job, made)


@torch.no_grad()
def _run(job: Pass, made: Derivatives) -> tuple[int, int]:
    """Fill the readings.

    Returns:
        Forward passes for derivatives, and second derivatives, of a batch.
    """
    further = job.points[len(job.points) - len(job.mappings) :]
    units: dict[str, np.ndarray] = {}
    inputs: Any = None

    def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
        return job.reduce(layer, value, inputs, units)

    for inputs, labels in job.batches():
        units.clear()
        found = list(made.of(inputs).values())
        _require_finite(found, terms_of(list(made.vectors)))
        for index, point in enumerate(further):
            load_weights(job.model, point, job.mappings[index])
            with (
                differentiable_kernels(type(job.model).__name__),
                recorded(job.model, made.layers, reduce) as rows,
            ):
                result = job.features.call(job.model, inputs)
            found.append({**rows, OUTPUT: job.features.output_rows(result, inputs)})
            job.forward_passes += 1
        if job.features.choice == "each" and not further:
            with recorded(job.model, made.layers, reduce):  # says which sample each row belongs to
                job.features.call(job.model, inputs)
            job.forward_passes += 1
        found = [{layer: torch.zeros_like(rows) for layer, rows in found[0].items()}, *found]
        features = {layer: _less_base([rows[layer] for rows in found], len(further)) for layer in job.layers}
        job.finish(inputs, labels, features, [rows[OUTPUT] for rows in found], {}, dict(units))
    return made.forward_passes, made.derivatives


def _less_base(values: Sequence[torch.Tensor], points: int) -> list[torch.Tensor]:
    # After the origin comes f_0; the points are last.
    terms, zero = values[: len(values) - points], values[1].double()
    return [*terms, *(value.double() - zero for value in values[len(terms) :])]


def _require(start: Point, vectors: Mapping[str, Point], points: Sequence[Point], model: nn.Module) -> None:
    if not vectors:
        raise PointError("There are no task vectors to expand along: give a fine-tuned model.")
    for name, vector in vectors.items():
        if not vector.is_direction:
            raise PointError(
                f"{name} is no direction: its coefficients sum to {float(vector.total):g}, not 0. Give task vectors: "
                "model - base."
            )
    for point in (start, *points):
        if not point.is_model:
            raise PointError(
                f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1. Add a direction to a "
                "base."
            )
    name = type(model).__name__
    part = affine_part(model)
    if part is not None:
        raise MergescopeError(
            f"A linearised {type(getattr(part, 'network', part)).__name__} has no second derivatives: its features are "
            "affine in the weights. Give the ordinary network, or trace the linearised one: its checkpoints give all "
            "their combinations."
        )
    if any(entry.is_meta for entry in model.parameters()):
        raise MergescopeError(
            f"An empty {name} has no memory, which derivatives of the whole of it take. Use load_model()."
        )


def _require_finite(found: Sequence[Rows], terms: Sequence[Term]) -> None:
    for rows, term in zip(found, terms, strict=True):
        if not torch.isfinite(rows[OUTPUT]).all():
            what = ("output", "derivative", "second derivative")[len(term)]
            along = f" along {' and '.join(dict.fromkeys(term))}" if term else " at the base"
            raise CheckpointError(
                f"The network's {what}{along} is NaN or infinite. Look for exploded weights, or compute in float32."
            )


def _sources(start: Point, vectors: Mapping[str, Point], points: Sequence[Point]) -> list[TensorSource]:
    return [source for point in (start, *vectors.values(), *points) for source in point.checkpoints]


def _require_same_tables(start: Point, vectors: Mapping[str, Point], mapping: Mapping[str, str]) -> None:
    # Tables of integers are no weights: they must agree, as for any combination.
    for vector in vectors.values():
        near = start + Fraction(1, 2) * vector
        for key in mapping.values():
            if key in near.spec and not near.spec[key].dtype.is_floating_point:
                near.tensor(key)
