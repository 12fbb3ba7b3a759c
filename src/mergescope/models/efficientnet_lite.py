"""EfficientNet-Lite: a published convolutional network with BatchNorm that transformers does not have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mergescope.errors import DataError

STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
"""Of EfficientNet-B0: blocks, kernel size, stride of the first block, expansion, channels."""

STEM, HEAD, DIVISOR = 32, 1280, 8
"""Channels of stem and head, which Lite does not scale; channels of the others are multiples of the last."""


def same_convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded as TensorFlow pads sides that the stride divides.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side.
        stride: step.
        groups: of channels.

    Returns:
        The convolution. An odd pixel of padding is right and below.
    """
    return _SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)


class _SameConv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        missing = self.kernel_size[0] - self.stride[0]
        if missing > 0:
            before = missing // 2
            x = nn.functional.pad(x, (before, missing - before, before, missing - before))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class MBConv(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018) without squeeze and excitation, as Lite has it.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the convolution of each channel by itself.
        stride: of that convolution.
        expansion: inner channels are so many times the input's.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        # Called as in the published weights.
        if self.expands:
            self._expand_conv, self._bn0 = same_convolution(inputs, inner), _norm(inner)
        self._depthwise_conv = same_convolution(inner, inner, kernel, stride, inner)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = same_convolution(inner, outputs), _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform a map.

        Args:
            x: ``(batch, inputs, height, width)``.

        Returns:
            ``(batch, outputs, height / stride, width / stride)``.
        """
        inner = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = nn.functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.shortcut else inner


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (Liu 2020; EfficientNet: Tan and Le 2019), with the tensor names of its published weights.

    Lite0 to Lite4 are ``(width, depth)`` = (1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8). BatchNorm's running
    statistics follow the batches faster in training than in the original (momentum 0.1, not 0.01), since
    fine-tuning is short; drop-connect is left out.

    Args:
        image: side of the images that data are resized to, a multiple of 32.
        channels: of the images.
        width: factor of the channels.
        depth: factor of the blocks of the inner stages.
        classes: outputs.

    Example:
        >>> net = EfficientNetLite(image=32).eval()
        >>> net(torch.zeros(2, 3, 32, 32)).shape, len(net._blocks)
        (torch.Size([2, 1000]), 16)
    """

    model_type = "mergescope-efficientnet-lite"

    def __init__(
        self, image: int = 224, channels: int = 3, width: float = 1.0, depth: float = 1.0, classes: int = 1000
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "image": image, "channels": channels, "width": width, "depth": depth, "classes": classes,
        }  # fmt: skip
        self._conv_stem, self._bn0 = same_convolution(channels, STEM, 3, 2), _norm(STEM)
        blocks, inputs = [], STEM
        for place, (count, kernel, stride, expansion, wide) in enumerate(STAGES):
            outputs = _scaled(wide, width)
            inner = 0 < place < len(STAGES) - 1
            for number in range(math.ceil(count * depth) if inner else count):
                blocks.append(MBConv(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = same_convolution(inputs, HEAD), _norm(HEAD)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, from the mean over places.

        Args:
            x: images ``(batch, channels, height, width)`` in [0, 1]; both sides are multiples of 32.

        Returns:
            ``(batch, classes)``.

        Raises:
            DataError: the images have another number of channels, or other sides.
        """
        channels = self.settings["channels"]
        if x.ndim != 4 or x.shape[1] != channels or any(side % 32 for side in x.shape[2:]):
            raise DataError(
                f"This EfficientNet-Lite takes images [{channels}, height, width] whose sides are multiples of 32, got "
                f"{list(x.shape[1:])}. Convert and resize the images."
            )
        x = (255 * x - 127) / 128  # as the published weights were trained
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def _scaled(channels: int, width: float) -> int:
    # To the nearest multiple, but not by more than a tenth downwards.
    rounded = max(DIVISOR, int(channels * width + DIVISOR / 2) // DIVISOR * DIVISOR)
    return rounded + DIVISOR if rounded < 0.9 * channels * width else rounded
