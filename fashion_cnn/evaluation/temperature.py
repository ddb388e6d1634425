"""Probabilities that can be believed, and how unsure is too unsure, both learned from the validation images."""

import math
from dataclasses import dataclass

from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.errors import UserError

# Where every image is right (or wrong), ever smaller (or larger) temperatures fit ever better.
_LEAST, _MOST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """How to read the logits of a network.

    temperature: what logits are divided by before the softmax. threshold: the probability of the likeliest class below
    which an image is none of the classes; 0 where a class is always named.
    """

    temperature: float = 1.0
    threshold: float = 0.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits `(N, C)`, in float64."""
        return (logits.double() / self.temperature).softmax(dim=1)


def calibrate(predictions: Predictions, *, reject: float = 0.0) -> Calibration:
    """The temperature and the threshold that `predictions` give: call the share `reject` of these images none."""
    temperature = fit_temperature(predictions)
    return Calibration(temperature, rejection_threshold(predictions, temperature, reject))


def fit_temperature(predictions: Predictions) -> float:
    """The temperature at which the cross-entropy of `predictions` is lowest, from 0.05 to 20.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599). It changes no
    image's order of classes.
    """
    logits = predictions.logits.double()
    of_targets = logits.gather(1, predictions.targets[:, None])[:, 0]
    # Cross-entropy is convex in the inverse of the temperature: its slope changes sign once.
    low, high = 1 / _MOST, 1 / _LEAST
    for _ in range(60):
        inverse = math.sqrt(low * high)
        expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
        low, high = (low, inverse) if (expected - of_targets).mean() > 0 else (inverse, high)
    return 1 / math.sqrt(low * high)


def rejection_threshold(predictions: Predictions, temperature: float, share: float) -> float:
    """The calibrated probability of the likeliest class that the `share` of `predictions` stays below.

    0, which nothing stays below, for a share of 0. Raises UserError for what is no share.
    """
    if not 0 <= share < 1:
        raise UserError(f"reject={share} is not possible: give a share of the validation images, 0 up to, but not, 1.")
    if share == 0:
        return 0.0
    confidence = Calibration(temperature).probabilities(predictions.logits).amax(dim=1).sort().values
    return confidence[math.floor(share * len(confidence))].item()
