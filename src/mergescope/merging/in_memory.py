"""A merge method applied to points in memory, for those who try many merges and keep none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mergescope.errors import MergescopeError, did_you_mean
from mergescope.merging.methods import METHODS, Method, Values
from mergescope.merging.streams import Stream
from mergescope.weights import Checkpoint, Point, mean


class TensorRows:
    """A tensor in memory as rows; a scalar is one row.

    Args:
        tensor: the tensor.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape: tuple[int, ...] = tuple(tensor.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows in the stored dtype.

        Args:
            start: first row.
            stop: one past the last.

        Returns:
            A view.
        """
        return (self.tensor if self.tensor.ndim else self.tensor.reshape(1))[start:stop]


def known_method(name: str) -> Method:
    """A merge method by name.

    Args:
        name: as recipes write it.

    Returns:
        The method.

    Raises:
        MergescopeError: there is none of that name.
    """
    if name not in METHODS:
        raise MergescopeError(
            f"There is no merge method {name!r}.{did_you_mean(name, METHODS)} Methods: {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]


def parameter_values(method: Method, models: int, given: Mapping[str, Any], seed: int = 0) -> Values:
    """A method's parameters for all tensors alike.

    Args:
        method: the method.
        models: how many are merged.
        given: parameter to value; a list gives one a model. Weights are 1 where a method has no default.
        seed: of random methods.

    Returns:
        The values.

    Raises:
        MergescopeError: a parameter is unknown, missing, out of range or no number, or the method can't merge
            so many models.
    """
    if not method.least <= models <= (method.most or models):
        wanted = f"at least {method.least}" if models < method.least else f"at most {method.most}"
        raise MergescopeError(
            f"The method {method.name} merges {wanted} models besides the base, not {models}."
        )
    known = {parameter.name: parameter for parameter in method.parameters}
    for name in given:
        if name not in known:
            raise MergescopeError(
                f"The method {method.name} has no parameter {name!r}.{did_you_mean(name, known)} Parameters: "
                f"{', '.join(known) or 'none'}."
            )
    per_model: dict[str, list[float]] = {}
    common: dict[str, Any] = {}
    for name, parameter in known.items():
        value = given.get(name, 1.0 if name == "weight" and parameter.default is None else parameter.default)
        if value is None:
            raise MergescopeError(f"The method {method.name} needs {name}: {parameter.meaning}.")
        every = list(value) if isinstance(value, (list, tuple)) else [value] * models
        bad = [
            one
            for one in every
            if not isinstance(one, (int, float)) or not parameter.low <= one <= parameter.high
        ]
        if bad or len(every) != models or (isinstance(value, (list, tuple)) and not parameter.per_model):
            raise MergescopeError(
                f"The method {method.name} can't have {name} = {value!r}: give a number from {parameter.low:g} to "
                f"{parameter.high:g}{', or one a model' if parameter.per_model else ''}."
            )
        if parameter.per_model:
            per_model[name] = every
        else:
            common[name] = round(value) if parameter.kind == "integer" else value
    values = Values(per_model, common, seed)
    method.check(values)
    return values


@torch.no_grad()
def merge_in_memory(
    name: str,
    models: Sequence[Any],
    base: Any = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Checkpoint:
    """Merge models tensor by tensor, as [`merge`][mergescope.merging.merge.merge] does, into memory.

    Args:
        name: the method.
        models: points or checkpoints with the same tensors.
        base: the pretrained model, for methods that have one.
        parameters: of the method, the same for all tensors.
        seed: of random methods.

    Returns:
        The merged model, in the models' types.

    Raises:
        MergescopeError: there is no such method, or it can't be used so.
        PointError: integers differ between the models.

    Example:
        >>> from mergescope import Checkpoint
        >>> base, a, b = (Checkpoint({"w": torch.full((2,), float(value))}) for value in (0, 1, 3))
        >>> merge_in_memory("task_arithmetic", [a, b], base, {"lambda": 0.5}).tensor("w")
        tensor([2., 2.])
    """  # noqa: DOC502 (raised by what this calls)
    method = known_method(name)
    values = parameter_values(method, len(models), parameters or {}, seed)
    if base is None and method.base == "required":
        raise MergescopeError(f"The method {name} needs a base model.")
    points, start = [Point.of(model) for model in models], None if base is None else Point.of(base)
    whole = mean([*points, *([] if start is None else [start])])  # refuses models with other tensors
    merged = {}
    for key, spec in whole.spec.items():
        if not spec.dtype.is_floating_point:
            merged[key] = whole.tensor(key)
            continue
        own = None if start is None or method.base == "none" else TensorRows(start.tensor(key))
        stream = Stream(key, [TensorRows(point.tensor(key)) for point in points], own, whole=method.whole)
        apply = method.build(stream, values)
        rows = [apply(chunk).reshape(-1) for chunk in stream]
        merged[key] = torch.cat(rows).reshape(spec.shape).to(spec.dtype)
    return Checkpoint(merged, name=name)
