"""Networks: loading them, where their layers are, task heads, and small networks for research."""

from mergescope.models.batchnorm import has_running_statistics, reestimate_batchnorm
from mergescope.models.gguf import load_gguf
from mergescope.models.heads import Head, linear_head, load_head, save_head
from mergescope.models.layers import OUTPUT, find_layers, layer_choice
from mergescope.models.loading import empty_model, key_map, load_model, load_weights
from mergescope.models.nets import MLP, ViT, net_config
from mergescope.models.resnet import ResNet
from mergescope.models.with_head import WithHead
from mergescope.models.zero_shot import zero_shot_head

__all__ = [
    "MLP",
    "OUTPUT",
    "Head",
    "ResNet",
    "ViT",
    "WithHead",
    "empty_model",
    "find_layers",
    "has_running_statistics",
    "key_map",
    "layer_choice",
    "linear_head",
    "load_gguf",
    "load_head",
    "load_model",
    "load_weights",
    "net_config",
    "reestimate_batchnorm",
    "save_head",
    "zero_shot_head",
]
