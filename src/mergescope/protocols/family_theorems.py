"""CTL's theorems on a whole family: premises beside conclusions, and for how many cases each holds."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from mergescope.errors import MergescopeError
from mergescope.progress import progress_bar
from mergescope.protocols.disentanglement import task_pairs
from mergescope.protocols.family_theorems_result import COLUMNS, FamilyTheorems
from mergescope.protocols.linear_model import in_linear_model, linearized_in_place
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.prediction.gaps import along
from mergescope.protocols.premises import (
    Checked,
    Premises,
    disentangled_from_pairs,
    many_from_pairs,
    no_barrier,
)
from mergescope.protocols.resume import once
from mergescope.protocols.tallies import GAP_HOLDS, LOSS_HOLDS
from mergescope.protocols.transitivity import PairGap, pair_gaps
from mergescope.readings import Outputs, Summary
from mergescope.weights import Point, exact
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class TheoremsSettings:
    """What is checked, and what counts as holding.

    Attributes:
        pairs: of Theorem 3.3; None for all. The others are about all models.
        coefficients: of Theorem 4.3, of every task vector; None for 1/2k, where its premise is about points half-way
            to the models (at 1/k they are the models: Theorem 4.2), and CTL's 0.4.
        gap: a mean gap as small as this counts as none.
        loss: losses that differ by no more, in nats, count as equal, and a barrier no higher as none.
        layers: as for [`trace`][mergescope.trace].
        linearized: as for [`Settings`][mergescope.protocols.measure.Settings].
        seed: of the intervals.
        progress: show bars on a terminal.
    """

    pairs: tuple[tuple[str, str], ...] | None = None
    coefficients: tuple[float, ...] | None = None
    gap: float = GAP_HOLDS
    loss: float = LOSS_HOLDS
    layers: str | Sequence[str] = "blocks"
    linearized: bool | None = None
    seed: int = 0
    progress: bool = True


def check_family(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: TheoremsSettings | None = None,
) -> FamilyTheorems:
    """Check Theorems 3.3, 4.2 and 4.3 of CTL, and the transitivity that 4.2 takes for granted, on all tasks.

    Theorem 3.3 is checked for each pair on the data of both its tasks, one after the other; the others for all models
    on each data set. Layers that are linear in the weights by construction are told, and not counted.

    Args:
        base: the pretrained model.
        models: name to fine-tuned model, two or more.
        held: data name to data; those with an owner are its task's.
        settings: what is checked.

    Returns:
        Premises and conclusions, and how many hold.

    Raises:
        MergescopeError: there are fewer than two models, no data, or a threshold that makes no sense.
        LayerError: a layer does not exist.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.1, seed=i) for i, name in enumerate("abc")}
        >>> held = {"noise": HeldOut("noise", [(torch.randn(6, 4), torch.zeros(6).long())], net)}
        >>> [count.theorem for count in check_family(base, models, held).tallies]
        ['Theorem 3.3', 'Theorem 4.2', 'Theorem 4.3 at 0.167', 'Theorem 4.3 at 0.4', 'Transitivity']
    """  # noqa: DOC502 (raised by what this calls)
    return _Work.of(base, models, held, settings or TheoremsSettings()).run()


def plan(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    settings: TheoremsSettings | None = None,
) -> dict[str, Any]:
    """What [`check_family`][] will do.

    Args:
        base: as for [`check_family`][].
        models: as there.
        held: as there.
        settings: as there.

    Returns:
        Pairs, coefficients, whether in the linearised network, and of each data set the models that are run.

    Raises:
        MergescopeError: as for [`check_family`][].
    """  # noqa: DOC502 (raised by what this calls)
    work = _Work.of(base, models, held, settings or TheoremsSettings())
    return {
        "pairs": [":".join(pair) for pair in work.pairs],
        "coefficients": list(work.coefficients),
        "linearized": work.linearized,
        "passes_a_batch": {name: work.passes(name) for name in held},
    }


@dataclass(frozen=True)
class _Work:
    base: Point
    models: Mapping[str, Point]
    held: Mapping[str, HeldOut]
    settings: TheoremsSettings
    pairs: tuple[tuple[str, str], ...]
    linearized: bool
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, base: Model, models: Mapping[str, Model], held: Mapping[str, HeldOut], s: TheoremsSettings
    ) -> _Work:
        start, points = Point.of(base), {name: Point.of(model) for name, model in models.items()}
        if not held:
            raise MergescopeError("There are no data to check theorems on: give held-out data.")
        if not (s.gap > 0 and s.loss > 0) or any(not lam for lam in s.coefficients or ()):
            raise MergescopeError(
                f"A gap of {s.gap:g}, a loss of {s.loss:g} or a coefficient of 0 makes no threshold and no merge. Give "
                "numbers above 0, and coefficients other than 0."
            )
        linear, notes = in_linear_model(start, points, s.linearized)
        return cls(start, points, held, s, tuple(task_pairs(s.pairs, points)), linear, list(notes))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Those of Theorem 4.3."""
        chosen = self.settings.coefficients or (1 / (2 * len(self.models)), 0.4)
        return tuple(dict.fromkeys(chosen))

    def of_data(self, data: str) -> dict[str, tuple[Point, Point]]:
        """Pairs whose barrier is measured on a data set.

        Args:
            data: its name.

        Returns:
            Name to both models; none where the network predicts no classes.
        """
        held = self.held[data]
        if not isinstance(held.reading(), Outputs):
            return {}
        chosen = [pair for pair in self.pairs if held.owner is None or held.owner in pair]
        return {f"{one} + {other}": (self.models[one], self.models[other]) for one, other in chosen}

    def passes(self, data: str) -> int:
        """Models that are run on a data set, counted once for each theorem.

        Args:
            data: its name.

        Returns:
            How many.
        """
        count, pairs = len(self.models), self.of_data(data)
        ends = len({point for pair in pairs.values() for point in pair})
        if self.linearized:  # combinations cost nothing, but for the base
            return ends + bool(pairs) + (2 + len(self.coefficients)) * (count + 1)
        both = count + count * (count - 1) // 2
        whole = both + max(count - 2, 0)
        return ends + len(pairs) + both + whole + len(self.coefficients) * (whole + 1)

    def run(self) -> FamilyTheorems:
        s, started = self.settings, time.perf_counter()
        found: list[tuple[float, Premises]] = []
        gaps: list[PairGap] = []
        total, batches = (3 + len(self.coefficients)) * len(self.held), 0
        with progress_bar("theorems", total, s.progress) as advance:
            for name, data in self.held.items():
                pairs = self.of_data(name)
                if pairs:
                    found.append((
                        math.nan,
                        self._kept("no-barrier", data, list(pairs), self._barrier(pairs)),
                    ))
                advance(1, f"3.3 on {name}")
                found.append((math.nan, self._kept("many", data, [], self._many())))
                advance(1, f"4.2 on {name}")
                for value in self.coefficients:
                    found.append((value, self._kept("disentangled", data, [value], self._apart(value))))
                    advance(1, f"4.3 on {name}")
                gaps += self._gaps(data)
                advance(1, f"transitivity on {name}")
                batches += self.passes(name) * _length(data.batches)
        lacking = [name for name in self.held if not self.of_data(name)]
        if lacking:
            self.notes.append(
                f"Theorem 3.3 is not checked on {', '.join(lacking)}: there is no classifier, or no pair of its task"
            )
        if self.linearized:
            self.notes.append(
                "checked in the network linearised around the base, where features are affine in weights: all gaps are "
                "rounding"
            )
        return FamilyTheorems(
            tuple(found), tuple(gaps), s, self.linearized, type(next(iter(self.held.values())).model).__name__,
            batches, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            tuple(self.notes),
        )  # fmt: skip

    def _barrier(self, pairs: Mapping[str, tuple[Point, Point]]) -> Callable[[HeldOut], Premises]:
        return lambda held: no_barrier(pairs, held, seed=self.settings.seed, progress=False)

    def _many(self) -> Callable[[HeldOut], Premises]:
        s = self.settings
        return lambda held: many_from_pairs(self.models, held, layers=s.layers, seed=s.seed, progress=False)

    def _apart(self, value: float) -> Callable[[HeldOut], Premises]:
        s = self.settings

        def made(held: HeldOut) -> Premises:
            owner = held.owner
            if owner is not None and owner in self.models:
                return disentangled_from_pairs(
                    self.base, self.models, {owner: held}, value, tasks=[owner], layers=s.layers, seed=s.seed,
                    progress=False,
                )  # fmt: skip
            far = len(self.models) * exact(value)  # no task's data: there is no own effect
            points = {name: along(self.base, model, far) for name, model in self.models.items()}
            found = many_from_pairs(points, held, layers=s.layers, seed=s.seed, progress=False)
            return replace(found, theorem="4.3", says="CTL far out gives a sum of one part a task")

        return made

    def _gaps(self, data: HeldOut) -> list[PairGap]:
        s = self.settings

        def made(held: HeldOut) -> Any:
            return [
                asdict(entry)
                for entry in pair_gaps(self.models, held, layers=s.layers, seed=s.seed, progress=False)
            ]

        return [
            PairGap(**{**entry, "gap": Summary(**entry["gap"])})
            for entry in self._once("pair-gaps", data, [], made)
        ]

    def _kept(
        self, what: str, data: HeldOut, more: Sequence[Any], make: Callable[[HeldOut], Premises]
    ) -> Premises:
        left = self._once(what, data, more, lambda held: asdict(make(held)))
        lines = tuple(
            Checked(
                line["points"], line["data"], line["layer"],
                *({name: Summary(**value) for name, value in line[part].items()} for part in COLUMNS),
            )
            for line in left["checked"]
        )  # fmt: skip
        return Premises(left["theorem"], left["says"], lines)

    def _once(self, what: str, data: HeldOut, more: Sequence[Any], make: Callable[[HeldOut], Any]) -> Any:
        s = self.settings

        def passed() -> dict[str, np.ndarray]:
            with self._network(data) as network:
                return {"said": np.array(json.dumps(make(replace(data, model=network))))}

        layers = s.layers if isinstance(s.layers, str) else list(s.layers)
        around = self.base if self.linearized else None
        points = [self.base, *self.models.values()]
        # What is kept has names in it, which say nothing of what is in the data and models.
        said = [layers, s.seed, data.name, data.owner, list(self.models), *more]
        return json.loads(str(once(what, data, points, around, said, passed)["said"]))

    def _network(self, data: HeldOut) -> AbstractContextManager[nn.Module]:
        if not self.linearized:
            return nullcontext(data.model)
        return linearized_in_place(data.model, self.base, data.fixed)


def _length(batches: Any) -> int:
    return len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)
