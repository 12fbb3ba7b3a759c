"""Points: lazy linear combinations of checkpoints in weight space.

A point is ``sum_k c_k * theta_k`` for checkpoints ``theta_k`` and exact rational coefficients
``c_k``. Interpolations, averages, task vectors, additions and negations (CTL 4.1 to 4.3) are
all points. No tensor is read until one is asked for, and then only that one.

What happens to entries that are not weights:

- **Integer and boolean entries** can't be averaged. If all terms agree, the common value is
  taken. BatchNorm's ``num_batches_tracked`` is a counter: the term with the largest coefficient
  gives it. Anything else that differs is an error. In a direction such entries are zero.
- **BatchNorm running statistics** are floating-point entries and are combined like weights,
  which is what averaging does and is *not* the right statistic of the combined network;
  [`trace`][mergescope.tracing.trace] and
  [`reestimate_batchnorm`][mergescope.models.batchnorm] re-estimate them on data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch

from mergescope.display import Table, View, as_html, as_pretty, figure, frame
from mergescope.errors import MismatchError, PointError

Number: TypeAlias = int | float | Fraction


class TensorSpec(NamedTuple):
    """Shape and dtype of one named tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


class TensorSource(Protocol):
    """What a point needs of a checkpoint: a name, an identity, specs and tensors."""

    name: str

    @property
    def identity(self) -> str:
        """Equal for two sources that hold the same tensors as far as is known without reading."""

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Key to shape and dtype."""

    @property
    def digest(self) -> str:
        """Content digest (hex)."""

    def tensor(self, key: str) -> torch.Tensor:
        """Read one tensor."""


def exact(value: Number) -> Fraction:
    """The rational number a coefficient stands for.

    A float that is within rounding of a fraction with a denominator up to a million becomes
    that fraction (``0.1 + 0.2`` is 3/10, ``1 / 3`` is 1/3); any other is kept exactly. So
    ``1 - 0.4 - 0.4`` is 1/5, coefficients that should sum to 1 do, and two ways to write the
    same point give equal points.

    Args:
        value: an int, float or fraction; must be finite.

    Returns:
        The coefficient.

    Raises:
        PointError: the value is not a finite number.

    Example:
        >>> exact(0.1 + 0.2), exact(1 / 3), exact(1e-9) == Fraction(1e-9)
        (Fraction(3, 10), Fraction(1, 3), True)
    """
    if isinstance(value, (int, Fraction)):
        return Fraction(value)
    try:
        number = Fraction(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise PointError(f"A coefficient must be a finite number, got {value!r}.") from error
    near = number.limit_denominator(10**6)
    # Rounding is that of numbers around 1: a float 1 - alpha is small, but carries alpha's error.
    return (
        near if near and abs(near - number) <= max(abs(number), Fraction(1)) * Fraction(1, 2**50) else number
    )


class Point:
    """A linear combination of checkpoints: ``sum_k c_k * theta_k``.

    Points add, subtract, and scale. They are kept in canonical form (no zero terms, fixed
    order, exact coefficients), so equal points compare and hash equal and are computed once.

    Args:
        terms: checkpoints and their coefficients.

    Raises:
        MismatchError: the checkpoints differ in keys, shapes or dtypes; all differences named.

    Example:
        >>> from mergescope import Checkpoint
        >>> base, a, b = (Checkpoint({"w": torch.full((2,), v)}, name=n)
        ...               for n, v in (("base", 1.0), ("a", 2.0), ("b", 4.0)))
        >>> edited = base + 0.4 * ((a - base) + (b - base))
        >>> edited
        Point(0.4*a + 0.4*b + 0.2*base)
        >>> edited.is_model, (a - base).is_direction
        (True, True)
        >>> edited.tensor("w")
        tensor([2.6000, 2.6000])
        >>> (a + b) / 2 == a + 0.5 * (b - a)
        True
    """

    __slots__ = ("_hash", "terms")

    terms: tuple[tuple[TensorSource, Fraction], ...]

    def __init__(self, terms: Mapping[TensorSource, Number] | Iterable[tuple[TensorSource, Number]]) -> None:
        pairs = terms.items() if isinstance(terms, Mapping) else terms
        merged: dict[str, tuple[TensorSource, Fraction]] = {}
        for source, value in pairs:
            held = merged.get(source.identity)
            merged[source.identity] = (
                source if held is None else held[0],
                exact(value) + (0 if held is None else held[1]),
            )
        kept = sorted((item for item in merged.items() if item[1][1] != 0), key=lambda item: item[0])
        # A combination that cancels out (a - a) still has to know its tensors: keep one zero term.
        if not kept and merged:
            kept = [min(merged.items())]
        self.terms = tuple(term for _, term in kept)
        if not self.terms:
            raise PointError("A point needs at least one checkpoint.")
        _require_same_spec([source for source, _ in self.terms])
        self._hash = hash(self._canonical)

    @classmethod
    def of(cls, value: Point | TensorSource) -> Point:
        """The point that a checkpoint is, or the point itself.

        Args:
            value: a point or a checkpoint.

        Returns:
            The point.

        Raises:
            PointError: the value is neither.
        """
        if isinstance(value, Point):
            return value
        if hasattr(value, "identity") and hasattr(value, "spec"):
            return cls([(value, 1)])
        raise PointError(f"Expected a Point or a Checkpoint, got {type(value).__name__}: {value!r}.")

    # -- algebra ---------------------------------------------------------------------------

    def __add__(self, other: Point | TensorSource) -> Point:
        return Point([*self.terms, *Point.of(other).terms])

    def __sub__(self, other: Point | TensorSource) -> Point:
        return self + (-Point.of(other))

    def __radd__(self, other: Any) -> Point:
        if isinstance(other, int) and other == 0:  # sum() starts from 0
            return self
        return Point.of(other) + self

    def __rsub__(self, other: Any) -> Point:
        return Point.of(other) - self

    def __mul__(self, factor: Number) -> Point:
        if isinstance(factor, Point) or hasattr(factor, "spec"):
            raise PointError("Points can be multiplied by numbers only: two points have no product.")
        exact_factor = exact(factor)
        return Point([(source, value * exact_factor) for source, value in self.terms])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Number) -> Point:
        if exact(divisor) == 0:
            raise PointError(f"Can't divide {self!r} by zero.")
        return self * (1 / exact(divisor))

    def __neg__(self) -> Point:
        return self * -1

    @property
    def _canonical(self) -> tuple[tuple[str, Fraction], ...]:
        return tuple((source.identity, value) for source, value in self.terms if value != 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Point):
            if not hasattr(other, "identity"):
                return NotImplemented
            other = Point([(cast(TensorSource, other), 1)])  # a checkpoint is the point that it is
        if not self._canonical and not other._canonical:  # a - a is b - b, if they have the same tensors
            return self.spec == other.spec
        return self._canonical == other._canonical

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Point], tuple[Any, ...]]:
        return Point, (self.terms,)  # the hash of strings is another one in another process

    def __deepcopy__(self, memo: dict[int, Any]) -> Point:
        return self  # a value, however large its checkpoints are

    # -- what it is ------------------------------------------------------------------------

    @property
    def total(self) -> Fraction:
        """Sum of the coefficients."""
        return sum((value for _, value in self.terms), Fraction(0))

    @property
    def is_model(self) -> bool:
        """Whether the coefficients sum to 1: weights a network can run with."""
        return self._sums_to(1)

    @property
    def is_direction(self) -> bool:
        """Whether the coefficients sum to 0: a task vector or another difference of models."""
        return self._sums_to(0)

    def _sums_to(self, wanted: int) -> bool:
        # t and 1 - t, computed in floats for a t that is no fraction, may miss 1 by rounding.
        size = sum((abs(value) for _, value in self.terms), Fraction(0))
        return abs(self.total - wanted) <= size * Fraction(1, 2**45)

    @property
    def is_checkpoint(self) -> bool:
        """Whether the point is one checkpoint, unchanged."""
        return len(self.terms) == 1 and self.terms[0][1] == 1

    @property
    def checkpoints(self) -> tuple[TensorSource, ...]:
        """The checkpoints combined, in canonical order."""
        return tuple(source for source, _ in self.terms)

    def coefficient(self, checkpoint: TensorSource) -> Fraction:
        """The coefficient of a checkpoint, 0 if it takes no part.

        Args:
            checkpoint: any checkpoint.

        Returns:
            Its exact coefficient.
        """
        return dict(self._canonical).get(checkpoint.identity, Fraction(0))

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Key to shape and dtype, without reading data."""
        return self.terms[0][0].spec

    def keys(self) -> Iterator[str]:
        """The tensor names.

        Returns:
            An iterator in the checkpoint's order.
        """
        return iter(self.spec)

    @property
    def digest(self) -> str:
        """Content digest (hex): of the checkpoints' contents and the coefficients."""
        lines = sorted(f"{source.digest} {value}" for source, value in self.terms)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __str__(self) -> str:
        ordered = sorted(self.terms, key=lambda term: (-abs(term[1]), term[0].name))
        text = ""
        for source, value in ordered:
            size = abs(value)
            factor = "" if size == 1 else f"{float(size):.6g}*"
            joint = (" - " if value < 0 else " + ") if text else ("-" if value < 0 else "")
            text += f"{joint}{factor}{source.name}"
        return text

    def __repr__(self) -> str:
        return f"Point({self})"

    _repr_html_, _repr_pretty_ = as_html, as_pretty

    def to_pandas(self) -> Any:
        """The checkpoints and their coefficients as a pandas table.

        Returns:
            One line a checkpoint.

        Raises:
            MergescopeError: pandas is not installed.
        """  # noqa: DOC502 (raised by what this calls)
        return frame({"checkpoint": source.name, "coefficient": float(value)} for source, value in self.terms)

    def _view(self) -> View:
        what = "A model" if self.is_model else "A direction" if self.is_direction else "No model"
        lines = tuple((source.name, figure(float(value)), str(value)) for source, value in self.terms)
        said = f"{what}: its coefficients sum to {float(self.total):g}"
        return View(said, (Table(f"Point {self}", ("checkpoint", "coefficient", "exactly"), lines),))

    # -- tensors ---------------------------------------------------------------------------

    def tensor(self, key: str) -> torch.Tensor:
        """Materialise one tensor.

        Sums are formed in float32 (float64 if the checkpoints are), in an order that does not
        depend on how the point was written, and returned in the checkpoints' dtype. One
        checkpoint with coefficient 1 is returned as it is, without rounding.

        Args:
            key: the tensor's name.

        Returns:
            The tensor; treat it as read-only, it may be a view of a mapped file.

        Raises:
            PointError: no such key, or integer entries that differ between the checkpoints.
        """
        if key not in self.spec:
            from mergescope.errors import did_you_mean

            raise PointError(f"{self!r} has no tensor {key!r}.{did_you_mean(key, self.spec)}")
        source, value = self.terms[0]
        dtype = self.spec[key].dtype
        if len(self.terms) == 1 and value == 1:
            return source.tensor(key)
        if not dtype.is_floating_point and not dtype.is_complex:
            return self._discrete(key)
        wide = dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32
        result = source.tensor(key).to(wide) * float(value)
        for source, value in self.terms[1:]:
            result.add_(source.tensor(key).to(wide), alpha=float(value))
        return result.to(dtype)

    def into(self, key: str, out: torch.Tensor) -> None:
        """Materialise one tensor in place: the values of [`tensor`][mergescope.Point.tensor], no new memory.

        Args:
            key: the tensor's name.
            out: of its shape, in any dtype and on any device.

        Raises:
            PointError: as for ``tensor``.
        """  # noqa: DOC502 (raised by what this calls)
        spec = self.spec.get(key)
        plain = spec is not None and spec.dtype == out.dtype == torch.float32 and out.device.type == "cpu"
        if not plain or not out.is_contiguous() or (len(self.terms) == 1 and self.terms[0][1] == 1):
            out.copy_(self.tensor(key))
            return
        source, value = self.terms[0]
        torch.mul(source.tensor(key), float(value), out=out)
        for source, value in self.terms[1:]:
            out.add_(source.tensor(key), alpha=float(value))

    def _discrete(self, key: str) -> torch.Tensor:
        if self.is_direction:
            return torch.zeros(self.spec[key].shape, dtype=self.spec[key].dtype)
        values = [source.tensor(key) for source, _ in self.terms]
        if all(torch.equal(values[0], other) for other in values[1:]):
            return values[0]
        if key.endswith("num_batches_tracked"):
            largest = max(range(len(values)), key=lambda i: (abs(self.terms[i][1]), -i))
            return values[largest]
        names = ", ".join(source.name for source, _ in self.terms)
        raise PointError(
            f"The integer tensor {key!r} ({self.spec[key]}) differs between {names} and can't be averaged. "
            "If these are quantised weights, dequantise them first; if it is a table of indices, the models "
            "don't share an architecture."
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor at once, for models that fit in memory.

        Returns:
            Key to tensor, as [`Point.tensor`][] gives it.
        """
        return {key: self.tensor(key) for key in self.keys()}


def _require_same_spec(sources: list[TensorSource]) -> None:
    first = sources[0]
    problems: list[str] = []
    for other in sources[1:]:
        if other.spec == first.spec:
            continue
        for key in first.spec:
            if key not in other.spec:
                problems.append(f"{key}: missing in {other.name} (in {first.name}: {first.spec[key]})")
            elif first.spec[key] != other.spec[key]:
                problems.append(
                    f"{key}: {first.spec[key]} in {first.name}, {other.spec[key]} in {other.name}"
                )
        problems += [
            f"{key}: missing in {first.name} (in {other.name}: {other.spec[key]})"
            for key in other.spec
            if key not in first.spec
        ]
    if problems:
        names = ", ".join(source.name for source in sources)
        raise MismatchError(
            f"These checkpoints can't be combined, they differ in {len(problems)} tensor(s): {names}",
            problems,
            "Combine only models of one architecture. If only dtypes differ, load them alike: "
            "Checkpoint(path, dtype='float32').",
        )


def task_vector(model: Point | TensorSource, base: Point | TensorSource) -> Point:
    """The task vector ``tau = theta - theta_0`` (TA; CTL 4.3).

    Args:
        model: the fine-tuned model.
        base: the pretrained model.

    Returns:
        A direction (its coefficients sum to 0).

    Raises:
        PointError: one of the two is not a model.
    """
    model, base = Point.of(model), Point.of(base)
    for point in (model, base):
        if not point.is_model:
            raise PointError(f"A task vector is a difference of two models, but {point!r} is not a model.")
    return model - base


def lerp(a: Point | TensorSource, b: Point | TensorSource, t: Number) -> Point:
    """The straight line from ``a`` (t = 0) to ``b`` (t = 1): ``(1 - t) a + t b``.

    Args:
        a: where the line starts.
        b: where it ends.
        t: position; outside [0, 1] it extrapolates.

    Returns:
        The point.
    """
    return (1 - exact(t)) * Point.of(a) + exact(t) * Point.of(b)


def mean(points: Iterable[Point | TensorSource]) -> Point:
    """The plain average of points, ``1/k sum_i theta_i`` (CTL 4.2).

    Args:
        points: at least one.

    Returns:
        The average.

    Raises:
        PointError: there is nothing to average.
    """
    listed = [Point.of(point) for point in points]
    if not listed:
        raise PointError("The mean of no points is not defined: pass at least one.")
    return sum(listed[1:], listed[0]) / len(listed)
