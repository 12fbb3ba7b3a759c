"""Stitching: is the average of two models' features something that the pretrained network understands?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mergescope.errors import DataError, MergescopeError, did_you_mean
from mergescope.models.calling import split_batch
from mergescope.protocols.disentanglement import task_pairs
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.protocols.search import GRID
from mergescope.protocols.stitching_result import MIXED, SINGLE, WHOLE, Score, Stitching
from mergescope.readings import Outputs, bootstrap
from mergescope.tracing.rest import blocks_of
from mergescope.tracing.stitched import Mixture, Stitched, stitch
from mergescope.weights import Point, exact, task_vector
from mergescope.weights.point import TensorSource

Model = Point | TensorSource

ADDITION_GRID = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Coefficients of addition, unless told otherwise; at 0.5 the single models are the fine-tunes themselves."""


@dataclass(frozen=True)
class StitchingSettings:
    """How to stitch.

    Attributes:
        lams: scaling coefficients; None for [`ADDITION_GRID`][] of addition, and 0, .05 .. 1 of negation.
        pairs: of tasks that are added; None for all.
        layers: the blocks.
        seed: of intervals.
        progress: show bars on a terminal.
    """

    lams: tuple[float, ...] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    layers: str | Sequence[str] = "blocks"
    seed: int = 0
    progress: bool = True


def stitch_addition(
    base: Model,
    models: Mapping[str, Model],
    test: Mapping[str, HeldOut],
    settings: StitchingSettings | None = None,
) -> Stitching:
    """Stitching of added features (CTL Fig. 9), after every block, for every coefficient.

    ``g^{>l}(1/2 f^(l)(th_0 + 2 lam tau_i) + 1/2 f^(l)(th_0 + 2 lam tau_j))`` against
    ``g^{>l}(f^(l)(th_0 + 2 lam tau_i))`` and the same of j, on both tasks' data. The rest ``g^{>l}`` is the
    pretrained network's, without an adapter.

    Args:
        base: the pretrained model.
        models: task to fine-tuned model.
        test: task to its held-out data.
        settings: how to stitch.

    Returns:
        Accuracy and loss.

    Raises:
        MergescopeError: a pair is unknown, a task lacks data, or its network predicts nothing.
        DataError: data lack labels.
        LayerError: a layer can't be stitched after.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 3))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.5, seed=i) for i, name in enumerate("ab")}
        >>> data = [(torch.randn(6, 4), torch.arange(6) % 3)]
        >>> found = stitch_addition(base, models, {name: HeldOut(name, data, net, name) for name in "ab"})
        >>> found.layers["a"], found.forward_passes, found.rest_passes
        (('blocks.0',), 22, 30)
    """  # noqa: DOC502 (raised by what this calls)
    return _Work.of("addition", base, models, test, settings or StitchingSettings()).run()


def stitch_negation(
    base: Model,
    models: Mapping[str, Model],
    test: Mapping[str, HeldOut],
    settings: StitchingSettings | None = None,
) -> Stitching:
    """Stitching of subtracted features (CTL Fig. 10), after every block, for every coefficient.

    ``g^{>l}(2 f^(l)(th_0) - f^(l)(th_0 + lam tau))`` against ``g^{>l}(f^(l)(th_0 - lam tau))``, on the task's
    data and on control data: those in ``test`` that belong to no model, or, if all do, every other task's.

    Args:
        base: the pretrained model.
        models: task to fine-tuned model.
        test: held-out data of every task, and of controls.
        settings: how to stitch.

    Returns:
        Accuracy and loss.

    Raises:
        MergescopeError: a task lacks data, or a network predicts nothing.
        DataError: data lack labels.
        LayerError: a layer can't be stitched after.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 3))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> a = ms.random_neighbour(base, base * 1.5, seed=0)
        >>> data = [(torch.randn(6, 4), torch.arange(6) % 3)]
        >>> test = {name: HeldOut(name, data, net) for name in ("a", "control")}
        >>> found = stitch_negation(base, {"a": a}, test, StitchingSettings(lams=(0.0, 0.5)))
        >>> sorted({(score.points, score.data) for score in found.scores})
        [('- a', 'a'), ('- a', 'control')]
    """  # noqa: DOC502 (raised by what this calls)
    return _Work.of("negation", base, models, test, settings or StitchingSettings()).run()


def plan(
    protocol: str,
    base: Model,
    models: Mapping[str, Model],
    test: Mapping[str, HeldOut],
    settings: StitchingSettings | None = None,
) -> dict[str, Any]:
    """What stitching will cost.

    Args:
        protocol: ``addition`` or ``negation``.
        base: as for [`stitch_addition`][].
        models: as for [`stitch_addition`][].
        test: as for [`stitch_addition`][].
        settings: as for [`stitch_addition`][].

    Returns:
        Of each data set, its points, mixtures and layers, and passes a batch.

    Raises:
        MergescopeError: there is no such protocol, or as for [`stitch_addition`][].
        LayerError: as for [`stitch_addition`][].
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(protocol, base, models, test, settings or StitchingSettings())
    found: dict[str, Any] = {
        "points": {},
        "layers": {},
        "rest_passes_a_batch": {},
        "equivalent_passes_a_batch": {},
    }
    for data, groups in work.wanted.items():
        mixtures = {entry.mixture for group in groups for entry in group}
        points = {work.base, *(point for mixture in mixtures for point in mixture.points)}
        replaced = sum(mixture.points != (work.base,) for mixture in mixtures)
        layers = len(blocks_of(test[data].model, work.settings.layers))
        found["points"][data], found["layers"][data] = len(points), layers
        found["rest_passes_a_batch"][data] = replaced * layers
        # After block l of L, L - l blocks are left.
        found["equivalent_passes_a_batch"][data] = len(points) + replaced * (layers - 1) / 2
    return found


@dataclass(frozen=True)
class _Entry:
    """A mixture to stitch, and what the scores call it."""

    kind: str
    points: str
    lam: float
    mixture: Mixture


@dataclass(frozen=True)
class _Work:
    protocol: str
    base: Point
    wanted: Mapping[str, list[list[_Entry]]]  # data set to groups of what shares points
    members: Mapping[str, tuple[str, ...]]
    test: Mapping[str, HeldOut]
    settings: StitchingSettings
    lams: tuple[float, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        protocol: str,
        base: Model,
        models: Mapping[str, Model],
        test: Mapping[str, HeldOut],
        s: StitchingSettings,
    ) -> _Work:
        grids = {"addition": ADDITION_GRID, "negation": GRID}
        if protocol not in grids:
            raise MergescopeError(
                f"There is no stitched {protocol!r}.{did_you_mean(protocol, grids)} Choose one of {', '.join(grids)}."
            )
        if not models or (s.lams is not None and not s.lams):
            raise MergescopeError("Stitching takes fine-tuned models, and one scaling coefficient or more.")
        start = Point.of(base)
        points = {task: Point.of(model) for task, model in models.items()}
        vectors = {task: task_vector(point, start) for task, point in points.items()}
        lams = tuple(float(exact(lam)) for lam in dict.fromkeys(s.lams or grids[protocol]))
        # In the linearised network there is no rest to run: models of that regime run in the ordinary one.
        _, notes = in_linear_model(start, points, False)
        if in_linear_model(start, points, None)[0]:
            notes = [
                "the models were trained in the linearised regime, and are stitched in the ordinary network"
            ]
        if protocol == "addition":
            wanted, members = _additions(start, vectors, task_pairs(s.pairs, models), lams)
        else:
            wanted, members = _negations(start, vectors, test, lams)
        lacking = [data for data in wanted if data not in test]
        if lacking:
            raise MergescopeError(f"There are no data for {', '.join(lacking)}. Give each task's test data.")
        for data in wanted:
            _require_scores(test[data])
        return cls(protocol, start, wanted, members, test, s, lams, tuple(notes))

    def run(self) -> Stitching:
        scores: list[Score] = []
        bases: dict[str, Score] = {}
        passes: dict[str, Stitched] = {}
        for data in self.wanted:
            passes[data], values = self._stitch(data)
            own, *others = self._scores(data, passes[data].layers, values)
            bases[data] = own
            scores += others
        layers = {data: found.layers for data, found in passes.items()}
        return Stitching(
            self.protocol, tuple(scores), bases, self.lams, layers, self.members, passes, self.notes
        )

    def _stitch(self, data: str) -> tuple[Stitched, np.ndarray]:
        # Cost and layers of a pass, and (samples, 2 * scores): correctness and loss in turns.
        held, s = self.test[data], self.settings
        groups = [[entry.mixture for entry in group] for group in self.wanted[data]]

        def passed() -> Arrays:
            reading: Any = held.reading()
            found = stitch(
                self.base, groups, held.batches, held.model, reading, layers=s.layers, fixed=held.fixed,
                progress=s.progress,
            )  # fmt: skip
            keys = [
                self.base
                if entry is None
                else found.key(entry.mixture, layer)
                if layer
                else entry.mixture.points[0]
                for entry, layer in self._entries(data, found.layers)
            ]
            values = [of(key) for key in keys for of in (reading.correct, reading.losses)]
            return {
                "values": np.stack(values, axis=1), "layers": np.array(found.layers),
                "cost": np.array([found.samples, found.forward_passes, found.rest_passes, found.peak_bytes]),
                "seconds": np.array(found.seconds), "network": np.array(found.network),
            }  # fmt: skip

        mixtures = [mixture for group in groups for mixture in group]
        points = [self.base, *(point for mixture in mixtures for point in mixture.points)]
        shares = [[str(value) for _, value in mixture.terms] for mixture in mixtures]
        left = once("stitch", held, points, None, [self.protocol, shares, s.layers], passed)
        samples, whole, rests, peak = map(int, left["cost"])
        cost = Stitched(
            None, tuple(map(str, left["layers"])), tuple(dict.fromkeys(points)), samples, whole, rests,
            float(left["seconds"]), peak, str(left["network"]),
        )  # fmt: skip
        return cost, left["values"]

    def _entries(self, data: str, layers: Sequence[str]) -> list[tuple[_Entry | None, str]]:
        # What is scored: the base (None), every entry after each layer, and single models as they are ("").
        found: list[tuple[_Entry | None, str]] = [(None, "")]
        for entry in (entry for group in self.wanted[data] for entry in group):
            found += [(entry, layer) for layer in layers]
            if entry.kind == SINGLE:
                found.append((entry, ""))
        return found

    def _scores(self, data: str, layers: Sequence[str], values: np.ndarray) -> list[Score]:
        summaries = bootstrap(values, seed=self.settings.seed)
        scores = []
        for place, (entry, layer) in enumerate(self._entries(data, layers)):
            kind, points, lam = (
                (WHOLE, "base", 0.0) if entry is None else (entry.kind, entry.points, entry.lam)
            )
            kind = kind if layer else WHOLE
            scores.append(
                Score(kind, points, data, layer, lam, summaries[2 * place], summaries[2 * place + 1])
            )
        return scores


def _additions(
    base: Point, vectors: Mapping[str, Point], pairs: Sequence[tuple[str, str]], lams: Sequence[float]
) -> tuple[dict[str, list[list[_Entry]]], dict[str, tuple[str, ...]]]:
    wanted: dict[str, list[list[_Entry]]] = {
        data: [] for data in dict.fromkeys(task for pair in pairs for task in pair)
    }
    half = Fraction(1, 2)
    for data, groups in wanted.items():
        own = [pair for pair in pairs if data in pair]
        for lam in lams:
            far = {
                task: base + 2 * exact(lam) * vectors[task]
                for task in dict.fromkeys(task for pair in own for task in pair)
            }
            groups.append([
                *(_Entry(SINGLE, task, lam, Mixture.of([(point, 1)])) for task, point in far.items()),
                *(
                    _Entry(MIXED, f"{a} + {b}", lam, Mixture.of([(far[a], half), (far[b], half)]))
                    for a, b in own
                ),
            ])
    return wanted, {f"{a} + {b}": (a, b) for a, b in pairs}


def _negations(
    base: Point, vectors: Mapping[str, Point], test: Mapping[str, HeldOut], lams: Sequence[float]
) -> tuple[dict[str, list[list[_Entry]]], dict[str, tuple[str, ...]]]:
    controls = [name for name in test if name not in vectors] or list(vectors)
    wanted: dict[str, list[list[_Entry]]] = {data: [] for data in dict.fromkeys([*vectors, *controls])}
    for data, groups in wanted.items():
        for task in vectors:
            if task != data and data not in controls:
                continue
            for lam in lams:  # their points serve no other mixture: few are held at a time
                there, back = base + exact(lam) * vectors[task], base - exact(lam) * vectors[task]
                groups.append([
                    _Entry(SINGLE, f"- {task}", lam, Mixture.of([(back, 1)])),
                    _Entry(MIXED, f"- {task}", lam, Mixture.of([(base, 2), (there, -1)])),
                ])
    return wanted, {f"- {task}": (f"- {task}",) for task in vectors}


def _require_scores(held: HeldOut) -> None:
    reading = held.reading()
    if reading is None:
        raise MergescopeError(
            f"{held.name}: {type(held.model).__name__} predicts nothing, so stitching has no accuracy to show. Give "
            "a network with a head."
        )
    first = next(iter(held.batches), None)
    if isinstance(reading, Outputs) and first is not None and split_batch(first)[1] is None:
        raise DataError(f"{held.name}: accuracy and loss need labels. Yield (inputs, labels).")
