"""What merges would do, predicted from derivatives at the base."""

from mergescope.protocols.prediction.expansion import Expansion, expand
from mergescope.protocols.prediction.gaps import measured_linearity, predicted_linearity
from mergescope.protocols.prediction.interactions import Interaction, interaction, interaction_matrix
from mergescope.protocols.prediction.predict import PredictionSettings, predict
from mergescope.protocols.prediction.result import PredictedTest, Prediction
from mergescope.protocols.prediction.surface import Outcome, predicted_logits, predicted_normalised
from mergescope.protocols.prediction.surfaces import Surface, pair_surface

__all__ = [
    "Expansion",
    "Interaction",
    "Outcome",
    "PredictedTest",
    "Prediction",
    "PredictionSettings",
    "Surface",
    "expand",
    "interaction",
    "interaction_matrix",
    "measured_linearity",
    "pair_surface",
    "predict",
    "predicted_linearity",
    "predicted_logits",
    "predicted_normalised",
]
