"""Calibration of predicted probabilities: calibration error, temperature scaling and rejection threshold."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import Z_95, Interval
from fashion_cnn.metrics.predictions import Predictions

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
# Standard deviation of the prior on the logarithm of the temperature.
_LOG_TEMPERATURE_STD = 0.5
# Interval of the calibration error: number of bootstrap draws, and multiples of the observed error that are tested.
_DRAWS = 1000
_MULTIPLES = torch.linspace(0, 2, 41, dtype=torch.float64)


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Accuracy and confidence in confidence bins of equal width.

    Attributes:
        counts: `(bins,)`, the number of images in each bin.
        confidence: `(bins,)`, the mean confidence of each bin, 0 for an empty one.
        accuracy: `(bins,)`, the accuracy of each bin, 0 for an empty one.
        variance: `(bins,)`, the sampling variance of the bins' contributions to the calibration error.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    variance: Tensor

    @property
    def expected_calibration_error(self) -> float:
        """Mean of |accuracy - confidence| over the bins, weighted by their counts.

        Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).
        """
        return self._contributions.abs().sum().item()

    @property
    def _contributions(self) -> Tensor:
        return (self.accuracy - self.confidence) * self.counts / self.counts.sum()

    def calibration_error_interval(self) -> Interval:
        """95% interval of the expected calibration error over other images.

        The estimate is biased upwards, since the noise of each bin counts as error. Bootstrap percentiles would
        therefore rarely hold the true value of a well calibrated network. The interval is the smallest one that
        contains two others:

        - the normal interval of the bootstrap, whose lower bound alone is corrected for the bias (Efron and Tibshirani,
          "An Introduction to the Bootstrap", 1993, chapters 10 and 13);
        - each multiple of the observed error that a two-sided test at 5% does not reject: the true contributions of the
          bins are taken to be this multiple of the observed ones.

        The contributions of the bins are drawn from normal distributions. The simulations of tests/test_calibration.py
        check the coverage.
        """
        error = self.expected_calibration_error
        # Half an image per bin keeps bins without any variance from looking certain.
        variance = self.variance + 1 / (2 * self.counts.sum()) ** 2
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(_DRAWS, len(variance), dtype=torch.float64, generator=generator) * variance.sqrt()
        errors = (_MULTIPLES[:, None, None] * self._contributions + noise).abs().sum(2)
        low, high = errors.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
        bootstrap = errors[(_MULTIPLES - 1).abs().argmin()]
        half = Z_95 * bootstrap.std().item()
        bounds = [2 * error - bootstrap.mean().item() - half, error + half]
        bounds += (_MULTIPLES[(low <= error) & (error <= high)] * error).tolist()
        return Interval(error, max(0.0, min(bounds)), min(1.0, max(bounds)))


def reliability_diagram(predictions: Predictions, bins: int = 15) -> ReliabilityDiagram:
    """Group the images by the confidence of their prediction.

    Args:
        predictions: predictions of at least one image.
        bins: number of bins of equal width in (0, 1]; the lower edge of a bin belongs to the bin below.

    Returns:
        Counts, confidence and accuracy of the bins.
    """
    confidence = predictions.confidence.double()
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = bin_index.bincount(minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return bin_index.bincount(values.double(), minlength=bins) / counts.clamp(min=1)

    differences = predictions.correct.double() - confidence
    # The contribution of a bin is the mean over all images of the difference, which counts as 0 outside of the bin.
    contribution, square = (
        bin_index.bincount(differences**power, minlength=bins) / len(predictions) for power in (1, 2)
    )
    variance = (square - contribution**2) / len(predictions)
    return ReliabilityDiagram(counts, mean(confidence), mean(predictions.correct), variance)


@dataclass(frozen=True)
class Calibration:
    """Conversion of logits to calibrated probabilities.

    Attributes:
        temperature: the divisor of the logits before the softmax.
        threshold: an image whose highest probability is below it is rejected as none of the classes; 0 never rejects.
    """

    temperature: float = 1.0
    threshold: float = 0.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities `(N, C)` of logits `(N, C)`, in float64."""
        return (logits.double() / self.temperature).softmax(dim=1)


def calibrate(predictions: Predictions, *, reject: float = 0.0) -> Calibration:
    """Fit the temperature, and the threshold that rejects a fraction of the images.

    Args:
        predictions: predictions of the validation images.
        reject: the fraction of these images to reject, in [0, 1).

    Returns:
        Temperature and threshold.

    Raises:
        UserError: if `reject` is outside [0, 1).
    """
    if not 0 <= reject < 1:
        raise UserError(
            f"reject={reject} is not possible: give a fraction of the validation images in [0, 1).", status=2
        )
    temperature = fit_temperature(predictions)
    return Calibration(temperature, rejection_threshold(predictions, temperature, reject))


def fit_temperature(predictions: Predictions) -> float:
    """Fit the temperature, from 0.05 to 20, by maximum a posteriori estimation.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599). It preserves
    the order of the classes of each image.

    The prior is a Gamma distribution of the inverse temperature. Its negative logarithm, (1/T - 1 + log T) / 0.5², is
    about (log T)² / (2 · 0.5²) near T = 1. Without the prior, a dozen images that are all correct would be fitted best
    by T = 0. With thousands of images its influence is negligible.

    Args:
        predictions: predictions of images that the network was not trained on, such as the validation images.
    """
    logits = predictions.logits.double()
    target_logits = logits.gather(1, predictions.targets[:, None])[:, 0]
    # Loss and prior are convex in the inverse temperature, so the slope of their sum changes sign once: bisection.
    low, high = 1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE
    for _ in range(60):
        inverse = math.sqrt(low * high)
        expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
        slope = (expected - target_logits).sum() + (1 - 1 / inverse) / _LOG_TEMPERATURE_STD**2
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return 1 / math.sqrt(low * high)


def rejection_threshold(predictions: Predictions, temperature: float, fraction: float) -> float:
    """Quantile of the highest calibrated probability: a fraction of the images lies below.

    Args:
        predictions: predictions of the validation images.
        temperature: the divisor of the logits.
        fraction: the fraction of the images below the threshold, in [0, 1).

    Returns:
        The threshold; 0 if `fraction` is 0.
    """
    if fraction == 0:
        return 0.0
    confidence = Calibration(temperature).probabilities(predictions.logits).amax(dim=1).sort().values
    # A decimal fraction, as typed: the product of the floats 0.29 and 100 is below 29.
    return confidence[math.floor(Fraction(str(fraction)) * len(confidence))].item()
