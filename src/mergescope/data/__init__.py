"""Data: tasks with splits, the embedded digits, transforms."""

from mergescope.data.digits import class_pairs, digits, rotated
from mergescope.data.tasks import Split, Task, batches, stratified_split
from mergescope.data.transforms import rotate

__all__ = ["Split", "Task", "batches", "class_pairs", "digits", "rotate", "rotated", "stratified_split"]
