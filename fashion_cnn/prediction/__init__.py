"""What is on pictures that nobody has labelled."""

from fashion_cnn.prediction.answers import NONE_OF_THESE, Answer
from fashion_cnn.prediction.calibration import calibration_of, validation_predictions
from fashion_cnn.prediction.data_set import data_set_of
from fashion_cnn.prediction.predictor import Predictor
from fashion_cnn.prediction.trained import Seen, TrainedNetwork

__all__ = [
    "NONE_OF_THESE",
    "Answer",
    "Predictor",
    "Seen",
    "TrainedNetwork",
    "calibration_of",
    "data_set_of",
    "validation_predictions",
]
