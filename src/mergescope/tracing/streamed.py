"""The streamed executor: block by block, for models larger than memory.

What is held is the parameters outside the blocks or those of one block, for one point at a time,
and every point's hidden states of every batch, which go to disk beyond a budget. The network may
have its parameters on the meta device ([`empty_model`][mergescope.models.empty_model]).

1. *Probe*: one forward pass of the first batch, a block in memory at a time, shows what blocks are
   called with and what they return, and that they form a chain: each takes the hidden state that the
   one before returned, and nothing else of it; what follows the chain takes the last one only.
2. *Enter*: every point's parameters outside the blocks turn each batch into the first hidden state.
   The blocks' other arguments (masks, position embeddings) are recorded on the way.
3. *Blocks*: for each block, each point's weights are read once and all batches pass. Then the hidden
   states of all points are the features of that layer.
4. *Leave*: the parameters outside the blocks turn the last hidden state into the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mergescope.errors import LayerError
from mergescope.models.calling import batch_size
from mergescope.models.features import TOKEN_MASK, NextTokens
from mergescope.models.layers import OUTPUT, feature_of, find_layers
from mergescope.progress import progress_bar
from mergescope.readings import Batch
from mergescope.tracing.capture import Call
from mergescope.tracing.chain import Chain
from mergescope.tracing.passes import Pass, require_finite_outputs
from mergescope.tracing.states import States
from mergescope.tracing.swapping import load_part, materialised, parameters_of

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
        states = stack.enter_context(States(budget, job.device))
        advance = stack.enter_context(progress_bar("tracing blocks", len(blocks), job.progress))
        chain = Chain(job, blocks)
        batches = _enter(job, chain, states)
        for name in blocks:
            _run_block(job, name, batches, states)
            advance(1)
        _leave(job, chain, states)


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


def _run_block(job: Pass, name: str, batches: list[_Entry], states: States) -> None:
    module = job.model.get_submodule(name)
    reference = job.local if name in job.captured else None
    # The reference comes last: the others need its old state.
    order = sorted(range(len(job.points)), key=lambda index: index == reference)
    with materialised(parameters_of(module), job.device):
        for index in order:
            load_part(job, index, module, f"{name}.")
            for number, batch in enumerate(batches):
                call = batch.calls[name]
                if reference is not None and index != reference:
                    fed = call.with_hidden(states.get("hidden", reference, number))
                    states.put("local", index, number, feature_of(fed.repeat(module), name))
                    job.local_passes += name == job.captured[0]
                found = call.with_hidden(states.get("hidden", index, number)).repeat(module)
                states.put("hidden", index, number, feature_of(found, name))
    if name in job.captured:
        for number, batch in enumerate(batches):
            _read_block(job, name, number, batch, reference, states)


def _read_block(
    job: Pass, name: str, number: int, batch: _Entry, reference: int | None, states: States
) -> None:
    units: dict[str, np.ndarray] = {}

    def rows(kind: str) -> list[torch.Tensor]:
        kinds = ["hidden" if index == reference else kind for index in range(len(job.points))]
        values = (states.get(kind, index, number) for index, kind in enumerate(kinds))
        return [job.reduce(name, value, batch.masks, units) for value in values]

    features = {name: rows("hidden")}
    local = {} if reference is None else {name: rows("local")}
    units = {layer: samples + batch.start for layer, samples in units.items()}  # no batch is finished yet
    for reading in job.readings:
        reading.update(Batch(features, [], None, local, units))


def _enter(job: Pass, chain: Chain, states: States) -> list[_Entry]:
    """Probe the chain, and turn every batch into every point's first hidden state.

    Returns:
        One entry a batch.
    """
    batches: list[_Entry] = []
    with materialised(chain.outside, job.device):
        for index in range(len(job.points)):
            chain.load(index)
            for number, (inputs, _) in enumerate(job.quiet_batches()):
                if index == number == 0:
                    chain.probe(inputs)
                calls = chain.enter(inputs)
                states.put("hidden", index, number, calls[chain.blocks[0]].hidden)
                if index == 0:
                    masks = {k: inputs[k] for k in MASKS if isinstance(inputs, Mapping) and k in inputs}
                    start = batches[-1].start + batches[-1].size if batches else 0
                    kept = {name: call.with_hidden(None) for name, call in calls.items()}
                    batches.append(_Entry(kept, masks, batch_size(inputs), start))
                elif number == 0:
                    chain.require_same(batches[0].calls, calls)
    return batches


def _leave(job: Pass, chain: Chain, states: States) -> None:
    """Turn every point's last hidden state into outputs, and finish every batch."""
    said: dict[tuple[int, int], Any] = {}
    with materialised(chain.outside, job.device):
        for index in range(len(job.points)):
            chain.load(index)
            for number, (inputs, labels) in enumerate(job.quiet_batches()):
                result = chain.leave(inputs, states.get("hidden", index, number))
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
