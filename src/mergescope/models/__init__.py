"""Networks: loading them, where their layers are, and small ones for research."""

from mergescope.models.batchnorm import has_running_statistics, reestimate_batchnorm
from mergescope.models.gguf import load_gguf
from mergescope.models.layers import OUTPUT, find_layers, layer_choice
from mergescope.models.loading import empty_model, key_map, load_model, load_weights
from mergescope.models.nets import MLP, ViT, net_config

__all__ = [
    "MLP",
    "OUTPUT",
    "ViT",
    "empty_model",
    "find_layers",
    "has_running_statistics",
    "key_map",
    "layer_choice",
    "load_gguf",
    "load_model",
    "load_weights",
    "net_config",
    "reestimate_batchnorm",
]
