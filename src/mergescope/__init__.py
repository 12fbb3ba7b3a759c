"""mergescope: will these fine-tuned models merge? Measure it, merge them, and see why.

The public names, loaded on first use so that ``import mergescope`` and the command line are quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from mergescope._version import __version__ as __version__

_HOME = {
    "errors": ("MergescopeError",),
    "weights": ("Checkpoint", "Point", "lerp", "mean", "random_neighbour", "task_vector"),
    "merging": ("save",),
    "models": (
        "MLP",
        "ResNet",
        "ViT",
        "empty_model",
        "find_layers",
        "layer_choice",
        "load_gguf",
        "load_model",
        "load_weights",
        "reestimate_batchnorm",
    ),
    "tracing": ("Trace", "trace"),
    "readings": ("InnerProducts", "NextTokenLoss", "Outputs"),
    "protocols": (
        "HeldOut",
        "LinearityTest",
        "addition",
        "averaging",
        "barrier",
        "ctl",
        "linearity",
        "measure",
        "negation",
    ),
    "data": ("Split", "Task", "batches", "class_pairs", "digits", "rotated"),
    "training": ("Recipe", "fit", "full"),
}
_WHERE = {name: f"mergescope.{module}" for module, names in _HOME.items() for name in names}

__all__ = sorted([*_WHERE, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mergescope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
