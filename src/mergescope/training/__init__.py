"""Fine-tuning: the loop, and one file a regime that chooses what may change."""

from mergescope.training.full import full
from mergescope.training.loop import Recipe, fit

__all__ = ["Recipe", "fit", "full"]
