"""Data: tasks with splits, the embedded digits, transforms, and tables from anywhere as batches."""

from mergescope.data.digits import class_pairs, digits, rotated
from mergescope.data.encoded import Batches, encode
from mergescope.data.processors import load_processor, load_tokenizer
from mergescope.data.prompts import Wording
from mergescope.data.registry import FAMILIES, TASKS, TaskSpec, task_spec
from mergescope.data.sources import load_table, parse_data_option
from mergescope.data.task_splits import class_words, load_split
from mergescope.data.tasks import Split, Task, batches, stratified_split
from mergescope.data.transforms import rotate

__all__ = [
    "FAMILIES",
    "TASKS",
    "Batches",
    "Split",
    "Task",
    "TaskSpec",
    "Wording",
    "batches",
    "class_pairs",
    "class_words",
    "digits",
    "encode",
    "load_processor",
    "load_split",
    "load_table",
    "load_tokenizer",
    "parse_data_option",
    "rotate",
    "rotated",
    "stratified_split",
    "task_spec",
]
