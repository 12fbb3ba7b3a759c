"""A network linearised around its pretrained weights (TANGENT; ATTN, section 3).

``f_lin(x; theta) = f(x; th_0) + J(x; th_0) (theta - th_0)``, one Jacobian-vector product a forward
pass. What follows of it:

- Outputs, and the features of every layer, are affine in theta: Cross-Task Linearity holds exactly,
  and a grid of coefficients follows from ``f_0`` and one ``J tau`` a task vector.
- The mode is fixed: dropout off, BatchNorm by the running statistics of th_0, in training as in
  evaluation. Otherwise what is trained would not be what is measured.
- The backward pass is the ordinary one at th_0. A training step costs one forward pass, two more for
  the tangents, and one backward pass, and keeps the activations of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError, MergescopeError
from mergescope.models.layers import OUTPUT, find_layers
from mergescope.models.loading import key_map, load_weights
from mergescope.models.with_head import WithHead
from mergescope.training.kernels import differentiable_kernels, make_differentiable
from mergescope.training.origins import require_origin
from mergescope.training.recomputing import recomputed
from mergescope.training.tangents import Anchored, Collected, HookCalls, called_with, tangents_kept_plain
from mergescope.weights import Point
from mergescope.weights.point import TensorSource

FORWARDED = frozenset({
    "_keys_to_ignore_on_load_unexpected", "_weight_conversions", "base_model_prefix", "config", "main_input_name",
    "model_type", "settings",
})  # fmt: skip
"""What is asked of a network besides calling it. Nothing else: ``generate`` would run f itself."""


class Linearized(nn.Module):
    """``f(x; th_0) + J(x; th_0) (theta - th_0)`` as a network with the parameters theta.

    It takes the network over: theta are the network's own parameters, under the same names, and the
    modules are the network's own. So state dicts, layer patterns and hooks work as before, and a
    forward hook on a module is given the *linearised* feature ``f_l + J_l (theta - th_0)``. th_0 is
    a copy of the weights at construction and never changes.

    Returned are the network's own structures (tensors, tuples, ModelOutputs) with every tensor
    linearised. There is no cache, no second derivative, and no loss: from ``labels`` an
    encoder-decoder makes its decoder's input only. Autocast works as for any network.

    Args:
        network: the network, with th_0 as its weights. It is put into evaluation mode.
        checkpointing: recompute blocks in the backward pass in place of keeping their activations.

    Attributes:
        network: the network itself; calling it gives f(x; theta), not linearised.
        origin: th_0: parameters and buffers by state-dict name.
        affine: True: outputs and features are affine in the weights.
        notes: what was replaced in the network so that it can be differentiated, and why.

    Raises:
        MergescopeError: the network is linearised already.
        LayerError: ``checkpointing`` and the network's blocks aren't known.

    Example:
        >>> from mergescope import MLP
        >>> _ = torch.manual_seed(0)
        >>> f = Linearized(MLP((4, 3, 2)))
        >>> x, theta = torch.ones(1, 4), f.state_dict()
        >>> zero = f(x).detach()
        >>> with torch.no_grad():
        ...     _ = f.head.weight.add_(1.0); one = f(x); _ = f.head.weight.add_(1.0); two = f(x)
        >>> torch.allclose(two - one, one - zero)
        True
    """

    affine = True
    origin: dict[str, torch.Tensor]
    network: nn.Module

    def __init__(self, network: nn.Module, *, checkpointing: bool = False) -> None:
        super().__init__()
        if isinstance(network, Linearized):
            raise MergescopeError(f"{type(network.network).__name__} is linearised already.")
        network.eval()
        self.__dict__["network"] = network  # not as a submodule, which would add to every name
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = getattr(network, table)
        held = {**dict(network.named_parameters()), **_statistics(network)}
        self.origin = {
            name: value.detach().clone() for name, value in held.items() if value.is_floating_point()
        }
        self.notes = make_differentiable(network)
        accepted = inspect.signature(network.forward).parameters
        self._caches = "use_cache" in accepted
        self._blocks: list[str] = []
        if checkpointing or _is_checkpointing(network):
            self.gradient_checkpointing_enable()

    @staticmethod
    def from_point(
        network: nn.Module,
        base: Point | TensorSource,
        point: Point | TensorSource,
        fixed: Collection[str] = (),
    ) -> nn.Module:
        """Evaluate any point in the model linearised around a base ("post-hoc", TANGENT section 3).

        Args:
            network: the architecture; its weights are overwritten.
            base: th_0.
            point: theta, however it was trained.
            fixed: state-dict entries that neither fills: a task's own head.

        Returns:
            The linearised network at the point (see [`linearize`][]).

        Raises:
            MismatchError: keys or shapes don't fit, or the point was linearised around another base.

        Example:
            >>> from mergescope import MLP, Checkpoint
            >>> net = MLP((4, 3, 2))
            >>> base = Checkpoint(net.state_dict(), name="base")
            >>> f = Linearized.from_point(net, base, base * 1.0)
            >>> f(torch.ones(1, 4)).shape
            torch.Size([1, 2])
        """  # noqa: DOC502 (raised by what this calls)
        require_origin(point, base)
        model = linearized_network(network, base, fixed)
        load_weights(model, point, key_map(model, point, fixed))
        return model

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return bool(self._blocks)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute blocks in the backward pass.

        Args:
            **options: as transformers' networks take; blocks are recomputed in one way only.

        Raises:
            LayerError: the network's blocks aren't known.
        """
        try:
            self._blocks = [name for name in find_layers(self.network, "blocks") if name != OUTPUT]
        except LayerError as error:
            raise LayerError(f"Gradient checkpointing recomputes blocks. {error}") from error

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        self._blocks = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate ``f(x; th_0) + J(x; th_0) (theta - th_0)``.

        Args:
            *args: as the network takes them.
            **kwargs: likewise.

        Returns:
            What the network returns, every tensor linearised.

        Raises:
            MergescopeError: an argument asks for what is not linear, a module is in training mode, or
                an operation of the network has no forward-mode derivative.
        """  # noqa: DOC502 (raised by what this calls)
        kwargs = self._checked(kwargs)
        graph = torch.is_grad_enabled()
        thetas = [
            (value, self.origin[name])
            for name, value in self.network.named_parameters()
            if name in self.origin
        ]
        statistics = {
            id(value): self.origin[name]
            for name, value in _statistics(self.network).items()
            if name in self.origin
        }
        found = Collected()
        hooks = HookCalls(self.network, found)
        kept: list[Any] = []

        def run(*weights: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            swaps = statistics | {
                id(theta): weight for (theta, _), weight in zip(thetas, weights, strict=True)
            }
            with ExitStack() as stack:
                stack.enter_context(hooks.held_back())
                stack.enter_context(tangents_kept_plain())
                if graph:
                    stack.enter_context(recomputed(self.network, self._blocks))
                result = called_with(self.network, swaps, args, kwargs)
            kept.append(found.take(result, strict=type(self.network).__name__))
            return found.duals, found.constants

        anchored = [
            Anchored.apply(theta, origin) if graph and theta.requires_grad else origin
            for theta, origin in thetas
        ]
        taus = [theta.detach() - origin for theta, origin in thetas]
        with differentiable_kernels(type(self.network).__name__):
            found.finish(*torch.func.jvp(run, tuple(anchored), tuple(taus), has_aux=True))
        hooks.make()
        return found.put(kept[0])

    def train(self, mode: bool = True) -> Linearized:
        """Set the wrapper's flag; the network stays in evaluation mode.

        Args:
            mode: the flag.

        Returns:
            This network.
        """
        self.network.eval()
        self.training = mode
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The network's modules, itself the first: names in files depend on its class.

        Args:
            memo: modules seen.
            prefix: of all names.
            remove_duplicate: each module once.

        Returns:
            Names and modules.
        """
        return self.network.named_modules(memo, prefix, remove_duplicate)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in FORWARDED:
                return getattr(self.network, name)
            raise

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Linearized:
        super()._apply(fn, recurse)
        self.origin = {name: fn(value) for name, value in self.origin.items()}
        return self

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        name = type(self.network).__name__
        labels = kwargs.get("labels")
        if labels is not None:
            shift: Any = getattr(self.network, "prepare_decoder_input_ids_from_labels", None)
            if shift is None:
                raise MergescopeError(
                    f"labels= makes {name} return a loss, which would be linearised as well. Leave labels out, and "
                    "compute the loss from the logits."
                )
            given = {key: value for key, value in kwargs.items() if key != "labels"}
            kwargs = {"decoder_input_ids": shift(labels=labels), **given}
        if self._caches:
            if kwargs.get("use_cache") or kwargs.get("past_key_values") is not None:
                raise MergescopeError(
                    f"A linearised {name} keeps no cache. Leave use_cache and past_key_values out."
                )
            kwargs = {**kwargs, "use_cache": False}
        busy = next((place for place, module in self.network.named_modules() if module.training), None)
        if busy is not None:
            raise MergescopeError(
                f"The module {busy!r} of a linearised {name} is in training mode, where dropout and BatchNorm make "
                "another function of every batch. Call eval() on it; to train a linearised network needs no mode. "
                "BatchNorm statistics are those of th_0 and can't be re-estimated (leave calibration out)."
            )
        return kwargs


def linearize(model: nn.Module, *, checkpointing: bool = False) -> nn.Module:
    """Linearise a network around its present weights; of a backbone with a head, the backbone.

    In TANGENT, f is the representation: a head that normalises embeddings comes after f_lin.

    Args:
        model: the network.
        checkpointing: recompute blocks in the backward pass.

    Returns:
        A [`Linearized`][], or the [`WithHead`][mergescope.models.with_head.WithHead] that was given,
        its backbone replaced by one.

    Example:
        >>> from mergescope.models.heads import linear_head
        >>> model = linearize(WithHead(nn.Linear(5, 4), linear_head(4, ["cat", "dog"], seed=0)))
        >>> type(model).__name__, type(model.backbone).__name__
        ('WithHead', 'Linearized')
    """
    if not isinstance(model, WithHead):
        return Linearized(model, checkpointing=checkpointing)
    model.backbone = Linearized(model.backbone, checkpointing=checkpointing)
    return model


def linearized_network(
    network: nn.Module, base: Point | TensorSource, fixed: Collection[str] = ()
) -> nn.Module:
    """The network in which [`trace`][mergescope.trace] evaluates points linearised around a base.

    Features, and outputs but those of a head that normalises, are then affine in the weights.

    Args:
        network: the architecture; its weights are overwritten.
        base: th_0.
        fixed: state-dict entries that the base does not fill: a task's own head.

    Returns:
        The linearised network, at the base (see [`linearize`][]).

    Raises:
        MismatchError: keys or shapes don't fit.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 8, 2))
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> a, b = (ms.random_neighbour(base, base * 1.1, seed=seed) for seed in (0, 1))
        >>> test = ms.ctl(a, b)
        >>> traced = ms.trace(test.points, [torch.ones(3, 4)], linearized_network(net, base))
        >>> round(ms.linearity(traced, test)["output"].measures["gap"].mean, 3)
        0.0
    """  # noqa: DOC502 (raised by what this calls)
    load_weights(network, base, key_map(network, base, fixed))
    return linearize(network)


def _is_checkpointing(network: nn.Module) -> bool:
    # transformers 4 and 5 have one name each for it; asking for the old one warns.
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")
    name = next((name for name in names if hasattr(type(network), name)), None)
    return name is not None and bool(getattr(network, name))


def _statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    entries = network.state_dict(keep_vars=True)  # without buffers that follow from the configuration
    return {name: value for name, value in network.named_buffers() if name in entries}
