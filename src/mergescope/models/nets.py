"""Small research networks: CTL's MLP and ResNets, and a vision transformer that trains in seconds.

All keep their blocks in ``blocks`` and their classifier in ``head``, so ``layers="blocks"``
finds them, and all save and load as Hugging Face style directories (``config.json`` with a
``model_type`` of this package beside ``model.safetensors``).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mergescope.errors import CheckpointError, DataError, did_you_mean
from mergescope.models.efficientnet_lite import EfficientNetLite
from mergescope.models.resnet import ResNet


class MLP(nn.Module):
    """The multi-layer perceptron of CTL's Rotated MNIST (CTL Fig. 2): 784-100-100-10, ReLU.

    A block is a linear layer with its activation, so a block's output is the feature
    ``f^(l)`` of equations 1 to 3.

    Args:
        sizes: widths from input to output.

    Example:
        >>> MLP((784, 100, 100, 10))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    model_type = "mergescope-mlp"

    def __init__(self, sizes: tuple[int, ...] = (784, 100, 100, 10)) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"sizes": list(sizes)}
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in zip(sizes[:-2], sizes[1:-1], strict=True)
        )
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits.

        Args:
            x: images ``(batch, ...)``, flattened here.

        Returns:
            ``(batch, classes)``.

        Raises:
            DataError: the images have another number of pixels.
        """
        size, x = self.settings["sizes"][0], x.flatten(1)
        if x.shape[1] != size:
            raise DataError(
                f"This MLP takes {size} numbers a sample, got {x.shape[1]}. Resize the images, or make the network for "
                f"them: MLP(({x.shape[1]}, ...))."
            )
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Attention(nn.Module):
    """Multi-head self-attention with separate or packed query, key and value weights.

    Args:
        width: model width.
        heads: number of heads; divides the width.
        packed: one ``qkv`` matrix (as timm and GPT-2) in place of three (as Hugging Face).
    """

    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.packed = packed
        if packed:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            x: ``(batch, tokens, width)``.

        Returns:
            The same shape.
        """
        batch, tokens, width = x.shape
        if self.packed:
            parts = self.qkv(x).chunk(3, dim=-1)
        else:
            parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each with a residual connection.

    Args:
        width: model width.
        heads: attention heads.
        packed: packed query, key and value weights.
    """

    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, packed)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform tokens.

        Args:
            x: ``(batch, tokens, width)``.

        Returns:
            The same shape.
        """
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer with a class token and pre-norm blocks.

    Args:
        image: side of the square input in pixels.
        patch: side of a patch; divides ``image``.
        channels: input channels.
        width: model width.
        depth: number of blocks.
        heads: attention heads.
        classes: outputs.
        packed: packed query, key and value weights.

    Example:
        >>> ViT(width=32, depth=2)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    model_type = "mergescope-vit"

    def __init__(
        self,
        image: int = 28,
        patch: int = 7,
        channels: int = 1,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int = 10,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "image": image, "patch": patch, "channels": channels, "width": width, "depth": depth,
            "heads": heads, "classes": classes, "packed": packed,
        }  # fmt: skip
        self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 1 + (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, packed) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits from the class token.

        Args:
            x: images ``(batch, channels, image, image)``.

        Returns:
            ``(batch, classes)``.

        Raises:
            DataError: the images have another size or number of channels.
        """
        said = self.settings
        if x.shape[1:] != (said["channels"], said["image"], said["image"]):
            raise DataError(
                f"This ViT takes images [{said['channels']}, {said['image']}, {said['image']}], got "
                f"{list(x.shape[1:])}. Resize or convert the images, or make the network for them: "
                "ViT(image=..., channels=...)."
            )
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


NETS: dict[str, type[nn.Module]] = {
    MLP.model_type: MLP, ViT.model_type: ViT, ResNet.model_type: ResNet, EfficientNetLite.model_type: EfficientNetLite,
}  # fmt: skip
"""Networks by the ``model_type`` of their configuration."""

NOT_SETTINGS = ("model_type", "dtype", "torch_dtype")
"""What a configuration says beside a network's settings."""


def net_config(model: nn.Module) -> dict[str, Any]:
    """The ``config.json`` of one of these networks.

    Args:
        model: an [`MLP`][], [`ViT`][], [`ResNet`][mergescope.models.resnet.ResNet] or
            [`EfficientNetLite`][mergescope.models.efficientnet_lite.EfficientNetLite].

    Returns:
        Its model type and settings.

    Example:
        >>> net_config(MLP((4, 3, 2)))
        {'model_type': 'mergescope-mlp', 'sizes': [4, 3, 2]}
    """
    return {"model_type": model.model_type, **model.settings}  # type: ignore[dict-item]


def net_from_config(config: dict[str, Any]) -> nn.Module:
    """Build a network from its ``config.json``; weights are random.

    Args:
        config: as written by [`net_config`][].

    Returns:
        The network.

    Raises:
        CheckpointError: the network has no such setting, or can't be built from these.

    Example:
        >>> net_from_config({"model_type": "mergescope-mlp", "sizes": [4, 3, 2], "dtype": "float32"}).head
        Linear(in_features=3, out_features=2, bias=True)
    """
    kind = NETS[config["model_type"]]
    settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    known = list(inspect.signature(kind).parameters)
    for name in settings:
        if name not in known:
            raise CheckpointError(
                f"config.json: a {config['model_type']} has no setting {name!r}.{did_you_mean(name, known)} Its "
                f"settings are {', '.join(known)}."
            )
    lists = {key: tuple(value) for key, value in settings.items() if isinstance(value, list)}
    try:
        return kind(**settings | lists)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"config.json: no {config['model_type']} can be built from {settings!r:.300} ({error}). It is damaged: "
            "fetch or make the model again."
        ) from error
