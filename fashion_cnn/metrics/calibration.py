"""Calibration: whether a network is right as often as it is confident, and temperature scaling."""

import math
from dataclasses import dataclass

from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.metrics.predictions import Predictions

_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.05, 20.0
# How far from 1 the logarithm of a temperature is likely to be, before any image is seen.
_LOG_TEMPERATURE_DEVIATION = 0.5


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Images in bins of equal width by confidence.

    counts, confidence, accuracy: `(bins,)`, the number of images of each bin and the means over them, 0 where there
    are none.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def expected_calibration_error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence over the images.

        Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).
        """
        distance = (self.accuracy - self.confidence).abs()
        return ((distance * self.counts).sum() / self.counts.sum()).item()


def reliability_diagram(predictions: Predictions, bins: int = 15) -> ReliabilityDiagram:
    """Sort the images into `bins` bins by the confidence of their prediction."""
    confidence = predictions.confidence.double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = place.bincount(minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return place.bincount(values.double(), minlength=bins) / counts.clamp(min=1)

    return ReliabilityDiagram(counts, mean(confidence), mean(predictions.correct))


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
    """The temperature and the threshold that `predictions` give: call the share `reject` of these images none.

    Raises UserError where it is no share, 0 up to, but not, 1.
    """
    if not 0 <= reject < 1:
        raise UserError(
            f"reject={reject} is not possible: give a share of the validation images, 0 up to, but not, 1.", status=2
        )
    temperature = fit_temperature(predictions)
    return Calibration(temperature, rejection_threshold(predictions, temperature, reject))


def fit_temperature(predictions: Predictions) -> float:
    """The likeliest temperature of `predictions`, from 0.05 to 20: the cross-entropy is lowest there, but for a prior.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599). It changes no
    image's order of classes. Where a dozen images are all right, ever smaller temperatures would fit ever better: the
    prior keeps it near 1 there, and is nothing beside thousands of images. It is a Gamma distribution of the inverse
    of the temperature, whose minus logarithm is (1/T - 1 + log T) / 0.5², near 1 about (log T)² / (2 · 0.5²).
    """
    logits = predictions.logits.double()
    of_targets = logits.gather(1, predictions.targets[:, None])[:, 0]
    # Both are convex in the inverse of the temperature: the slope of their sum changes sign once.
    low, high = 1 / _HIGHEST_TEMPERATURE, 1 / _LOWEST_TEMPERATURE
    for _ in range(60):
        inverse = math.sqrt(low * high)
        expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
        slope = (expected - of_targets).sum() + (1 - 1 / inverse) / _LOG_TEMPERATURE_DEVIATION**2
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return 1 / math.sqrt(low * high)


def rejection_threshold(predictions: Predictions, temperature: float, share: float) -> float:
    """The calibrated probability of the likeliest class that the `share` of `predictions` stays below.

    share: 0 up to, but not, 1; for 0 it is 0, which nothing stays below.
    """
    if share == 0:
        return 0.0
    confidence = Calibration(temperature).probabilities(predictions.logits).amax(dim=1).sort().values
    return confidence[math.floor(share * len(confidence))].item()
