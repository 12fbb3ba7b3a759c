"""Fine-tuning: the loop, and one file a regime that chooses what may change."""

from mergescope.training.full import full
from mergescope.training.linearized import Linearized, linearize, linearized_network
from mergescope.training.loop import fit, train
from mergescope.training.origins import origin_of, require_origin
from mergescope.training.recipe import PRESETS, Recipe, preset
from mergescope.training.regimes import REGIMES, Regime, TrainableRow, regime, trainable_table

__all__ = [
    "PRESETS",
    "REGIMES",
    "Linearized",
    "Recipe",
    "Regime",
    "TrainableRow",
    "fit",
    "full",
    "linearize",
    "linearized_network",
    "origin_of",
    "preset",
    "regime",
    "require_origin",
    "train",
    "trainable_table",
]
