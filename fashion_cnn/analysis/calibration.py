"""Calibration: whether a network is right as often as it is sure."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions


@dataclass(frozen=True)
class Reliability:
    """Images in bins of equal width by confidence.

    counts, confidence, accuracy: `(bins,)`, the number of images of each bin and the means over them, 0 where there
    are none.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence over the images.

        Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).
        """
        distance = (self.accuracy - self.confidence).abs()
        return ((distance * self.counts).sum() / self.counts.sum()).item()


def reliability(predictions: Predictions, bins: int = 15) -> Reliability:
    """Sort the images into `bins` bins by the confidence of their prediction."""
    confidence = predictions.confidence.double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = place.bincount(minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return place.bincount(values.double(), minlength=bins) / counts.clamp(min=1)

    return Reliability(counts, mean(confidence), mean(predictions.correct))


def plot_reliability(result: Reliability, axes: Axes, *, title: str, color: str) -> None:
    """Draw accuracy over confidence: on the diagonal a network is as often right as it claims."""
    counts, confidence, accuracy = (column.numpy() for column in (result.counts, result.confidence, result.accuracy))
    bins, filled = len(counts), counts > 0
    axes.bar(
        (np.arange(bins) + 0.5) / bins,
        counts / counts.sum(),
        width=0.9 / bins,
        color="#BBBBBB",
        label="share of the images",
    )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="as sure as right")
    axes.plot(confidence[filled], accuracy[filled], marker="o", color=color, label="accuracy")
    axes.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1), title=f"{title}: error {result.expected_error:.4f}")
    axes.legend(frameon=False, loc="upper left", fontsize="small")
