"""Theorems 3.3, 4.2 and 4.3 of CTL on given models: how far their premises hold, beside their conclusions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mergescope.display import View, as_html, as_pandas, as_pretty, pivot
from mergescope.errors import DataError, MergescopeError, PointError, did_you_mean
from mergescope.models.layers import OUTPUT
from mergescope.protocols.linearity import ctl, linearity
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.scores import as_fields
from mergescope.readings import InnerProducts, Outputs, Summary, bootstrap
from mergescope.tracing import trace
from mergescope.weights import Point, exact, mean, task_vector
from mergescope.weights.point import Number, TensorSource

Model = Point | TensorSource
Mixture = list[tuple[Point, float]]
"""``f(left) - sum_k a_k f(p_k)``, as points and weights, the left point first."""


@dataclass(frozen=True)
class Checked:
    """Premises and conclusions of a theorem, at one layer.

    Attributes:
        points: which models.
        data: name of the data.
        layer: its name; the network's output has its own.
        premises: what the theorem supposes to be small (or, of a cosine and coefficient, 1).
        conclusions: what then is small, or not positive.
    """

    points: str
    data: str
    layer: str
    premises: Mapping[str, Summary]
    conclusions: Mapping[str, Summary]


@dataclass(frozen=True)
class Premises:
    """A theorem checked; prints as a table.

    Attributes:
        theorem: its number.
        says: the theorem, in a line.
        checked: one entry for models, data and layer.
    """

    theorem: str
    says: str
    checked: tuple[Checked, ...]

    def __str__(self) -> str:
        first = self.checked[0]
        heads = [*first.premises, *first.conclusions]
        names = [" ".join(filter(None, (line.points, line.data, line.layer))) for line in self.checked]
        wide, widths = max(map(len, names)), [max(len(head), 8) for head in heads]
        lines = [
            f"Theorem {self.theorem}: {self.says}",
            "  ".join([" " * wide, *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]),
        ]
        for name, line in zip(names, self.checked, strict=True):
            found = [*line.premises.values(), *line.conclusions.values()]
            cells = [f"{value.mean:>{width}.4f}" for value, width in zip(found, widths, strict=True)]
            lines.append("  ".join([f"{name:<{wide}}", *cells]))
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Everything as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        return [
            {
                "kind": f"theorem {self.theorem}", "points": line.points, "data": line.data, "layer": line.layer,
                "measure": f"{part}: {name}", **as_fields(value),
            }
            for line in self.checked
            for part, found in (("premise", line.premises), ("conclusion", line.conclusions))
            for name, value in found.items()
        ]  # fmt: skip

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        shown = pivot(self.rows(), f"Theorem {self.theorem}", ("points", "data", "layer"), "measure")
        return View(f"Theorem {self.theorem}: {self.says}", (shown,))


def no_barrier(
    pairs: Mapping[str, tuple[Model, Model]], held: HeldOut, *, seed: int = 0, progress: bool = True
) -> Premises:
    """Theorem 3.3: a loss that is convex in the output, equal losses and LLFC at the output leave no barrier.

    At alpha = 1/2 the barrier is a sum of two parts: ``L(f(middle)) - L(mean f)`` is what the output lacks of being
    linear, ``L(mean f) - mean L(f)`` is never positive, by Jensen's inequality. Cross-entropy is convex in logits.

    Args:
        pairs: name to two models.
        held: labelled data, with a classifier.
        seed: of the intervals.
        progress: show bars on a terminal.

    Returns:
        Of each pair: difference of losses, cos and coef of the output; the barrier and its parts.

    Raises:
        PointError: there is no pair.
        MergescopeError: the network is no classifier.
        DataError: the data have no labels.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = ms.random_neighbour(base, base * 1.1, seed=0)
        >>> held = HeldOut("noise", [(torch.randn(6, 4), torch.zeros(6).long())], net)
        >>> found = no_barrier({"pair": (base, near)}, held).checked[0].conclusions
        >>> found["convex part"].mean <= 0
        True
    """  # noqa: DOC502 (raised by what this calls)
    if not pairs:
        raise PointError("Theorem 3.3 is about pairs of models, and there is none. Give name: (a, b).")
    if not isinstance(held.reading(), Outputs):
        raise MergescopeError(
            f"{held.name}: {type(held.model).__name__} gives no logits of classes, whose mean the theorem needs."
        )
    tests = {name: ctl(a, b) for name, (a, b) in pairs.items()}
    ensembles: dict[Hashable, list[Point]] = {
        name: [point for point, _ in test.right] for name, test in tests.items()
    }
    said = Outputs(held.classes, ensembles)
    products = InnerProducts([test.points for test in tests.values()])
    traced = trace(
        [point for test in tests.values() for point in test.points], held.batches, held.model, layers=OUTPUT,
        readings=[products, said], fixed=held.fixed, progress=progress,
    )  # fmt: skip
    if not said.labelled:
        raise DataError(f"{held.name}: the data have no labels, so there is no loss. Yield (inputs, labels).")
    lines = []
    for name, test in tests.items():
        a, b = (said.losses(point) for point, _ in test.right)
        middle, mixed, chord = said.losses(test.left), said.losses(name), (a + b) / 2
        values = np.stack([a - b, middle - chord, middle - mixed, mixed - chord], axis=1)
        found = bootstrap(values, seed=seed)
        measures = linearity(traced, test, seed=seed)[OUTPUT].measures
        lines.append(Checked(
            name, held.name, OUTPUT,
            {"difference of losses": found[0], "cos": measures["cos"], "coef": measures["coef"]},
            {"barrier": found[1], "part of non-linearity": found[2], "convex part": found[3]},
        ))  # fmt: skip
    return Premises(
        "3.3", "a convex loss, equal losses and LLFC at the output leave no barrier", tuple(lines)
    )


def many_from_pairs(
    models: Mapping[str, Model],
    held: HeldOut,
    *,
    layers: str | Sequence[str] = "blocks",
    seed: int = 0,
    progress: bool = True,
) -> Premises:
    """Theorem 4.2: CTL of pairs, and transitivity, give CTL of k models.

    Transitivity lets the mean of some models stand for a model: with ``m_j`` the mean of the first j,
    ``f(m_k) - mean f = sum_j (j/k) [ f(m_j) - 1/j f(th_j) - (j-1)/j f(m_(j-1)) ]`` exactly, so the gap of all is at
    most the sum of the gaps of these steps, each a CTL of two points.

    Args:
        models: name to model, two or more.
        held: data, with the network.
        layers: as for [`trace`][mergescope.trace].
        seed: of the intervals.
        progress: show bars on a terminal.

    Returns:
        Of each layer: the largest gap of a pair, the largest of a step; the gap of all, and the sum that bounds it.

    Raises:
        PointError: there are fewer than two models.
        LayerError: a layer does not exist.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.5, seed=i) for i, name in enumerate("abc")}
        >>> found = many_from_pairs(models, HeldOut("noise", [torch.randn(6, 4)], net)).checked[-1].conclusions
        >>> found["gap of all"].mean <= found["sum of steps"].mean
        True
    """  # noqa: DOC502 (raised by what this calls)
    points = [Point.of(model) for model in models.values()]
    lines = _chain(points, " + ".join(models), held, layers, seed, progress)
    return Premises("4.2", "CTL of pairs, and of means of models, gives CTL of all", tuple(lines))


def disentangled_from_pairs(
    base: Model,
    models: Mapping[str, Model],
    held: Mapping[str, HeldOut],
    coefficient: Number = 0.4,
    *,
    tasks: Sequence[str] | None = None,
    layers: str | Sequence[str] = "blocks",
    seed: int = 0,
    progress: bool = True,
) -> Premises:
    """Theorem 4.3: CTL gives ``f(th_0 + a sum_i tau_i) ~ sum_i g_i(a tau_i)``, ``g_i(v) = 1/k f(th_0 + k v)``.

    The merged point is the mean of ``th_0 + k a tau_i``, so the theorem's premise is CTL of these, which lie k-fold
    farther out than what is merged. Disentanglement asks besides that other tasks' parts change nothing on a task's
    data: ``|f(th_0 + k a tau_j) - f(th_0)| / |f(th_0)|`` for its own and (on average) other tasks is told too.

    Args:
        base: the pretrained model.
        models: task to fine-tuned model, two or more.
        held: task to its data.
        coefficient: a, of every task vector.
        tasks: on whose data it is checked; None for all models'.
        layers: as for [`trace`][mergescope.trace].
        seed: of the intervals.
        progress: show bars on a terminal.

    Returns:
        Of each task's data and layer, what [`many_from_pairs`][] gives of these points, and the effects.

    Raises:
        PointError: there are fewer than two models, or a task has no model or no data.
        LayerError: a layer does not exist.

    Example:
        >>> import torch, mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> models = {name: ms.random_neighbour(base, base * 1.5, seed=i) for i, name in enumerate("ab")}
        >>> held = {name: HeldOut(name, [torch.randn(6, 4)], net, name) for name in "ab"}
        >>> sorted(disentangled_from_pairs(base, models, held).checked[-1].conclusions)
        ['effect of others', 'effect of own', 'gap of all', 'sum of steps']
    """  # noqa: DOC502 (raised by what this calls)
    chosen = list(models) if tasks is None else list(tasks)
    unknown = [task for task in chosen if task not in models]
    if unknown:
        raise PointError(
            f"There is no model {unknown[0]!r}.{did_you_mean(unknown[0], models)} Models: {', '.join(models)}."
        )
    lacking = [task for task in chosen if task not in held]
    if lacking:
        raise PointError(f"There are no data for {', '.join(lacking)}. Give each task's data.")
    start, far = Point.of(base), len(models) * exact(coefficient)
    points = {task: start + far * task_vector(model, start) for task, model in models.items()}
    lines = []
    for task in chosen:
        own = list(points).index(task)
        lines += _chain(
            list(points.values()), " + ".join(models), held[task], layers, seed, progress, (start, own)
        )
    return Premises("4.3", "CTL far out gives a sum of one part a task", tuple(lines))


def _chain(
    points: Sequence[Point], name: str, held: HeldOut, layers: str | Sequence[str], seed: int, progress: bool,
    effects: tuple[Point, int] | None = None,
) -> list[Checked]:  # fmt: skip
    count = len(points)
    if count < 2:
        raise PointError("This takes two models or more, of which pairs can be made.")
    means = [mean(points[: size + 1]) for size in range(count)]
    pairs = [_mixture([(a, 0.5), (b, 0.5)], mean([a, b])) for a, b in combinations(points, 2)]
    steps = [
        _mixture([(points[j], 1 / (j + 1)), (means[j - 1], j / (j + 1))], means[j]) for j in range(1, count)
    ]
    whole = _mixture([(point, 1 / count) for point in points], means[-1])
    groups = [[point for point, _ in mixture] for mixture in (*pairs, *steps, whole)]
    if effects is not None:
        groups += [[effects[0], point] for point in points]
    products = InnerProducts(groups)
    traced = trace(
        [point for group in groups for point in group], held.batches, held.model, layers=layers, readings=[products],
        fixed=held.fixed, progress=progress,
    )  # fmt: skip
    lines = []
    for layer in traced.layers:

        def gaps(mixture: Mixture, layer: str = layer) -> tuple[np.ndarray, np.ndarray]:
            return _length(products, layer, mixture), _length(products, layer, mixture[1:])

        of_pairs, of_steps = ([gaps(mixture) for mixture in some] for some in (pairs, steps))
        gap, size = gaps(whole)
        bound = sum((j + 2) / count * step for j, (step, _) in enumerate(of_steps))
        values = {
            "largest of pairs": _worst(of_pairs), "largest of steps": _worst(of_steps), "gap of all": _over(gap, size),
            "sum of steps": _over(bound, size),
        }  # fmt: skip
        if effects is not None:
            base, own = effects
            size = _length(products, layer, [(base, 1.0)])
            moved = [_over(_length(products, layer, [(point, 1.0), (base, -1.0)]), size) for point in points]
            others = [value for place, value in enumerate(moved) if place != own]
            values |= {"effect of own": moved[own], "effect of others": np.mean(others, axis=0)}
        table = np.stack(list(values.values()), axis=1)
        found = dict(zip(values, bootstrap(table, products.units(layer), seed=seed), strict=True))
        premises = {key: value for key, value in found.items() if key.startswith("largest")}
        rest = {key: value for key, value in found.items() if key not in premises}
        lines.append(Checked(name, held.name, layer, premises, rest))
    return lines


def _mixture(right: Iterable[tuple[Point, float]], left: Point) -> Mixture:
    return [(left, 1.0), *((point, -value) for point, value in right)]


def _length(products: InnerProducts, layer: str, mixture: Mixture) -> np.ndarray:
    points, weights = [point for point, _ in mixture], np.array([weight for _, weight in mixture])
    of = products.differences if abs(weights.sum()) < 1e-9 else products.gram
    return np.sqrt(np.clip(np.einsum("p,npq,q->n", weights, of(layer, points), weights), 0, None))


def _over(length: Any, size: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, length / size, np.nan)


def _worst(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    every = [_over(length, size) for length, size in found]
    return max(every, key=lambda gap: float(np.nansum(gap)) / max(int((~np.isnan(gap)).sum()), 1))
