"""What follows each block of a network, run alone on other features.

The output of a block is replaced, and what follows runs as it is. Blocks up to it need not run for that: what
they return is known from one plain pass, and they give it again. So anything else that later modules take of
them (masks, T5's position bias, skip connections, an encoder's states) is the network's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, feature_of, find_layers
from mergescope.tracing.swapping import forwards


class Rest:
    """The network as it is, from each block on, for one batch.

    Args:
        model: the network.
        layers: its blocks, in the order in which they run.
        features: how it is called.
        inputs: of the batch.

    Attributes:
        result: what the network returns.
        states: layer to the hidden state that it returns.

    Example:
        >>> from mergescope.models import MLP
        >>> net = MLP((4, 3, 2))
        >>> rest = Rest(net, ["blocks.0"], Features.of(net), torch.ones(1, 4))
        >>> bool((rest.after("blocks.0", rest.states["blocks.0"]) == rest.result).all())
        True
        >>> bool((rest.after("blocks.0", torch.zeros(1, 3)) == net.head.bias).all())
        True
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], features: Features, inputs: Any) -> None:
        self._model, self._layers, self._features, self._inputs = model, list(layers), features, inputs
        self._modules = {name: model.get_submodule(name) for name in layers}
        self._returned: dict[str, Any] = {}
        handles = [module.register_forward_hook(self._record(name)) for name, module in self._modules.items()]
        try:
            self.result = features.call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.states = {name: feature_of(value, name) for name, value in self._returned.items()}

    def _record(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            # A copy: later modules may work in place on what this one returned.
            self._returned[name] = _replaced(output, name, feature_of(output, name).clone())

        return record

    def after(self, layer: str, hidden: torch.Tensor) -> Any:
        """Run what follows a block.

        Args:
            layer: the block.
            hidden: what it is to return.

        Returns:
            What the network returns.
        """
        given = {name: self._returned[name] for name in self._layers[: self._layers.index(layer) + 1]}
        given[layer] = _replaced(given[layer], layer, hidden)

        def stand_in(name: str) -> Callable[..., Any]:
            def repeated(*args: Any, **kwargs: Any) -> Any:
                return _replaced(given[name], name, feature_of(given[name], name).clone())

            return repeated

        with forwards({name: stand_in(name) for name in given}, self._modules):
            return self._features.call(self._model, self._inputs)


def _replaced(returned: Any, name: str, hidden: torch.Tensor) -> Any:
    """What a block returned, with another feature.

    Returns:
        The same structure.

    Raises:
        LayerError: the structure is not known.
    """
    if isinstance(returned, torch.Tensor):
        return hidden
    if type(returned) not in (tuple, list):
        raise LayerError(
            f"The block {name!r} returns a {type(returned).__name__}, of which the feature can't be replaced. Choose "
            "layers that return a tensor, or a tuple that starts with one."
        )
    feature = feature_of(returned, name)
    return type(returned)(hidden if value is feature else value for value in returned)


def blocks_of(model: nn.Module, layers: str | Sequence[str] = "blocks") -> list[str]:
    """The layers that a network can be stitched after.

    Args:
        model: the network.
        layers: as for [`trace`][mergescope.trace]; the output, which nothing follows, is left out.

    Returns:
        Module names.

    Raises:
        LayerError: a layer is within another, or only the output is chosen.

    Example:
        >>> from mergescope.models import MLP
        >>> blocks_of(MLP())
        ['blocks.0', 'blocks.1']
    """
    chosen = [name for name in find_layers(model, layers) if name != OUTPUT]
    if not chosen:
        raise LayerError("Nothing follows the output, so nothing can be stitched there. Choose blocks.")
    for name in chosen:
        inner = next((other for other in chosen if other.startswith(f"{name}.")), None)
        if inner is not None:
            raise LayerError(f"The layer {inner!r} is within {name!r}. Choose one of the two.")
    return chosen
