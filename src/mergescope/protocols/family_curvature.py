"""Curvature of a whole family: at the base, at the fine-tunes and between them, and Theorem 5.1 for all pairs."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergescope.errors import MergescopeError
from mergescope.progress import progress_bar
from mergescope.protocols.curvature import DirectionalCurvature, Eigenvalues, curvature, eigenvalues
from mergescope.protocols.curvature.lanczos import STEPS
from mergescope.protocols.disentanglement import task_pairs
from mergescope.protocols.family_curvature_result import Along, FamilyCurvature, Peak
from mergescope.protocols.linear_model import in_linear_model
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.theorem import (
    TheoremSettings,
    check_theorem,
    places_of,
    require_one_function,
    require_settings,
)
from mergescope.protocols.theorem_result import TheoremCheck, fitted
from mergescope.weights import Point, task_vector
from mergescope.weights.point import TensorSource

Model = Point | TensorSource

LIKELY_STEPS = 10
"""Products that an eigenvalue usually takes, for plans."""


@dataclass(frozen=True)
class FamilyCurvatureSettings:
    """What is measured.

    Attributes:
        pairs: of fine-tunes; None for all.
        alpha: weight of a pair's first model.
        at: where a pair's eigenvalue is taken: ``midpoint``, ``base`` or ``line``.
        end: ``largest`` or ``magnitude``.
        term: where the exact term is taken: ``base`` or ``midpoint``.
        tolerance: of eigenvalues, relative.
        max_steps: Hessian-vector products of an eigenvalue at most.
        batchnorm: ``eval`` or ``batch``.
        linearized: False measures models that were trained in the linearised regime in the ordinary network; None
            refuses them.
        seed: of eigenvalues and intervals.
        progress: show bars on a terminal.
    """

    pairs: tuple[tuple[str, str], ...] | None = None
    alpha: float = 0.5
    at: str = "midpoint"
    end: str = "largest"
    term: str = "base"
    tolerance: float = 0.01
    max_steps: int = STEPS
    batchnorm: str = "eval"
    linearized: bool | None = None
    seed: int = 0
    progress: bool = True

    @property
    def theorem(self) -> TheoremSettings:
        """The part that is about Theorem 5.1; without bars."""
        return TheoremSettings(
            self.alpha, self.at, end=self.end, term=self.term, tolerance=self.tolerance, max_steps=self.max_steps,
            batchnorm=self.batchnorm, seed=self.seed, progress=False,
        )  # fmt: skip


def family_curvature(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: FamilyCurvatureSettings | None = None,
) -> FamilyCurvature:
    """Measure the curvature of a family's losses, and check Theorem 5.1 on its pairs (CTL 5.1, C.2).

    Each data set has a loss of its own: that of its network, with its head and classes. Largest eigenvalues are those
    of the base on every data set, of a fine-tune on its own task's data, and of each pair on each of its two tasks'
    data; the same for gaps and bounds. Data that belong to nobody judge all models.

    Args:
        base: the pretrained model.
        models: name to fine-tuned model.
        held: data name to labelled data; those with an owner are its task's.
        settings: what is measured.

    Returns:
        Eigenvalues, curvature along task vectors, and the theorem's two sides.

    Raises:
        MergescopeError: there are fewer than two models, a pair without data, a setting that makes no sense, or the
            models were trained in the linearised regime.
        DataError: data are not the same on every pass, or have no labels.

    Example:
        >>> import torch, mergescope as ms
        >>> _ = torch.manual_seed(0)
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("ab")}
        >>> held = {"noise": HeldOut("noise", [(torch.randn(6, 4), torch.tensor([0, 1] * 3))], net)}
        >>> found = family_curvature(base, models, held)
        >>> [peak.name for peak in found.peaks], [entry.task for entry in found.along]
        (['base', 'a', 'b', 'a + b'], ['a', 'b'])
    """  # noqa: DOC502 (raised by what this calls)
    return _Work.of(base, models, held, settings or FamilyCurvatureSettings()).run()


def plan(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: FamilyCurvatureSettings | None = None,
) -> dict[str, Any]:
    """What [`family_curvature`][] will do.

    Args:
        base: as for [`family_curvature`][].
        models: as there.
        held: as there.
        settings: as there.

    Returns:
        Pairs, points at which eigenvalues are taken, models that are run, and of each data set the Hessian-vector
        products of a batch: as many as eigenvalues usually take, which is not known before.

    Raises:
        MergescopeError: as for [`family_curvature`][].
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, held, settings or FamilyCurvatureSettings())
    usual = min(LIKELY_STEPS, work.settings.max_steps)
    peaks = {name: len(work.points(name)) for name in held}
    return {
        "pairs": [":".join(pair) for pair in work.pairs],
        "eigenvalues": peaks,
        "products_a_batch": {name: usual * count + work.directions(name) for name, count in peaks.items()},
        "runs_a_batch": {name: work.runs(name) for name in held},
    }


@dataclass(frozen=True)
class _Work:
    base: Point
    models: Mapping[str, Point]
    held: Mapping[str, HeldOut]
    settings: FamilyCurvatureSettings
    pairs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, base: Model, models: Mapping[str, Model], held: Mapping[str, HeldOut], s: FamilyCurvatureSettings
    ) -> _Work:
        start, points = Point.of(base), {name: Point.of(model) for name, model in models.items()}
        require_settings(s.theorem)
        linear, notes = in_linear_model(start, points, s.linearized)
        if linear:
            raise MergescopeError(
                "These models run in the network linearised around their base, which has no second derivatives of its "
                "own. Measure the curvature of their weights in the ordinary network: --no-linearized."
            )
        pairs = task_pairs(s.pairs, points)
        for data in held.values():
            require_one_function(data, s.batchnorm)
        work = cls(start, points, held, s, tuple(pairs), tuple(notes))
        for one, other in pairs:
            if not any((one, other) in work.of_data(name) for name in held):
                raise MergescopeError(
                    f"There are no data to judge {one} + {other} on: give one of them data of its task, or data that "
                    "belong to nobody."
                )
        return work

    def of_data(self, data: str) -> list[tuple[str, str]]:
        """Pairs that are judged on a data set.

        Args:
            data: its name.

        Returns:
            Names of models.
        """
        owner = self.held[data].owner
        return [pair for pair in self.pairs if owner is None or owner in pair]

    def points(self, data: str) -> dict[Point, tuple[str, str]]:
        """Where eigenvalues are taken on a data set.

        Args:
            data: its name.

        Returns:
            Point to kind and name.
        """
        owner = self.held[data].owner
        found = {self.base: ("base", "base")}
        found |= {
            model: ("fine-tune", name)
            for name, model in self.models.items()
            if owner is None or owner == name
        }
        rules = self.settings.theorem
        for name, triple in self.triples(data).items():
            places = places_of(triple, rules)
            shares = [f" at {share:g}" for share in rules.line] if rules.at == "line" else [""]
            for place, share in zip(places, shares, strict=True):
                found.setdefault(place, ("pair", f"{name}{share}"))
        return found

    def triples(self, data: str) -> dict[str, tuple[Point, Point, Point]]:
        """Pairs as Theorem 5.1 takes them.

        Args:
            data: name of the data.

        Returns:
            Name of a pair to the base and both models.
        """
        return {
            f"{one} + {other}": (self.base, self.models[one], self.models[other])
            for one, other in self.of_data(data)
        }

    def directions(self, data: str) -> int:
        """Products along task vectors and merge directions, of each batch.

        Args:
            data: name of the data.

        Returns:
            How many.
        """
        pairs = self.of_data(data)
        ends = {name for pair in pairs for name in pair}
        terms = len(pairs) if self.settings.term == "midpoint" else min(len(pairs), len(ends))
        return len(self.models) + terms

    def runs(self, data: str) -> int:
        """Models that are run for their loss.

        Args:
            data: name of the data.

        Returns:
            How many.
        """
        pairs = self.of_data(data)
        return len({name for pair in pairs for name in pair}) + len(pairs)

    def run(self) -> FamilyCurvature:
        s, started = self.settings, time.perf_counter()
        peaks: list[Peak] = []
        along: list[Along] = []
        checks: dict[str, TheoremCheck] = {}
        products = runs = 0
        total = sum(len(self.points(name)) for name in self.held)
        with progress_bar("eigenvalues", total, s.progress) as advance:
            for name, data in self.held.items():
                _require_loss(data)
                known: dict[Point, Eigenvalues] = {}
                for place, (kind, called) in self.points(name).items():
                    known[place] = eigenvalues(place, data, s.theorem.curvature)
                    peaks.append(Peak(kind, called, data.name, known[place]))
                    advance(1, f"{called} on {data.name}")
                vectors = {model: task_vector(point, self.base) for model, point in self.models.items()}
                found = curvature(self.base, data, vectors, s.theorem.curvature)
                along += self._along(data, found, known[self.base])
                if self.of_data(name):
                    checks[data.name] = check_theorem(self.triples(name), data, s.theorem, known)
                batches = found.passes
                products += sum(top.passes for top in known.values()) + self.directions(name) * batches
                runs += self.runs(name) * batches
        every = [pair for check in checks.values() for pair in check.pairs]
        network = type(next(iter(self.held.values())).model).__name__
        return FamilyCurvature(
            tuple(peaks), tuple(along), checks, fitted(every, seed=s.seed), s, network, products, runs,
            time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            tuple(dict.fromkeys([*self.notes, *self._told(checks)])),
        )  # fmt: skip

    def _along(self, data: HeldOut, found: DirectionalCurvature, top: Eigenvalues) -> Iterator[Along]:
        # As in the theorem: of the operator norm, what bounds is the eigenvalue's size.
        largest = abs(top.value) if self.settings.end == "magnitude" else top.value
        for task in self.models:
            value, length = found.along({task: 1.0})
            own = data.owner is None or data.owner == task
            yield Along(task, data.name, own, value, length, largest * length, found.samples)

    def _told(self, checks: Mapping[str, TheoremCheck]) -> Iterator[str]:
        for check in checks.values():
            yield from (note for note in check.notes if not note.startswith("lambda has not converged"))


def _require_loss(data: HeldOut) -> None:
    if not data.predicts:
        raise MergescopeError(
            f"{data.name}: {type(data.model).__name__} predicts no classes and no next tokens, so there is no loss to "
            "take the curvature of. Give models with a head, and labelled data."
        )
