"""The resident executor: one network in memory, whose weights are swapped in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mergescope.models.features import NextTokens
from mergescope.models.layers import OUTPUT
from mergescope.tracing.capture import Call, capture, record_calls
from mergescope.tracing.passes import Pass


@torch.no_grad()
def run_resident(job: Pass) -> None:
    """For each batch, run every point once; nothing larger than one batch's features is kept.

    The floor is one plain forward pass a point and batch. Above it are swapping the weights (read
    from mapped files and combined straight into the parameters) and the readings.

    Args:
        job: the pass.
    """
    inputs: Any = None
    units: dict[str, np.ndarray] = {}

    def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
        return job.reduce(layer, value, inputs, units)

    captured = job.captured
    reference = job.local if captured else None
    order = list(range(len(job.points)))
    if reference is not None:  # its inputs are needed by all others
        order.sort(key=lambda index: index != reference)
    modules = dict(job.model.named_modules())
    with capture(job.model, captured, reduce) as caught:
        for inputs, labels in job.batches():
            units.clear()
            features: dict[str, dict[int, torch.Tensor]] = {name: {} for name in job.layers}
            local: dict[str, dict[int, torch.Tensor]] = {name: {} for name in captured}
            outputs: dict[int, torch.Tensor | NextTokens] = {}
            calls: dict[str, Call] = {}
            for index in order:
                job.load(index)
                caught.clear()
                if index == reference:
                    with record_calls(job.model, captured) as calls:
                        result = job.features.call(job.model, inputs)
                else:
                    result = job.features.call(job.model, inputs)
                job.forward_passes += 1
                for name in captured:
                    features[name][index] = caught[name]
                if job.wants_output_features:
                    rows = job.features.output_rows(result, inputs)
                    features[OUTPUT][index] = job.centred(OUTPUT, rows)
                outputs[index] = job.features.output(result, inputs, labels)
                if reference is not None:
                    for name in captured:
                        if index == reference:
                            local[name][index] = caught[name]
                            continue
                        caught.clear()  # the hook catches this call as well
                        calls[name].repeat(modules[name])
                        local[name][index] = caught[name]
                    job.local_passes += index != reference
            everyone = range(len(job.points))
            job.finish(
                inputs,
                labels,
                {name: [found[i] for i in everyone] for name, found in features.items() if found},
                [outputs[i] for i in everyone],
                {name: [found[i] for i in everyone] for name, found in local.items() if found},
                dict(units),
            )
