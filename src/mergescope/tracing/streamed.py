"""The streamed executor: block by block, for models larger than memory.

What is held is the parameters outside the blocks or those of one block, for one point at a time,
and every point's hidden states of every batch, which go to disk beyond a budget. The network may
have its parameters on the meta device ([`empty_model`][mergescope.models.empty_model]).

1. *Probe*: one forward pass of the first batch, a block in memory at a time, shows what blocks are
   called with and what they return, and that they form a chain: each takes the hidden state that the
   one before returned, and nothing else of it.
2. *Enter*: every point's parameters outside the blocks turn each batch into the first hidden state.
   The blocks' other arguments (masks, position embeddings) are recorded on the way.
3. *Blocks*: for each block, each point's weights are read once and all batches pass. Then the hidden
   states of all points are the features of that layer.
4. *Leave*: the parameters outside the blocks turn the last hidden state into the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mergescope.errors import LayerError
from mergescope.models.calling import batch_size
from mergescope.models.features import TOKEN_MASK, NextTokens
from mergescope.models.layers import OUTPUT, feature_of, find_layers
from mergescope.readings import Batch
from mergescope.tracing.capture import Call
from mergescope.tracing.passes import Pass, require_finite_outputs

BUDGET = 1 << 30
"""Bytes of hidden states that are kept in memory; the rest goes to files."""

MASKS = (TOKEN_MASK, "attention_mask", "decoder_attention_mask")


@torch.no_grad()
def run_streamed(job: Pass, budget: int = BUDGET) -> None:
    """Run a pass block by block.

    Args:
        job: the pass.
        budget: bytes of hidden states kept in memory.

    Raises:
        LayerError: the network's blocks don't form a chain, or other layers are asked for.
    """  # noqa: DOC502 (raised by what this calls)
    blocks = _blocks(job)
    with ExitStack() as stack:
        states = stack.enter_context(_States(budget, job.device))
        outside = _Outside(job, blocks)
        batches = outside.enter(states)
        for name in blocks:
            _run_block(job, name, batches, states)
        outside.leave(batches, states)


@dataclass
class _Entry:
    """What is kept of a batch: its calls of the blocks, and what readings need to know of its inputs."""

    calls: dict[str, Call]
    masks: dict[str, torch.Tensor]
    size: int
    start: int


def _blocks(job: Pass) -> list[str]:
    blocks = [name for name in find_layers(job.model, "blocks") if name != OUTPUT]
    other = [name for name in job.layers if name != OUTPUT and name not in blocks]
    if other:
        raise LayerError(
            f"The streamed executor sees blocks ({blocks[0]} to {blocks[-1]}) and the output; it can't measure "
            f"{', '.join(other)}. Use layers='blocks', or the resident executor."
        )
    return blocks


def _run_block(job: Pass, name: str, batches: list[_Entry], states: _States) -> None:
    module = job.model.get_submodule(name)
    order = sorted(
        range(len(job.points)), key=lambda index: index == job.local
    )  # the others need its old state
    with _materialised(_parameters(module), job.device):
        for index in order:
            _load(job, index, module, f"{name}.")
            for number, batch in enumerate(batches):
                call = batch.calls[name]
                if job.local is not None and index != job.local:
                    given = states.get("hidden", job.local, number)
                    states.put(
                        "local", index, number, feature_of(_with_hidden(call, given).repeat(module), name)
                    )
                    job.local_passes += name == job.layers[0]
                found = _with_hidden(call, states.get("hidden", index, number)).repeat(module)
                states.put("hidden", index, number, feature_of(found, name))
    if name not in job.captured:
        return
    everyone = range(len(job.points))
    for number, batch in enumerate(batches):
        hidden = [states.get("hidden", index, number) for index in everyone]
        local: dict[str, list[torch.Tensor]] = {}
        if job.local is not None:
            kind = ["hidden" if index == job.local else "local" for index in everyone]
            fed = [states.get(kind[index], index, number) for index in everyone]
            local[name] = [job.centred(name, job.features.rows(name, value, batch.masks)) for value in fed]
        units = job.features.units(hidden[0], batch.masks)
        seen = Batch(
            {name: [job.centred(name, job.features.rows(name, value, batch.masks)) for value in hidden]},
            [],
            None,
            local,
            {} if units is None else {name: units.cpu().numpy() + batch.start},
        )
        for reading in job.readings:
            reading.update(seen)


class _Outside:
    """Everything of the network but its blocks, which are replaced by recorders.

    Args:
        job: the pass.
        blocks: the blocks' names, in order.
    """

    def __init__(self, job: Pass, blocks: list[str]) -> None:
        self.job, self.blocks = job, blocks
        self.modules = {name: job.model.get_submodule(name) for name in blocks}
        inside = {id(entry) for module in self.modules.values() for _, _, entry in _parameters(module)}
        self.parameters = [found for found in _parameters(job.model) if id(found[2]) not in inside]
        self.rest: dict[str, tuple[Any, ...] | None] = {}  # what a block returns behind its hidden state

    def _load(self, index: int) -> None:
        prefixes = tuple(f"{name}." for name in self.blocks)
        outer = {k: v for k, v in self.job.mappings[index].items() if not k.startswith(prefixes)}
        _load(replace(self.job, mappings=[outer] * len(self.job.points)), index, self.job.model, "")

    def enter(self, states: _States) -> list[_Entry]:
        """Probe the chain, and turn every batch into every point's first hidden state.

        Args:
            states: where hidden states go.

        Returns:
            One entry a batch.
        """
        job = self.job
        batches: list[_Entry] = []
        with _materialised(self.parameters, job.device):
            for index in range(len(job.points)):
                self._load(index)
                for number, (inputs, _) in enumerate(job.batches() if index == 0 else job.quiet_batches()):
                    if index == 0 and number == 0:
                        self._probe(inputs)
                    calls: dict[str, Call] = {}
                    with self._replaced(calls.__setitem__):
                        job.features.call(job.model, inputs)
                    states.put("hidden", index, number, _hidden(calls[self.blocks[0]]))
                    if index == 0:
                        masks = {k: inputs[k] for k in MASKS if isinstance(inputs, Mapping) and k in inputs}
                        start = batches[-1].start + batches[-1].size if batches else 0
                        kept = {name: _with_hidden(call, None) for name, call in calls.items()}
                        batches.append(_Entry(kept, masks, batch_size(inputs), start))
                    elif number == 0:
                        self._require_same(batches[0].calls, calls)
        return batches

    def leave(self, batches: list[_Entry], states: _States) -> None:
        """Turn every point's last hidden state into outputs, and finish every batch.

        Args:
            batches: from [`enter`][].
            states: where hidden states are.
        """
        job = self.job
        said: dict[tuple[int, int], Any] = {}
        with _materialised(self.parameters, job.device):
            for index in range(len(job.points)):
                self._load(index)
                for number, (inputs, labels) in enumerate(job.quiet_batches()):
                    hidden = states.get("hidden", index, number)
                    with self._replaced(lambda name, call: None, last=hidden):
                        result = job.features.call(job.model, inputs)
                    job.forward_passes += 1
                    output = job.features.output(result, inputs, labels)
                    require_finite_outputs([job.points[index]], [output])
                    said[index, number] = output
                    if job.wants_output_features:
                        states.put("output", index, number, job.features.output_rows(result, inputs))
        everyone = range(len(job.points))
        for number, (inputs, labels) in enumerate(job.quiet_batches()):
            rows: dict[str, list[torch.Tensor]] = {}
            if job.wants_output_features:
                rows[OUTPUT] = [job.centred(OUTPUT, states.get("output", i, number)) for i in everyone]
            outputs: list[torch.Tensor | NextTokens] = [said.pop((i, number)) for i in everyone]
            job.finish(inputs, labels, rows, outputs, {}, {})

    def _probe(self, inputs: Any) -> None:
        previous: list[tuple[str, Any]] = []

        def run(name: str) -> Callable[..., Any]:
            module, forward = self.modules[name], self.modules[name].forward

            def replaced(*args: Any, **kwargs: Any) -> Any:
                if name in self.rest:
                    raise LayerError(f"The block {name!r} runs more than once in a forward pass.")
                if previous:
                    self._require_link(*previous.pop(), name, Call(args, kwargs))
                with _materialised(_parameters(module), self.job.device):
                    _load(self.job, 0, module, f"{name}.")
                    given = forward(*args, **kwargs)
                self.rest[name] = None if isinstance(given, torch.Tensor) else tuple(given[1:])
                previous.append((name, given))
                return given

            return replaced

        with _forwards({name: run(name) for name in self.blocks}, self.modules):
            self.job.features.call(self.job.model, inputs)
        if list(self.rest) != self.blocks:
            raise LayerError(
                f"The blocks run in another order than they are listed ({', '.join(self.rest)}), or not all of them. "
                "Use the resident executor."
            )

    def _require_link(self, before: str, given: Any, name: str, call: Call) -> None:
        hidden = feature_of(given, before)
        others = [
            x for x in (given if isinstance(given, (tuple, list)) else ()) if isinstance(x, torch.Tensor)
        ]
        pointers = {x.data_ptr() for x in others if x is not hidden}
        passed = [x for x in call.kwargs.values() if isinstance(x, torch.Tensor)] + list(call.args[1:])
        side = [x for x in passed if isinstance(x, torch.Tensor) and x.data_ptr() in pointers]
        found = _hidden(call)
        linked = found.data_ptr() == hidden.data_ptr() and found.shape == hidden.shape
        if side or not linked:
            what = "more than its hidden state" if linked else "its hidden state only after another step"
            raise LayerError(
                f"The block {before!r} of {type(self.job.model).__name__} passes {what} on to {name!r}, so the "
                "network can't run block by block. Use the resident executor."
            )

    def _require_same(self, first: dict[str, Call], other: dict[str, Call]) -> None:
        for name in self.blocks:
            for key, value in first[name].kwargs.items():
                if isinstance(value, torch.Tensor) and not torch.equal(value, other[name].kwargs[key]):
                    raise LayerError(
                        f"The argument {key!r} of {name!r} depends on the weights, so the network can't run block by "
                        "block. Use the resident executor."
                    )

    @contextmanager
    def _replaced(self, seen: Callable[[str, Call], Any], last: torch.Tensor | None = None) -> Iterator[None]:
        def stand_in(name: str) -> Callable[..., Any]:
            def replaced(*args: Any, **kwargs: Any) -> Any:
                call = Call(args, kwargs)
                seen(name, call)
                hidden = last if last is not None and name == self.blocks[-1] else _hidden(call)
                rest = self.rest[name]
                return hidden if rest is None else (hidden, *rest)

            return replaced

        with _forwards({name: stand_in(name) for name in self.blocks}, self.modules):
            yield


class _States:
    """Hidden states by kind, point and batch: in memory up to a budget, then in files."""

    def __init__(self, budget: int, device: torch.device) -> None:
        self._left, self._device = budget, device
        self._held: dict[tuple[str, int, int], torch.Tensor] = {}
        self._filed: dict[tuple[str, int, int], tuple[torch.Size, torch.dtype]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> _States:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, kind: str, point: int, batch: int, value: torch.Tensor) -> None:
        """Keep a state, in place of an older one.

        Args:
            kind: what it is.
            point: position of the point.
            batch: number of the batch.
            value: the state.
        """
        key = (kind, point, batch)
        old = self._held.pop(key, None)
        if old is not None:
            self._left += old.nbytes
        value = value.detach()
        if value.nbytes <= self._left:
            self._filed.pop(key, None)
            # A view would keep the whole of what it is a view of.
            self._held[key] = value.clone() if value.nbytes < value.untyped_storage().nbytes() else value
            self._left -= value.nbytes
            return
        self._filed[key] = (value.shape, value.dtype)
        value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(self._path(key))

    def get(self, kind: str, point: int, batch: int) -> torch.Tensor:
        """Look a state up.

        Args:
            kind: what it is.
            point: position of the point.
            batch: number of the batch.

        Returns:
            The state; not to be changed in place.
        """
        key = (kind, point, batch)
        if key in self._held:
            return self._held[key]
        shape, dtype = self._filed[key]
        return (
            torch.from_numpy(np.fromfile(self._path(key), np.uint8)).view(dtype).view(shape).to(self._device)
        )

    def _path(self, key: tuple[str, int, int]) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mergescope-")
        return Path(self._folder.name) / "-".join(map(str, key))


def _hidden(call: Call) -> torch.Tensor:
    return call.args[0] if call.args else call.kwargs["hidden_states"]


def _with_hidden(call: Call, hidden: torch.Tensor | None) -> Call:
    if call.args:
        return Call((hidden, *call.args[1:]), call.kwargs)
    return Call((), {**call.kwargs, "hidden_states": hidden})


def _parameters(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (inner, name, entry)
        for inner in module.modules()
        for name, entry in inner._parameters.items()
        if entry is not None
    ]


@contextmanager
def _materialised(
    parameters: Iterable[tuple[nn.Module, str, nn.Parameter]], device: torch.device
) -> Iterator[None]:
    # Tied parameters are one object, and stay one.
    empty = [(module, name, entry) for module, name, entry in parameters if entry.is_meta]
    real = {id(entry): nn.Parameter(torch.empty_like(entry, device=device), False) for _, _, entry in empty}
    try:
        for module, name, entry in empty:
            module._parameters[name] = real[id(entry)]
        yield
    finally:
        for module, name, entry in empty:
            module._parameters[name] = entry


@contextmanager
def _forwards(
    replacements: Mapping[str, Callable[..., Any]], modules: Mapping[str, nn.Module]
) -> Iterator[None]:
    for name, forward in replacements.items():
        modules[name].__dict__["forward"] = forward
    try:
        yield
    finally:
        for name in replacements:
            del modules[name].__dict__["forward"]


def _load(job: Pass, index: int, module: nn.Module, prefix: str) -> None:
    entries = module.state_dict(keep_vars=True)
    for name, key in job.mappings[index].items():
        entry = entries.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if entry is not None:
            job.points[index].into(key, entry)
