"""What a pass of data through points consists of: the part that all executors share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mergescope.errors import CheckpointError
from mergescope.models.calling import batch_size, split_batch, to_device
from mergescope.models.features import Features, NextTokens
from mergescope.models.layers import OUTPUT
from mergescope.models.loading import WeightLoader
from mergescope.progress import progress_bar
from mergescope.readings import Batch, Reading
from mergescope.tracing.kept import Kept
from mergescope.weights import Point
from mergescope.weights.chunks import all_finite


@dataclass
class Pass:
    """One pass, as an executor gets it.

    Attributes:
        points: the distinct points.
        data: the batches.
        model: the network, in eval mode; its weights are overwritten.
        layers: the captured layers, with [`OUTPUT`][] among them if chosen.
        readings: started readings.
        features: the convention.
        mappings: a point's state-dict names to checkpoint keys.
        statistics: a point's re-estimated BatchNorm statistics.
        local: position of the point whose inputs every layer is fed, for local linearity.
        centre: layer to the ``(dim,)`` feature that is subtracted.
        place: where parameters go that are on the meta device.
        progress: show a bar on a terminal.
        samples: how many samples have been seen.
        forward_passes: forward passes of a batch through the whole network so far.
        local_passes: further passes through the layers alone.
        peak_bytes: the largest resident memory of the processes that it ran in, if that was not this one.
        kept: what it had seen when it was killed, and where that is kept.
    """

    points: Sequence[Point]
    data: Iterable[Any]
    model: nn.Module
    layers: Sequence[str]
    readings: Sequence[Reading]
    features: Features
    mappings: Sequence[Mapping[str, str]]
    statistics: Sequence[Mapping[str, torch.Tensor]]
    local: int | None = None
    centre: Mapping[str, torch.Tensor] = field(default_factory=dict)
    place: torch.device = torch.device("cpu")
    progress: bool = True
    samples: int = 0
    forward_passes: int = 0
    local_passes: int = 0
    peak_bytes: int = 0
    kept: Kept | None = None

    @property
    def captured(self) -> list[str]:
        """Layers that are modules, if any reading needs features."""
        needed = any(reading.needs_features for reading in self.readings)
        return [name for name in self.layers if name != OUTPUT] if needed else []

    @property
    def wants_output_features(self) -> bool:
        """Whether the network's own output is a layer of the readings."""
        return OUTPUT in self.layers and any(reading.needs_features for reading in self.readings)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        found = next((entry.device for entry in self.model.parameters()), torch.device("cpu"))
        return self.place if found.type == "meta" else found

    def load(self, index: int) -> None:
        """Put a point's weights, and statistics of its own, into the network.

        Args:
            index: the point's position.
        """
        loader = WeightLoader(self.model, budget=0)
        loader.load(self.points[index], self.mappings[index], self.statistics[index])

    def batches(self, label: str = "tracing") -> Iterator[tuple[Any, torch.Tensor | None]]:
        """The data, on the network's device, with a progress bar.

        Args:
            label: what is being done.

        Yields:
            Inputs and labels.
        """
        try:
            length = len(self.data)  # type: ignore[arg-type]
        except TypeError:  # no __len__, or a DataLoader over a data set that has none
            length = None
        with progress_bar(label, length, self.progress) as advance:
            for number, batch in enumerate(self.data):
                if self.kept is None or not self.kept.skips(self, number):
                    inputs, labels = split_batch(batch)
                    yield to_device(inputs, self.device), to_device(labels, self.device)
                    if self.kept is not None:
                        self.kept.finished(self)
                advance(1)

    def quiet_batches(self) -> Iterator[tuple[Any, torch.Tensor | None]]:
        """The data once more, without a bar.

        Yields:
            Inputs and labels.
        """
        for batch in self.data:
            inputs, labels = split_batch(batch)
            yield to_device(inputs, self.device), to_device(labels, self.device)

    def centred(self, layer: str, rows: torch.Tensor) -> torch.Tensor:
        """Features less the centre, if there is one.

        Args:
            layer: its name.
            rows: ``(rows, dim)``.

        Returns:
            Float64 differences, or the rows as they are.
        """
        centre = self.centre.get(layer)
        return rows if centre is None else rows.double() - centre.to(rows.device)

    def reduce(
        self, layer: str, value: torch.Tensor, inputs: Any, units: dict[str, np.ndarray]
    ) -> torch.Tensor:
        """A layer's output as rows that readings take.

        Args:
            layer: its name.
            value: what it returned.
            inputs: of the batch.
            units: is told which samples the rows belong to, counted over the pass.

        Returns:
            ``(rows, dim)``, less the centre; may share memory with the value.
        """
        if layer not in units:
            found = self.features.units(layer, value, inputs)
            if found is not None:
                units[layer] = found.cpu().numpy() + self.samples
        if layer in self.centre:
            self.features.require_centred(layer, value, inputs)
        return self.centred(layer, self.features.rows(layer, value, inputs))

    def finish(
        self,
        inputs: Any,
        labels: torch.Tensor | None,
        features: Mapping[str, Sequence[torch.Tensor]],
        outputs: Sequence[torch.Tensor | NextTokens],
        local: Mapping[str, Sequence[torch.Tensor]],
        units: Mapping[str, np.ndarray],
    ) -> None:
        """Give a batch's features and outputs of all points to the readings.

        Args:
            inputs: of the batch.
            labels: of the batch.
            features: layer to one tensor a point.
            outputs: one a point.
            local: layer to one tensor a point, with the reference's inputs.
            units: layer to the samples of its rows, counted over the pass.

        Raises:
            CheckpointError: an output is NaN or infinite; the point is named.
        """  # noqa: DOC502 (raised by what this calls)
        require_finite_outputs(self.points, outputs)
        seen = Batch(features, outputs, labels, local, units)
        for reading in self.readings:
            reading.update(seen)
        self.samples += batch_size(inputs)


def require_finite_outputs(points: Sequence[Point], outputs: Sequence[torch.Tensor | NextTokens]) -> None:
    """Refuse NaN and infinite outputs.

    Args:
        points: the points.
        outputs: one a point.

    Raises:
        CheckpointError: an output is not finite; its point is named.
    """
    for point, output in zip(points, outputs, strict=True):
        values = output.losses[output.counts] if isinstance(output, NextTokens) else output
        if not all_finite(values):
            raise CheckpointError(
                f"The network gives NaN or infinite outputs at {point!r}. Look for exploded weights in "
                f"{', '.join(source.name for source in point.checkpoints)}, or extrapolate less far."
            )
