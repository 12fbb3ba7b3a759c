"""ResNets for small images: the narrow ResNet-18 of MC-SGD and CTL, and ResNet-20 of CIFAR."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mergescope.errors import DataError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut around them (He et al. 2016).

    The shortcut is a 1x1 convolution with BatchNorm where width or stride change, else nothing.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
        running_statistics: of its BatchNorms.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, running_statistics: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, track_running_stats=running_statistics)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, track_running_stats=running_statistics)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs, track_running_stats=running_statistics),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform a map.

        Args:
            x: ``(batch, inputs, height, width)``.

        Returns:
            ``(batch, outputs, height / stride, width / stride)``.
        """
        inner = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(inner)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """A residual network with a 3x3 stem and basic blocks (He et al. 2016).

    By default the narrow ResNet-18 of Split CIFAR-100 (MC-SGD; CTL Figs 2, 3, 11):
    20 base channels, 1.1 M parameters. ``ResNet(stages=(3, 3, 3), width=16, classes=10)`` is ResNet-20
    (CTL C.2; 0.27 M, with convolutions as shortcuts).

    As in CTL, BatchNorm has no running statistics, so a sample's features depend on its batch, in
    evaluation as well: compare models on the same batches, of data that are not sorted by class. With
    running statistics they don't, but those of combined models must be re-estimated
    ([`reestimate_batchnorm`][mergescope.models.reestimate_batchnorm]).

    Args:
        image: side of the images that data are resized to; any size runs.
        channels: input channels.
        width: channels of the first stage; each further one has twice as many at half the resolution.
        stages: blocks in each stage. All are in one list ``blocks``.
        classes: outputs.
        running_statistics: whether BatchNorm keeps them.

    Example:
        >>> ResNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    model_type = "mergescope-resnet"

    def __init__(
        self,
        image: int = 32,
        channels: int = 3,
        width: int = 20,
        stages: tuple[int, ...] = (2, 2, 2, 2),
        classes: int = 100,
        running_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "image": image, "channels": channels, "width": width, "stages": list(stages), "classes": classes,
            "running_statistics": running_statistics,
        }  # fmt: skip
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=running_statistics),
            nn.ReLU(),
        )
        blocks, inputs = [], width
        for stage, count in enumerate(stages):
            for place in range(count):
                outputs, stride = width * 2**stage, 2 if stage and not place else 1
                blocks.append(BasicBlock(inputs, outputs, stride, running_statistics))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, from the mean over places.

        Args:
            x: images ``(batch, channels, height, width)``.

        Returns:
            ``(batch, classes)``.

        Raises:
            DataError: the images have another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != self.settings["channels"]:
            raise DataError(
                f"This ResNet takes images [{self.settings['channels']}, height, width], got {list(x.shape[1:])}. "
                "Convert the images, or make the network for them: ResNet(channels=...)."
            )
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
