"""Images to pixel batches: channels, bit depth, and a model's own preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergescope.data.heads import Head
from mergescope.data.samples import Sample
from mergescope.errors import DataError


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into samples, each by itself, and samples into batches.

    Attributes:
        prepare: arrays ``(height, width, channels)``, uint8, to one mapping of tensors an image.
        channels: 1 (grey) or 3 (RGB): what images are converted to first.
        head: what the model's outputs say about labels.
        directory: where the settings came from.
        notes: what a reader of results should know.
    """

    prepare: Callable[[list[np.ndarray]], list[dict[str, torch.Tensor]]]
    channels: int
    head: Head
    directory: Path | None = None
    notes: tuple[str, ...] = ()

    def samples(self, images: Sequence[Any]) -> list[Sample]:
        """Prepare images.

        Args:
            images: of PIL, of any mode and size.

        Returns:
            One sample an image.

        Raises:
            DataError: an image's pixels have no fixed range, or the preprocessor refuses it.
        """
        try:
            prepared = self.prepare([pixels(image, self.channels) for image in images])
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(
                f"The preprocessor of {self.directory} fails on {len(images)} image(s), the first of "
                f"{images[0].size[0]}x{images[0].size[1]} pixels: {error}. Check that its settings fit these images."
            ) from error
        return [Sample(values) for values in prepared]

    def collate(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Stack samples.

        Args:
            samples: of one batch.

        Returns:
            Argument to tensor ``(batch, ...)``, for most models ``pixel_values``
            ``(batch, channels, height, width)``.

        Raises:
            DataError: the samples differ in size.
        """
        batch = {}
        for name in samples[0].values:
            shapes = {tuple(sample.values[name].shape) for sample in samples}
            if len(shapes) > 1:
                raise DataError(
                    f"The preprocessor of {self.directory} gives {name} of different sizes: "
                    f"{', '.join(str(list(shape)) for shape in sorted(shapes)[:3])}. Set a fixed size in its "
                    "settings, or use batches of one."
                )
            batch[name] = torch.stack([sample.values[name] for sample in samples])
        return batch


def pixels(image: Any, channels: int) -> np.ndarray:
    """An image as 8-bit grey or RGB.

    Transparency is dropped, as transformers does. 16-bit grey is scaled: PIL would cut it off at
    255, which turns such images white.

    Args:
        image: of PIL.
        channels: 1 or 3.

    Returns:
        ``(height, width, channels)``, uint8.

    Raises:
        DataError: the pixels are floats, whose range is not known.

    Example:
        >>> from PIL import Image
        >>> pixels(Image.new("L", (3, 2), 7), 3).shape
        (2, 3, 3)
    """
    if image.mode == "F":
        raise DataError(
            "An image has floating-point pixels, whose range is not known. Convert the images to 8 bits."
        )
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], channels, axis=2)
    converted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return converted[..., None] if channels == 1 else converted


def from_transformers(processor: Any) -> Callable[[list[np.ndarray]], list[dict[str, torch.Tensor]]]:
    """Preprocessing by an image processor of transformers.

    Args:
        processor: one that needs no torchvision.

    Returns:
        A function for [`ImageProcessor`][].
    """

    def prepare(images: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
        # The layout is said, since it can't be told from the shape of very small images.
        found = processor(images, input_data_format="channels_last")
        names = [name for name in processor.model_input_names if name in found]
        return [
            {name: torch.as_tensor(np.asarray(found[name][i])) for name in names} for i in range(len(images))
        ]

    return prepare


def from_net_config(
    config: Mapping[str, Any],
) -> tuple[Callable[[list[np.ndarray]], list[dict[str, torch.Tensor]]], int]:
    """Preprocessing for this package's own networks: pixels in [0, 1], resized where they differ.

    Args:
        config: as written by [`net_config`][mergescope.models.net_config].

    Returns:
        A function for [`ImageProcessor`][], and the channels.

    Raises:
        DataError: the network's input is no square image of 1 or 3 channels.

    Example:
        >>> prepare, channels = from_net_config({"model_type": "mergescope-mlp", "sizes": [16, 3]})
        >>> prepare([np.full((8, 8, 1), 255, np.uint8)])[0]["x"].shape, channels
        (torch.Size([1, 4, 4]), 1)
    """
    if "image" in config:
        side, channels = int(config["image"]), int(config.get("channels", 1))
        if channels not in (1, 3):
            raise DataError(
                f"The network takes images of {channels} channels; only grey (1) and RGB (3) can be made. Make the "
                "batches yourself, as pairs of tensors."
            )
    else:
        inputs = int((config.get("sizes") or [0])[0])
        channels = next((c for c in (1, 3) if inputs and math.isqrt(inputs // c) ** 2 * c == inputs), 0)
        if not channels:
            raise DataError(
                f"The network takes {inputs} numbers, which is no square image of 1 or 3 channels. Make the batches "
                "yourself, as pairs of tensors."
            )
        side = math.isqrt(inputs // channels)

    def prepare(images: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
        return [
            {"x": torch.from_numpy(_resized(image, side)).permute(2, 0, 1).float() / 255} for image in images
        ]

    return prepare, channels


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[:2] == (side, side):
        return np.array(image)  # PIL's own memory can't be written to, and torch warns of that
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    resized = np.array(Image.fromarray(image.squeeze()).resize((side, side), bilinear))
    return resized.reshape(side, side, -1)
