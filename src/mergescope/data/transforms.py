"""Image transforms, on tensors (torchvision is not needed)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate images counter-clockwise about their centre.

    Bilinear interpolation, zeros outside the image; 0 degrees returns the images unchanged.

    Args:
        images: ``(samples, channels, side, side)``.
        degrees: angle.

    Returns:
        The same shape.

    Example:
        >>> image = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> rotate(image, 90).round().squeeze()
        tensor([[0., 0.],
                [1., 0.]])
    """
    if degrees % 360 == 0:
        return images
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # affine_grid maps output to input coordinates (y points down): the inverse rotation.
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=images.dtype)
    turned = []
    for part in images.split(4096):
        grid = F.affine_grid(matrix.expand(len(part), 2, 3), list(part.shape), align_corners=False)
        turned.append(F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    return torch.cat(turned)
