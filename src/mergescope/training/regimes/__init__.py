"""Fine-tuning regimes: one file for each way to choose what may change."""

from mergescope.training.regimes.protocol import Regime
from mergescope.training.regimes.registry import REGIMES, regime
from mergescope.training.regimes.table import TrainableRow, trainable_table

__all__ = ["REGIMES", "Regime", "TrainableRow", "regime", "trainable_table"]
