"""What a merge method is: one function on a stream of tensors, with its parameters declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mergescope.merging.streams import Apply, Stream


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        name: as recipes write it.
        default: its value if no recipe level gives one; None makes it required.
        per_model: one value a model (``weight``, ``density``) or one for the merge.
        kind: the values it takes.
        low: smallest number allowed.
        high: largest number allowed.
        meaning: one line.
    """

    name: str
    default: float | bool | int | None
    per_model: bool = False
    kind: Literal["number", "integer", "flag"] = "number"
    low: float = float("-inf")
    high: float = float("inf")
    meaning: str = ""


WEIGHT = Parameter("weight", None, per_model=True, meaning="share of the model, or scale of its task vector")
DENSITY = Parameter(
    "density", 1.0, per_model=True, low=0, high=1, meaning="share of the task vector's entries kept"
)
LAMBDA = Parameter("lambda", 1.0, meaning="scale of the merged task vector")
INT8_MASK = Parameter("int8_mask", False, kind="flag", meaning="accepted for mergekit's sake, without effect")


def normalize(default: bool) -> Parameter:
    """The parameter that divides by the sum of the weights.

    Args:
        default: its default, which differs between methods.

    Returns:
        The parameter.
    """
    return Parameter("normalize", default, kind="flag", meaning="divide by the sum of the weights")


@dataclass(frozen=True)
class Values:
    """The resolved parameters of one tensor.

    Attributes:
        per_model: name to one value a model, in the models' order.
        common: name to value.
        seed: for methods that draw random numbers.
    """

    per_model: dict[str, list[float]] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def weights(self) -> list[float]:
        """The models' weights."""
        return self.per_model["weight"]

    def __getitem__(self, name: str) -> Any:
        return self.common[name]


Build = Callable[[Stream, Values], Apply]
Check = Callable[[Values], object]
"""Raises a MergescopeError, or returns whatever it likes."""


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        name: as recipes write it.
        build: looks at a stream as often as it needs and returns the function that merges a chunk.
        least: fewest models, the base not counted.
        most: most models, or None.
        base: whether a base model is required, optional or not used.
        parameters: what recipes may set.
        whole: needs each tensor as one chunk.
        random: draws random numbers.
        source: paper.
        check: refuses a tensor's parameters that don't go together, before anything is merged.
    """

    name: str
    build: Build
    least: int
    most: int | None
    base: Literal["required", "optional", "none"]
    parameters: tuple[Parameter, ...]
    whole: bool
    random: bool
    source: str
    check: Check

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.build.__doc__ or "").strip().split("\n", 1)[0]


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    parameters: Iterable[Parameter],
    base: Literal["required", "optional", "none"],
    source: str,
    least: int = 1,
    most: int | None = None,
    whole: bool = False,
    random: bool = False,
    check: Check = lambda values: None,
) -> Callable[[Build], Build]:
    """Register a merge method.

    Args:
        name: as recipes write it.
        parameters: what recipes may set.
        base: whether a base model is required, optional or not used.
        source: the paper.
        least: fewest models, the base not counted.
        most: most models, or None.
        whole: needs each tensor as one chunk.
        random: draws random numbers.
        check: refuses a tensor's parameters that don't go together, before anything is merged.

    Returns:
        A decorator that leaves the function as it is.
    """

    def register(build: Build) -> Build:
        METHODS[name] = Method(
            name, build, least, most, base, tuple(parameters), whole, random, source, check
        )
        return build

    return register
