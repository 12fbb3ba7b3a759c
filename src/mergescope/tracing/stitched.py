"""Stitching: the rest of the base run on features of other points, or on mixtures of them.

``g^{>l}(sum_k c_k f^(l)(p_k))``: the output of block ``l`` in the base is replaced, and what follows
runs with the base's weights and without an adapter (CTL Figs 9, 10; see
[`Rest`][mergescope.tracing.rest.Rest]). The features of a point come from one pass through it, which serves
all layers and all mixtures.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn

from mergescope.errors import DataError, LayerError, MergescopeError, PointError
from mergescope.models.calling import batch_size, split_batch, to_device
from mergescope.models.features import Features
from mergescope.models.loading import WeightLoader, key_maps
from mergescope.readings import Batch, Reading
from mergescope.tracing.affine import affine_part, combined
from mergescope.tracing.capture import capture
from mergescope.tracing.determinism import (
    require_deterministic_data,
    require_deterministic_model,
    require_repeatable,
)
from mergescope.tracing.engines import Engine, chosen_engine
from mergescope.tracing.parts import peak_memory, run_in_parts
from mergescope.tracing.passes import Pass, require_finite_outputs
from mergescope.tracing.rest import Rest, blocks_of
from mergescope.weights import Checkpoint, Point, exact
from mergescope.weights.point import Number, TensorSource
from mergescope.weights.selection import Selection


@dataclass(frozen=True)
class Mixture:
    """``sum_k c_k f^(l)(p_k)``, with ``sum_k c_k = 1``: features that the base's rest is run on.

    Attributes:
        terms: distinct points and their coefficients, none of them 0.

    Example:
        >>> from mergescope import Checkpoint
        >>> a = Point.of(Checkpoint({"w": torch.ones(2)}, name="a"))
        >>> Mixture.of([(a, 0.5), (a, 0.5)]) == Mixture.of([(a, 1)])
        True
    """

    terms: tuple[tuple[Point, Fraction], ...]

    @classmethod
    def of(cls, terms: Iterable[tuple[Point | TensorSource, Number]]) -> Mixture:
        """A mixture in its canonical form.

        Args:
            terms: points and coefficients.

        Returns:
            The mixture; equal points are one.

        Raises:
            PointError: the coefficients don't sum to 1.
        """
        sums: dict[Point, Fraction] = {}
        for model, value in terms:
            point = Point.of(model)
            sums[point] = sums.get(point, Fraction(0)) + exact(value)
        total = sum(sums.values(), Fraction(0))
        if total != 1:
            raise PointError(f"The coefficients of mixed features sum to {float(total):g}, not 1.")
        return cls(tuple((point, value) for point, value in sums.items() if value))

    @property
    def points(self) -> tuple[Point, ...]:
        """The points whose features are mixed."""
        return tuple(point for point, _ in self.terms)

    def of_features(self, values: Mapping[Point, torch.Tensor]) -> torch.Tensor:
        """Mix features.

        Args:
            values: of each point, all of one shape.

        Returns:
            The mixture, summed in float64, in the features' type.
        """
        if len(self.terms) == 1:
            return values[self.terms[0][0]]
        return combined(
            {place: values[point] for place, point in enumerate(self.points)},
            {place: float(value) for place, (_, value) in enumerate(self.terms)},
        )


@dataclass(frozen=True)
class Stitched:
    """What stitching left behind, and what it cost.

    Attributes:
        reading: filled; its points are those of the pass (networks as they are) and pairs of a mixture and a
            layer.
        layers: the blocks, in the order in which they run.
        points: base first.
        samples: how many were seen.
        forward_passes: of a batch through a whole network.
        rest_passes: of a batch through what follows a block.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        network: name of its class.
    """

    reading: Any
    layers: tuple[str, ...]
    points: tuple[Point, ...]
    samples: int
    forward_passes: int
    rest_passes: int
    seconds: float
    peak_bytes: int
    network: str

    def key(self, mixture: Mixture, layer: str) -> Hashable:
        """What the reading calls the base's rest on mixed features.

        Args:
            mixture: of the pass.
            layer: one of the layers.

        Returns:
            The name.
        """
        return mixture, layer


@torch.no_grad()
def stitch(
    base: Point | TensorSource,
    groups: Sequence[Sequence[Mixture]],
    data: Iterable[Any],
    model: nn.Module,
    reading: Reading,
    *,
    layers: str | Sequence[str] = "blocks",
    fixed: Collection[str] = (),
    check: bool = True,
    progress: bool = True,
    engine: Engine | None = None,
) -> Stitched:
    """Run the base from every block on, on mixed features (CTL Figs 9, 10).

    A batch costs one forward pass a distinct point, and a part of one for each distinct mixture and layer.
    Features of one group's points are held at a time, at all layers: put what shares points into one.

    Args:
        base: the model whose rest is run.
        groups: mixtures of features.
        data: batches, as for [`trace`][mergescope.trace].
        model: the architecture. Its own weights are put back at the end.
        reading: of outputs; not started.
        layers: the blocks, as for [`trace`][mergescope.trace].
        fixed: state-dict entries that no point fills.
        check: refuse data or networks that are not deterministic, and NaN weights.
        progress: show a bar on a terminal.
        engine: runs the pass in parts, as for [`trace`][mergescope.trace].

    Returns:
        The filled reading, and what it cost.

    Raises:
        LayerError: layers are within others, don't run, or run more than once.
        DataError: the data are empty, shuffled or malformed.
        CheckpointError: weights or outputs are NaN or infinite.
        MismatchError: a point does not fit the network.
        PointError: a point is no model.
        MergescopeError: the network is linearised or has no memory for its weights.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = Mixture.of([(ms.random_neighbour(base, base * 1.1, seed=0), 1)])
        >>> found = stitch(base, [[near]], [torch.ones(3, 4)], net, ms.Outputs())
        >>> found.layers, found.reading.predictions(found.key(near, "blocks.0")).shape
        (('blocks.0',), (3,))
    """  # noqa: DOC502 (raised by what this calls)
    started = time.perf_counter()
    job = _Job.of(Point.of(base), groups, model, layers, fixed)
    require_repeatable(data, "data")
    if check:
        require_deterministic_data(data)
        for source in {s.identity: s for point in job.points for s in point.checkpoints}.values():
            if isinstance(source, Checkpoint | Selection):
                source.require_finite()
    first = next(iter(data), None)
    if first is None:
        raise DataError("The data set is empty: there is not one batch to stitch on. Check the split.")
    with job.prepared():
        if check:
            require_deterministic_model(model, first, job.device, job.features)
        job.order(to_device(split_batch(first)[0], job.device))
        keys: list[Any] = job.keys
        reading.start(keys, [])
        whole = Pass(keys, data, model, [], [reading], job.features, [], [], progress=progress)
        engine = engine or chosen_engine()
        if engine is None:
            job.fill(whole)
        else:
            run_in_parts(whole, partial(_fill, replace(job, model=nn.Identity())), engine)
    return Stitched(
        reading, tuple(job.layers), tuple(job.points), whole.samples, whole.forward_passes, whole.local_passes,
        time.perf_counter() - started, whole.peak_bytes or peak_memory(), type(model).__name__,
    )  # fmt: skip


@torch.no_grad()
def _fill(job: _Job, part: Pass) -> None:
    replace(job, model=part.model).fill(part)


@dataclass
class _Job:
    base: Point
    groups: list[list[Mixture]]
    model: nn.Module
    layers: list[str]
    features: Features
    mappings: dict[Point, dict[str, str]]
    last: dict[Point, int]  # group that takes a point's features last

    @classmethod
    def of(
        cls, base: Point, groups: Sequence[Sequence[Mixture]], model: nn.Module, layers: str | Sequence[str],
        fixed: Collection[str],
    ) -> _Job:  # fmt: skip
        if affine_part(model) is not None:
            raise MergescopeError(
                "A linearised network can't be stitched: it is one derivative, without a rest that runs alone. "
                "Stitch in the ordinary network."
            )
        if any(entry.is_meta for entry in model.parameters()):
            raise MergescopeError("An empty model has no memory for stitching. Use load_model().")
        chosen = blocks_of(model, layers)
        points = dict.fromkeys([base, *(point for group in groups for mix in group for point in mix.points)])
        for point in points:
            if not point.is_model:
                raise PointError(
                    f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1."
                )
        distinct: dict[Mixture, None] = {}
        kept: list[list[Mixture]] = []
        for group in groups:
            new = [mixture for mixture in dict.fromkeys(group) if mixture not in distinct]
            distinct |= dict.fromkeys(new)
            kept.append(new)
        mappings = dict(zip(points, key_maps(model, points, fixed), strict=True))
        last = {
            point: place for place, group in enumerate(kept) for mixture in group for point in mixture.points
        }
        return cls(base, kept, model, chosen, Features.of(model), mappings, last)

    @property
    def points(self) -> list[Point]:
        return list(self.mappings)

    @property
    def keys(self) -> list[Hashable]:
        stitched = [(mix, layer) for group in self.groups for mix in group for layer in self.layers]
        return [*self.points, *stitched]

    @property
    def device(self) -> torch.device:
        return next((entry.device for entry in self.model.parameters()), torch.device("cpu"))

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The network in eval mode; its weights and modes are put back."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)
            for module, mode in modes.items():
                module.training = mode

    def order(self, inputs: Any) -> None:
        """Put the layers in the order in which they run, all of them once.

        Raises:
            LayerError: one does not run.
        """
        with capture(self.model, self.layers, lambda name, value: value) as caught:
            self.features.call(self.model, inputs)
        idle = [name for name in self.layers if name not in caught]
        if idle:
            raise LayerError(
                f"These layers do not run in a forward pass of {type(self.model).__name__}: {', '.join(idle)}."
            )
        self.layers = list(caught)

    def fill(self, given: Pass) -> None:
        """Pass data through everything, and count what follows a block as passes through layers alone."""
        weights = WeightLoader(self.model)
        for inputs, labels in given.batches("stitching"):
            outputs, rests = self.run(inputs, labels, weights)
            for reading in given.readings:
                reading.update(Batch({}, [outputs[key] for key in self.keys], labels))
            given.samples += batch_size(inputs)
            given.forward_passes += len(self.points)
            given.local_passes += rests

    def run(
        self, inputs: Any, labels: torch.Tensor | None, weights: WeightLoader
    ) -> tuple[dict[Hashable, Any], int]:
        """All outputs of a batch.

        Returns:
            Key to output, and how often what follows a block ran.
        """
        outputs: dict[Hashable, Any] = {}
        # The base is loaded last in each group, so its own pass, which records, needs no weights of others.
        weights.load(self.base, self.mappings[self.base])
        rest = Rest(self.model, self.layers, self.features, inputs)
        outputs[self.base] = self._output(rest.result, inputs, labels, self.base)
        count = 0
        own: dict[str, torch.Tensor] = rest.states
        held: dict[Point, dict[str, torch.Tensor]] = {}
        for place, group in enumerate(self.groups):
            held = {point: states for point, states in held.items() if self.last[point] >= place}
            for point in dict.fromkeys(p for mixture in group for p in mixture.points):
                if point != self.base and point not in held:
                    weights.load(point, self.mappings[point])
                    with capture(self.model, self.layers, lambda name, value: value) as caught:
                        result = self.features.call(self.model, inputs)
                    held[point] = dict(caught)
                    outputs[point] = self._output(result, inputs, labels, point)
            weights.load(self.base, self.mappings[self.base])
            for mixture in group:
                if mixture.points == (self.base,):  # nothing is replaced
                    outputs |= {(mixture, layer): outputs[self.base] for layer in self.layers}
                    continue
                for layer in self.layers:
                    states = {p: (own if p == self.base else held[p])[layer] for p in mixture.points}
                    result = rest.after(layer, mixture.of_features(states))
                    outputs[mixture, layer] = self._output(result, inputs, labels, *mixture.points)
                    count += 1
        return outputs, count

    def _output(self, result: Any, inputs: Any, labels: torch.Tensor | None, *points: Point) -> Any:
        output = self.features.output(result, inputs, labels)
        require_finite_outputs(points[:1], [output])
        return output
