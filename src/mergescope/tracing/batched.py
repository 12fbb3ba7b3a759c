"""The batched executor: all points at once, with stacked weights.

A small network on a GPU waits for kernels to be launched, not for arithmetic, and P points cost P
times the launches. Here the weights of all points are stacked once, ``(points, *shape)``, and a
forward pass is mapped over the first axis (``torch.vmap``): the launches of one pass serve all
points. The price is memory for the weights and activations of all points. Where arithmetic is the
limit, as on a CPU, it is no faster than the resident executor, and is never chosen there by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergescope.errors import MergescopeError
from mergescope.models.features import NextTokens
from mergescope.models.layers import OUTPUT
from mergescope.tracing.capture import Call, capture, record_calls
from mergescope.tracing.passes import Pass

MEMORY_SHARE = 0.5
"""Share of free memory that stacked weights may take; activations of all points need the rest."""

LAUNCH_BOUND = ("cuda",)
"""Kinds of device where small networks wait for launches."""

SMALL = 20_000_000
"""Networks of fewer parameters run at all points at once on such a device, unless told otherwise.

Launching the kernels of a forward pass takes about as long as the arithmetic of a batch through a
transformer of this size. This is an estimate and was not measured on a GPU.
"""


@torch.no_grad()
def run_batched(job: Pass) -> None:
    """For each batch, run all points in one mapped forward pass.

    Args:
        job: the pass.

    Raises:
        MergescopeError: the stacked weights don't fit, or the network can't be mapped.
    """
    if not fits(job):
        raise MergescopeError(
            f"The weights of {len(job.points)} points take {_stacked_bytes(job) / 1e9:.2g} GB at once, more than "
            f"{MEMORY_SHARE:.0%} of the free memory. Use the resident executor."
        )
    stacked, shared = _stack(job)
    count = len(job.points)
    reference = job.local if job.captured else None
    if reference is not None:
        job.load(reference)
    network = _Features(job)
    for inputs, labels in job.batches():
        calls: dict[str, Call] = {}
        if reference is not None:  # its inputs to the layers are needed by all points
            with record_calls(job.model, job.captured) as calls:
                job.features.call(job.model, inputs)
            job.forward_passes += 1
            job.local_passes += count - 1
        try:
            features, outputs, local = _map(network, count, stacked, shared, (inputs, labels, calls))
        except RuntimeError as error:
            raise MergescopeError(
                f"{type(job.model).__name__} can't run at all points at once: {str(error).splitlines()[0]} "
                "Use the resident executor."
            ) from error
        job.forward_passes += count
        job.finish(
            inputs,
            labels,
            {name: list(rows) for name, rows in features.items()},
            [_output({name: values[index] for name, values in outputs.items()}) for index in range(count)],
            {name: list(rows) for name, rows in local.items()},
            network.units,
        )


def fits(job: Pass) -> bool:
    """Whether the stacked weights leave enough memory free.

    Args:
        job: the pass.

    Returns:
        True also where nobody knows how much is free.
    """
    free = free_memory(job.device)
    return free is None or _stacked_bytes(job) <= MEMORY_SHARE * free


def pays(job: Pass, first: Any) -> bool:
    """Whether all points at once are likely faster than one after another, and possible.

    Args:
        job: the pass, not begun.
        first: a batch; two points are tried on it.

    Returns:
        True only for small networks on a GPU.
    """
    parameters = sum(entry.numel() for entry in job.model.parameters())
    if job.device.type not in LAUNCH_BOUND or parameters >= SMALL or len(job.points) < 2 or not fits(job):
        return False
    two = replace(
        job, points=job.points[:2], mappings=job.mappings[:2], statistics=job.statistics[:2], data=[first],
        readings=[], local=None, progress=False, kept=None,
    )  # fmt: skip
    try:
        run_batched(two)
    except MergescopeError:
        return False
    return True


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where a network computes.

    Args:
        device: a CPU or a GPU.

    Returns:
        The bytes, or None if the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _stacked_bytes(job: Pass) -> int:
    entries = job.model.state_dict(keep_vars=True)
    used = {id(entries[name]): entries[name].nbytes for mapping in job.mappings for name in mapping}
    return len(job.points) * sum(used.values())


def _stack(job: Pass) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Weights and buffers of all points, by the identity of the network's own.

    Returns:
        Those that differ, stacked, ``(points, *shape)``, and those that all points share.
    """
    count = len(job.points)
    entries = job.model.state_dict(keep_vars=True)
    stacked: dict[int, torch.Tensor] = {}

    def place(name: str, index: int) -> torch.Tensor:
        entry = entries[name]  # tied entries are one object
        if id(entry) not in stacked:
            stacked[id(entry)] = entry.detach().expand(count, *entry.shape).clone()
        return stacked[id(entry)][index]

    for index, point in enumerate(job.points):
        for name, key in job.mappings[index].items():
            point.into(key, place(name, index))
        for name, value in job.statistics[index].items():
            place(name, index).copy_(value)
    shared = {
        entry: values[0].clone()
        for entry, values in stacked.items()
        if torch.equal(values, values[:1].expand_as(values))
    }
    return {entry: values for entry, values in stacked.items() if entry not in shared}, shared


class _Features(nn.Module):
    """The network, as a function to what readings take of it: only that leaves the mapped pass.

    Args:
        job: the pass.
    """

    def __init__(self, job: Pass) -> None:
        super().__init__()
        self.net, self.job = job.model, job
        self.units: dict[str, np.ndarray] = {}
        # A module that is registered twice is named once here: functional_call would swap its entries twice
        # and put back what it swapped in.
        self.names: dict[int, list[str]] = {}
        for prefix, module in self.named_modules():
            for found in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                for name, entry in found:
                    self.names.setdefault(id(entry), []).append(f"{prefix}.{name}")

    def forward(
        self, inputs: Any, labels: torch.Tensor | None, calls: Mapping[str, Call]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """One point's features, output and local features of a batch.

        Args:
            inputs: of the batch.
            labels: of the batch.
            calls: how the reference called the layers; empty if local features are not wanted.

        Returns:
            Layer to ``(rows, dim)``; the parts of the output; layer to ``(rows, dim)``.
        """
        job = self.job
        units: dict[str, np.ndarray] = {}

        def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
            return job.reduce(layer, value, inputs, units)

        modules = dict(self.net.named_modules())
        local = {}
        with capture(self.net, job.captured, reduce) as caught:
            result = job.features.call(self.net, inputs)
            features = dict(caught)
            for name, call in calls.items():
                caught.clear()  # the hook catches this call as well
                call.repeat(modules[name])
                local[name] = caught[name]
        if job.wants_output_features:
            features[OUTPUT] = job.centred(OUTPUT, job.features.output_rows(result, inputs))
        said = job.features.output(result, inputs, labels)
        self.units = units
        return features, dict(vars(said)) if isinstance(said, NextTokens) else {"values": said}, local


def _map(
    network: _Features,
    count: int,
    stacked: dict[int, torch.Tensor],
    shared: Mapping[int, torch.Tensor],
    arguments: tuple[Any, ...],
) -> Any:
    def run(weights: Mapping[int, torch.Tensor], index: torch.Tensor) -> Any:
        values = {**weights, **shared}
        named = {name: value for entry, value in values.items() for name in network.names[entry]}
        return torch.func.functional_call(network, named, arguments, tie_weights=False)

    # Fused attention has no batching rule: vmap would run it point by point, in a loop. The plain one
    # is made of operations that have one. The index is there for points that share all weights.
    with sdpa_kernel(SDPBackend.MATH):
        return torch.vmap(run)(stacked, torch.arange(count))


def _output(parts: dict[str, torch.Tensor]) -> torch.Tensor | NextTokens:
    return parts["values"] if "values" in parts else NextTokens(**parts)
