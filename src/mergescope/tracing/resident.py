"""The resident executor: one network in memory, whose weights are swapped in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mergescope.models.features import NextTokens
from mergescope.models.layers import OUTPUT
from mergescope.models.loading import WeightLoader
from mergescope.tracing.capture import Call, capture, record_calls
from mergescope.tracing.passes import Pass


@torch.no_grad()
def run_resident(job: Pass) -> None:
    """For each batch, run every point once; nothing larger than one batch's features is kept.

    The floor is one plain forward pass a point and batch. Above it are swapping the weights (read
    from mapped files, combined straight into the parameters, and kept for the next batch while there
    is room) and the readings.

    Args:
        job: the pass.
    """
    inputs: Any = None
    index = 0
    features: dict[str, torch.Tensor] = {}
    local: dict[str, torch.Tensor] = {}
    units: dict[str, np.ndarray] = {}
    kept = features

    def keep(layer: str, rows: torch.Tensor) -> torch.Tensor:
        # One block of memory a layer: a piece a point would lie between what passes leave and fragment it.
        if layer not in kept:
            kept[layer] = rows.new_empty((len(job.points), *rows.shape))
        return kept[layer][index].copy_(rows)

    def reduce(layer: str, value: torch.Tensor) -> torch.Tensor:
        return keep(layer, job.reduce(layer, value, inputs, units))

    captured = job.captured
    reference = job.local if captured else None
    order = list(range(len(job.points)))
    if reference is not None:  # its inputs are needed by all others
        order.sort(key=lambda index: index != reference)
    modules, weights = dict(job.model.named_modules()), WeightLoader(job.model)
    with capture(job.model, captured, reduce) as caught:
        for inputs, labels in job.batches():
            for found in (features, local, units):
                found.clear()
            outputs: dict[int, torch.Tensor | NextTokens] = {}
            calls: dict[str, Call] = {}
            for index in order:
                weights.load(job.points[index], job.mappings[index], job.statistics[index])
                kept = features
                caught.clear()
                with record_calls(job.model, captured if index == reference else []) as recorded:
                    result = job.features.call(job.model, inputs)
                job.forward_passes += 1
                if job.wants_output_features:
                    keep(OUTPUT, job.centred(OUTPUT, job.features.output_rows(result, inputs)))
                outputs[index] = job.features.output(result, inputs, labels)
                kept = local
                if index == reference:
                    calls = recorded
                    for name in captured:
                        keep(name, features[name][index])
                elif reference is not None:
                    for name in captured:
                        caught.clear()  # the hook catches this call as well
                        calls[name].repeat(modules[name])
                    job.local_passes += 1
            job.finish(
                inputs,
                labels,
                {name: list(features[name]) for name in job.layers if name in features},
                [outputs[place] for place in range(len(job.points))],
                {name: list(local[name]) for name in captured if name in local},
                dict(units),
            )
