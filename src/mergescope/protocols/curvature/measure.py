"""Curvature of a task's loss at a point: eigenvalues of the Hessian, and what it is along given directions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mergescope.display import Table, View, as_html, as_pandas, as_pretty, figure
from mergescope.errors import PointError, did_you_mean
from mergescope.progress import progress_bar
from mergescope.protocols.curvature.lanczos import ENDS, STEPS, TOLERANCE, Ritz, lanczos, require_search
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.resume import Arrays, once
from mergescope.tracing.determinism import require_deterministic_data
from mergescope.training.hessian import Hessian
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

Model = Point | TensorSource


@dataclass(frozen=True)
class CurvatureSettings:
    """How curvature is measured.

    Attributes:
        count: how many eigenvalues.
        end: of the spectrum: ``largest``, ``smallest`` or ``magnitude``.
        tolerance: of eigenvalues, relative.
        max_steps: Hessian-vector products at most.
        batchnorm: ``eval`` or ``batch`` (see [`BATCHNORM`][mergescope.training.hessian.BATCHNORM]).
        seed: of the first vector.
        progress: show bars on a terminal.
    """

    count: int = 1
    end: str = "largest"
    tolerance: float = TOLERANCE
    max_steps: int = STEPS
    batchnorm: str = "eval"
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Eigenvalues:
    """Eigenvalues of the Hessian of a task's loss at a point.

    Attributes:
        point: where.
        data: name of the data.
        found: the eigenvalues, with bounds of their errors.
        end: which ones.
        samples: that the loss is the mean over.
        passes: of a batch, each forward and backward twice.
        seconds: wall time.
    """

    point: Point
    data: str
    found: Ritz
    end: str
    samples: int
    passes: int
    seconds: float

    @property
    def value(self) -> float:
        """The first."""
        return self.found.values[0]

    def __str__(self) -> str:
        values = ", ".join(
            f"{value:.5g} ± {residual:.1g}"
            for value, residual in zip(self.found.values, self.found.residuals, strict=True)
        )
        end = "" if self.found.converged else ", not converged: raise max_steps"
        return (
            f"Eigenvalues of the Hessian at {self.point} on {self.data} ({self.samples} samples), {ENDS[self.end]}: "
            f"{values} ({self.found.steps} products{end})"
        )

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        pairs = zip(self.found.values, self.found.residuals, strict=True)
        lines = tuple(
            (str(place), figure(value), figure(error)) for place, (value, error) in enumerate(pairs, 1)
        )
        return View(
            str(self), (Table(f"Eigenvalues, {ENDS[self.end]}", ("number", "value", "residual"), lines),)
        )

    def rows(self) -> list[dict[str, Any]]:
        """The eigenvalues as lines of a results table; the interval is the residual's.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row]; the parameter numbers them from 1.
        """
        common = {
            "kind": "curvature", "points": str(self.point), "data": self.data, "measure": f"{self.end} eigenvalue",
            "n": self.samples, "forward_passes": self.passes, "seconds": round(self.seconds, 3),
        }  # fmt: skip
        pairs = zip(self.found.values, self.found.residuals, strict=True)
        return [
            {**common, "parameter": float(n), "mean": value, "low": value - error, "high": value + error}
            for n, (value, error) in enumerate(pairs, 1)
        ]


@dataclass(frozen=True)
class DirectionalCurvature:
    """What the Hessian of a task's loss at a point is along directions, and between them.

    Attributes:
        point: where.
        data: name of the data.
        names: of the directions.
        matrix: ``(directions, directions)``: ``d_k^T H d_l``.
        inner: ``(directions, directions)``: ``d_k^T d_l``, over the same coordinates.
        samples: that the loss is the mean over.
        passes: of a batch.
        seconds: wall time.
    """

    point: Point
    data: str
    names: tuple[str, ...]
    matrix: np.ndarray
    inner: np.ndarray
    samples: int
    passes: int
    seconds: float

    def __getitem__(self, name: str) -> float:
        return self.along({name: 1.0})[0]

    def along(self, coefficients: Mapping[str, float]) -> tuple[float, float]:
        """Curvature and squared length of a combination ``d = sum_k c_k d_k``, such as ``tau_a - tau_b``.

        Args:
            coefficients: name of a direction to its coefficient.

        Returns:
            ``d^T H d`` and ``|d|^2``. Their ratio is an eigenvalue's counterpart.

        Raises:
            PointError: a direction was not measured.

        Example:
            >>> found = DirectionalCurvature(None, "data", ("a", "b"), np.diag([3.0, 1.0]), np.eye(2), 1, 1, 0.0)
            >>> found.along({"a": 1, "b": -1})
            (4.0, 2.0)
        """
        unknown = [name for name in coefficients if name not in self.names]
        if unknown:
            raise PointError(
                f"The direction {unknown[0]!r} was not measured.{did_you_mean(unknown[0], self.names)} Measured: "
                f"{', '.join(self.names)}."
            )
        c = np.array([coefficients.get(name, 0.0) for name in self.names])
        return float(c @ self.matrix @ c), float(c @ self.inner @ c)

    to_pandas, _repr_html_, _repr_pretty_ = as_pandas, as_html, as_pretty

    def _view(self) -> View:
        found = [(name, *self.along({name: 1.0})) for name in self.names]
        lines = tuple(
            (name, *map(figure, (curvature, length, curvature / length if length else float("nan"))))
            for name, curvature, length in found
        )
        said = f"Curvature at {self.point} on {self.data} ({self.samples} samples)"
        return View(said, (Table("Along directions", ("direction", "d^T H d", "|d|^2", "ratio"), lines),))

    def __str__(self) -> str:
        wide = max([9, *map(len, self.names)])
        lines = [
            f"Curvature at {self.point} on {self.data} ({self.samples} samples)",
            f"{'direction':<{wide}}{'d^T H d':>14}{'|d|^2':>14}{'ratio':>14}",
        ]
        for name in self.names:
            curvature, length = self.along({name: 1.0})
            ratio = curvature / length if length else float("nan")
            lines.append(f"{name:<{wide}}{curvature:>14.5g}{length:>14.5g}{ratio:>14.5g}")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Curvatures and squared lengths as lines of a results table.

        Returns:
            Fields of [`Row`][mergescope.studies.rundir.Row].
        """
        common = {
            "kind": "curvature", "data": self.data, "n": self.samples, "forward_passes": self.passes,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip
        return [
            {**common, "points": f"{name} at {self.point}", "measure": measure, "mean": value}
            for name in self.names
            for measure, value in zip(("d^T H d", "|d|^2"), self.along({name: 1.0}), strict=True)
        ]


def eigenvalues(point: Model, held: HeldOut, settings: CurvatureSettings | None = None) -> Eigenvalues:
    """Eigenvalues at an end of the spectrum of the Hessian of a task's mean loss.

    ``H = d^2/d theta^2 1/N sum_i l(theta; x_i)``, over the weights that points change. One Hessian-vector product a
    step of [`lanczos`][mergescope.protocols.curvature.lanczos.lanczos], each a pass of the data: exact, not sampled.

    Args:
        point: a model.
        held: labelled data, or texts for a causal language model, with the network.
        settings: which ones, and how exactly.

    Returns:
        The eigenvalues.

    Raises:
        DataError: data are not the same on every pass, or have no labels.
        MergescopeError: the network has no Hessian, or settings make no sense.

    Example:
        >>> import torch, mergescope as ms
        >>> _ = torch.manual_seed(0)
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> held = HeldOut("noise", [(torch.randn(6, 4), torch.tensor([0, 1] * 3))], net)
        >>> found = eigenvalues(base, held)
        >>> found.value > 0, found.found.converged
        (True, True)
    """  # noqa: DOC502 (raised by what this calls)
    settings, where = settings or CurvatureSettings(), Point.of(point)
    require_search(settings.count, settings.end, settings.tolerance, settings.max_steps)

    def made() -> Arrays:
        started, hessian = time.perf_counter(), _hessian(where, held, settings)
        with progress_bar("curvature", None, settings.progress) as advance:

            def product(vector: np.ndarray) -> np.ndarray:
                advance(1)
                return hessian.matvec(vector)

            found = lanczos(
                product, hessian.size, count=settings.count, end=settings.end, tolerance=settings.tolerance,
                max_steps=settings.max_steps, seed=settings.seed, dtype=hessian.dtype,
            )  # fmt: skip
        return {
            "values": np.array(found.values), "residuals": np.array(found.residuals), "steps": np.array(found.steps),
            "converged": np.array(found.converged), **_cost(hessian, started),
        }  # fmt: skip

    how = [
        settings.count,
        settings.end,
        settings.tolerance,
        settings.max_steps,
        settings.batchnorm,
        settings.seed,
    ]
    left = once("eigenvalues", held, [where], None, how, made)
    ritz = Ritz(
        tuple(left["values"].tolist()),
        tuple(left["residuals"].tolist()),
        int(left["steps"]),
        bool(left["converged"]),
    )
    return Eigenvalues(
        where,
        held.name,
        ritz,
        settings.end,
        int(left["samples"]),
        int(left["passes"]),
        float(left["seconds"]),
    )


def curvature(
    point: Model, held: HeldOut, directions: Mapping[str, Model], settings: CurvatureSettings | None = None
) -> DirectionalCurvature:
    """The Hessian of a task's mean loss along directions: ``d_k^T H d_l``, all in one pass of the data.

    With task vectors for directions, the diagonal and the pairs give the curvature along every merge direction
    ``tau_i - tau_j``, and the second-order interaction of tasks.

    Args:
        point: a model.
        held: labelled data, or texts for a causal language model, with the network.
        directions: name to direction: task vectors, or differences of models. Memory is twice theirs.
        settings: for BatchNorm.

    Returns:
        The curvatures.

    Raises:
        PointError: there is no direction, or one is none (its coefficients don't sum to 0).
        DataError: data are not the same on every pass, or have no labels.
        MergescopeError: the network has no Hessian.

    Example:
        >>> import torch, mergescope as ms
        >>> _ = torch.manual_seed(0)
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> a, b = (ms.random_neighbour(base, base * 1.1, seed=seed) for seed in (0, 1))
        >>> held = HeldOut("noise", [(torch.randn(6, 4), torch.tensor([0, 1] * 3))], net)
        >>> found = curvature(base, held, {"a": a - base, "b": b - base})
        >>> direct = curvature(base, held, {"merge": a - b})
        >>> abs(found.along({"a": 1, "b": -1})[0] / direct["merge"] - 1) < 1e-4
        True
    """  # noqa: DOC502 (raised by what this calls)
    settings, where = settings or CurvatureSettings(), Point.of(point)
    points = {name: Point.of(direction) for name, direction in directions.items()}
    wrong = [name for name, direction in points.items() if not direction.is_direction]
    if wrong or not points:
        said = f"{wrong[0]} = {points[wrong[0]]} is none" if wrong else "there is none"
        raise PointError(
            f"Curvature is measured along directions, and {said}. Give differences of models, such as task vectors."
        )

    def made() -> Arrays:
        started, hessian = time.perf_counter(), _hessian(where, held, settings)
        rows = torch.stack([hessian.flat(direction) for direction in points.values()])
        products = hessian.products(rows)
        # In float64, a row at a time: a small curvature is a sum of large terms.
        matrix, inner = (
            np.array([[float(one.double() @ other.double()) for other in others] for one in rows])
            for others in (products, rows)
        )
        return {"matrix": (matrix + matrix.T) / 2, "inner": inner, **_cost(hessian, started)}

    left = once("curvature", held, [where, *points.values()], None, [settings.batchnorm], made)
    return DirectionalCurvature(
        where, held.name, tuple(points), left["matrix"], left["inner"], int(left["samples"]), int(left["passes"]),
        float(left["seconds"]),
    )  # fmt: skip


def _hessian(point: Point, held: HeldOut, settings: CurvatureSettings) -> Hessian:
    require_deterministic_data(held.batches)
    return Hessian(
        held.model, held.batches, point, fixed=held.fixed, classes=held.classes, batchnorm=settings.batchnorm
    )


def _cost(hessian: Hessian, started: float) -> Arrays:
    return {
        "samples": np.array(hessian.samples), "passes": np.array(hessian.passes),
        "seconds": np.array(time.perf_counter() - started),
    }  # fmt: skip
