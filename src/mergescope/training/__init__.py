"""Fine-tuning: the loop, and one file a regime that chooses what may change."""

from mergescope.training.full import full
from mergescope.training.loop import fit, train
from mergescope.training.recipe import PRESETS, Recipe, preset

__all__ = ["PRESETS", "Recipe", "fit", "full", "preset", "train"]
