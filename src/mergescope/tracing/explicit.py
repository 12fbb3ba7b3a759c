"""Normalisations and activations written out, so that derivatives of derivatives exist and are right.

torch's fused normalisations have a forward-mode derivative, but that of layer_norm, instance_norm and
batch_norm on batch statistics is made of saved values that are taken for constants when it is
differentiated again: the second derivative comes out wrong, without any error. And batch_norm takes no
derivative with respect to running statistics, which merging combines like weights.

The forward-mode derivatives of silu (of Llama and its kin), mish, glu and hardsigmoid can't be
differentiated again at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``F.layer_norm`` by elementary operations, computed in at least float32 as that is.

    Args:
        input: ``(..., *normalized_shape)``.
        normalized_shape: the last dimensions.
        weight: of that shape, or None.
        bias: of that shape, or None.
        eps: added to the variance.

    Returns:
        The shape of the input.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 6.0]])
        >>> torch.allclose(layer_norm(x, (3,)), F.layer_norm(x, (3,)))
        True
    """
    dims = tuple(range(-len(normalized_shape), 0))
    return _scaled(_normalised(input, dims, eps), weight, bias, input.dtype)


def batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``F.batch_norm`` by elementary operations. Running statistics are never updated.

    Args:
        input: ``(batch, channels, ...)``.
        running_mean: ``(channels,)``, used unless ``training``.
        running_var: ``(channels,)``, likewise.
        weight: ``(channels,)`` or None.
        bias: ``(channels,)`` or None.
        training: use the statistics of the batch.
        momentum: not used.
        eps: added to the variance.

    Returns:
        The shape of the input.

    Example:
        >>> x, mean, var = torch.randn(4, 2), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
        >>> torch.allclose(batch_norm(x, mean, var), F.batch_norm(x, mean, var), atol=1e-6)
        True
    """
    shape = (1, -1, *(1 for _ in input.shape[2:]))
    if training or running_mean is None or running_var is None:
        value = _normalised(input, (0, *range(2, input.ndim)), eps)
    else:
        wide = torch.promote_types(input.dtype, torch.float32)
        mean, variance = (entry.to(wide).view(shape) for entry in (running_mean, running_var))
        value = (input.to(wide) - mean) * (variance + eps).rsqrt()
    return _scaled(value, _shaped(weight, shape), _shaped(bias, shape), input.dtype)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """``F.instance_norm`` by elementary operations.

    Args:
        input: ``(batch, channels, ...)``.
        running_mean: ``(channels,)``, used unless ``use_input_stats``.
        running_var: ``(channels,)``, likewise.
        weight: ``(channels,)`` or None.
        bias: ``(channels,)`` or None.
        use_input_stats: use the statistics of each sample.
        momentum: not used.
        eps: added to the variance.

    Returns:
        The shape of the input.

    Example:
        >>> x = torch.randn(2, 3, 5)
        >>> torch.allclose(instance_norm(x), F.instance_norm(x), atol=1e-6)
        True
    """
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = (1, -1, *(1 for _ in input.shape[2:]))
    value = _normalised(input, tuple(range(2, input.ndim)), eps)
    return _scaled(value, _shaped(weight, shape), _shaped(bias, shape), input.dtype)


def silu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """``F.silu`` by elementary operations, computed in at least float32 as that is.

    Args:
        input: any shape.
        inplace: not used.

    Returns:
        The shape of the input.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0])
        >>> torch.allclose(silu(x), F.silu(x))
        True
    """
    wide = _wide(input)
    return (wide * wide.sigmoid()).to(input.dtype)


def mish(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """``F.mish`` likewise.

    Args:
        input: any shape.
        inplace: not used.

    Returns:
        The shape of the input.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0])
        >>> torch.allclose(mish(x), F.mish(x))
        True
    """
    wide = _wide(input)
    return (wide * F.softplus(wide).tanh()).to(input.dtype)


def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """``F.glu`` likewise.

    Args:
        input: an even number of entries along ``dim``.
        dim: which is halved.

    Returns:
        The shape of the input, half as long along ``dim``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
        >>> torch.allclose(glu(x), F.glu(x))
        True
    """
    value, gate = _wide(input).chunk(2, dim)
    return (value * gate.sigmoid()).to(input.dtype)


def hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """``F.hardsigmoid`` likewise.

    Args:
        input: any shape.
        inplace: not used.

    Returns:
        The shape of the input.

    Example:
        >>> x = torch.tensor([-4.0, 0.0, 2.0])
        >>> torch.allclose(hardsigmoid(x), F.hardsigmoid(x))
        True
    """
    return (F.relu6(_wide(input) + 3) / 6).to(input.dtype)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _normalised(value: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    wide = _wide(value)
    centred = wide - wide.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _shaped(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    return None if value is None else value.view(shape)


def _scaled(
    value: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    if weight is not None:
        value = value * weight
    return (value if bias is None else value + bias).to(dtype)


def _reordered(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(input: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> torch.Tensor:
        return function(
            input, mean, variance, weight, bias, *rest[:3]
        )  # the last says whether cuDNN may be used

    return call


EXPLICIT: Mapping[Any, Callable[..., torch.Tensor]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch.layer_norm: lambda *values, **named: layer_norm(*values[:5], **named),
    torch.batch_norm: _reordered(batch_norm),
    torch.instance_norm: _reordered(instance_norm),
    F.silu: silu,
    F.mish: mish,
    F.glu: glu,
    F.hardsigmoid: hardsigmoid,
}
"""Functions of torch to what is called in their place."""


class ExplicitOperations(TorchFunctionMode):
    """While it is entered, normalisations and some activations are computed by elementary operations.

    Example:
        >>> x, v = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 0.0])
        >>> def slope(x):
        ...     return torch.func.jvp(lambda x: F.layer_norm(x, (3,)), (x,), (v,))[1]
        >>> with ExplicitOperations():
        ...     _, curvature = torch.func.jvp(slope, (x,), (v,))
        >>> step = 1e-2 * v
        >>> torch.allclose(curvature, (slope(x + step) - slope(x - step)) / 2e-2, atol=1e-3)
        True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or what takes its place.

        Args:
            func: the function.
            types: not used.
            args: of the call.
            kwargs: of the call.

        Returns:
            What it returns.
        """
        return EXPLICIT.get(func, func)(*args, **(kwargs or {}))
