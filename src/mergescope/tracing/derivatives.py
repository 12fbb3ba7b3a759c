"""First and second derivatives of all captured features along task vectors, for one batch.

``J tau_k`` and ``f''[tau_k, tau_l]`` at th_0 (CTL, Theorem 5.1), in one of two ways:

- ``"jvp"``: a Jacobian-vector product of a Jacobian-vector product, exact up to rounding. Several ``tau_k``
  are mapped over inside several ``tau_l``: what depends on one of them only, or on none, is computed once for
  the whole block, so of ``K (K + 1) / 2`` second derivatives each costs less than when it is taken alone.
  Directional second derivatives and the polarisation identity would be as many passes, which share less.
- ``"differences"``: central differences through ``1 + K + K^2`` networks near th_0. Two passes a second
  derivative, but the fourth order enters, and rounding over the squared step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mergescope.errors import LayerError, MergescopeError, did_you_mean
from mergescope.models.features import Features
from mergescope.models.layers import OUTPUT, feature_of
from mergescope.tracing.explicit import ExplicitOperations
from mergescope.training.kernels import differentiable_kernels
from mergescope.training.tangents import called_with
from mergescope.weights import Point

METHODS = ("jvp", "differences")
"""How derivatives can be taken."""

OTHERWISE = "Take differences instead: --method differences, or method='differences' in Python."
"""What to do about a network that has no exact second derivatives."""

FIRST, MAPPED = 2, 4
"""Inner and outer directions that are mapped over together: more share more, and take more memory. A block of
two by four has at most one derivative that is not wanted, since it is there already with its directions swapped."""

Rows = dict[str, torch.Tensor]
"""Layer to ``(rows, dim)``; the network's own output is among them."""

Direction = dict[int, torch.Tensor]
"""Identity of a parameter or buffer to its part of a task vector; without those that do not move."""


@contextmanager
def recorded(
    model: nn.Module, layers: Sequence[str], reduce: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[Rows]:
    """Record what layers return, with its derivatives.

    Args:
        model: the network.
        layers: module names.
        reduce: layer name and output to ``(rows, dim)``.

    Yields:
        A dictionary that one forward pass fills.

    Raises:
        LayerError: a layer ran more than once in the pass.
    """  # noqa: DOC502 (raised in a hook)
    found: Rows = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if name in found:
                raise LayerError(
                    f"The layer {name!r} runs more than once in a forward pass, so it has no single feature. "
                    "Choose layers that run once."
                )
            # A copy: later layers may work in place on what this one returned.
            found[name] = reduce(name, feature_of(output, name)).clone()

        return record

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in layers if name != OUTPUT]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Derivatives:
    """The derivatives of a network's features at a base.

    Args:
        model: the network, in evaluation mode, with the base's weights; they are copied.
        mapping: state-dict names to checkpoint keys.
        layers: the captured layers; the output is always captured.
        features: the convention.
        vectors: name to task vector.
        method: one of [`METHODS`][].
        step: of the differences, in task vectors.
        held: bytes of task vectors that may be kept in memory; more are read for each use, and networks whose
            directions are more than that are differentiated along one at a time.

    Raises:
        MergescopeError: there is no such method, or the step is not positive.

    Example:
        >>> import mergescope as ms
        >>> net = ms.MLP((4, 3, 2)).eval()
        >>> base = ms.Checkpoint(net.state_dict(), name="base")
        >>> tau = ms.random_neighbour(base, base * 1.1, seed=0) - base
        >>> made = Derivatives(net, {key: key for key in net.state_dict()}, [], Features(), {"a": tau})
        >>> found = made.of(torch.ones(5, 4))
        >>> list(found), found["a", "a"]["output"].shape
        ([(), ('a',), ('a', 'a')], torch.Size([5, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        mapping: Mapping[str, str],
        layers: Sequence[str],
        features: Features,
        vectors: Mapping[str, Point],
        *,
        method: str = "jvp",
        step: float = 0.25,
        held: int = 2**30,
    ) -> None:
        if method not in METHODS:
            raise MergescopeError(
                f"There is no way {method!r} to take derivatives.{did_you_mean(method, METHODS)} Choose one of "
                f"{', '.join(METHODS)}."
            )
        if step <= 0:
            raise MergescopeError(f"The step of differences is {step:g}. Give one above 0, such as 0.25.")
        self.model, self.layers, self.features, self.vectors = model, list(layers), features, vectors
        self.method, self.step = method, step
        self.derivatives = self.forward_passes = 0
        entries = model.state_dict(keep_vars=True)
        self._keys = {
            id(entries[name]): key for name, key in mapping.items() if entries[name].is_floating_point()
        }
        self.base = {
            id(entry): entry.detach().clone() for entry in entries.values() if id(entry) in self._keys
        }
        self._kept: dict[str, Direction] = {}
        self._room = held
        # A block holds its directions once more, and what layers make of them: too much for large networks.
        self._maps = (FIRST + MAPPED) * sum(value.nbytes for value in self.base.values()) <= held

    def direction(self, name: str) -> Direction:
        """A task vector's tensors.

        Args:
            name: of the task vector.

        Returns:
            Those that move.
        """
        if name in self._kept:
            return self._kept[name]
        found = {}
        for place, key in self._keys.items():
            value = self.vectors[name].tensor(key).to(self.base[place])
            if value.any():
                found[place] = value
        taken = sum(value.nbytes for value in found.values())
        if taken <= self._room:
            self._room -= taken
            self._kept[name] = found
        return found

    @torch.no_grad()
    def of(self, inputs: Any) -> dict[tuple[str, ...], Rows]:
        """All derivatives for a batch.

        Args:
            inputs: of the batch.

        Returns:
            ``()`` to ``f_0``, ``(k,)`` to ``J tau_k``, ``(k, l)`` to ``f''[tau_k, tau_l]``, where ``k`` does not
            come after ``l``.

        Raises:
            MergescopeError: an operation of the network has no forward-mode derivative.
        """  # noqa: DOC502 (raised by what this calls)
        with differentiable_kernels(type(self.model).__name__, OTHERWISE):
            zero = self.run(inputs, {})
            self.forward_passes += 1
            names = list(self.vectors)
            made = self._by_jvp if self.method == "jvp" else self._by_differences
            found = made(inputs, names, zero)
        pairs = [(one, other) for place, one in enumerate(names) for other in names[place:]]
        return {term: found[term] for term in [(), *((name,) for name in names), *pairs]}

    def run(self, inputs: Any, swaps: Mapping[int, torch.Tensor]) -> Rows:
        """A pass at the base, or with some tensors replaced.

        Args:
            inputs: of the batch.
            swaps: identity of a parameter or buffer to what is in its place.

        Returns:
            Features and output.
        """
        values = {**self.base, **swaps}

        def call(*args: Any, **kwargs: Any) -> Any:
            return called_with(self.model, values, args, kwargs)

        def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
            return self.features.rows(layer, value, inputs)

        model: Any = call
        with ExplicitOperations(), recorded(self.model, self.layers, reduce) as found:
            result = self.features.call(model, inputs)
            return {**found, OUTPUT: self.features.output_rows(result, inputs)}

    def _by_jvp(self, inputs: Any, names: Sequence[str], zero: Rows) -> dict[tuple[str, ...], Rows]:
        still = {layer: torch.zeros_like(rows) for layer, rows in zero.items()}
        found: dict[tuple[str, ...], Rows] = {(): zero}
        moving = [name for name in names if self.direction(name)]
        for begin in range(0, len(moving), FIRST):
            firsts = moving[begin : begin + FIRST]
            for start in range(begin, len(moving), MAPPED):
                found |= self._block(inputs, firsts, moving[start : start + MAPPED])
        every = [(name,) for name in names]
        pairs = [(one, other) for place, one in enumerate(names) for other in names[place:]]
        self.derivatives += sum(pair in found for pair in pairs)
        return {term: found.get(term, still) for term in [(), *every, *pairs]}

    def _block(
        self, inputs: Any, firsts: Sequence[str], seconds: Sequence[str]
    ) -> dict[tuple[str, ...], Rows]:
        wanted = [(one, other) for one in firsts for other in seconds]
        if self._maps:
            inner, outer = ([self.direction(name) for name in some] for some in (firsts, seconds))
            try:
                slopes, curvatures = self._mapped(inputs, inner, outer)
            except RuntimeError as error:
                if isinstance(error, NotImplementedError) or "vmap" not in str(error):
                    raise
                self._maps = False  # it has an operation that can't be mapped: one direction after another
            else:
                found: dict[tuple[str, ...], Rows] = {
                    (other,): {layer: rows[j] for layer, rows in slopes.items()}
                    for j, other in enumerate(seconds)
                }
                for one, other in wanted:
                    i, j = firsts.index(one), seconds.index(other)
                    found[one, other] = {layer: rows[j, i] for layer, rows in curvatures.items()}
                return found
        found = {}
        for one, other in wanted:
            if (other, one) not in found:
                slope, found[one, other] = self.twice(inputs, self.direction(one), self.direction(other))
                found[other,] = slope
        return found

    def _mapped(
        self, inputs: Any, firsts: Sequence[Direction], seconds: Sequence[Direction]
    ) -> tuple[Rows, Rows]:
        # ``J second`` (second, rows, dim) and ``f''[first, second]`` (second, first, rows, dim), by layer. The pass at
        # the base depends on no direction, and its derivative along a second one on no first one: vmap does not
        # repeat them.
        inner, outer = self._stacked(firsts), self._stacked(seconds)

        def for_second(second: Direction) -> tuple[Rows, Rows]:
            def along(moved: Sequence[torch.Tensor]) -> tuple[Rows, Rows]:
                swaps = dict(zip(second, moved, strict=True))
                at = [swaps.get(place, self.base[place]) for place in inner]

                def run(weights: Sequence[torch.Tensor]) -> Rows:
                    return self.run(inputs, {**swaps, **dict(zip(inner, weights, strict=True))})

                def for_first(first: Direction) -> tuple[Rows, Rows]:
                    made = torch.func.jvp(run, (at,), ([first[place] for place in inner],))
                    return made[0], made[1]

                once: Any = (None, 0)  # features at the base are those of no first direction
                return torch.vmap(for_first, out_dims=once, randomness="error")(inner)

            made = torch.func.jvp(along, ([self.base[place] for place in second],), (list(second.values()),))
            return made[1][0], made[1][1]

        return torch.vmap(for_second, randomness="error")(outer)

    def _stacked(self, directions: Sequence[Direction]) -> Direction:
        places = dict.fromkeys(place for direction in directions for place in direction)
        return {
            place: torch.stack([
                direction[place] if place in direction else torch.zeros_like(self.base[place])
                for direction in directions
            ])
            for place in places
        }  # fmt: skip

    def twice(self, inputs: Any, first: Direction, second: Direction) -> tuple[Rows, Rows]:
        """``J second`` and ``f''[first, second]``, by a derivative of a derivative.

        Args:
            inputs: of the batch.
            first: the inner direction; not empty.
            second: the outer direction.

        Returns:
            Both, by layer.
        """
        inner = list(first)

        def along(moved: Sequence[torch.Tensor]) -> tuple[Rows, Rows]:
            swaps = dict(zip(second, moved, strict=True))
            at = [swaps.get(place, self.base[place]) for place in inner]

            def run(weights: Sequence[torch.Tensor]) -> Rows:
                return self.run(inputs, {**swaps, **dict(zip(inner, weights, strict=True))})

            made = torch.func.jvp(run, (at,), ([first[place] for place in inner],))
            return made[0], made[1]

        if not second:
            zeros = {layer: torch.zeros_like(rows) for layer, rows in self.run(inputs, {}).items()}
            return zeros, zeros
        at = [self.base[place] for place in second]
        made = torch.func.jvp(along, (at,), (list(second.values()),))
        return made[1][0], made[1][1]

    def _by_differences(self, inputs: Any, names: Sequence[str], zero: Rows) -> dict[tuple[str, ...], Rows]:
        def sums(*chosen: str) -> tuple[Rows, Rows]:
            # Half the sum, less f_0, and half the difference of what is a step ahead and a step back.
            ahead, back = (self._moved(inputs, chosen, sign * self.step) for sign in (1, -1))
            even = {at: (ahead[at].double() + back[at].double()) / 2 - zero[at].double() for at in zero}
            return even, {at: (ahead[at].double() - back[at].double()) / 2 for at in zero}

        def kept(rows: Rows, scale: float) -> Rows:
            return {at: (value * scale).to(zero[at].dtype) for at, value in rows.items()}

        single = {name: sums(name) for name in names}
        found: dict[tuple[str, ...], Rows] = {(): zero}
        for place, one in enumerate(names):
            found[one,] = kept(single[one][1], 1 / self.step)
            found[one, one] = kept(single[one][0], 2 / self.step**2)
            for other in names[place + 1 :]:
                both = sums(one, other)[0]
                mixed = {at: both[at] - single[one][0][at] - single[other][0][at] for at in zero}
                found[one, other] = kept(mixed, 1 / self.step**2)
        return found

    def _moved(self, inputs: Any, names: Sequence[str], step: float) -> Rows:
        swaps: Direction = {}
        for name in names:
            for place, value in self.direction(name).items():
                swaps[place] = swaps.get(place, self.base[place]) + step * value
        self.forward_passes += 1
        return self.run(inputs, swaps)
