"""Features and outputs of one data set as polynomials of second order in the coefficients of task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergescope.errors import DataError, PointError
from mergescope.models.layers import OUTPUT
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.protocols.which_data import fingerprint_of
from mergescope.readings import InnerProducts, Outputs, Reading
from mergescope.readings.logits import Logits
from mergescope.tracing.second_order import Term, second_order, taylor_weights, terms_of
from mergescope.weights import Point, task_vector


@dataclass(frozen=True)
class Expansion:
    """``f_0``, ``J tau_k`` and ``f''[tau_k, tau_l]`` of every layer, reduced to inner products; logits are kept.

    Attributes:
        name: of the data.
        owner: the fine-tune whose task they are, or None.
        base: th_0.
        models: name to fine-tune.
        layers: the captured layers.
        trivial: layers that are linear in the weights by construction.
        terms: of the polynomial.
        points: models that were run as well.
        products: layer to ``(rows, N, N)``, inner products of the terms and then of the points' features less f_0.
        units: layer to ``(rows,)``, the sample of each row, where rows are no samples.
        logits: ``(N, samples, classes)``, or None where the network predicts no classes.
        labels: ``(samples,)`` positions among the classes, or None.
        samples: how many.
        network: name of its class.
        forward_passes: of a batch.
        derivatives: second derivatives of a batch taken by ``jvp``.
        seconds: wall time.
        peak_bytes: the process' peak resident memory at the end.
        fingerprint: of the samples; None if the data don't say which they are.
    """

    name: str
    owner: str | None
    base: Point
    models: Mapping[str, Point]
    layers: tuple[str, ...]
    trivial: frozenset[str]
    terms: tuple[Term, ...]
    points: tuple[Point, ...]
    products: Mapping[str, np.ndarray]
    units: Mapping[str, np.ndarray]
    logits: torch.Tensor | None
    labels: np.ndarray | None
    samples: int
    network: str
    forward_passes: int
    derivatives: int
    seconds: float
    peak_bytes: int
    fingerprint: str | None = None

    @property
    def size(self) -> int:
        """N: how many terms and points there are."""
        return len(self.terms) + len(self.points)

    def predicted(self, point: Point) -> np.ndarray:
        """A point's features as weights of the terms.

        Args:
            point: a combination of the base and the fine-tunes.

        Returns:
            ``(N,)``; none of it on the points that were run.

        Raises:
            PointError: the point is made of something else.
        """  # noqa: DOC502 (raised by what this calls)
        weights = taylor_weights(self.terms, coefficients_of(point, self.base, self.models))
        return np.concatenate([weights, np.zeros(len(self.points))])

    def measured(self, point: Point) -> np.ndarray:
        """A point's features as they were when it was run: f_0, and what was added to it.

        Args:
            point: one of the points.

        Returns:
            ``(N,)``, two of them 1.

        Raises:
            PointError: it was not run.
        """  # noqa: DOC502 (raised by what this calls)
        return self.term() + np.eye(self.size)[self.place(point)]

    def place(self, point: Point) -> int:
        """Where a point's logits and products are.

        Args:
            point: one of the points.

        Returns:
            Its position, in [0, N).

        Raises:
            PointError: it was not run.
        """
        if point not in self.points:
            raise PointError(f"{point} was not run on {self.name}: predict with measured=True.")
        return len(self.terms) + self.points.index(point)

    def term(self, *names: str) -> np.ndarray:
        """One term.

        Args:
            *names: of task vectors: none, one or two.

        Returns:
            ``(N,)``, one of them 1.
        """
        place = next(i for i, term in enumerate(self.terms) if sorted(term) == sorted(names))
        return np.eye(self.size)[place]

    def gram(self, layer: str, weights: np.ndarray) -> np.ndarray:
        """Inner products of combinations.

        Args:
            layer: one of ``layers``.
            weights: ``(M, N)``.

        Returns:
            ``(rows, M, M)``, float64.
        """
        return weights @ self.products[layer] @ weights.T

    def norms(self, layer: str, weights: np.ndarray) -> np.ndarray:
        """Length of one combination, by sample.

        Args:
            layer: one of ``layers``.
            weights: ``(N,)``.

        Returns:
            ``(rows,)``.
        """
        return np.sqrt(np.clip(self.products[layer] @ weights @ weights, 0, None))


def coefficients_of(point: Point, base: Point, models: Mapping[str, Point]) -> dict[str, float]:
    """The coefficients ``c_k`` of ``th_0 + sum_k c_k tau_k``.

    Args:
        point: a combination of the base and the fine-tunes.
        base: th_0.
        models: name to fine-tune.

    Returns:
        Name to coefficient, without those that are 0.

    Raises:
        PointError: the point is no model, or is made of something else.

    Example:
        >>> import mergescope as ms
        >>> base, a, b = (ms.Checkpoint({"w": torch.full((2,), v)}, name=n) for n, v in zip("pab", (1.0, 2.0, 3.0)))
        >>> models = {"a": Point.of(a), "b": Point.of(b)}
        >>> coefficients_of(0.25 * a + 0.75 * b, Point.of(base), models)
        {'a': 0.25, 'b': 0.75}
    """
    if not point.is_model:
        raise PointError(f"{point!r} is no model: its coefficients sum to {float(point.total):g}, not 1.")
    names = {source.identity: name for name, model in models.items() for source, _ in model.terms}
    zero = {source.identity for source, _ in base.terms}
    found = {}
    for source, value in point.terms:
        if source.identity in zero:
            continue
        if source.identity not in names:
            raise PointError(
                f"{point} is made of {source.name}, along which nothing was expanded: only along the task vectors of "
                f"{', '.join(models)}."
            )
        found[names[source.identity]] = float(value)
    return found


def expand(
    base: Point,
    models: Mapping[str, Point],
    held: HeldOut,
    points: Sequence[Point] = (),
    *,
    layers: str | Sequence[str] = "blocks",
    features: str = "auto",
    method: str = "jvp",
    progress: bool = True,
) -> Expansion:
    """Take the derivatives along all task vectors, on one data set.

    Args:
        base: th_0, a checkpoint.
        models: name to fine-tune, checkpoints.
        held: data and network.
        points: models that are run as well.
        layers: as for [`trace`][mergescope.trace]; the output is added.
        features: what counts as a sample's feature.
        method: as for [`second_order`][mergescope.tracing.second_order.second_order].
        progress: show a bar on a terminal.

    Returns:
        The expansion. A pass that a killed run finished is read, not made again.

    Raises:
        PointError: the base or a fine-tune is a combination.
        DataError: the outputs' derivatives exceed the memory that they may take.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> near = ms.random_neighbour(base, base * 1.1, seed=0)
        >>> found = expand(Point.of(base), {"a": Point.of(near)}, HeldOut("noise", [torch.randn(6, 4)], net))
        >>> found.terms, found.products["output"].shape
        (((), ('a',), ('a', 'a')), (6, 3, 3))
    """  # noqa: DOC502 (raised by what this calls)
    for name, model in (("The base", base), *models.items()):
        if not model.is_checkpoint:
            raise PointError(f"{name} is a combination, {model}. Save it, and give the checkpoint.")
    terms, distinct = terms_of(list(models)), list(dict.fromkeys(points))
    named = (layers,) if isinstance(layers, str) else tuple(layers)
    chosen = layers if layers == "blocks" else tuple(dict.fromkeys((*named, OUTPUT)))

    def passed() -> Arrays:
        logits = Logits(held.classes) if isinstance(held.reading(), Outputs) else None
        readings: list[Reading] = [InnerProducts(), *([] if logits is None else [logits])]
        found = second_order(
            base, {name: task_vector(model, base) for name, model in models.items()}, held.batches, held.model,
            points=distinct, layers=chosen, readings=readings, features=features, fixed=held.fixed, method=method,
            progress=progress,
        )  # fmt: skip
        traced, every = found.trace, [*found.terms, *distinct]
        products = traced.reading(InnerProducts)
        units = {layer: products.units(layer) for layer in traced.layers}
        made = {
            "layers": np.array(traced.layers), "trivial": np.array(sorted(traced.trivial), dtype=str),
            "network": np.array(traced.network), "samples": np.array(traced.samples),
            "passes": np.array(traced.forward_passes), "derivatives": np.array(found.derivatives),
            "seconds": np.array(traced.seconds), "peak": np.array(traced.peak_bytes),
            **{f"products {layer}": products.gram(layer, every) for layer in traced.layers},
            **{f"units {layer}": rows for layer, rows in units.items() if rows is not None},
        }  # fmt: skip
        if logits is not None:
            made["logits"] = torch.stack([logits.values(one) for one in every]).numpy()
            if logits.labels is not None:
                made["labels"] = logits.labels.numpy()
        return made

    said = [chosen, features, method]
    found = once("expand", held, [base, *models.values(), *distinct], None, said, passed)
    if not all(np.isfinite(found[f"products {layer}"]).all() for layer in found["layers"]):
        raise DataError(
            f"{held.name}: derivatives of a layer's features are NaN or infinite. Choose other layers, or compute in "
            "float32."
        )
    return Expansion(
        held.name, held.owner, base, dict(models), tuple(map(str, found["layers"])),
        frozenset(map(str, found["trivial"])), tuple(terms), tuple(distinct),
        {str(layer): found[f"products {layer}"] for layer in found["layers"]},
        {str(layer): found[f"units {layer}"] for layer in found["layers"] if f"units {layer}" in found},
        torch.from_numpy(found["logits"]) if "logits" in found else None, found.get("labels"), int(found["samples"]),
        str(found["network"]), int(found["passes"]), int(found["derivatives"]), float(found["seconds"]),
        int(found["peak"]), fingerprint_of(held.batches),
    )  # fmt: skip
