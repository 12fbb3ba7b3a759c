"""Data: tasks with splits, the embedded digits, transforms, and tables from anywhere as batches."""

from mergescope.data.digits import class_pairs, digits, rotated
from mergescope.data.encoded import Batches, encode
from mergescope.data.processors import load_processor
from mergescope.data.sources import load_table, parse_data_option
from mergescope.data.tasks import Split, Task, batches, stratified_split
from mergescope.data.transforms import rotate

__all__ = [
    "Batches",
    "Split",
    "Task",
    "batches",
    "class_pairs",
    "digits",
    "encode",
    "load_processor",
    "load_table",
    "parse_data_option",
    "rotate",
    "rotated",
    "stratified_split",
]
