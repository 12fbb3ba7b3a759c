"""Drives one method over tensors in memory, with defaults for what a recipe would give."""

import torch

from mergescope.merging.methods import METHODS, Values
from mergescope.merging.streams import Stream

REQUIRED = {"t": 0.3}
SHAPES = [(), (1,), (7,), (1, 1), (1, 9), (9, 1), (6, 5), (3, 4, 2, 2), (2, 3, 4), (40, 30)]


class Whole:
    """Rows of a tensor in memory."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def rows(self, start, stop):
        return self.tensor.reshape(self.shape or (1,))[start:stop]


def values_for(name, count, seed=0, **given):
    per_model, common = {}, {}
    for parameter in METHODS[name].parameters:
        default = 1 / count if parameter.name == "weight" else parameter.default
        value = given.pop(parameter.name, REQUIRED.get(parameter.name) if default is None else default)
        if parameter.per_model:
            per_model[parameter.name] = list(value) if isinstance(value, list | tuple) else [value] * count
        else:
            common[parameter.name] = value
    assert not given, f"{name} has no {list(given)}"
    return Values(per_model, common, seed)


def stream_of(models, base=None, whole=False, name="w"):
    return Stream(name, [Whole(model) for model in models], None if base is None else Whole(base), whole)


def run(name, models, base=None, *, seed=0, tensor="w", reverse=False, **given):
    """Merge with a method; the base is left out if the method has none."""
    method = METHODS[name]
    base = None if method.base == "none" else base
    values = values_for(name, len(models), seed, **given)
    method.check(values)
    stream = stream_of(models, base, method.whole, tensor)
    apply = method.build(stream, values)
    parts = {chunk.start: apply(chunk) for chunk in (reversed(list(stream)) if reverse else stream)}
    return torch.cat([parts[start] for start in sorted(parts)]).reshape(stream.shape)


def has(name, parameter):
    return any(item.name == parameter for item in METHODS[name].parameters)


def sparse(name):
    """``density`` for methods that drop entries (task_arithmetic only accepts it)."""
    return {"density": 0.5} if has(name, "density") and name != "task_arithmetic" else {}


def count_of(name, most=3):
    method = METHODS[name]
    return max(method.least, min(most, method.most or most))


def family(shape, count=3, seed=0, scale=0.1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=dtype)
    return base, [base + scale * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]
