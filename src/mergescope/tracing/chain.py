"""A network as a chain of blocks, each of which can run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from mergescope.errors import LayerError
from mergescope.models.layers import OUTPUT, feature_of
from mergescope.tracing.capture import Call
from mergescope.tracing.passes import Pass
from mergescope.tracing.swapping import forwards, load_part, materialised, parameters_of


class Chain:
    """The network, with its blocks replaced by recorders: what is before them, and what follows.

    Args:
        job: the pass.
        blocks: the blocks' names, in order.
    """

    def __init__(self, job: Pass, blocks: list[str]) -> None:
        self.job, self.blocks = job, blocks
        self.modules = {name: job.model.get_submodule(name) for name in blocks}
        inside = {id(entry) for module in self.modules.values() for _, _, entry in parameters_of(module)}
        self.outside = [slot for slot in parameters_of(job.model) if id(slot[2]) not in inside]
        self._rest: dict[str, tuple[Any, ...] | None] = {}  # what a block returns behind its hidden state

    def load(self, index: int) -> None:
        """Put a point's weights outside the blocks into the network.

        Args:
            index: the point's position.
        """
        load_part(self.job, index, self.job.model, "", without=[f"{name}." for name in self.blocks])

    def enter(self, inputs: Any) -> dict[str, Call]:
        """Run what is before the blocks. The network must have been probed.

        Args:
            inputs: of a batch.

        Returns:
            Block to how it is called; all are given the first hidden state.
        """
        calls: dict[str, Call] = {}

        def seen(name: str, call: Call) -> None:
            calls[name] = call
            if name == self.blocks[-1]:
                raise _Entered  # what follows the blocks (logits as wide as a vocabulary) is not needed

        with self._replaced(seen), suppress(_Entered):
            self.job.features.call(self.job.model, inputs)
        return calls

    def leave(self, inputs: Any, hidden: torch.Tensor) -> Any:
        """Run what follows the blocks.

        Args:
            inputs: of a batch.
            hidden: what the last block returned.

        Returns:
            What the network returns.
        """
        with self._replaced(lambda name, call: None, last=hidden):
            return self.job.features.call(self.job.model, inputs)

    def probe(self, inputs: Any) -> None:
        """Run the whole network at the first point, a block in memory at a time, to see that it is a chain.

        Args:
            inputs: of a batch.

        Raises:
            LayerError: it is none.
        """
        calls: dict[str, Call] = {}
        previous: list[_Given] = []

        def run(name: str) -> Callable[..., Any]:
            module, forward = self.modules[name], self.modules[name].forward

            def replaced(*args: Any, **kwargs: Any) -> Any:
                if name in calls:
                    raise LayerError(f"The block {name!r} runs more than once in a forward pass.")
                if previous:
                    self._require_link(previous.pop(), name, Call(args, kwargs))
                calls[name] = Call(args, kwargs).with_hidden(None)
                with materialised(parameters_of(module), self.job.device):
                    load_part(self.job, 0, module, f"{name}.")
                    given = forward(*args, **kwargs)
                whole = isinstance(given, torch.Tensor)
                # Tensors are those of this batch: nothing may depend on them.
                self._rest[name] = (
                    None if whole else tuple(None if isinstance(x, torch.Tensor) else x for x in given[1:])
                )
                previous.append(_Given(name, given))
                return given

            return replaced

        with forwards({name: run(name) for name in self.blocks}, self.modules):
            result = self.job.features.call(self.job.model, inputs)
        if list(calls) != self.blocks:
            raise LayerError(
                f"The blocks run in another order than they are listed ({', '.join(calls)}), or not all of them. "
                "Use the resident executor."
            )
        self._require_end(inputs, previous.pop(), feature_of(result, OUTPUT))
        entered = self.enter(inputs)
        self.require_same(calls, entered)
        self._require_no_weights(entered)

    def _require_link(self, given: _Given, name: str, call: Call) -> None:
        passed = {x.data_ptr() for x in _tensors(list(call.others.values()))}
        side = any(x.data_ptr() in passed for x in _tensors(given.value) if x is not given.hidden)
        if side or not given.reaches(call.hidden):
            what = "its hidden state only after another step" if not side else "more than its hidden state"
            raise LayerError(
                f"The block {given.name!r} of {type(self.job.model).__name__} passes {what} on to {name!r}, so the "
                "network can't run block by block. Use the resident executor."
            )

    def _require_end(self, inputs: Any, given: _Given, wanted: torch.Tensor) -> None:
        try:
            found = feature_of(self.leave(inputs, given.copy), OUTPUT)
            same = torch.equal(torch.nan_to_num(found), torch.nan_to_num(wanted))
        except (AttributeError, TypeError):  # it computes with what a block returns behind its hidden state
            same = False
        if not same:
            raise LayerError(
                f"The output of {type(self.job.model).__name__} depends on more of its blocks than the hidden state "
                f"that {given.name!r} returns, so the network can't run block by block. Use the resident executor."
            )

    def require_same(self, first: dict[str, Call], other: dict[str, Call]) -> None:
        """Refuse blocks whose arguments, besides the hidden state, differ.

        Args:
            first: calls at one point.
            other: at another.

        Raises:
            LayerError: they depend on the weights.
        """  # noqa: DOC502 (raised as made elsewhere)
        for name in self.blocks:
            here, there = first[name].others, other[name].others
            for key in here | there:
                ones, twos = _tensors(here.get(key)), _tensors(there.get(key))
                if len(ones) != len(twos) or not all(map(torch.equal, ones, twos)):
                    raise self._depends(key, name)

    def _require_no_weights(self, calls: dict[str, Call]) -> None:
        # A weight that is an argument itself is the same memory for all points: it can't be compared.
        weights = {
            entry.untyped_storage().data_ptr()
            for entry in self.job.model.state_dict(keep_vars=True).values()
            if entry.is_floating_point() and not entry.is_meta
        }
        for name, call in calls.items():
            for key, value in call.others.items():
                if any(tensor.untyped_storage().data_ptr() in weights for tensor in _tensors(value)):
                    raise self._depends(key, name)

    def _depends(self, key: str, name: str) -> LayerError:
        return LayerError(
            f"The argument {key!r} of {name!r} depends on the weights, so the network can't run block by block. "
            "Use the resident executor."
        )

    @contextmanager
    def _replaced(self, seen: Callable[[str, Call], Any], last: torch.Tensor | None = None) -> Iterator[None]:
        def stand_in(name: str) -> Callable[..., Any]:
            def replaced(*args: Any, **kwargs: Any) -> Any:
                call = Call(args, kwargs)
                seen(name, call)
                hidden = last if last is not None and name == self.blocks[-1] else call.hidden
                rest = self._rest[name]
                return hidden if rest is None else (hidden, *rest)

            return replaced

        with forwards({name: stand_in(name) for name in self.blocks}, self.modules):
            yield


class _Entered(Exception):  # noqa: N818 (no error)
    """The last block has been reached."""


class _Given:
    """What a block of the probe returned."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value
        self.hidden = feature_of(value, name)
        self.copy = self.hidden.clone()

    def reaches(self, hidden: torch.Tensor) -> bool:
        """Whether the next block is called with this hidden state, untouched.

        Args:
            hidden: what it is called with.

        Returns:
            Whether it is the same memory with the same values.
        """
        same = hidden.data_ptr() == self.hidden.data_ptr() and hidden.shape == self.hidden.shape
        return same and torch.equal(torch.nan_to_num(hidden), torch.nan_to_num(self.copy))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for item in value for x in _tensors(item)] if isinstance(value, (tuple, list)) else []
