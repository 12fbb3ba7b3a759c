"""Weight space: checkpoints on disk or in memory, and points between them."""

from mergescope.weights.checkpoint import Checkpoint
from mergescope.weights.point import Point, TensorSource, TensorSpec, exact, lerp, mean, task_vector
from mergescope.weights.random import random_neighbour

__all__ = [
    "Checkpoint",
    "Point",
    "TensorSource",
    "TensorSpec",
    "exact",
    "lerp",
    "mean",
    "random_neighbour",
    "task_vector",
]
